"""The registry: what a checkpoint may be, and how it becomes a model.

A config names a kind from this table, never an import path.
"""

from pathlib import Path
from typing import Any

from torch import nn

from trivium import checkpoint
from trivium.language import kinds
from trivium.language.alignment.reward import RewardConfig, RewardModel
from trivium.language.classifier import Classifier, ClassifierConfig
from trivium.language.pretrained import LanguageModel, Precision, load_pretrained

KINDS: dict[str, tuple[type[nn.Module], type[Any]]] = {
    **kinds.KINDS,
    "classifier": (Classifier, ClassifierConfig),
    "reward": (RewardModel, RewardConfig),
}


def load(
    path: Path, *, device: str = "auto", precision: Precision = "auto", adapter: Path | None = None
) -> LanguageModel:
    """A language model that is ready to generate: see `load_pretrained`."""
    return load_pretrained(path, device=device, precision=precision, adapter=adapter)


def load_checkpoint(folder: Path) -> nn.Module:
    """A model that `trivium.checkpoint.save` wrote, in its own precision, on the CPU.

    Raises NotFound and UsageError, in one line, for whatever is wrong with the files.
    """
    model: nn.Module = checkpoint.load(folder, KINDS)
    return model
