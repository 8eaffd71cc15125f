"""Recurrences against PyTorch's own modules, and what they can and cannot remember."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trivium.language.losses import next_token
from trivium.language.recurrence import Spans
from trivium.language.recurrent import Recurrent, RecurrentConfig
from trivium.nn.attention import KVCache

VOCAB, WIDTH = 61, 24
PEERS = {"rnn": nn.RNN, "lstm": nn.LSTM}


def made(seed: int = 0, **config: Any) -> Recurrent:
    torch.manual_seed(seed)
    return Recurrent(RecurrentConfig(vocab_size=VOCAB, width=WIDTH, **config))


def random_ids(rows: int, length: int) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("cell", PEERS)
@pytest.mark.parametrize("layers", [1, 3])
def test_the_states_are_those_of_pytorch(cell: str, layers: int) -> None:
    """Read whole and step by step, with weights that are shared; in float64, 1e-12. (In float32 the
    order of summation alone makes 1e-6, of which three layers make more.)"""
    model = made(cell=cell, layers=layers).double()
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    ids, cache = random_ids(3, 20), KVCache()
    stepped = model.features(ids, cache)
    x = model.stem(model.embedding(ids))
    expected = torch.zeros_like(x)
    for i, ours in enumerate(model.layers):
        peer = PEERS[cell](WIDTH, WIDTH, batch_first=True, dtype=torch.float64)
        peer.load_state_dict(ours.state_dict())
        h, last = peer(x)
        x, expected = x + h, expected + h
        kept = cache.last(i)
        assert kept is not None
        for state, theirs in zip(kept, last if cell == "lstm" else (last, last), strict=True):
            torch.testing.assert_close(state[:, 0], theirs[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(model.features(ids), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_looking_back_is_attention_over_the_states() -> None:
    """Against the formula, one token at a time."""
    model = made(top="attention")
    ids = random_ids(1, 9)
    h, top = model.streams(ids, [1])[0][0], model.top
    for t, found in enumerate(model.features(ids)[0]):
        scores = (top.query.weight @ h[t]) @ h[: t + 1].T / WIDTH**0.5
        context = scores.softmax(0) @ h[: t + 1]
        expected = torch.tanh(top.out.weight @ torch.cat([context, h[t]]))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backwards", [False, True])
def test_spans_are_read_in_step(backwards: bool) -> None:
    segments = torch.tensor([[0, 0, 1, 1, 1, -1], [2, 3, 3, 3, 3, 3], [-1] * 6])
    order, sizes = Spans.of(segments, backwards=backwards)
    assert sizes.tolist() == [4, 3, 2, 1, 1]  # spans of 5, 3, 2 and 1 tokens
    first, second = order[:4].tolist(), order[4:7].tolist()
    assert first == ([11, 4, 1, 6] if backwards else [7, 2, 0, 6])
    assert second == ([10, 3, 0] if backwards else [8, 3, 1])
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_a_batch_of_padding_is_nothing() -> None:
    features = made().features(random_ids(2, 5), segments=torch.full((2, 5), -1))
    assert features.shape == (2, 5, WIDTH) and not features.any()


def gradient_back(model: Recurrent, steps: int) -> float:
    """How much the state now changes with the token `steps` before, against this one."""
    x = model.embedding(random_ids(1, steps + 1)).detach().requires_grad_()
    spans = Spans.whole(x[..., 0])
    (h,) = spans.read(model.layers, x[0])
    (grad,) = torch.autograd.grad(h[-1].sum(), x)
    return float(grad[0, 0].norm() / grad[0, -1].norm())


def test_a_fresh_lstm_remembers() -> None:
    """Its forget gates are open; half open (bias 0), they leave 2^−20 of what is 20 tokens back."""
    model = made(layers=1)
    assert gradient_back(model, 20) > 0.1
    with torch.no_grad():
        model.layers[0].bias_ih_l0.zero_()
    assert gradient_back(model, 20) < 1e-3


def recall(distance: int, rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Which of 8 tokens came first must be said again `distance` tokens later; noise between."""
    ids = torch.randint(10, 20, (rows, distance + 1), generator=generator)
    ids[:, 0] = torch.randint(8, (rows,), generator=generator)
    ids[:, -1] = 9  # asks
    targets = torch.full_like(ids, -100)
    targets[:, -1] = ids[:, 0]
    return {"ids": ids, "targets": targets}


@pytest.mark.parametrize("config", [{}, {"top": "attention"}])
def test_it_learns_what_is_20_tokens_back(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Recurrent(RecurrentConfig(vocab_size=20, width=32, layers=1, **config))
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(400):
        loss = next_token(model, recall(20, 32, rng))
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss.total / loss.weight < 0.02:
            break
    data = recall(20, 200, rng)
    with torch.no_grad():
        said = model(data["ids"])[:, -1].argmax(-1)
    assert (said == data["ids"][:, 0]).float().mean() > 0.95
    assert F.one_hot(data["ids"][:, 0]).float().mean(0).max() < 0.25  # no answer is a good guess
