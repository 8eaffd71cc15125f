"""Loads published language models: a Hugging Face folder, or a GGUF file.

Weights go from the mapped file into the model one tensor at a time, rounded to the wanted precision
on the way, so that they are never held twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from trivium.checkpoint import GGUFTensors, SafetensorsFolder, expand, fill
from trivium.errors import UsageError
from trivium.files import read_json
from trivium.gguf_file import GGUFFile
from trivium.language.chat_template import ChatTemplate
from trivium.language.families import gguf_config, gguf_family, hf_config, hf_family
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer
from trivium.nn import native
from trivium.nn.devices import pick_device
from trivium.nn.packed import BLOCK, PackedLinear, pack
from trivium.nn.quantized import Int8Linear
from trivium.nn.threads import one_thread

Precision = Literal["auto", "packed", "int8", "bfloat16", "float32"]


@dataclass(frozen=True)
class LanguageModel:
    """Everything that text generation needs. `template` is None for a model that is no
    assistant."""

    name: str
    model: Transformer
    tokenizer: Tokenizer
    template: ChatTemplate | None
    precision: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def load_pretrained(
    path: Path, *, device: str = "auto", precision: Precision = "auto"
) -> LanguageModel:
    """Load a folder or a GGUF file: weights, tokenizer and chat template.

    `precision` "auto" is "packed" on a CPU (the blocks of a GGUF file as they are, 8 bits for other
    weights), or "int8" where the native kernels cannot be had, and bfloat16 elsewhere.
    Raises NotFound and UsageError, in one line, for whatever is wrong with the files.
    """
    with one_thread():  # copies, at which more threads gain nothing
        return _load(path, pick_device(device), precision)


def _load(path: Path, place: torch.device, precision: Precision) -> LanguageModel:
    if precision == "auto":
        small: Precision = "packed" if native.library() is not None else "int8"
        precision = small if place.type == "cpu" else "bfloat16"
    if precision == "packed" and place.type != "cpu":
        raise UsageError(f"packed weights are for a CPU, not for {place.type}: use bfloat16")
    if path.is_dir():
        model = _generator(path, read_folder(path, place, precision))
        tokenizer, template = Tokenizer.from_folder(path), ChatTemplate.from_folder(path)
        return LanguageModel(path.name, model, tokenizer, template, precision)
    file = GGUFFile(path)
    model = _generator(path, read_gguf(file, place, precision))
    tokenizer, template = Tokenizer.from_gguf(file.metadata), ChatTemplate.from_gguf(file.metadata)
    return LanguageModel(path.stem, model, tokenizer, template, precision)


def _generator(path: Path, model: Transformer) -> Transformer:
    if not model.config.causal:
        raise UsageError(
            f"{path} is an encoder, which cannot generate text: it makes embeddings "
            "(trivium.language.embed)"
        )
    return model


def read_folder(folder: Path, device: torch.device, precision: str) -> Transformer:
    """The weights of a Hugging Face folder."""
    raw = read_json(folder / "config.json")
    family = hf_family(raw)
    config = hf_config(family, raw)
    tensors = SafetensorsFolder(folder)
    prefix = next(
        (p for p in family.hf_prefixes if any(n.startswith(p) for n in tensors.names())), ""
    )
    # A tied head may be stored all the same.
    ignored = (*family.ignored, "lm_head.weight") if config.tied else family.ignored
    model = Transformer.empty(config)
    rows = expand(family.hf_names, config.layers)
    fill(model, tensors, rows, _placer(model, device, precision), prefix=prefix, ignored=ignored)
    return model.eval()


def read_gguf(file: GGUFFile, device: torch.device, precision: str) -> Transformer:
    """The weights of a GGUF file."""
    family = gguf_family(file.metadata)
    shapes = {name: info.shape for name, info in file.tensors.items()}
    config = gguf_config(family, file.metadata, shapes)
    if "rope_freqs.weight" in file.tensors:
        factor = file.read("rope_freqs.weight").tolist()
        config = replace(config, rope_scaling={"rope_type": "factors", "factor": factor})
    model = Transformer.empty(config)
    rows = expand(family.gguf_names, config.layers)
    place = _placer(model, device, precision)
    fill(
        model,
        GGUFTensors(file),
        rows,
        place,
        place_blocks=_block_placer(model) if precision == "packed" else None,
        ignored=family.ignored,
    )
    return model.eval()


def _block_placer(model: Transformer) -> Callable[[str, Tensor, str], None]:
    """Puts blocks where a matrix belongs; only matrices of linear layers and embeddings have
    any."""

    def place(name: str, blocks: Tensor, kind: str) -> None:
        owner, _, _ = name.rpartition(".")
        parent, _, child = owner.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear(blocks, kind))

    return place


def _placer(
    model: Transformer, device: torch.device, precision: str
) -> Callable[[str, Tensor], None]:
    """Puts a tensor where it belongs in a model without storage, in the wanted precision."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16

    def place(name: str, tensor: Tensor) -> None:
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        if isinstance(owner, Int8Linear | PackedLinear):  # its weight came first
            owner.bias = tensor.to(device, dtype)
        elif precision in ("packed", "int8") and _is_matrix(owner, leaf):
            parent_name, _, child = owner_name.rpartition(".")
            small: PackedLinear | Int8Linear
            if precision == "packed" and tensor.shape[1] % BLOCK == 0:
                small = PackedLinear(pack(tensor), "Q8_0")
            else:
                small = Int8Linear.from_float(tensor.float()).to(device)
            setattr(model.get_submodule(parent_name), child, small)
        else:
            # A copy of its own, in contiguous rows: not a view of the mapped file.
            value = tensor.to(device, dtype, copy=True).contiguous()
            setattr(owner, leaf, nn.Parameter(value, requires_grad=False))

    return place


def _is_matrix(owner: nn.Module, leaf: str) -> bool:
    """Whether a parameter is one of the large ones, which are rounded."""
    return leaf == "weight" and isinstance(owner, nn.Linear | nn.Embedding)
