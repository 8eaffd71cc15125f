"""Training: one loop for every family of models.

Loss        what a loss function gives: sums and their weight
TrainConfig the settings
train       yields a Step for every step that was made
restore_best, whole_state, rank, world_size   what a recipe needs around it
"""

from trivium.train.config import TrainConfig
from trivium.train.loop import train
from trivium.train.parallel import rank, whole_state, world_size
from trivium.train.run_state import restore_best
from trivium.train.step import Loss, Step

__all__ = [
    "Loss",
    "Step",
    "TrainConfig",
    "rank",
    "restore_best",
    "train",
    "whole_state",
    "world_size",
]
