"""What a loss gives to training, and what training gives to a recipe."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """What `loss(model, batch)` returns: sums, so that micro-batches and ranks add up exactly.

    A step's gradient is that of Σ total / Σ weight over all its micro-batches on all ranks.

    total    a scalar: the sum of the losses
    weight   of how many, such as the tokens that carry loss
    metrics  further sums, which are reported divided by Σ weight
    """

    total: Tensor
    weight: Tensor | float
    metrics: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Step:
    """A step of training that was made. All numbers are of all ranks."""

    number: int  # 1 … steps
    loss: float  # Σ total / Σ weight, before the step
    metrics: dict[str, float]  # as the loss gives them, / Σ weight
    weight: float  # Σ weight
    grad_norm: float  # before clipping
    learning_rate: float
    seconds: float  # without what the recipe did in between
    skipped: bool  # the gradient was not finite: the weights are as before
    last: bool
    notes: tuple[str, ...] = ()  # what a person should be told, a line each
    judge: Callable[[float], int] = field(default=lambda value: 0, repr=False)
    averaged: Callable[[], AbstractContextManager[None]] = field(
        default=lambda: _nothing_averaged(), repr=False
    )


def _nothing_averaged() -> AbstractContextManager[None]:
    from contextlib import nullcontext

    return nullcontext()
