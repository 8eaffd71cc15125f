"""Tokenizers made from a text: nothing is lost, and what they cost."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from trivium.data import documents
from trivium.errors import NotFound, TriviumError, UsageError
from trivium.language import bpe
from trivium.language.tokenizer import Tokenizer

TEXT = "the cat sat on the mat, the cats that sat. In 1984: 2024 cats. 猫坐在垫子上。 " * 30
TOKENIZER = bpe.train([TEXT], 330)
CHINESE = "体验2D巅峰 倚天屠龙记十大创新概览\n同步A股首秀：港股缩量回调"


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    "text", [CHINESE, "👩‍👩‍👧 e\u0301 \u200b\0\r\n", "<|endoftext|><|im_end|>"]
)
def test_texts_in_many_scripts(text: str) -> None:
    (ids,) = TOKENIZER.encode_many([text])
    assert ids == TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert not set(ids) & TOKENIZER.special_ids


def test_each_digit_is_a_token() -> None:
    assert [TOKENIZER.decode([i]) for i in TOKENIZER.encode("1984")] == list("1984")


def test_the_first_merges_are_the_most_frequent_pairs() -> None:
    """Against the algorithm written out, on words whose pairs are not equally frequent."""
    words = {"aab": 20, "abbc": 11, "bc": 6, "cd": 2}
    text = " ".join(word for word, many in words.items() for _ in range(many))
    spelled = {tuple("\u0120" + word): many for word, many in words.items()}
    first = next(iter(words))
    spelled[tuple("\u0120" + first)] -= 1  # the very first word has no space before it
    spelled[tuple(first)] = 1
    merges = []
    for _ in range(4):
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, many in spelled.items():
            for pair in zip(symbols, symbols[1:], strict=False):
                pairs[pair] += many
        best = max(pairs, key=lambda pair: pairs[pair])
        assert list(pairs.values()).count(pairs[best]) == 1, "a tie decides nothing"
        merges.append(list(best))
        spelled = {_joined(symbols, best): many for symbols, many in spelled.items()}
    spec = json.loads(bpe.train([text], 256 + 3 + 4).to_json())
    assert spec["model"]["merges"] == merges


def _joined(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def test_cost() -> None:
    bytes_alone = bpe.train(["x"], 259)
    found = bpe.cost(bytes_alone, [CHINESE, "ab"])
    size = len(CHINESE.encode()) + 2
    assert (found.bytes, found.tokens, found.characters) == (size, size, len(CHINESE) + 2)
    assert bpe.cost(TOKENIZER, [TEXT]).bytes_per_token > 2 * found.bytes_per_token


def test_a_larger_vocabulary_needs_fewer_tokens() -> None:
    train, held_out = documents(None).split(0.1)
    costs = [bpe.cost(bpe.train(train, size), held_out).tokens for size in (512, 1024, 2048)]
    assert costs == sorted(costs, reverse=True) and costs[0] > 1.3 * costs[2]


def test_long_texts_are_cut_without_loss() -> None:
    long = "word and word\n" * 20_000
    parts = list(bpe.pieces([long, "", "x" * 200_000]))
    assert "".join(parts) == long + "x" * 200_000
    assert max(map(len, parts)) <= bpe.PIECE
    ids = [i for part in TOKENIZER.encode_many(list(bpe.pieces([long]))) for i in part]
    assert ids == TOKENIZER.encode(long)


def test_a_tokenizer_that_loses_something_is_found_out() -> None:
    class Lossy:
        def encode_many(self, texts: list[str]) -> list[list[int]]:
            return [[1] for _ in texts]

        def decode(self, ids: list[int]) -> str:
            return "?"

    with pytest.raises(TriviumError, match="loses"):
        bpe.cost(Lossy(), ["abc"])  # type: ignore[arg-type]


def test_saved_for_others(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    for text in (TEXT, CHINESE):
        assert theirs.encode(text) == again.encode(text) == TOKENIZER.encode(text)
        assert theirs.decode(theirs.encode(text)) == text
    assert theirs.eos_token == "<|endoftext|>" and again.eos == 0


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_the_files_of_gpt2(names: tuple[str, str], tmp_path: Path) -> None:
    ours = bpe.train([TEXT], 330, pattern="gpt-2")
    model = json.loads(ours.to_json())["model"]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (tmp_path / names[0]).write_text(json.dumps(model["vocab"]))
    (tmp_path / names[1]).write_text("\n".join(lines))
    found = bpe.published(tmp_path)
    assert found.encode(TEXT) == ours.encode(TEXT)
    assert bpe.cost(found, [TEXT, CHINESE]) == bpe.cost(ours, [TEXT, CHINESE])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda p: bpe.train([], 300), "no text"),
        (lambda p: bpe.train([TEXT], 100), "too small"),
        (lambda p: bpe.train([TEXT], 300, pattern="none"), "known: "),
        (lambda p: bpe.train([TEXT], 300, special=()), "special token"),
        (lambda p: bpe.cost(TOKENIZER, []), "no text"),
        (lambda p: bpe.published(p / "nowhere"), "no such folder"),
        (lambda p: bpe.published(p), "no tokenizer.json"),
        (lambda p: _half_of_gpt2(p), "merges.txt"),
    ],
)
def test_what_is_wrong(wrong: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, NotFound), match=said):
        wrong(tmp_path)


def _half_of_gpt2(folder: Path) -> Tokenizer:
    (folder / "vocab.json").write_text('{"a": 0}')
    return bpe.published(folder)
