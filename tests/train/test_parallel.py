"""Two processes on the CPU train as one does, and their snapshots serve any number of them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.torchrun import torchrun
from tests.train.conftest import Rows, assert_near, small, squares, weights
from tests.train.ranks import answers
from torch import Tensor

from trivium.train import TrainConfig, restore_best, snapshots, train

STEPS = 6
WITHIN = 1e-6  # float32; the sums are made in another order


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """Both ways to train, by two processes of torchrun. Each run saves at steps 3 and 6."""
    folder = tmp_path_factory.mktemp("two")
    torchrun("-m", "tests.train.ranks", "ddp,fsdp", str(folder))
    return folder, load_file(folder / "results.safetensors")


def alone(folder: Path | None = None, **settings: Any) -> tuple[dict[str, Tensor], list[float]]:
    """The same run in this process: four micro-batches a step instead of 2 × 2."""
    model = small(dropout=0)
    config = TrainConfig(
        **{"steps": STEPS, "learning_rate": 1e-2, "device": "cpu", "ema": 0.9, "accumulate": 4}
        | settings
    )
    losses = [step.loss for step in train(model, squares, Rows(), config, folder=folder)]
    return weights(model), losses


def said_alone() -> Tensor:
    model, said = small(dropout=0), []
    config = TrainConfig(steps=STEPS, learning_rate=1e-2, device="cpu", ema=0.9, accumulate=4)
    for step in train(model, squares, Rows(), config):
        said.append(answers(model))
        with step.averaged():
            said.append(answers(model))
    return torch.stack(said)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_one(two: tuple[Path, dict[str, Tensor]], parallel: str) -> None:
    results = {
        name.removeprefix(f"{parallel}/"): tensor
        for name, tensor in two[1].items()
        if name.startswith(parallel)
    }
    losses, said = results.pop("losses"), results.pop("said")
    whole, expected = alone()
    assert_near(results, whole, WITHIN)
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-5, atol=0)
    # Between the steps, also with averaged weights, the model says what it says without ranks.
    torch.testing.assert_close(said, said_alone(), rtol=0, atol=1e-5)


def test_muon_moves_split_matrices_as_whole_ones(two: tuple[Path, dict[str, Tensor]]) -> None:
    """Its products are in bfloat16: what six steps of 0.01 move is the same to a twentieth."""
    split = {n.removeprefix("muon/"): t for n, t in two[1].items() if n.startswith("muon/")}
    whole, expected = alone(optimizer="muon")
    torch.testing.assert_close(split.pop("losses"), torch.tensor(expected), rtol=1e-3, atol=0)
    del split["said"]
    assert_near(split, whole, 3e-3)
    adamw, _ = alone()
    moved = [n for n in whole if (whole[n] - adamw[n]).abs().max() > 1e-2]
    assert any(whole[name].dim() == 2 for name in moved)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_goes_on_from_the_snapshot_of_two(
    two: tuple[Path, dict[str, Tensor]], parallel: str, tmp_path: Path
) -> None:
    """The snapshot of step 3 (split by rows under fsdp), then three steps alone."""
    folder = tmp_path / "run"
    shutil.copytree(two[0] / parallel, folder)
    shutil.rmtree(folder / "snapshots" / f"step-{STEPS:08}")
    files = {path.name for path in (folder / "snapshots" / "step-00000003").iterdir()}
    assert {"rank-0-of-2.safetensors", "rank-1-of-2.safetensors"} <= files
    model = small(dropout=0)
    config = TrainConfig(steps=STEPS, learning_rate=1e-2, device="cpu", ema=0.9, accumulate=4)
    batches = At(6)  # micro-batches of each rank that were taken, of which there are twice as many
    numbers = [step.number for step in train(model, squares, batches, config, folder=folder)]
    assert numbers == [4, 5, 6]
    assert_near(weights(model), alone()[0], WITHIN)


class At(Rows):
    """Rows whose place counts the micro-batches of a rank."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self._expected = place

    def load(self, state: Any) -> None:
        assert state["place"] == self._expected
        self.place = 2 * state["place"]


def test_rows_that_a_rank_holds_are_all_there_is(two: tuple[Path, dict[str, Tensor]]) -> None:
    """Under fsdp no rank writes a whole matrix, and the ranks' rows are those of the matrix."""
    folder = snapshots.newest(two[0] / "fsdp")
    assert folder is not None
    parts = [load_file(folder / f"rank-{rank}-of-2.safetensors") for rank in range(2)]
    name = "model/enter.weight"
    assert [len(part[name]) for part in parts] == [4, 4]
    assert torch.equal(torch.cat([p[name] for p in parts]), two[1]["fsdp/enter.weight"])
    moments = "optimizer/enter.weight/exp_avg"
    assert [len(part[moments]) for part in parts] == [4, 4]


def test_best_weights_of_two_are_read_by_one(two: tuple[Path, dict[str, Tensor]]) -> None:
    found = {p: small(seed=5, dropout=0) for p in ("ddp", "fsdp")}
    steps = {p: restore_best(model, two[0] / p) for p, model in found.items()}
    assert steps["ddp"] == steps["fsdp"]
    assert_near(weights(found["ddp"]), weights(found["fsdp"]), WITHIN)
