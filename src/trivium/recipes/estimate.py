"""What a run will take, before it starts: memory by counting, time by a few real steps.

The training loop makes one step, with two micro-batches where a step has more, while every tensor
that comes to life is counted until it is gone. The largest sum is what a step needs beyond the
weights. First with one row of a batch and with two, of which the line through both foretells a
whole batch; then, where that fits, with a whole one.
"""

import importlib
import itertools
import statistics
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trivium.errors import UsageError
from trivium.recipes.hardware import free_memory, peak_flops, used_memory
from trivium.train import TrainConfig, train
from trivium.train.loop import LossFunction
from trivium.train.parallel import blocks

Batch = Mapping[str, Tensor]
STEPS, SECONDS = 4, 20.0  # that are timed at most; the first step is slower and left out
HEAP = 2.4  # times what was counted is what a process was seen to take: glibc keeps freed memory
USUAL = 0.4  # share of a device's peak, where no step could be timed


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made in it and not yet gone, each storage once."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        # The storages that are alive. Those of `known` tensors count for nothing.
        self._refs: dict[int, Any] = {}
        for tensor in known:
            self._add(tensor, count=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return made

    def _add(self, tensor: Tensor, *, count: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._refs:
            return
        size = storage.nbytes() if count else 0
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_: Any) -> None:
            del self._refs[key]
            self.now -= size

        self._refs[key] = weakref.ref(storage, gone)


def estimate(
    model: nn.Module,
    loss: LossFunction,
    batches: Iterable[Batch],
    settings: TrainConfig,
    *,
    device: torch.device,
    tokens: int | None = None,
    flops_per_token: float | None = None,
) -> dict[str, Any]:
    """The memory of each part in bytes, and the time in seconds. The model and the batches are
    used up: some steps are made.

    Raises UsageError if there are several processes.
    """
    batches = iter(batches)
    batch = next(batches, None)
    if batch is None:
        raise UsageError("there is not a single batch to estimate with: the data are too short")
    parts = _parts(model, settings)
    importlib.import_module("torch._dynamo")  # 50 MB that every optimizer loads
    before = used_memory(device)
    free = free_memory(device)
    result: dict[str, Any] = {f"{name}_bytes": size for name, size in parts.items()}
    kept = parts["gradients"] + parts["optimizer"] + parts["averages"]
    seconds = None
    if free is None or kept < free:
        needed = _foretold(model, loss, batch, settings)
        if free is None or needed < free:
            rows = itertools.chain([batch], batches)
            seconds = _timed(model, loss, rows, settings)
            if seconds is None or seconds < SECONDS:
                needed = _counted(model, loss, [batch], settings)
        result["activations_bytes"] = max(needed - kept, 0)
    else:
        needed = kept
    result["process_bytes"] = max(before - parts["weights"], 0)
    most = needed * (HEAP if device.type == "cpu" else 1)
    result["memory_bytes"] = before + needed
    result["memory_at_most_bytes"] = before + round(most)
    if free is not None:
        result["memory_there_bytes"] = before + free
        result["fits"] = "yes" if most < free else "perhaps" if needed < free else "no"
    return result | _time(seconds, settings, tokens, flops_per_token, device)


def _parts(model: nn.Module, settings: TrainConfig) -> dict[str, int]:
    """Bytes of what is kept from step to step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    size = sum(p.nbytes for p in trained)
    once = 0
    if settings.optimizer == "muon":  # which keeps one average of a block's matrix, not two
        inside = {p for block in blocks(model) for p in block.parameters() if p.requires_grad}
        once = sum(p.nbytes for p in inside if p.dim() == 2)
    everything = itertools.chain(model.parameters(), model.buffers())
    return {
        "weights": sum(tensor.nbytes for tensor in everything),
        "gradients": size,
        "optimizer": 2 * size - once,
        "averages": size if settings.ema else 0,
    }


def _foretold(model: nn.Module, loss: LossFunction, batch: Batch, settings: TrainConfig) -> int:
    """What a step will need beyond the weights, from batches of one row and of two."""
    rows = max((len(value) for value in batch.values() if value.dim()), default=1)
    if rows <= 2:
        return _counted(model, loss, [batch], settings)
    one, two = (
        _counted(
            model,
            loss,
            [{k: v[:n] if v.dim() and len(v) == rows else v for k, v in batch.items()}],
            settings,
        )
        for n in (1, 2)
    )
    return one + max(two - one, 0) * (rows - 1)


def _counted(
    model: nn.Module, loss: LossFunction, batches: list[Batch], settings: TrainConfig
) -> int:
    """The largest sum of the tensors of two steps: in the second, the optimizer's state is there
    while the activations are."""
    many = min(settings.accumulate, 2)
    plan = replace(_short(settings, 2), accumulate=many, compile=False)
    known = [*model.parameters(), *model.buffers()]
    with Live(known) as live:
        for _ in train(model, loss, batches * (2 * many), plan):
            pass
    return int(live.peak)


def _timed(
    model: nn.Module, loss: LossFunction, batches: Iterator[Batch], settings: TrainConfig
) -> float | None:
    """Seconds of a step; None if the data end before the first."""
    times: list[float] = []
    for step in train(model, loss, batches, _short(settings, STEPS)):
        times.append(step.seconds)
        if sum(times) > SECONDS:
            break
    return statistics.median(times[1:] or times) if times else None


def _short(settings: TrainConfig, steps: int) -> TrainConfig:
    """The same settings, for a few steps that change the weights as little as they can."""
    return replace(settings, steps=steps, learning_rate=0.0, parallel="auto", save_every=0)


def _time(
    seconds: float | None,
    settings: TrainConfig,
    tokens: int | None,
    flops_per_token: float | None,
    device: torch.device,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if tokens and flops_per_token:
        found["flops"] = flops_per_token * tokens * settings.steps
        if seconds is None:
            peak, _ = peak_flops(device, settings.precision)
            seconds = flops_per_token * tokens / (USUAL * peak)
            found["time"] = f"guessed: {USUAL:.0%} of the device's peak"
    if seconds is not None:
        found["step_seconds"] = seconds
        found["all_steps_seconds"] = seconds * settings.steps
        if tokens:
            found["tokens_per_second"] = tokens / seconds
    return found
