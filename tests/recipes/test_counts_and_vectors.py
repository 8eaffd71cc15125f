"""The recipes tokenizer, ngram and word2vec, on a small text."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trivium.errors import NotFound, TriviumError, UsageError
from trivium.language import bpe, word2vec
from trivium.language.ngram import NGram
from trivium.language.tokenizer import Tokenizer
from trivium.language.word_vectors import WordVectors
from trivium.recipes import ngram as ngram_recipe
from trivium.recipes import tokenizer as tokenizer_recipe
from trivium.recipes import word2vec as word2vec_recipe

SENTENCES = (
    "the king and the queen wore a crown",
    "the dog and the cat chased a mouse",
    "a queen sat beside the king on a throne",
    "a cat slept beside the dog on a rug",
    "猫和狗在房子里 2024",
)


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Forty documents; a tenth of them is held out."""
    draw = random.Random(0)
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(40):
        lines = [draw.choice(SENTENCES) for _ in range(20)]
        (folder / f"{number:02}.txt").write_text("\n".join(lines))
    return str(folder)


def tokenizer(text: str, out: Path, **more: Any) -> dict[str, Any]:
    config = tokenizer_recipe.Config(data=text, out=str(out), vocab_size=300, **more)
    return tokenizer_recipe.main(config)


def ngram(text: str, out: Path, **more: Any) -> dict[str, Any]:
    config = ngram_recipe.Config(data=text, out=str(out), vocab_size=300, **{"order": 3} | more)
    return ngram_recipe.main(config)


WORDS = word2vec_recipe.Config(width=16, threads=1, epochs=4, min_count=2, subsample=0)


def vectors(text: str, out: Path, **more: Any) -> dict[str, Any]:
    return word2vec_recipe.main(replace(WORDS, data=text, out=str(out), **more))


RECIPES = {"tokenizer": tokenizer, "ngram": ngram, "word2vec": vectors}


def test_tokenizer(text: str, tmp_path: Path) -> None:
    bytes_alone = tmp_path / "bytes"
    bpe.train(["x"], 259).save(bytes_alone)
    results = tokenizer(text, tmp_path / "run", compare=(str(bytes_alone),))
    assert results["bytes per token"] > 1.5
    assert results[f"bytes per token of {bytes_alone}"] == 1
    made = Tokenizer.from_folder(tmp_path / "run")
    assert made.vocab_size == results["tokens"] == 300
    assert made.decode(made.encode(SENTENCES[-1])) == SENTENCES[-1]
    card = (tmp_path / "run/README.md").read_text()
    assert "bytes per token" in card and "| this one | 300 |" in card


def test_ngram(text: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    results = ngram(text, out)
    assert results["bits per byte of modified Kneser-Ney"] < results["bits per byte of add-one"]
    model, made = NGram.load(out), Tokenizer.from_folder(out)
    assert model.trie.vocab_size == made.vocab_size + 1 and model.begin == made.vocab_size
    ids = [model.begin, *made.encode("the king and the")]
    after = model.next(ids).argsort()[::-1][:3]
    assert any(made.decode([int(i)]) in (" queen", " q", " cat", " c") for i in after)
    assert "| modified Kneser-Ney |" in (out / "README.md").read_text()
    assert any((out / "samples").iterdir())


def test_ngram_of_one_smoothing(text: str, tmp_path: Path) -> None:
    compared = ngram(text, tmp_path / "all")
    alone = ngram(text, tmp_path / "one", smoothing="kneser-ney")
    assert alone["by"] == "Kneser-Ney, order 3"
    assert alone["bits per byte"] >= compared["bits per byte of Kneser-Ney"]
    assert "bits per byte of Katz" not in alone


def test_word2vec(text: str, tmp_path: Path) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text(": all\nking queen dog cat\nking queen none cat\n")
    out = tmp_path / "run"
    results = vectors(text, out, epochs=30, questions=str(questions), show=("king",))
    found = WordVectors.load(out)
    assert "king" in found and "猫" in found and len(found) == results["words"]
    assert results["analogies asked"] == 1
    assert found.similarity("king", "queen") > found.similarity("king", "mouse")
    assert (out / "words.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / word2vec_recipe.NUMBERS).exists() and not (out / word2vec.STATE).exists()
    assert "| king | " in (out / "README.md").read_text()


def test_word2vec_goes_on(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the third of four epochs; then the same command."""
    vectors(text, tmp_path / "whole")
    run, parts = word2vec.Learning.run, []

    def stopped(self: word2vec.Learning, numbers: Path) -> Any:
        for progress in run(self, numbers):
            yield progress
            parts.append(progress)
            if len(parts) == 2:
                raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(word2vec.Learning, "run", stopped)
        with pytest.raises(KeyboardInterrupt, match="after epoch 2, the same command goes on"):
            vectors(text, out)
    assert not (out / "vectors.bin").exists()
    vectors(text, out)
    expected = WordVectors.load(tmp_path / "whole")
    assert np.array_equal(WordVectors.load(out).matrix, expected.matrix)


@pytest.mark.parametrize("name", RECIPES)
def test_done_once(name: str, text: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = RECIPES[name](text, out)
    written = (out / "results.json").stat().st_mtime_ns
    assert RECIPES[name](text, out) == pytest.approx(first)
    assert (out / "results.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("name", RECIPES)
def test_dry_run_writes_nothing(name: str, text: str, tmp_path: Path) -> None:
    results = RECIPES[name](text, tmp_path / "run", dry_run=True)
    assert any("seconds" in key for key in results)
    assert not (tmp_path / "run").exists()


BROKEN = {
    "nothing there": (None, "no such file"),
    "empty": (b"", "is empty"),
    "not text": (b"\xff\xfe\x00", "not UTF-8|binary"),
    "a broken record": (b'{"text": "good"}\n{"text": \n', "line 2"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("name", RECIPES)
def test_bad_data(name: str, case: str, tmp_path: Path) -> None:
    content, said = BROKEN[case]
    path = tmp_path / ("data.jsonl" if case == "a broken record" else "data.txt")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((UsageError, NotFound), match=said) as caught:
        RECIPES[name](str(path), tmp_path / "run")
    assert isinstance(caught.value, TriviumError) and "\n" not in str(caught.value)
