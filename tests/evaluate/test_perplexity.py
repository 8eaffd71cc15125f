"""Perplexity: every token once, behind the right ones; a long text as if it were encoded whole."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from trivium.errors import TriviumError, UsageError
from trivium.evaluate import perplexity
from trivium.evaluate.likelihood import score
from trivium.evaluate.perplexity import Perplexity, measure, pieces
from trivium.language.engine import ContextOverflow, Engine
from trivium.language.tokenizer import Tokenizer

TEXT = "the quick brown fox 0123 jumps\n\n日本語 текст 🙂 over the lazy dog" * 5


def last(values: Iterator[Perplexity]) -> Perplexity:
    *_, value = values
    return value


def naive(engine: Engine, start: list[int], context: int, stride: int) -> list[float]:
    """−ln P of each token of the text, each window in one piece without a cache."""
    ids = engine.tokenizer.encode(TEXT)
    size, done = context - len(start), 0
    values: list[float] = []
    for begin in range(0, len(ids), stride):
        end = min(begin + size, len(ids))
        window = torch.tensor([start + ids[begin:end]])
        with torch.no_grad():
            logprobs = torch.log_softmax(engine.model(window)[0].double(), -1)
        for place in range(done, end):
            row = place - begin + len(start) - 1
            if row >= 0:
                values.append(-float(logprobs[row, ids[place]]))
        done = end
        if end == len(ids):
            return values
    return values


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "packed"])
def engine(request: pytest.FixtureRequest, make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(context=64, packed=request.param)


@pytest.mark.parametrize("with_start", [False, True])
@pytest.mark.parametrize(
    ("context", "stride"), [(64, 32), (64, 63), (64, 1), (17, 5), (2, 1), (33, 16)]
)
def test_windows_slide(
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    with_start: bool,
    context: int,
    stride: int,
) -> None:
    engine = make_engine(context=64)
    start = [engine.tokenizer.bos] if with_start else []
    monkeypatch.setattr(perplexity, "_start", lambda tokenizer: start)
    expected = naive(engine, start, context, stride)
    found = last(measure(engine, [TEXT], context=context, stride=stride))
    ids = engine.tokenizer.encode(TEXT)
    assert found.tokens == len(expected) == len(ids) - (not with_start)
    assert found.nll == pytest.approx(sum(expected), rel=1e-5)
    assert found.squares == pytest.approx(sum(x * x for x in expected), rel=1e-5)
    unscored = 0 if with_start else len(engine.tokenizer.token_bytes(ids[0]))
    assert found.bytes == len(TEXT.encode()) - unscored
    deviation = torch.tensor(expected).double().std()
    assert found.mean_error == pytest.approx(float(deviation) / len(expected) ** 0.5, rel=1e-5)


def test_the_figures() -> None:
    value = Perplexity(tokens=4, bytes=16, nll=8 * math.log(2), squares=16 * math.log(2) ** 2)
    assert value.perplexity == pytest.approx(4)
    assert (value.bits_per_token, value.bits_per_byte) == (pytest.approx(2), pytest.approx(0.5))
    assert value.mean_error == value.perplexity_error == 0  # all tokens alike
    assert Perplexity(1, 1, 1.0, 1.0).mean_error == 0


def test_few_logits_are_held(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = last(measure(engine, [TEXT]))
    from trivium.evaluate import likelihood

    rows = []
    extend = engine.extend
    monkeypatch.setattr(likelihood, "LOGITS", 3 * engine.model.config.vocab_size)
    monkeypatch.setattr(engine, "extend", lambda s, ids: rows.append(len(ids[0])) or extend(s, ids))
    pieces = last(measure(engine, [TEXT]))
    assert max(rows) == 3
    assert pieces.nll == pytest.approx(whole.nll, rel=1e-5)


def test_running_values_grow(engine: Engine) -> None:
    values = list(measure(engine, iter(TEXT), context=32, stride=16))
    assert len(values) > 5
    for earlier, later in zip(values, values[1:], strict=False):
        assert earlier.tokens <= later.tokens and earlier.nll <= later.nll
    assert values[-2] == replace(values[-1], bytes=values[-2].bytes)  # the whole text
    assert values[-2].bytes == values[-1].bytes  # byte-level tokens spell it exactly


@pytest.mark.parametrize(
    ("texts", "settings", "said"),
    [
        ([], {}, "the text is empty"),
        (["", ""], {}, "the text is empty"),
        (["a"], {}, "a single token"),
        ([TEXT], {"context": 65}, "holds 2 to 64 tokens, not 65"),
        ([TEXT], {"context": 1}, "not 1"),
        ([TEXT], {"stride": 64}, "the stride is 1 to 63 tokens, not 64"),
        ([TEXT], {"stride": 0}, "not 0"),
    ],
)
def test_what_cannot_be_measured(
    engine: Engine, texts: list[str], settings: dict[str, int], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        list(measure(engine, texts, **settings))


def test_broken_weights_are_named(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(seed=3)
    with torch.no_grad():
        next(engine.model.layers.parameters()).fill_(math.nan)
    with pytest.raises(TriviumError, match="weights are broken"):
        list(measure(engine, [TEXT]))


# -- long texts -------------------------------------------------------------------------------


def sentencepiece() -> Tokenizer:
    """As Llama 2 has it: a space before the text, no cutting of words, bytes for the rest."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    merges = []
    for left, right in [("a", "b"), ("▁", "a"), ("▁", "ab"), ("▁", "▁"), ("▁▁", "▁▁")]:
        for token in (left, right, left + right):
            vocabulary.setdefault(token, len(vocabulary))
        merges.append((left, right))
    library = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(library, bos=None, eos=None, pad=None)


def byte_level(pattern: str) -> Tokenizer:
    texts = ["ab abc  ab\n\nabc 123, 45.\r\n ab\t日本語🙂 don't\n"] * 9
    return Tokenizer.train(texts, 290, pattern=pattern)


TOKENIZERS = {
    "digits": byte_level("digits"),
    "gpt2": byte_level("gpt-2"),
    "llama-3": byte_level("llama-3"),
    "sentencepiece": sentencepiece(),
}
WORDS = ["ab", "a", "abc", "123", "4", " ", "  ", "\n", "\n\n", ", ", ".", "日本", "🙂", "'s", "\t"]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.lists(st.sampled_from(WORDS), max_size=60), st.integers(4, 40), st.integers(1, 30))
def test_a_text_in_parts(name: str, words: list[str], size: int, width: int) -> None:
    """However it comes: nothing is lost, and the ids are those of the whole text, if a border can
    be found in each piece."""
    tokenizer, text = TOKENIZERS[name], "".join(words)
    parts = [text[i : i + width] for i in range(0, len(text), width)]
    cut = list(pieces(parts, size))
    assert "".join(cut) == text
    assert all(0 < len(piece) <= size for piece in cut)
    by_chance = any(
        not (left.endswith("\n") and not right[0].isspace())
        and not (right[0] == " " and not left[-1].isspace() and not right[1:2].isspace())
        for left, right in zip(cut, cut[1:], strict=False)
    )
    if not by_chance:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(perplexity, "pieces", lambda parts: iter(cut))
            ids = perplexity._Text(tokenizer, parts)
            assert list(ids) == tokenizer.encode(text)
            assert ids.bytes == len(text.encode())


# -- likelihood -------------------------------------------------------------------------------


def test_scores_are_those_of_the_engine(engine: Engine) -> None:
    ids = engine.tokenizer.encode(TEXT)[:40]
    known, targets = ids[:7], ids[7:]
    scored = score(engine, known, targets, top=3)
    assert [token.id for token in scored] == targets
    (expected,) = engine.score(known, [targets])
    assert [token.logprob for token in scored] == pytest.approx(expected, rel=1e-5)
    for token in scored:
        values = [value for _, value in token.top]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert token.logprob <= values[0] + 1e-6
        assert all(value == token.logprob for id, value in token.top if id == token.id)
    assert score(engine, known, targets[:1], top=0)[0].top == ()
    assert score(engine, known, []) == []
    assert len(score(engine, known, targets[:1], top=9999)[0].top) == engine.tokenizer.vocab_size
    with pytest.raises(ContextOverflow):
        score(engine, known, [1] * 60)


def test_scoring_is_kept_for_what_follows(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    ids = engine.tokenizer.encode(TEXT)[:40]
    score(engine, ids[:1], ids[1:])
    slot, cached = engine.slots.acquire(ids)
    assert cached == len(ids) - 1
