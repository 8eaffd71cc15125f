"""What a language model must do so that the engine, the losses and the measures serve it, whatever
it is made of: cached = uncached, packed = unpacked, generation token by token. (The Transformer has
tests of its own.)"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trivium.language.elmo import Elmo, ElmoConfig
from trivium.language.engine import Engine
from trivium.language.generation import Request
from trivium.language.losses import next_token
from trivium.language.pretrained import LanguageModel
from trivium.language.recurrent import Recurrent, RecurrentConfig
from trivium.language.tokenizer import Tokenizer
from trivium.language.xlnet import XLNet, XLNetConfig
from trivium.nn.attention import KVCache

SIZES: dict[str, Any] = {"context": 96, "width": 32, "layers": 2}
MODELS: dict[str, Callable[[int], Any]] = {
    "rnn": lambda v: Recurrent(RecurrentConfig(v, **SIZES, cell="rnn")),
    "lstm": lambda v: Recurrent(RecurrentConfig(v, **SIZES)),
    "lstm-untied": lambda v: Recurrent(RecurrentConfig(v, **SIZES, tied=False)),
    "lstm-attention": lambda v: Recurrent(RecurrentConfig(v, **SIZES, top="attention")),
    "elmo": lambda v: Elmo(ElmoConfig(v, **SIZES)),
    "xlnet": lambda v: XLNet(XLNetConfig(v, **SIZES, heads=4, hidden=48)),
}
TEXTS = ["the quick brown fox jumps over the lazy dog 0123456789"] * 20
TOLERANCE = 1e-6  # of the largest value, times a few operations in another order


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture(params=MODELS, scope="module")
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Any:
    torch.manual_seed(0)
    made = MODELS[request.param](tokenizer.vocab_size).eval()
    with torch.no_grad():  # far from uniform, so that a wrong token shows
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def random_ids(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(3, 290, (rows, length), generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


@torch.no_grad()
def test_cached_equals_uncached(model: Any) -> None:
    """Uneven pieces, single tokens, and a truncation: as if read at once."""
    ids = random_ids(2, 40)
    expected, cache = model(ids), KVCache()
    pieces = [model(ids[:, a:b], cache) for a, b in ((0, 7), (7, 20), (20, 21), (21, 25))]
    cache.truncate(22)
    pieces[-1] = pieces[-1][:, :1]
    twin = cache.copy(10)
    pieces += [model(ids[:, i : i + 1], cache) for i in range(22, 40)]
    assert relative(torch.cat(pieces, 1), expected) < 5 * TOLERANCE
    twin.follow(cache, 30)
    assert relative(model(ids[:, 30:], twin), expected[:, 30:]) < 5 * TOLERANCE


SEGMENTS = torch.tensor([[0] * 9 + [1] * 4 + [2] * 17, [3] * 1 + [4] * 22 + [-1] * 7])
TEXT_PLACES = [(0, 0, 9), (0, 9, 13), (0, 13, 30), (1, 0, 1), (1, 1, 23)]


def test_packed_equals_unpacked(model: Any) -> None:
    """Features and gradients of texts that share a row are those of each in a row of its own."""
    ids = random_ids(2, 30)
    weight = torch.randn(2, 30, model.config.width, generator=torch.Generator().manual_seed(2))
    packed = model.features(ids, segments=SEGMENTS)
    alone = [model.features(ids[r : r + 1, a:b])[0] for r, a, b in TEXT_PLACES]
    for features, (r, a, b) in zip(alone, TEXT_PLACES, strict=True):
        assert relative(packed[r, a:b], features) < 5 * TOLERANCE
    together = sum((packed[r, a:b] * weight[r, a:b]).sum() for r, a, b in TEXT_PLACES)
    apart = sum(
        (features * weight[r, a:b]).sum()
        for features, (r, a, b) in zip(alone, TEXT_PLACES, strict=True)
    )
    ours, theirs = (
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for loss in (together, apart)
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            assert relative(mine, other) < 20 * TOLERANCE


@torch.no_grad()
def test_padding_is_not_seen(model: Any) -> None:
    ids, real = random_ids(2, 12), torch.ones(2, 12, dtype=torch.bool)
    real[0, 7:] = False
    padded = model.features(ids, real=real)
    assert relative(padded[0, :7], model.features(ids[:1, :7])[0]) < 5 * TOLERANCE
    assert relative(padded[1], model.features(ids[1:])[0]) < 5 * TOLERANCE


def test_the_loss_has_finite_gradients(model: Any) -> None:
    ids = random_ids(2, 30)
    loss = next_token(model, {"ids": ids, "targets": ids.roll(-1, 1), "segments": SEGMENTS})
    loss.total.backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert found and all(bool(grad.isfinite().all()) for grad in found)
    model.zero_grad()


def engine_of(model: Any, tokenizer: Tokenizer) -> Engine:
    return Engine(LanguageModel("tiny", model, tokenizer, None, "float32"))


@torch.no_grad()
def greedy(engine: Engine, prompt: list[int], count: int) -> list[int]:
    """Token by token, everything computed anew each time."""
    ids = list(prompt)
    for _ in range(count):
        best = int(engine.model(torch.tensor([ids]))[0, -1].argmax())
        if best in engine.tokenizer.stop_ids:
            break
        ids.append(best)
    return ids[len(prompt) :]


def test_the_engine_generates(model: Any, tokenizer: Tokenizer) -> None:
    """From the cache, and with the beginning of an earlier prompt."""
    engine = engine_of(model, tokenizer)
    for prompt, cached in (([5, 6, 7, 8] * 8, 0), ([5, 6, 7, 8] * 5 + [9, 10, 11], 20)):
        *tokens, end = engine.generate(Request(prompt, max_tokens=12))
        assert [token.id for token in tokens] == greedy(engine, prompt, 12)
        assert end.cached_tokens == cached


def test_the_engine_scores(model: Any, tokenizer: Tokenizer) -> None:
    engine, prompt = engine_of(model, tokenizer), [50, 60, 70]
    for continuation, scores in zip(
        ([5], [6, 7, 8]), engine.score(prompt, [[5], [6, 7, 8]]), strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + continuation]))[0].log_softmax(-1)
        expected = [float(logits[len(prompt) + i - 1, t]) for i, t in enumerate(continuation)]
        assert scores == pytest.approx(expected, abs=1e-4)


def test_features_do_not_depend_on_the_batch(model: Any, tokenizer: Tokenizer) -> None:
    engine, texts = engine_of(model, tokenizer), ["fox", "the lazy dog jumps", "quick brown"]
    together = engine.features(texts, [0, 1], before="the ", after=" dog")
    for text, row in zip(texts, together, strict=True):
        alone = engine.features([text], [0, 1], before="the ", after=" dog")[0]
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-5)
