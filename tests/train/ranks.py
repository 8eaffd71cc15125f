"""What each of two processes does in tests/train/test_parallel.py:  ranks.py SCENARIO FOLDER"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.train.conftest import Rows, Small, rows, small, squares

from trivium.train import TrainConfig, rank, train, whole_state, world_size

STEPS = 6


@torch.no_grad()
def answers(model: Small) -> torch.Tensor:
    """What a recipe does between two steps."""
    model.eval()
    return model(rows(4, seed=1)["x"])


def run(folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Train on this rank's micro-batches, and gather the weights."""
    model = small(dropout=0)
    batches = Rows(rank=rank(), world=world_size())
    config = TrainConfig(
        steps=STEPS, learning_rate=1e-2, device="cpu", ema=0.9, save_every=3, **settings
    )
    losses, said = [], []
    for step in train(model, squares, batches, config, folder=folder):
        losses.append(step.loss)
        step.judge(step.loss)
        said.append(answers(model))
        with step.averaged():
            said.append(answers(model))
    state = dict(whole_state(model))
    return state | {"losses": torch.tensor(losses), "said": torch.stack(said)}


def main(scenario: str, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")  # once for all runs
    results = {}
    for parallel in scenario.split(","):
        results[parallel] = run(folder / parallel, parallel=parallel, accumulate=2)
    results["muon"] = run(folder / "muon", parallel="fsdp", optimizer="muon", accumulate=2)
    if rank() == 0:
        flat = {f"{p}/{name}": t for p, state in results.items() for name, t in state.items()}
        save_file(flat, folder / "results.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
