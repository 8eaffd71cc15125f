"""Training: one loop for every family of models.

    Loss        what a loss function gives: sums and their weight
    TrainConfig the settings
    train       yields a Step for every step that was made
    restore_best, whole_state, rank, world_size   what a recipe needs around it

Each name is loaded when it is first used: a loss needs no optimizer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trivium.train.config import TrainConfig as TrainConfig
    from trivium.train.loop import train as train
    from trivium.train.parallel import rank as rank
    from trivium.train.parallel import whole_state as whole_state
    from trivium.train.parallel import world_size as world_size
    from trivium.train.run_state import restore_best as restore_best
    from trivium.train.step import Loss as Loss
    from trivium.train.step import Step as Step

_HOMES = {
    "Loss": "step",
    "Step": "step",
    "TrainConfig": "config",
    "rank": "parallel",
    "restore_best": "run_state",
    "train": "loop",
    "whole_state": "parallel",
    "world_size": "parallel",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
