"""A run that was stopped ends as one that never was: to the bit, however it was stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.conftest import Rows, Small, assert_same, small, squares, weights

from trivium.errors import TriviumError, UsageError
from trivium.train import TrainConfig, snapshots, train

STEPS = 9
PLAIN: dict[str, Any] = {"steps": STEPS, "learning_rate": 1e-2, "device": "cpu", "warmup": 2}


def run(folder: Path | None, *, stop: int = 0, batches: Any = None, **settings: Any) -> Small:
    """A new model, trained until step `stop`, or to the end."""
    model = small()
    config = TrainConfig(**PLAIN | settings)
    for step in train(model, squares, batches or Rows(), config, folder=folder):
        if step.number == stop:
            break
    return model


KINDS: list[dict[str, Any]] = [
    {},
    {"optimizer": "muon", "ema": 0.9},
    {"accumulate": 3, "precision": "bfloat16", "schedule": "wsd"},
    {"checkpointing": True, "save_every": 2},
]


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: "-".join(map(str, s)) or "plain")
def test_stopped_behind_every_step(settings: dict[str, Any], tmp_path: Path) -> None:
    whole = weights(run(None, **settings))
    for stop in range(1, STEPS):
        run(tmp_path, stop=stop, **settings)
        assert snapshots.number_of(snapshots.newest(tmp_path)) == stop  # type: ignore[arg-type]
    assert_same(weights(run(tmp_path, **settings)), whole)
    assert_same(weights(run(tmp_path, **settings)), whole)  # nothing is left to do


def test_what_is_frozen_is_not_kept_but_known_again(tmp_path: Path) -> None:
    """A snapshot is as large as what is trained, and of no use to another model."""

    def frozen(stop: int = 0, folder: Path | None = tmp_path, shift: float = 0.0) -> Small:
        model = small()
        first = next(iter(model.parameters())).requires_grad_(False)
        with torch.no_grad():
            first += shift
        for step in train(model, squares, Rows(), TrainConfig(**PLAIN), folder=folder):
            if step.number == stop:
                break
        return model

    whole = weights(frozen(folder=None))
    frozen(stop=4)
    snapshot = snapshots.Snapshot(snapshots.newest(tmp_path))  # type: ignore[arg-type]
    names = [name for name, _ in small().named_parameters()]
    assert f"model/{names[0]}" not in snapshot.shapes
    assert {f"model/{name}" for name in names[1:]} <= snapshot.shapes.keys()
    with pytest.raises(UsageError, match="whose frozen weights are others"):
        frozen(shift=0.5)
    assert_same(weights(frozen()), whole)


def test_batches_without_a_place_are_drawn_again(tmp_path: Path) -> None:
    def drawn() -> Any:
        own = random.Random(0)
        while True:
            x = torch.tensor([[own.random() for _ in range(3)] for _ in range(4)])
            yield {"x": x, "y": x.sum(1), "w": torch.ones(4)}

    whole = weights(run(None, batches=drawn()))
    run(tmp_path, stop=4, batches=drawn())
    assert_same(weights(run(tmp_path, batches=drawn())), whole)


def test_a_longer_run_goes_on(tmp_path: Path) -> None:
    settings = {"schedule": "constant", "warmup": 0}
    whole = weights(run(None, steps=STEPS + 5, **settings))
    run(tmp_path, **settings)
    assert_same(weights(run(tmp_path, steps=STEPS + 5, **settings)), whole)


def test_judgements_are_remembered(tmp_path: Path) -> None:
    config = TrainConfig(**PLAIN | {"save_every": 1})
    said = []
    for stop in (2, 4, 6):
        for step in train(small(), squares, Rows(), config, folder=tmp_path):
            said.append(step.judge(float(step.number != 1)))
            if step.number == stop:
                break
    assert said == [0, 1, 2, 3, 4, 5]


# -- other models and settings --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        (lambda: Small(width=16), {}, r"enter.weight has shape \[8, 3\] there and \[16, 3\] here"),
        (lambda: torch.nn.Linear(3, 1), {}, "is of another model: .* such as"),
        (Small, {"optimizer": "muon"}, "optimizer=adamw, not muon"),
        (Small, {"ema": 0.5}, "ema=0.0, not 0.5"),
    ],
)
def test_a_snapshot_that_does_not_fit(
    model: Any, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    run(tmp_path, stop=2)
    with pytest.raises(UsageError, match=said):
        next(train(model(), squares, Rows(), TrainConfig(**PLAIN | settings), folder=tmp_path))


@pytest.mark.parametrize("name", ["state.json", "rank-0-of-1.safetensors"])
def test_a_broken_snapshot_is_named(name: str, tmp_path: Path) -> None:
    run(tmp_path, stop=2)
    file = snapshots.newest(tmp_path) / name  # type: ignore[operator]
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UsageError, match="step-00000002"):
        run(tmp_path)


def test_the_newest_snapshots_are_kept(tmp_path: Path) -> None:
    run(tmp_path, save_every=1, keep=3)
    names = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert names == [f"step-{n:08}" for n in (STEPS - 2, STEPS - 1, STEPS)]


# -- stopped from outside -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = weights(run(None))
    before = signal.getsignal(number)
    steps = []
    with pytest.raises(KeyboardInterrupt):
        for step in train(small(), squares, Rows(), TrainConfig(**PLAIN), folder=tmp_path):
            steps.append(step.number)
            if step.number == 3:
                os.kill(os.getpid(), number)
    assert steps == [1, 2, 3]
    assert "once more to stop at once" in capsys.readouterr().err
    assert signal.getsignal(number) == before
    assert_same(weights(run(tmp_path)), whole)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt):
        for step in train(small(), squares, Rows(), TrainConfig(**PLAIN), folder=tmp_path):
            if step.number == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                reached = True
    assert not reached


def test_an_error_of_the_data_loses_nothing(tmp_path: Path) -> None:
    def cut() -> Any:
        yield from islice(Rows(), 5)
        raise UsageError("data.jsonl, line 7: not valid JSON")

    with pytest.raises(UsageError, match="line 7"):
        run(tmp_path, batches=cut())
    assert_same(weights(run(tmp_path)), weights(run(None)))


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.train.conftest import Rows, small, squares
from trivium.train import TrainConfig, train
config = TrainConfig(steps=400, learning_rate=1e-2, ema=0.9, save_every=1, device="cpu")
for step in train(small(), squares, Rows(), config, folder=Path(sys.argv[1])):
    print("ready", flush=True)
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """`kill -9` while it computes or writes; a snapshot is made behind every step."""
    generator = random.Random(0)
    last = 0
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(2):  # behind the first step there is a snapshot
            assert child.stdout.readline() == "ready\n"
        time.sleep(generator.random() * 0.3)
        child.kill()
        child.wait()
        child.stdout.close()
        newest = snapshots.newest(tmp_path)
        number = snapshots.number_of(newest) if newest else 0
        assert number >= last
        last = number
    assert 0 < last < 400
    settings = {"steps": last + 5, "warmup": 0, "ema": 0.9, "schedule": "constant"}
    ours, theirs = small(), small()
    config = TrainConfig(learning_rate=1e-2, device="cpu", **settings)  # type: ignore[arg-type]
    # The killed run had a cosine over 400 steps: repeat it up to where it was killed.
    killed = TrainConfig(steps=400, learning_rate=1e-2, ema=0.9, device="cpu")
    for step in train(theirs, squares, Rows(), killed, folder=tmp_path / "whole"):
        if step.number == last:
            break
    for model, folder in ((ours, tmp_path), (theirs, tmp_path / "whole")):
        list(train(model, squares, Rows(), config, folder=folder))
    assert_same(weights(ours), weights(theirs))
    assert not list((tmp_path / "snapshots").glob(".*.part"))  # what was cut short is gone


FULL = """
import json, resource, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.train.conftest import Rows, small, squares
from trivium.errors import TriviumError
from trivium.train import TrainConfig, train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
config = TrainConfig(steps=6, learning_rate=1e-2, save_every=2, device="cpu", warmup=2)
notes = []
try:
    for step in train(small(), squares, Rows(), config, folder=Path(sys.argv[1])):
        notes += step.notes
        if step.number == 3:  # from here on no file may be larger than this
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
except TriviumError as error:
    notes.append(f"ended: {error}")
print(json.dumps(notes))
"""


def test_a_full_disk_loses_no_run(tmp_path: Path) -> None:
    """A file that may not grow stands for a disk without room: the run goes on, tells, and ends in
    one line; what was saved before is whole."""
    child = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    notes = json.loads(child.stdout)
    assert len(notes) == 2
    assert notes[0].startswith("not saved: cannot write ")
    assert notes[1].startswith("ended: cannot write ")
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["step-00000002"]
    settings = {"steps": 6, "save_every": 2}
    assert_same(weights(run(tmp_path, **settings)), weights(run(None, **settings)))


def test_no_pickle_is_written_or_read(tmp_path: Path) -> None:
    run(tmp_path, stop=2, ema=0.9)
    found = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {".json", ".safetensors"}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """It is said before the first step."""
    (tmp_path / "file").write_text("")
    with pytest.raises(TriviumError, match="cannot write .*file"):
        next(train(small(), squares, Rows(), TrainConfig(**PLAIN), folder=tmp_path / "file"))
