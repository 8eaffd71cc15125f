"""The learning rate over the steps, as a factor of its peak.

    warm-up    n / warmup                                     for n ≤ warmup
    cosine     final + (1 − final) · (1 + cos πp) / 2         (Loshchilov & Hutter 2017)
    linear     final + (1 − final) · (1 − p)
    wsd        1, then final + (1 − final) · (1 − √q)         (warm-up, stable, decay;
                                                               Hägele et al. 2024)
    constant   1

n = 1 … steps is the step, p its share of the steps behind the warm-up, and q its share of the last
`cooldown`·steps. So the last step is made with `final` of the peak, and none with 0 unless asked.
"""

import math
from collections.abc import Callable

from trivium.train.config import TrainConfig

Shape = Callable[[float, TrainConfig], float]


def _wsd(p: float, config: TrainConfig) -> float:
    if config.cooldown == 0 or p <= 1 - config.cooldown:
        return 1.0
    q = (p - (1 - config.cooldown)) / config.cooldown
    return config.final + (1 - config.final) * (1 - math.sqrt(q))


SHAPES: dict[str, Shape] = {
    "cosine": lambda p, c: c.final + (1 - c.final) * (1 + math.cos(math.pi * p)) / 2,
    "linear": lambda p, c: c.final + (1 - c.final) * (1 - p),
    "wsd": _wsd,
    "constant": lambda p, c: 1.0,
}


def rate(config: TrainConfig, number: int) -> float:
    """The factor of the learning rate in step `number`, counted from 1."""
    if number <= config.warmup:
        return number / config.warmup
    p = (number - config.warmup) / max(1, config.steps - config.warmup)
    return SHAPES[config.schedule](min(p, 1.0), config)
