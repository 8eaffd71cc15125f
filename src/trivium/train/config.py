"""How a model is trained: one flat table of settings."""

from dataclasses import dataclass
from typing import Literal

from trivium.errors import UsageError


@dataclass(frozen=True)
class TrainConfig:
    """The settings of `train`. The defaults train a small model on a laptop."""

    steps: int = 1000
    accumulate: int = 1  # micro-batches of a step, on each rank
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 3e-4
    weight_decay: float = 0.1  # of matrices
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0  # the largest norm of a gradient; 0: none
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup: int = 0  # steps in which the learning rate rises
    cooldown: float = 0.2  # share of the steps in which "wsd" falls
    final: float = 0.1  # of the learning rate is left at the end
    ema: float = 0.0  # decay of the averaged weights; 0: none are kept
    precision: Literal["float32", "bfloat16"] = "float32"  # of products; weights stay in float32
    checkpointing: bool = False  # compute activations again instead of keeping them
    compile: bool = False  # by PyTorch's compiler, block by block
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"  # with several processes; auto: ddp
    save_every: int = 0  # steps; 0: when the run ends or is stopped
    keep: int = 2  # snapshots
    seed: int = 0  # of what the model draws, such as dropout
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, low, high in RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} is between {low:g} and {high:g}, not {value!r}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"betas are at least 0 and below 1, not {self.betas}")
        if self.ema >= 1:
            raise UsageError(f"ema is below 1, not {self.ema}")


MANY = 1e12
RANGES = (
    ("steps", 0, MANY),
    ("accumulate", 1, MANY),
    ("learning_rate", 0, 1e3),
    ("weight_decay", 0, 1e3),
    ("clip", 0, MANY),
    ("warmup", 0, MANY),
    ("cooldown", 0, 1),
    ("final", 0, 1),
    ("ema", 0, 1),
    ("save_every", 0, MANY),
    ("keep", 1, MANY),
)
