"""The registry: what a checkpoint may be, and how it becomes a model.

A config names a kind from this table, never an import path.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trivium.checkpoint import WEIGHTS, SafetensorsFolder
from trivium.errors import NotFound, UsageError
from trivium.files import read_json
from trivium.language.elmo import Elmo, ElmoConfig
from trivium.language.pretrained import LanguageModel, Precision, load_pretrained
from trivium.language.recurrent import Recurrent, RecurrentConfig
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.language.xlnet import XLNet, XLNetConfig

KINDS: dict[str, tuple[type[nn.Module], type[Any]]] = {
    "transformer": (Transformer, TransformerConfig),
    "recurrent": (Recurrent, RecurrentConfig),
    "elmo": (Elmo, ElmoConfig),
    "xlnet": (XLNet, XLNetConfig),
}


def load(path: Path, *, device: str = "auto", precision: Precision = "auto") -> LanguageModel:
    """A published language model, from a Hugging Face folder or a GGUF file, ready to generate."""
    return load_pretrained(path, device=device, precision=precision)


def load_checkpoint(folder: Path) -> nn.Module:
    """A model that `trivium.checkpoint.save` wrote, in its own precision, on the CPU.

    Raises NotFound and UsageError, in one line, for whatever is wrong with the files.
    """
    raw = read_json(folder / "config.json")
    kind = raw.pop("kind", None)
    if kind not in KINDS:
        raise UsageError(f"{folder}: kind {kind!r} is not known; known: {', '.join(KINDS)}")
    model_class, config_class = KINDS[kind]
    unknown = sorted(raw.keys() - {f.name for f in fields(config_class)})
    if unknown:
        raise UsageError(f"{folder}/config.json: {kind} has no setting {', '.join(unknown)}")
    if not (folder / WEIGHTS).is_file():
        raise NotFound(f"no {WEIGHTS} in {folder}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}  # no JSON tuples
    with torch.device("meta"):
        model = model_class(config_class(**values))
    tensors = SafetensorsFolder(folder)
    state = {name: tensors.read(name) for name in tensors.names()}
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UsageError(
            f"{folder} does not fit its config: {' '.join(str(error).split())}"
        ) from None
    return model
