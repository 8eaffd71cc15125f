"""The recipes gpt, domain, finetune and scaling on a small text: what they promise."""

import json
import math
import os
import signal
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

from trivium.errors import UsageError
from trivium.language.engine import Engine
from trivium.language.generation import End, Request
from trivium.language.pretrained import load_pretrained
from trivium.language.transformer import Transformer
from trivium.models import load_checkpoint
from trivium.recipes import domain, finetune, gpt, scaling
from trivium.recipes.language_model import Held, Text, micro_batch
from trivium.recipes.molecules import VALENCE, smiles
from trivium.recipes.run import Stopped
from trivium.train import snapshots

SMALL: dict[str, Any] = {"depth": 1, "context": 32, "vocab_size": 400, "batch": 256}


def written(folder: Path, size: int) -> str:
    for number, name in enumerate(sorted(topics)[:12]):
        (folder / f"{number:02}.txt").write_text(topics[name][:size])
    return str(folder)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of real text, 40 kB in 12 files."""
    return written(tmp_path_factory.mktemp("book"), 4000)


@pytest.fixture(scope="module")
def base(book: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small GPT, which has learnt a little."""
    folder = tmp_path_factory.mktemp("runs") / "gpt"
    results = gpt.main(gpt.Config(data=book, out=str(folder), steps=30, **SMALL))
    assert results["bits per byte"] < 0.75 * math.log2(256)  # 8 bits would be no model at all
    return str(folder)


# -- gpt ------------------------------------------------------------------------------------------


def test_what_a_gpt_leaves(base: str, book: str) -> None:
    """A folder that generates, and whose bits per byte are those that it says."""
    folder = Path(base)
    loaded = load_pretrained(folder, precision="float32")
    *_, end = Engine(loaded).generate(Request(loaded.tokenizer.encode("The "), max_tokens=5))
    assert isinstance(end, End) and end.completion_tokens == 5
    results = json.loads((folder / "results.json").read_text())["results"]
    from trivium.data import documents

    text = Text(*documents(book).split(0.1), loaded.tokenizer)
    again = Held(text, length=32).bits_per_byte(loaded.model)
    assert again == pytest.approx(results["bits per byte"], abs=0.01)  # it was made in bfloat16
    assert (folder / "README.md").is_file() and (folder / "report.html").is_file()
    assert list((folder / "samples").glob("*.txt"))


def test_bits_per_byte_of_a_model_that_knows_nothing(base: str, book: str) -> None:
    """Every token takes log₂ V bits, and all bytes of the held-out texts are counted once."""
    from trivium.data import documents

    loaded = load_pretrained(Path(base), precision="float32")
    text = Text(*documents(book).split(0.1), loaded.tokenizer)
    held = Held(text, length=32)
    texts = list(text.held_out)
    tokens = sum(len(loaded.tokenizer.encode(own)) + 1 for own in texts)  # and the end of each
    assert held.bytes == sum(len(own.encode()) for own in texts)
    assert held.tokens == tokens
    with torch.no_grad():
        loaded.model.embedding.weight.zero_()
    expected = tokens * math.log2(loaded.model.config.vocab_size) / held.bytes
    assert held.bits_per_byte(loaded.model) == pytest.approx(expected, rel=1e-6)


def test_a_gpt_that_was_stopped_ends_the_same(
    book: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> dict[str, Any]:
        return gpt.main(gpt.Config(data=book, out=str(tmp_path / name), steps=6, **SMALL))

    whole = run("whole")
    judged = Held.bits_per_byte

    def stopping(self: Held, model: Any) -> float:
        if snapshots.newest(tmp_path / "stopped") is not None:
            os.kill(os.getpid(), signal.SIGINT)
        return judged(self, model)

    with monkeypatch.context() as patch:
        patch.setattr(Held, "bits_per_byte", stopping)
        with pytest.raises(Stopped, match="the same command goes on"):
            run("stopped")
    assert run("stopped") == whole
    assert run("stopped") == whole  # it is done: nothing is run again
    ours, theirs = (load_checkpoint(tmp_path / name).state_dict() for name in ("stopped", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(UsageError, match="steps"):
        gpt.main(gpt.Config(data=book, out=str(tmp_path / "whole"), steps=7, **SMALL))


def test_everything_follows_from_the_depth(base: str, book: str) -> None:
    from trivium.data import documents

    tokenizer = load_pretrained(Path(base), precision="float32").tokenizer
    text = Text(*documents(book).split(0.1), tokenizer)
    for depth in (1, 4, 12):
        config = gpt.Config(depth=depth, context=32)
        shape = gpt.model_config(depth, 32, 1000)
        assert (shape.width, shape.heads, shape.layers) == (64 * depth, depth, depth)
        parameters = 12 * shape.width**2 * depth
        plan, rows, size = gpt.plan_of(config, text, parameters, torch.device("cpu"))
        assert size == plan.accumulate * rows * 32
        tokens = plan.steps * size
        assert tokens <= 1.1 * min(20 * parameters, 4 * text.tokens)
        assert plan.learning_rate == pytest.approx(0.005 / math.sqrt(depth / 4))


@pytest.mark.parametrize(
    ("tokens", "length", "rows", "expected"),
    [
        (4096, 256, 0, (16, 1)),
        (8192, 256, 0, (16, 2)),
        (100, 256, 0, (1, 1)),
        (4096, 256, 2, (2, 8)),
    ],
)
def test_micro_batches(tokens: int, length: int, rows: int, expected: tuple[int, int]) -> None:
    assert micro_batch(tokens, length, torch.device("cpu"), rows) == expected


# -- domain ---------------------------------------------------------------------------------------


def test_a_domain_is_gained_and_the_rest_is_kept_by_its_share(
    base: str, book: str, tmp_path: Path
) -> None:
    (tmp_path / "molecules.jsonl").write_text("".join(f'"{text}"\n' for text in smiles(500)))
    settings: dict[str, Any] = {"steps": 15, "context": 32, "batch": 256, "learning_rate": 3e-3}
    config = domain.Config(
        data=str(tmp_path / "molecules.jsonl"),
        general=book,
        model=base,
        shares=(0.5, 1.0),
        out=str(tmp_path / "run"),
        **settings,
    )
    found = domain.main(config)
    assert found["domain, bits per byte after"] < found["domain, bits per byte before"]
    card = (tmp_path / "run" / "README.md").read_text()
    rows = {
        cells[1].strip(): cells
        for cells in (r.split("|") for r in card.splitlines())
        if len(cells) > 4
    }
    half, all_of_it = (float(rows[share][4]) for share in ("0.5", "1"))
    assert half < all_of_it  # with general text beside it, less of it is forgotten
    assert isinstance(load_checkpoint(tmp_path / "run"), Transformer)


def test_molecules_are_well_formed() -> None:
    made = list(smiles(300, seed=1))
    assert len(set(made)) == 300 and made == list(smiles(300, seed=1))
    assert list(smiles(5, seed=2)) != made[:5]
    for molecule in made:
        depth = 0
        for character in molecule:
            depth += {"(": 1, ")": -1}.get(character, 0)
            assert depth >= 0
        assert depth == 0
        assert all(molecule.count(digit) == 2 for digit in "1234" if digit in molecule)
    letters = set("".join(made))
    assert letters <= set("".join(VALENCE)) | set("cnosH[]()=1234")


# -- finetune -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("task") / "reviews.jsonl"
    rows = [
        {"text": f"The {what} was {how} on day {i}.", "label": label}
        for i in range(12)
        for what in ("class", "object", "string")
        for how, label in (("good", "yes"), ("bad", "no"))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_what_fine_tuning_costs(base: str, book: str, reviews: str, tmp_path: Path) -> None:
    config = finetune.Config(
        data=reviews,
        general=book,
        model=base,
        weights=(0.0, 1.0),
        epochs=4,
        rows=8,
        learning_rate=3e-3,
        out=str(tmp_path / "run"),
    )
    found = finetune.main(config)
    points = {
        (p["way"], p["weight"]): p
        for p in map(json.loads, (tmp_path / "run" / "points.jsonl").read_text().splitlines())
    }
    assert set(points) == {("probe", 0), ("lora", 0), ("full", 0), ("full", 1), ("replay", 0.5)}
    before = found["bits per byte before"]
    assert points["probe", 0]["bits_per_byte"] == pytest.approx(before)  # it forgets nothing
    assert points["full", 0]["bits_per_byte"] > points["replay", 0.5]["bits_per_byte"]
    assert points["probe", 0]["learnt"] < points["lora", 0]["learnt"] < points["full", 0]["learnt"]
    assert found["accuracy"] == max(p["accuracy"] for p in points.values()) > 0.9
    kept = load_checkpoint(tmp_path / "run")
    assert kept.config.classes == ("no", "yes")
    assert finetune.main(config) == found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ('{"text": "a", "label": "x"}\n{"text": "b"}\n', "record 2: expected a text and a label"),
        ('{"text": "a", "label": "x"}\nnot JSON\n', "line 2: not valid JSON"),
        ('{"text": "a", "label": "x"}\n' * 3, "all texts have the label 'x'"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n', "too few"),
    ],
)
def test_a_task_that_is_none(base: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").write_text(content)
    config = finetune.Config(
        data=str(tmp_path / "task.jsonl"), model=base, out=str(tmp_path / "run")
    )
    with pytest.raises(UsageError, match=said):
        finetune.main(config)


@pytest.mark.parametrize(
    ("right", "count", "expected"),
    [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1.0))],
)
def test_intervals_of_shares(right: int, count: int, expected: tuple[float, float]) -> None:
    assert finetune.wilson(right, count) == pytest.approx(expected, abs=1e-3)


# -- scaling --------------------------------------------------------------------------------------


def test_a_scaling_law(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    config = scaling.Config(
        data=written(tmp_path / "page", 1200),
        widths=(16, 32, 48, 64),
        layers=1,
        rounds=1,
        amounts=3,
        context=16,
        vocab_size=300,
        batch=512,
        bootstrap=8,
        out=str(tmp_path / "run"),
    )
    found = scaling.main(config)
    journal = tmp_path / "run" / "points.jsonl"
    points = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(points) == 12
    law = json.loads((tmp_path / "run" / "law.json").read_text())
    assert len(law["resampled"]) == 8 and law["law"]["alpha"] > 0
    assert found["largest error of the predictions"].endswith("%")
    (tmp_path / "run" / "results.json").unlink()
    journal.write_text("".join(json.dumps(point) + "\n" for point in points[:-1]))
    assert scaling.main(config) == found  # only the last run is made again, and ends the same
