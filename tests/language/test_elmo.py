"""ELMo against PyTorch's bidirectional LSTM, and that no direction sees what it predicts."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trivium.data import IGNORE
from trivium.language.elmo import Elmo, ElmoConfig, Mix, both_directions

VOCAB, WIDTH = 61, 16
SEGMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0, -1, -1]])


@pytest.fixture
def model() -> Elmo:
    torch.manual_seed(0)
    return Elmo(ElmoConfig(vocab_size=VOCAB, width=WIDTH))


def random_ids(rows: int, length: int) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_layers_are_those_of_pytorch(model: Elmo) -> None:
    """Two stacks of LSTMs, one over the reversed tokens; 1e-6."""
    ids = random_ids(3, 12)
    x = model.stem(model.embedding(ids))
    expected = [torch.cat([x, x], -1)]
    peers = []
    for cells in (model.ahead, model.back):
        peer = nn.ModuleList(nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in cells)
        peer.load_state_dict(cells.state_dict())
        peers.append(peer)
    ahead, back = x, x.flip(1)
    for forwards, backwards in zip(*peers, strict=True):
        ahead, back = ahead + forwards(ahead)[0], back + backwards(back)[0]
        expected.append(torch.cat([ahead - x, back.flip(1) - x], -1))
    for ours, theirs in zip(model.vectors(ids), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_loss_is_the_formula(model: Elmo) -> None:
    """Each token of a text given those before it, and given those behind it, one by one."""
    whole = random_ids(2, 9)
    ids, targets = whole[:, :-1].clone(), whole[:, 1:].clone()
    targets[SEGMENTS < 0] = IGNORE
    loss = both_directions(model, {"ids": ids, "targets": targets, "segments": SEGMENTS})
    ahead = back = 0.0
    for row, start, end in ((0, 0, 4), (0, 4, 7), (0, 7, 8), (1, 0, 6)):
        text = whole[row, start : end + 1]
        read = model.logits(model.features(text[None, :-1]))[0]
        ahead += float(F.cross_entropy(read, text[1:], reduction="sum"))
        read = model.logits(model.backward_features(text[None, 1:]))[0]
        back += float(F.cross_entropy(read, text[:-1], reduction="sum"))
    assert loss.weight == 14
    assert float(loss.total) == pytest.approx(ahead + back, rel=1e-5)
    assert float(loss.metrics["ahead"]) == pytest.approx(ahead, rel=1e-5)
    assert float(loss.metrics["back"]) == pytest.approx(back, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("direction", ["ahead", "back"])
@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_no_direction_sees_what_it_predicts(
    model: Elmo, direction: str, segments: Tensor | None
) -> None:
    """Change one token: which places notice."""
    read = model.features if direction == "ahead" else model.backward_features
    texts = torch.zeros(8) if segments is None else segments[0]
    ids = random_ids(1, 8)
    before = read(ids, segments=None if segments is None else segments[:1])
    for changed in range(8):
        other = ids.clone()
        other[0, changed] = (ids[0, changed] + 1) % VOCAB
        after = read(other, segments=None if segments is None else segments[:1])
        noticed = (before != after).any(-1)[0]
        later = torch.arange(8) >= changed if direction == "ahead" else torch.arange(8) <= changed
        assert torch.equal(noticed, later & (texts == texts[changed]))


def test_a_mix_learns_which_layer_helps(model: Elmo) -> None:
    """γ Σ softmax(s) · layer: the mean to begin with; weights sum to 1."""
    layers = model.vectors(random_ids(2, 8))
    mix = Mix(model.config.layers)
    torch.testing.assert_close(mix(layers), torch.stack(layers).mean(0))
    with torch.no_grad():
        mix.s[1], mix.gamma[()] = 50.0, 2.0
    torch.testing.assert_close(mix(layers), 2 * layers[1])


def test_every_weight_learns(model: Elmo) -> None:
    ids = random_ids(2, 8)
    both_directions(model, {"ids": ids, "targets": ids.roll(-1, 1)}).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
