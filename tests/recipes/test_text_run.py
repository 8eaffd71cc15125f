"""The recipes of language models, on a tiny text: two steps, all that is measured, and a folder
that is a model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trivium.errors import UsageError
from trivium.language.elmo import ElmoConfig
from trivium.language.engine import Engine
from trivium.language.generation import Request
from trivium.language.masking import fill as fill_in
from trivium.language.masking import load_masked
from trivium.language.pretrained import load_pretrained
from trivium.language.recurrent import RecurrentConfig
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import TransformerConfig
from trivium.language.xlnet import XLNetConfig
from trivium.models import load_checkpoint
from trivium.recipes.config import fill
from trivium.recipes.in_context import share_found
from trivium.recipes.loading import find

WRITES = ("rnn", "lstm", "lstm-attention", "elmo", "xlnet")
MEASURED = {
    "rnn": {"bits per byte"},
    "lstm": {"bits per byte"},
    "lstm-attention": {"bits per byte"},
    "elmo": {"bits per byte of both", "bits per byte", "bits per byte backwards"},
    "bert": {"masked loss", "masked accuracy"},
    "xlnet": {"permuted loss", "permuted accuracy", "bits per byte"},
}
SMALL = ["width=16", "layers=1", "context=32", "vocab_size=300", "steps=2", "batch=64"]
WORDS = [*"abcdefghij", "then", "it", "reads", "日本語", "text"]

Go = Callable[..., dict[str, Any]]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Runs a recipe on eight small files, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for i in range(8):
        lines = [" ".join(WORDS[(i * j + k) % len(WORDS)] for k in range(9)) for j in range(40)]
        (tmp_path / f"texts/{i}.txt").write_text("\n".join(lines))

    def run(name: str, *words: str) -> dict[str, Any]:
        config, main = find(name).load()
        heads = ["heads=2"] if name in ("bert", "xlnet") else []
        results: dict[str, Any] = main(fill(config, ["data=texts", *SMALL, *heads, *words]))
        return results

    return run


@pytest.mark.parametrize("name", MEASURED)
def test_a_run_leaves_a_model_and_what_it_is_worth(go: Go, tmp_path: Path, name: str) -> None:
    results = go(name)
    assert results.keys() >= MEASURED[name] | {"parameters", "best step", "of held-out bytes"}
    assert all(0 <= results[key] < 20 for key in MEASURED[name])
    folder = tmp_path / "runs" / name
    sizes = load_checkpoint(folder).config
    assert isinstance(sizes, RecurrentConfig | ElmoConfig | TransformerConfig | XLNetConfig)
    assert sizes.vocab_size == Tokenizer.from_folder(folder).vocab_size
    if name in WRITES:
        assert results["tokens it looks back"] in (1, 2, 4, 8, 16, 32)
        assert "How far back it looks" in (folder / "report.html").read_text()
        assert list((folder / "samples").iterdir())
        loaded = load_pretrained(folder, precision="float32")
        *tokens, _ = Engine(loaded).generate(Request(loaded.tokenizer.encode("the"), max_tokens=4))
        assert tokens
    else:
        guesses = fill_in(load_masked(folder), "the quick <|mask|> fox")
        assert len(guesses) == 1 and guesses[0][0].p > 0
    if name in ("elmo", "bert", "xlnet"):
        assert 0 <= results["halves found in context"] <= 1
    if name in ("bert", "xlnet"):
        assert "Words filled in" in (folder / "README.md").read_text()


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(go: Go, tmp_path: Path) -> None:
    """XLNet draws what it predicts; the drawing goes on with the run."""
    words = ["steps=6", "evaluate_every=2"]
    go("xlnet", *words, "out=whole")
    config, main = find("xlnet").load()

    class Stop(Exception):
        pass

    from trivium.recipes.run import Run

    evaluated, seen = Run.evaluated, []

    def once(run: Run, step: int, **numbers: float) -> None:
        evaluated(run, step, **numbers)
        seen.append(step)
        if seen == [2, 4]:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "evaluated", once)
        with pytest.raises(Stop):
            go("xlnet", *words, "out=halves")
        go("xlnet", *words, "out=halves")
    assert seen == [2, 4, 4, 6] or seen == [2, 4, 6]
    whole, halves = (load_checkpoint(tmp_path / name).state_dict() for name in ("whole", "halves"))
    assert all(torch.equal(tensor, halves[key]) for key, tensor in whole.items())


def test_another_model_is_drawn_beside(go: Go, tmp_path: Path) -> None:
    go("rnn")
    results = go("lstm", "compare=runs/rnn")
    assert "tokens rnn looks back" in results
    done = json.loads((tmp_path / "runs/lstm/results.json").read_text())
    assert done["results"]["tokens rnn looks back"] == results["tokens rnn looks back"]
    with pytest.raises(UsageError, match="nowhere"):
        go("lstm", "compare=nowhere", "out=runs/other")


@pytest.mark.parametrize("name", ["lstm", "bert"])
def test_a_dry_run_writes_nothing(go: Go, tmp_path: Path, name: str) -> None:
    assert go(name, "dry_run=yes")["memory_bytes"] > 0
    assert not (tmp_path / "runs").exists()


def test_halves_that_belong_together_are_found() -> None:
    vectors = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    assert share_found(vectors, vectors + 7) == 1.0  # what all have in common does not count
    assert share_found(vectors, vectors.roll(1, 0)) == 0.0
