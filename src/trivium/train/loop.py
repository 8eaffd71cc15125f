"""The one training loop, for every family of models.

    for step in train(model, loss, batches, TrainConfig(steps=1000), folder=Path("runs/gpt")):
        if step.number % 100 == 0:
            print(step.number, step.loss)

A step takes `accumulate` micro-batches and moves the weights along

    g = ∇ Σ total / Σ weight    with sums over the micro-batches of all ranks
    g ← g · min(1, clip / |g|)

so 1 × 32 sequences, 32 × 1, and 2 ranks × 16 are the same step. With a folder the run can be
stopped anywhere, by `kill -9` too, and goes on from its newest snapshot: on a CPU the final weights
equal, to the bit, those of a run that was never stopped.
"""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trivium.errors import TriviumError
from trivium.train import parallel
from trivium.train.config import TrainConfig
from trivium.train.parallel import blocks
from trivium.train.run_state import RunState
from trivium.train.schedules import rate
from trivium.train.step import Loss, Step

LossFunction = Callable[[Any, Mapping[str, Tensor]], Loss]
Batches = Iterable[Mapping[str, Tensor]]
HOPELESS = 20  # steps in a row whose gradient is not finite


class Objective(nn.Module):
    """The loss of a micro-batch as one forward pass, which DDP and FSDP need to see."""

    def __init__(self, model: nn.Module, loss: LossFunction, device: torch.device, half: bool):
        super().__init__()
        self.model, self._loss, self._device, self._half = model, loss, device, half

    def forward(self, batch: Mapping[str, Tensor]) -> Loss:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            return self._loss(self.model, batch)


def train(
    model: nn.Module,
    loss: LossFunction,
    batches: Batches,
    config: TrainConfig,
    *,
    folder: Path | None = None,
) -> Iterator[Step]:
    """Train `model` in place, and yield every step that was made.

    model: on any device; it is moved to the config's. Its parameters should be in float32.
    loss: (model, batch) → Loss
    batches: micro-batches (of this rank), dicts of tensors. The run ends early when they do. They
        are taken when a step begins and not before, so they may depend on the weights. To go on at
        once after a stop they have `state() -> dict` (JSON) and `load(state)`; those of others are
        drawn and dropped up to the place, so they must be the same each time.
    folder: where snapshots are kept. If there are some, the run goes on from the newest one.

    What the caller does between two steps (evaluating, sampling) draws from random numbers of its
    own, and does not change the run. A snapshot is made when the caller comes back from the step.
    Ctrl-C and SIGTERM let the step end, save and raise KeyboardInterrupt; a second one raises it at
    once. Leaving the loop saves too.

    Raises UsageError for settings or snapshots that do not fit, and TriviumError for a loss that
    stays not a number, and for a disk that is full at the end (before the end it is a note of the
    next step, and the next snapshot tries again).
    """
    with parallel.joined(config.device) as world:
        parallel.check(config, world)
        model.to(world.device)
        objective = Objective(model, loss, world.device, config.precision == "bfloat16")
        called = parallel.spread(model, objective, config, world)
        for block in blocks(model):
            if config.compile:
                block.compile()
        with _recomputing(model) if config.checkpointing else contextlib.nullcontext():
            run = RunState(model, config, batches, world, folder)
            with _interrupts() as interrupted:
                yield from _steps(run, called, interrupted)


def _steps(
    run: RunState, called: Callable[..., Any], interrupted: Callable[[], bool]
) -> Iterator[Step]:
    config, world = run.config, run.world
    notes: list[str] = []
    failures, saved = 0, run.number
    source = run.batches()
    sound = True  # whether the state is that of a step, as opposed to one between two
    try:
        while run.number < config.steps:
            start = time.perf_counter()
            with run.drawing():
                run.model.train()
                micro_batches = list(islice(source, config.accumulate))
                if not parallel.all_agree(bool(micro_batches), world):
                    break
                total, weight, metrics = _backward(run, called, micro_batches)
            sound = False
            run.number += 1
            run.taken += len(micro_batches)
            norm, learning_rate = _update(run, weight)
            sound = True
            skipped = not math.isfinite(norm)
            failures = failures + 1 if skipped else 0
            notes += _said_of(run.number, skipped, weight, failures)
            yield Step(
                number=run.number,
                loss=_share(total, weight),
                metrics={name: _share(value, weight) for name, value in metrics.items()},
                weight=weight,
                grad_norm=norm,
                learning_rate=learning_rate,
                seconds=time.perf_counter() - start,
                skipped=skipped,
                last=run.number == config.steps,
                notes=tuple(notes),
                judge=run.judge,
                averaged=run.averaged,
            )
            notes = []
            if not parallel.all_agree(not interrupted(), world):
                sound = False  # a save that fails is not tried again
                run.save()
                saved = run.number
                raise KeyboardInterrupt
            if config.save_every and run.number % config.save_every == 0:
                try:
                    run.save()
                    saved = run.number
                except TriviumError as error:
                    notes.append(f"not saved: {error}")
    finally:
        stopped = sys.exception()
        # Of several ranks, others may be elsewhere, and could not save together with this one.
        alone = stopped is None or world.size == 1
        if sound and alone and run.number != saved and not isinstance(stopped, KeyboardInterrupt):
            try:
                run.save()
            except TriviumError as error:
                if stopped is None:
                    raise
                print(f"not saved: {error}", file=sys.stderr)  # beside what stopped the run


def _share(value: float, weight: float) -> float:
    return value / weight if weight else math.nan


def _backward(
    run: RunState, called: Callable[..., Any], micro_batches: list[Mapping[str, Tensor]]
) -> tuple[float, float, dict[str, float]]:
    """Add up the gradients of a step. Returns the sums of losses, weights and metrics over all
    ranks."""
    sums: Tensor | None = None
    names: list[str] = []
    for index, batch in enumerate(micro_batches):
        here = {name: _moved(value, run.world.device) for name, value in batch.items()}
        last = index == len(micro_batches) - 1
        with parallel.last_only(called, run.model, last):
            loss: Loss = called(here)
            loss.total.backward()  # type: ignore[no-untyped-call]
        names = list(loss.metrics)
        values = [loss.total, loss.weight, *loss.metrics.values()]
        row = torch.stack(
            [
                torch.as_tensor(value, dtype=torch.float64, device=run.world.device).detach()
                for value in values
            ]
        )
        sums = row if sums is None else sums + row
    assert sums is not None
    total, weight, *rest = parallel.summed(sums, run.world).tolist()
    return total, weight, dict(zip(names, rest, strict=True))


def _moved(value: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def _update(run: RunState, weight: float) -> tuple[float, float]:
    """Move the weights. Returns the norm of the gradient and the learning rate."""
    config, optimizers = run.config, run.optimizers
    learning_rate = config.learning_rate * rate(config, run.number)
    gradients = optimizers.gradients
    # The ranks' gradients were averaged: their sum is wanted, for each unit of weight.
    scale = run.world.size / weight if weight else math.nan
    norm = float(parallel.whole(nn.utils.get_total_norm(gradients))) * scale
    if math.isfinite(norm):
        if config.clip and norm > config.clip:
            scale *= config.clip / norm
        torch._foreach_mul_(gradients, scale)
        with run.drawing():
            optimizers.step(learning_rate)
        run.average()
    optimizers.forget_gradients()
    return norm, learning_rate


def _said_of(number: int, skipped: bool, weight: float, failures: int) -> list[str]:
    """What to say of a step. Raises TriviumError when it is time to give up."""
    if not skipped:
        return []
    if failures == HOPELESS:
        raise TriviumError(
            f"the gradient was not finite in {HOPELESS} steps in a row, up to step {number}: lower "
            "the learning rate, lengthen the warm-up, or look at the data (`trivium data show`)"
        )
    why = "its gradient is not finite" if weight else "nothing in its batch carries loss"
    return [f"step {number} was skipped: {why}"]


@contextlib.contextmanager
def _recomputing(model: nn.Module) -> Iterator[None]:
    """The blocks keep their inputs only, and run again in the backward pass (Chen et al. 2016)."""
    from torch.utils.checkpoint import checkpoint

    changed = blocks(model)
    for block in changed:
        forward = block.forward

        def again(*args: Any, forward: Any = forward, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

        block.forward = again
    try:
        yield
    finally:
        for block in changed:
            del block.forward


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C or SIGTERM came. The second one stops at once."""
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        with contextlib.suppress(OSError, ValueError):
            print("stopping behind this step; once more to stop at once", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
