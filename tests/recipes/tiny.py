"""Fit a line; a recipe of the tests."""

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trivium.data import documents
from trivium.recipes.chart import Chart
from trivium.recipes.config import RecipeConfig, shared
from trivium.recipes.run import Run
from trivium.train import Loss, TrainConfig, train


@dataclass(frozen=True)
class Config(RecipeConfig):
    data: str = ""  # text that is recorded, and not read
    steps: int = 6  # how many
    learning_rate: float = 0.1  # at its peak
    save_every: int = 2  # steps
    evaluate_every: int = 2  # steps


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
    x = batch["x"]
    return Loss((model(x) - 3 * x).square().sum(), len(x), {"size": x.abs().sum()})


def batches() -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield {"x": torch.randn(4, 1, generator=generator)}


def main(config: Config) -> dict[str, Any]:
    run = Run.start(config)
    if run.results is not None:
        return run.results
    run.data(documents(config.data or None))
    model = nn.Linear(1, 1)
    settings = shared(TrainConfig, config)
    if config.dry_run:
        return run.estimate(model, loss, batches(), settings, tokens=4, flops_per_token=12)
    steps = train(model, loss, batches(), settings, folder=run.folder)
    for step in run.steps(steps, settings, tokens=4, flops_per_token=12):
        if step.number % config.evaluate_every == 0:
            run.evaluated(step.number, validation_loss=step.loss, slope=model.weight.item())
            run.sample(step.number, f"<script>{model.weight.item()}</script>\x1b[2J")
        _disturb(step.number)
    run.tables.append(("The line", ("what", "value"), [("slope", model.weight.item())]))
    run.charts.append(Chart("<b>Points</b>", "x", "y", {"all": [(1, 2), (2, 3)]}, points=("all",)))
    return run.finish({"slope": model.weight.item(), "nothing": float("nan"), "size_bytes": 1500})


def _disturb(step: int) -> None:
    """TINY=crash:3, interrupt:3: what happens behind a step."""
    what, _, when = os.environ.get("TINY", "").partition(":")
    if when and step == int(when):
        if what == "crash":
            raise RuntimeError("crash")
        os.kill(os.getpid(), signal.SIGINT)
