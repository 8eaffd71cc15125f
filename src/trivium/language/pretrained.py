"""Loads language models: a Hugging Face folder, a GGUF file, or the folder of a run.

Weights go from the mapped file into the model one tensor at a time, rounded to the wanted precision
on the way, so that they are never held twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trivium import checkpoint
from trivium.checkpoint import GGUFTensors, Part, SafetensorsFolder, expand, fill
from trivium.errors import UsageError
from trivium.files import read_json
from trivium.gguf_file import GGUFFile
from trivium.language.adapters import Changes, base_of, is_adapter, read_changes
from trivium.language.chat_template import ChatTemplate
from trivium.language.families import gguf_config, gguf_family, hf_config, hf_family
from trivium.language.families.xlnet import is_xlnet, read_xlnet
from trivium.language.kinds import KINDS
from trivium.language.tokenizer import Tokenizer
from trivium.language.transformer import Transformer
from trivium.nn import heap, native
from trivium.nn.devices import pick_device
from trivium.nn.packed import BLOCK, PackedLinear, pack
from trivium.nn.quantized import Int8Linear
from trivium.nn.threads import one_thread

# What a BERT with a head has beside its features.
WITH_HEAD = (
    "transform.dense.weight",
    "transform.dense.bias",
    "transform.norm.weight",
    "transform.norm.bias",
    "embedding.bias",
)
Precision = Literal["auto", "packed", "int8", "bfloat16", "float32"]


@dataclass(frozen=True)
class LanguageModel:
    """Everything that text generation needs. `template` is None for a model that is no
    assistant. `model` is of one of `trivium.language.kinds`."""

    name: str
    model: Any
    tokenizer: Tokenizer
    template: ChatTemplate | None
    precision: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


class Parts(NamedTuple):
    """What a path holds."""

    model: Any
    tokenizer: Tokenizer
    template: ChatTemplate | None


def load_pretrained(
    path: Path,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    adapter: Path | None = None,
) -> LanguageModel:
    """Load a folder or a GGUF file: weights, tokenizer and chat template.

    `precision` "auto" is "packed" on a CPU (the blocks of a GGUF file as they are, 8 bits for other
    weights), or "int8" where the native kernels cannot be had, and bfloat16 elsewhere; float32 for
    a run's model that is no Transformer. The matrices that a LoRA `adapter` (a folder) changes are
    changed before they are rounded, to 8 bits if packed.
    Raises NotFound and UsageError, in one line, for whatever is wrong with the files.
    """
    with one_thread():  # copies, at which more threads gain nothing
        loaded = _load(path, pick_device(device), precision, adapter)
    heap.trim()
    return loaded


def load_trainable(path: Path) -> Parts:
    """A model to be trained further: of a folder (Hugging Face, or a run's) or a GGUF file. All its
    weights are in float32, on the CPU. Raises as `load_pretrained` does."""
    with one_thread():
        base, adapters = unfolded(path)
        parts = _read(base, torch.device("cpu"), "float32", adapters)
    parts.model.requires_grad_(True).train()
    heap.trim()
    return parts


def load_encoder(path: Path, *, device: str = "auto") -> LanguageModel:
    """A model that reads a text as a whole, with its head, in float32."""
    with one_thread():
        model, tokenizer, _ = _read(path, pick_device(device), "float32")
    return LanguageModel(path.name, model, tokenizer, None, "float32")


def _load(
    path: Path, place: torch.device, precision: Precision, adapter: Path | None
) -> LanguageModel:
    given, adapters = path, () if adapter is None else (adapter,)
    path, own = unfolded(given)
    adapters = (*own, *adapters)
    other = None if (kind := run_kind(path)) in (None, "transformer") else kind
    if precision == "auto":
        small: Precision = "packed" if native.library() is not None else "int8"
        precision = small if place.type == "cpu" else "bfloat16"
        precision = precision if other is None else "float32"
    if precision == "packed" and place.type != "cpu":
        raise UsageError(f"packed weights are for a CPU, not for {place.type}: use bfloat16")
    if precision in ("packed", "int8") and other is not None:
        raise UsageError(
            f"{path} is a {other} model, which has no {precision} weights: use float32"
        )
    if adapters and other is not None:
        raise UsageError(f"{path} is a {other} model: adapters are for Transformers")
    model, tokenizer, template = _read(path, place, precision, adapters)
    if not getattr(model.config, "causal", True):
        raise UsageError(
            f"{path} is an encoder, which cannot generate text: it makes embeddings "
            "(trivium.language.embed)"
        )
    name = given.name if given.is_dir() else given.stem
    return LanguageModel(name, model, tokenizer, template, precision)


def run_kind(path: Path) -> str | None:
    """The kind of the model in a folder, if a run left it or it is no Transformer; else None."""
    if not (path / "config.json").is_file():
        return None
    raw = read_json(path / "config.json")
    kind = "xlnet" if is_xlnet(raw) else raw.get("kind")
    return None if kind is None else str(kind)


def _read(
    path: Path, place: torch.device, precision: Precision, adapters: Sequence[Path] = ()
) -> Parts:
    """The model, tokenizer and template of a path; the template may come with an adapter."""
    templates = (t for a in reversed(adapters) if (t := ChatTemplate.from_folder(a)) is not None)
    if path.is_dir():
        model = read_folder(path, place, precision, adapters=adapters)
        template = next(templates, None) or ChatTemplate.from_folder(path)
        return Parts(model, Tokenizer.from_folder(path), template)
    file = GGUFFile(path)
    model = read_gguf(file, place, precision, adapters=adapters)
    template = next(templates, None) or ChatTemplate.from_gguf(file.metadata)
    return Parts(model, Tokenizer.from_gguf(file.metadata), template)


def unfolded(path: Path) -> tuple[Path, tuple[Path, ...]]:
    """The model behind a folder that holds an adapter only, and the adapters on the way to it, in
    the order in which they were trained."""
    adapters: list[Path] = []
    while is_adapter(path):
        if path in adapters:
            raise UsageError(f"{path} is an adapter for itself")
        adapters.insert(0, path)
        path = base_of(path)
    return path, tuple(adapters)


def read_folder(
    folder: Path,
    device: torch.device,
    precision: str,
    *,
    head: bool = True,
    adapters: Sequence[Path] = (),
) -> Any:
    """The weights of a Hugging Face folder, or of a run. head=False: without what BERT has between
    its last block and its head, for who needs its features only."""
    raw = read_json(folder / "config.json")
    if "kind" in raw:
        return _read_run(folder, device, precision, head, adapters)
    if is_xlnet(raw):
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        return read_xlnet(folder, device, dtype)
    family = hf_family(raw)
    config = hf_config(family, raw)
    config = config if head else replace(config, transform="none")
    tensors = SafetensorsFolder(folder)
    prefix = next(
        (p for p in family.hf_prefixes if any(n.startswith(p) for n in tensors.names())), ""
    )
    # A tied head may be stored all the same.
    ignored = (*family.ignored, "lm_head.weight") if config.tied else family.ignored
    model = Transformer.empty(config)
    rows = expand(family.hf_names, config.layers)
    change = read_changes(adapters, config)
    place = _placer(model, device, precision, change)
    fill(model, tensors, rows, place, prefix=prefix, ignored=ignored)
    return model.eval()


def _read_run(
    folder: Path, device: torch.device, precision: str, head: bool, adapters: Sequence[Path]
) -> Any:
    _, model = checkpoint.empty(folder, KINDS)
    if not isinstance(model, Transformer):
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        return checkpoint.load(folder, KINDS).to(device, dtype).requires_grad_(False).eval()
    ignored: tuple[str, ...] = ()
    if not head:
        model = Transformer.empty(replace(model.config, transform="none"))
        ignored = WITH_HEAD
    rows = {name: (Part(name),) for name, _ in model.named_parameters()}
    change = read_changes(adapters, model.config)
    place = _placer(model, device, precision, change)
    fill(model, SafetensorsFolder(folder), rows, place, ignored=ignored)
    return model.eval()


def read_gguf(
    file: GGUFFile, device: torch.device, precision: str, *, adapters: Sequence[Path] = ()
) -> Transformer:
    """The weights of a GGUF file."""
    family = gguf_family(file.metadata)
    shapes = {name: info.shape for name, info in file.tensors.items()}
    config = gguf_config(family, file.metadata, shapes)
    if "rope_freqs.weight" in file.tensors:
        factor = file.read("rope_freqs.weight").tolist()
        config = replace(config, rope_scaling={"rope_type": "factors", "factor": factor})
    model = Transformer.empty(config)
    rows = expand(family.gguf_names, config.layers)
    change = read_changes(adapters, config)
    place = _placer(model, device, precision, change)
    fill(
        model,
        GGUFTensors(file, whole=_changed(change, rows)),
        rows,
        place,
        place_blocks=_block_placer(model) if precision == "packed" else None,
        ignored=family.ignored,
    )
    return model.eval()


def _changed(change: Changes | None, rows: Mapping[str, tuple[Part, ...]]) -> frozenset[str]:
    """The tensors of a file that an adapter changes, so that their blocks are no use."""
    if change is None:
        return frozenset()
    return frozenset(part.name for ours in change.parts for part in rows[f"{ours}.weight"])


def _block_placer(model: Transformer) -> Callable[[str, Tensor, str], None]:
    """Puts blocks where a matrix belongs; only matrices of linear layers and embeddings have
    any."""

    def place(name: str, blocks: Tensor, kind: str) -> None:
        owner, _, _ = name.rpartition(".")
        parent, _, child = owner.rpartition(".")
        setattr(model.get_submodule(parent), child, PackedLinear(blocks, kind))

    return place


def _placer(
    model: Transformer, device: torch.device, precision: str, change: Changes | None = None
) -> Callable[[str, Tensor], None]:
    """Puts a tensor where it belongs in a model without storage, as the adapter changes it and in
    the wanted precision."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16

    def place(name: str, tensor: Tensor) -> None:
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        if change is not None and leaf == "weight" and owner_name in change.parts:
            tensor = tensor.float() + change.delta(owner_name)
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
