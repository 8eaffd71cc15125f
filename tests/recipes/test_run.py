"""A run's folder: what is in it, how it goes on, and who may not use it."""

import fcntl
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.torchrun import torchrun
from torch import nn

from trivium.errors import UsageError
from trivium.files import read_json
from trivium.recipes import folder, metrics
from trivium.recipes.config import fill
from trivium.recipes.estimate import Live, estimate
from trivium.recipes.hardware import flops_per_token, free_memory, peak_flops, used_memory
from trivium.recipes.loading import find
from trivium.recipes.progress import Progress, Speed, duration, plain
from trivium.recipes.run import Stopped
from trivium.train import Loss, TrainConfig

TINY = Path(__file__).parent / "tiny.py"
Go = Callable[..., dict[str, Any]]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Runs the tiny recipe in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # its pictures take long
    config, main = find(str(TINY)).load()

    def run(*words: str, disturb: str = "") -> dict[str, Any]:
        monkeypatch.setenv("TINY", disturb)
        results: dict[str, Any] = main(fill(config, words))
        return results

    return run


def steps_of(path: Path) -> list[int]:
    return [row["step"] for row in metrics.read(path / "metrics.jsonl") if "loss" in row]


def test_a_run_leaves_all_that_was_measured(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = go()
    place = tmp_path / "runs/tiny"
    assert {path.name for path in place.iterdir()} >= {
        *("recipe.json", "metrics.jsonl", "results.json", "report.html", "README.md"),
        *("samples", "snapshots"),
    }
    assert steps_of(place) == [1, 2, 3, 4, 5, 6]
    row = metrics.read(place / "metrics.jsonl")[0]
    assert set(row) == {"step", "loss", "size", "learning_rate", "grad_norm", "tokens", "seconds"}
    record = read_json(place / "recipe.json")
    assert record["recipe"] == "tiny" and record["config"]["steps"] == 6
    assert set(record["versions"]) == {"trivium", "python", "torch"}
    assert record["data"]["training"]["hash"].startswith("sha256:")
    assert record["data"]["training"]["licence"] == "PSF-2.0"
    done = read_json(place / "results.json")
    assert done["results"] == results and results["nothing"] is None
    assert done["facts"]["flops"] == 12 * 4 * 6
    assert (place / "samples/00000002.txt").read_text().startswith("<script>")
    said = capsys.readouterr().err
    assert "training data: the language reference inside CPython" in said
    assert "tiny  step 1 of 6  loss " in said and "tiny  step 6 of 6" in said
    assert "curves.png is left out: it needs matplotlib (pip install 'trivium[plot]')" in said
    assert "\x1b" not in said and not (place / "curves.png").exists()


def test_the_same_command_returns_the_results(go: Go, tmp_path: Path) -> None:
    results = go("out=here")
    before = (tmp_path / "here/metrics.jsonl").read_bytes()
    assert go("out=here", "device=cpu") == results
    assert (tmp_path / "here/metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("disturb, left", [("crash:5", 5), ("interrupt:5", 5), ("crash:1", 1)])
def test_a_run_that_broke_off_goes_on(go: Go, tmp_path: Path, disturb: str, left: int) -> None:
    whole = go("out=whole")
    with pytest.raises((RuntimeError, Stopped)):
        go("out=broken", disturb=disturb)
    place = tmp_path / "broken"
    assert steps_of(place) == list(range(1, left + 1)) and not (place / "results.json").exists()
    (place / "samples").mkdir(exist_ok=True)
    with (place / "metrics.jsonl").open("a") as file:  # what a crash can leave behind
        file.write('{"step": 99, "loss": 1}\n{"step": 6, "lo')
    (place / "samples/00000099.txt").write_text("of a step that is made again")
    assert go("out=broken") == whole
    assert steps_of(place) == [1, 2, 3, 4, 5, 6]
    assert not (place / "samples/00000099.txt").exists()
    values = [
        metrics.series(metrics.read(tmp_path / n / "metrics.jsonl")) for n in ("whole", "broken")
    ]
    assert values[0]["loss"] == values[1]["loss"]
    assert values[0]["validation_loss"] == values[1]["validation_loss"]


def test_ctrl_c_says_how_to_go_on(go: Go) -> None:
    with pytest.raises(Stopped) as raised:
        go("out=x", disturb="interrupt:3")
    expected = "stopped after step 3 of 6: saved in x, the same command goes on"
    assert str(raised.value) == expected


def test_another_run_is_not_overwritten(go: Go, tmp_path: Path) -> None:
    go("out=x")
    with pytest.raises(UsageError) as raised:
        go("out=x", "steps=7", "learning_rate=0.2")
    said = str(raised.value)
    assert "steps=6 there, 7 here; learning_rate=0.1 there, 0.2 here" in said
    assert "out=" in said and "fresh=yes" in said
    go("out=x", "steps=7", "fresh=yes")
    assert steps_of(tmp_path / "x") == [1, 2, 3, 4, 5, 6, 7]
    assert steps_of(tmp_path / "x.old-1") == [1, 2, 3, 4, 5, 6]
    go("out=x", "fresh=yes")
    assert steps_of(tmp_path / "x.old-2") == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_that_made_nothing_is_replaced(go: Go, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text")
    with pytest.raises(UsageError, match="steps is between"):
        go("out=x", "data=a.txt", "steps=-1")
    (tmp_path / "a.txt").write_text("another text")
    go("out=x", "data=a.txt", "steps=2")
    assert steps_of(tmp_path / "x") == [1, 2]


def test_other_data_are_noticed(go: Go, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text")
    with pytest.raises(RuntimeError):
        go("out=x", "data=a.txt", disturb="crash:3")
    (tmp_path / "a.txt").write_text("another text")
    with pytest.raises(UsageError, match="the training data are not those that the run in x began"):
        go("out=x", "data=a.txt")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: p.write_text("mine"), "x is a file, not a folder"),
        (lambda p: (p.mkdir(), (p / "mine.txt").touch()), r"x holds other files \(mine.txt\)"),
        (lambda p: (p.mkdir(), (p / "recipe.json").write_text("{")), "recipe.json: not valid JSON"),
        (
            lambda p: (
                p.mkdir(),
                (p / "recipe.json").write_text('{"recipe": "gpt"}'),
                (p / "w").touch(),
            ),
            "x holds a run of 'gpt', not 'tiny'",
        ),
    ],
)
def test_folders_that_are_something_else(
    make: Callable[[Path], object], message: str, go: Go, tmp_path: Path
) -> None:
    make(tmp_path / "x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=message):
        go("out=x")
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != ".lock"] == before


def test_a_second_process_is_refused(go: Go, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with (tmp_path / "x/.lock").open("w") as file:
        file.write("4711")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=r"another process \(process 4711\) runs in x: wait"):
            go("out=x")
    go("out=x")
    with (tmp_path / "x/.lock").open("w") as file:  # it is given back at the end
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_lock_is_held_while_it_runs(go: Go, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        go("out=x", disturb="crash:1")
    with (tmp_path / "x/.lock").open("r+") as file:
        assert file.read() == str(os.getpid())
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    folder.release(tmp_path / "x")


def test_two_processes_make_one_run(tmp_path: Path) -> None:
    arguments = ["train", str(TINY), "steps=3", "out=x", "--json"]
    done = torchrun("-m", "trivium", *arguments, folder=tmp_path)
    assert json.loads(done.stdout)["slope"] is not None  # printed once
    assert steps_of(tmp_path / "x") == [1, 2, 3]
    assert read_json(tmp_path / "x/recipe.json")["processes"] == 2
    assert done.stderr.count("training data:") == 1


# -- the dry run ----------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(go: Go, tmp_path: Path) -> None:
    found = go("dry_run=yes", "steps=1000")
    assert list(tmp_path.glob("runs*")) == []
    assert found["weights_bytes"] == 8 and found["optimizer_bytes"] == 16
    assert found["memory_bytes"] > found["process_bytes"] > 10e6
    assert found["all_steps_seconds"] == pytest.approx(1000 * found["step_seconds"])
    assert found["flops"] == 12 * 4 * 1000
    assert found["fits"] == "yes"


@pytest.mark.parametrize(
    "free, fits, counted", [(10, "no", False), (180_000, "perhaps", True), (10**9, "yes", True)]
)
def test_whether_it_fits(
    free: int, fits: str, counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100² weights, with their gradients and two averages: 120 kB beside the weights, at least."""
    from trivium.recipes import estimate as module

    monkeypatch.setattr(module, "free_memory", lambda device: free)
    batches = [{"x": torch.ones(10, 100)}] * 50

    def loss(model: nn.Module, batch: Any) -> Loss:
        return Loss(model(batch["x"]).sum(), 10.0)

    model = nn.Linear(100, 100, bias=False)
    found = estimate(
        model,
        loss,
        batches,
        TrainConfig(steps=10),
        device=torch.device("cpu"),
        tokens=10,
        flops_per_token=60_000,
    )
    assert found["fits"] == fits
    assert ("activations_bytes" in found) is counted
    assert ("time" in found) is not counted and found["step_seconds"] > 0


def test_a_recipe_without_dry_run_says_so(go: Go) -> None:
    from trivium.recipes.run import Run

    config, _ = find(str(TINY)).load()
    run = Run.start(fill(config, ["dry_run=yes"]))
    with pytest.raises(UsageError, match="the recipe tiny has no dry run"):
        run.log(1, loss=1.0)


def test_live_counts_what_is_there_at_once() -> None:
    weight = torch.zeros(1000)
    with Live([weight]) as live:
        a = weight + 1
        view = a.view(10, 100)[:5]
        assert live.now == live.peak == 4000
        b = a * 2
        assert live.now == 8000
        del a
        assert live.now == 8000  # the view keeps it
        del view
        assert live.now == 4000
        b.add_(1)
        assert (live.now, live.peak) == (4000, 8000)
    del b


@pytest.mark.parametrize("accumulate, ema, optimizer", [(1, 0.0, "adamw"), (3, 0.9, "muon")])
def test_the_estimate_counts_what_a_step_holds(accumulate: int, ema: float, optimizer: Any) -> None:
    """A chain of L products of (B, C) with (C, C) keeps L inputs of B · C numbers. Weights, their
    gradients, two averages (or one) and an average of the weights have L · C² each."""
    layers, width, rows = 4, 64, 512
    model = nn.Sequential()
    model.add_module(
        "blocks", nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
    )

    def loss(model: nn.Module, batch: Any) -> Loss:
        x = batch["x"]
        for layer in model.blocks:  # type: ignore[union-attr]
            x = layer(x).sin()
        return Loss(x.sum(), float(len(x)))

    batches = [{"x": torch.zeros(rows, width)}] * 50
    settings = TrainConfig(steps=10, accumulate=accumulate, ema=ema, optimizer=optimizer)
    found = estimate(model, loss, batches, settings, device=torch.device("cpu"), tokens=rows)
    matrices = 4 * layers * width * width
    averages = 1 if optimizer == "muon" else 2
    assert found["weights_bytes"] == found["gradients_bytes"] == matrices
    assert found["optimizer_bytes"] == averages * matrices
    assert found["averages_bytes"] == (matrices if ema else 0)
    kept = 2 * layers * 4 * rows * width  # the input of every product and of every sine
    assert kept <= found["activations_bytes"] + matrices <= 1.6 * kept + 2 * matrices
    assert found["tokens_per_second"] > 0 and found["fits"] == "yes"


def test_no_data_no_estimate() -> None:
    with pytest.raises(UsageError, match="not a single batch"):
        estimate(
            nn.Linear(1, 1),
            lambda m, b: Loss(m(b), 1),
            [],
            TrainConfig(),
            device=torch.device("cpu"),
        )


# -- what a device can do -------------------------------------------------------------------------


def test_flops_of_a_token() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(10, 4), None
            self.inside = nn.Linear(4, 4, bias=False)

    tied, untied = Tied(), Tied()
    untied.head = nn.Linear(4, 10, bias=False)  # type: ignore[assignment]
    expected = 6 * (10 * 4 + 4 * 4)  # the embedding of the other is only looked up
    assert flops_per_token(tied, length=8) == flops_per_token(untied, length=8) == expected
    assert flops_per_token(tied, length=8, layers=2, width=4) == expected + 12 * 2 * 4 * 8


def test_the_peak_is_measured_and_draws_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    peak, known = peak_flops(torch.device("cpu"), "float32")
    assert 1e8 < peak < 1e15 and "measured" in known
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_of_this_process() -> None:
    cpu = torch.device("cpu")
    free = free_memory(cpu)
    assert used_memory(cpu) > 10e6 and (free is None or free > 0)


# -- small things ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, expected",
    [
        (float("nan"), None),
        (float("inf"), None),
        (1.5, 1.5),
        (torch.tensor(2), 2),
        (torch.tensor([1.0, math.inf]), [1.0, None]),
        ({"a": (1, True, None)}, {"a": [1, True, None]}),
        (Path("x"), "x"),
    ],
)
def test_what_json_can_hold(value: object, expected: object) -> None:
    assert metrics.clean(value) == expected


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.0123, "0.012 s"),
        (7.24, "7.2 s"),
        (59.4, "59 s"),
        (90, "2 min"),
        (3570, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (200_000, "2 d 07 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_speed_follows_the_last_steps() -> None:
    speed = Speed()
    for _ in range(100):
        speed.add(100, 1.0)
    for _ in range(100):
        speed.add(300, 1.0)
    assert speed.words() == "300 tokens/s"
    assert speed.words(2, 1200) == "300 tokens/s, MFU 50%"


def test_lines_on_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 3.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with Progress("gpt", 50) as bar:
        for done in (1, 2, 12, 13, 50):
            bar.show(done, "loss 1")
    assert capsys.readouterr().err.splitlines() == [
        "gpt  step 1 of 50  loss 1",
        "gpt  step 12 of 50  loss 1, 38 s left",
        "gpt  step 50 of 50  loss 1",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("gpt", 4) as bar:
        bar.show(2, "loss [red]1")
        bar.say("a line [bold]\x1b[2J")
    assert "a line [bold] [2J" in terminal.getvalue() and "loss [red]1" in terminal.getvalue()


def test_plain_text() -> None:
    assert plain("a\x1b[31mb\u202e\n中文🙂") == "a [31mb  中文🙂"
