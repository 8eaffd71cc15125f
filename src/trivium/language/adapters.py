"""LoRA adapters of language models, in the files of the PEFT library: adapter_config.json and
adapter_model.safetensors.

What is adapted is named as the family's published checkpoints name it (q_proj, k_proj, down_proj;
c_attn in GPT-2), although queries, keys and values are one matrix here: `nn.lora` gives each part
of its rows a change of its own. So PEFT puts such an adapter onto a model of transformers, and the
other way round. A model that is of no published family has our own names (qkv, gate_up).

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight     A (r, K)
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight     B (N, r)
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trivium import hub
from trivium.checkpoint import expand, transpose
from trivium.errors import NotFound, UsageError
from trivium.files import read_json, write_atomic
from trivium.language.families import family_of
from trivium.language.transformer import Transformer, TransformerConfig
from trivium.nn.lora import LoRALinear, lora_layers, product

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
START = "base_model.model."
MATRICES = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.up", "mlp.down")
# Settings of PEFT that change what is computed, and what they must be.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "lora_bias": (False, None),
}


@dataclass(frozen=True)
class Fused:
    """A matrix of ours: the modules of the published model that its rows are, how many rows each
    has, and its columns."""

    ours: str  # layers.0.attention.qkv
    theirs: tuple[str, ...]  # model.layers.0.self_attn.q_proj, …
    sizes: tuple[int, ...]
    columns: int

    @property
    def names(self) -> list[str]:
        """q_proj, …"""
        return [name.rpartition(".")[2] for name in self.theirs]


@dataclass(frozen=True)
class Adapter:
    """An adapter from the disk. `parts`: A and B of each part of a matrix of ours that has any."""

    rank: int
    alpha: float
    scale: float
    dropout: float
    parts: Mapping[str, Mapping[int, tuple[Tensor, Tensor]]]
    fused: Mapping[str, Fused]

    def delta(self, ours: str) -> Tensor:
        """What is added to the matrix `ours` (N, K), in float32."""
        return self.scale * product(self.parts[ours], self.fused[ours].sizes)


@dataclass(frozen=True)
class Changes:
    """Adapters that were trained one after the other: what they add up to."""

    adapters: tuple[Adapter, ...]

    @property
    def parts(self) -> frozenset[str]:
        """The matrices of ours that are changed."""
        return frozenset(ours for adapter in self.adapters for ours in adapter.parts)

    def delta(self, ours: str) -> Tensor:
        return torch.stack([a.delta(ours) for a in self.adapters if ours in a.parts]).sum(0)


def matrices(config: TransformerConfig) -> dict[str, Fused]:
    """The matrices of all blocks that can be adapted."""
    try:
        family = family_of(config)
        table, prefix = expand(family.hf_names, config.layers), family.hf_prefixes[:1]
    except UsageError:  # of no published family
        table, prefix = {}, ()
    found = {}
    for i in range(config.layers):
        for matrix in MATRICES:
            ours = f"layers.{i}.{matrix}"
            parts = [part.name.removesuffix(".weight") for part in table.get(f"{ours}.weight", ())]
            theirs = tuple("".join(prefix) + part for part in parts) or (ours,)
            rows, columns = _shape(config, matrix)
            sizes = rows if len(theirs) == len(rows) else (sum(rows),)
            found[ours] = Fused(ours, theirs, sizes, columns)
    gated = config.mlp in ("swiglu", "geglu")
    absent = "mlp.up" if gated else "mlp.gate_up"
    return {ours: fused for ours, fused in found.items() if not ours.endswith(absent)}


def _shape(config: TransformerConfig, matrix: str) -> tuple[tuple[int, ...], int]:
    """The rows of each part of a matrix, and its columns."""
    head_dim = config.head_dim or config.width // config.heads
    queries, keys = config.heads * head_dim, (config.groups or config.heads) * head_dim
    shapes: dict[str, tuple[tuple[int, ...], int]] = {
        "attention.qkv": ((queries, keys, keys), config.width),
        "attention.out": ((config.width,), queries),
        "mlp.gate_up": ((config.hidden, config.hidden), config.width),
        "mlp.up": ((config.hidden,), config.width),
        "mlp.down": ((config.width,), config.hidden),
    }
    return shapes[matrix]


def add_lora(
    model: Transformer,
    rank: int = 8,
    alpha: float = 16.0,
    *,
    targets: Iterable[str] | None = None,
    dropout: float = 0.0,
) -> None:
    """Freeze the model and give its matrices changes to be trained (`lora_parameters`).

    targets: names as the family's checkpoints have them, such as q_proj and v_proj; None: all
    matrices of all blocks. Raises UsageError for names that it has not.
    """
    if rank < 1:
        raise UsageError(f"the rank of an adapter is at least 1, not {rank}")
    places = matrices(model.config)
    known = sorted({name for fused in places.values() for name in fused.names})
    wanted = set(known) if targets is None else set(targets)
    if unknown := sorted(wanted - set(known)) or not wanted:
        named = ", ".join(unknown) if isinstance(unknown, list) else "nothing"
        raise UsageError(f"{named} cannot be adapted in this model: {', '.join(known)} can")
    model.requires_grad_(False)
    for fused in places.values():
        adapted = [name in wanted for name in fused.names]
        if any(adapted):
            _wrap(model, fused, adapted, rank=rank, alpha=alpha, dropout=dropout)


def _wrap(model: Transformer, fused: Fused, adapted: list[bool], **settings: Any) -> LoRALinear:
    parent_name, _, child = fused.ours.rpartition(".")
    parent = model.get_submodule(parent_name)
    base: Any = getattr(parent, child)
    if isinstance(base, LoRALinear):
        raise UsageError("the model has an adapter already: merge it before it gets another")
    layer = LoRALinear(base, fused.sizes, adapted, **settings)
    layer.parts.to(next(model.parameters()).device)
    setattr(parent, child, layer)
    return layer


# -- files ----------------------------------------------------------------------------------------


def save_adapter(model: Transformer, folder: Path, *, base: str = "") -> None:
    """Write the adapter of a model. `base` names the model it is for, where it can be had.

    Raises UsageError if there is none.
    """
    from safetensors.torch import save

    layers = dict(lora_layers(model))
    if not layers:
        raise UsageError("the model has no adapter that could be saved")
    places, tensors, targets = matrices(model.config), {}, set()
    for ours, layer in layers.items():
        for i, part in layer.changes.items():
            theirs = places[ours].theirs[i]
            targets.add(places[ours].names[i])
            tensors[f"{START}{theirs}.lora_A.weight"] = part.a.detach().cpu().contiguous()
            tensors[f"{START}{theirs}.lora_B.weight"] = part.b.detach().cpu().contiguous()
    first = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if model.config.causal else None,
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout.p,
        "target_modules": sorted(targets),
        "bias": "none",
        "fan_in_fan_out": _transposed(model.config),
    }
    write_atomic(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_atomic(folder / CONFIG, json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def _transposed(config: TransformerConfig) -> bool:
    """Whether the published model stores its matrices (in, out), which PEFT has to be told."""
    try:
        parts = family_of(config).hf_names["layers.{}.attention.out.weight"]
    except UsageError:
        return False
    return parts[0].change is transpose


def read_adapter(folder: Path, config: TransformerConfig) -> Adapter:
    """The adapter in a folder, for a model of this config.

    Raises NotFound and UsageError, in one line, for whatever does not fit.
    """
    if not (folder / CONFIG).is_file():
        raise NotFound(f"no {CONFIG} in {folder}: it holds no adapter")
    raw = read_json(folder / CONFIG)
    for key, allowed in PLAIN.items():
        if key in raw and raw[key] not in allowed:
            raise UsageError(f"{folder}: an adapter with {key} = {raw[key]!r} is not supported")
    rank, alpha = raw.get("r"), raw.get("lora_alpha", 8)
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise UsageError(f"{folder}/{CONFIG}: r = {rank!r}, lora_alpha = {alpha!r}")
    fused = matrices(config)
    parts = _parts(folder, fused, rank)
    scale = alpha / rank**0.5 if raw.get("use_rslora") else alpha / rank
    dropout = float(raw.get("lora_dropout") or 0.0)
    return Adapter(rank, scale * rank, scale, dropout, parts, fused)


def read_changes(folders: Sequence[Path], config: TransformerConfig) -> Changes | None:
    """The adapters in folders, in the order in which they were trained; None if there is none."""
    return Changes(tuple(read_adapter(f, config) for f in folders)) if folders else None


def is_adapter(path: Path) -> bool:
    """Whether a path is a folder that holds an adapter, and not the model it is for."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def base_of(folder: Path) -> Path:
    """Where the model is that the adapter in `folder` is for: a path, or a name of a model.

    Raises NotFound, which says how to get it.
    """
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UsageError(f"{folder / CONFIG} does not name the model that the adapter is for")
    beside = folder / base
    if not Path(base).is_absolute() and beside.exists():
        return beside
    try:
        return hub.find(base)
    except NotFound as error:
        raise NotFound(f"{folder} is an adapter for {base}: {error}") from None


def _parts(
    folder: Path, fused: Mapping[str, Fused], rank: int
) -> dict[str, dict[int, tuple[Tensor, Tensor]]]:
    tensors = _tensors(folder / WEIGHTS)
    found: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for ours, place in fused.items():
        for i, theirs in enumerate(place.theirs):
            pair = [_take(tensors, f"{theirs}.lora_{letter}.weight") for letter in "AB"]
            if pair[0] is None or pair[1] is None:
                continue
            a, b = pair[0], pair[1]
            if a.shape != (rank, place.columns) or b.shape != (place.sizes[i], rank):
                raise UsageError(
                    f"{folder}: for {theirs}, of {[place.sizes[i], place.columns]} and r = {rank}, "
                    f"it has A {list(a.shape)} and B {list(b.shape)}: it is for another model"
                )
            found.setdefault(ours, {})[i] = (a, b)
    if tensors or not found:
        other = next(iter(tensors), "none at all")
        raise UsageError(
            f"{folder}: the adapter is for another model: {len(tensors)} tensors have no place in "
            f"this one, such as {other}"
        )
    return found


def _take(tensors: dict[str, Tensor], name: str) -> Tensor | None:
    """The tensor of this name, whichever model PEFT had wrapped: with a head, or its body."""
    while name:
        if (found := tensors.pop(START + name, None)) is not None:
            return found
        first, _, rest = name.partition(".")
        if first not in ("model", "transformer", "bert"):
            return None
        name = rest
    return None


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise NotFound(f"no {path.name} in {path.parent}")
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise UsageError(f"{path} is not a whole safetensors file ({error})") from None


def load_adapter(model: Transformer, folder: Path) -> None:
    """Put the adapter in `folder` onto a model, where it computes beside the frozen matrices and
    can be trained further; `nn.lora.merge` puts it into them."""
    adapter = read_adapter(folder, model.config)
    model.requires_grad_(False)
    for ours, parts in adapter.parts.items():
        fused = adapter.fused[ours]
        adapted = [i in parts for i in range(len(fused.sizes))]
        _wrap(
            model,
            fused,
            adapted,
            rank=adapter.rank,
            alpha=adapter.alpha,
            dropout=adapter.dropout,
        )
    copy_changes(model, adapter)


@torch.no_grad()
def copy_changes(model: Transformer, given: Adapter) -> None:
    """Let the adapter that a model has compute what another one does, of its rank or a lower one
    and for no other matrices. What that one has not changes nothing yet, if B is still zero."""
    layers = dict(lora_layers(model))
    for ours, parts in given.parts.items():
        layer = layers[ours]
        for i, (a, b) in parts.items():
            layer.changes[i].a[: given.rank] = a
            layer.changes[i].b[:, : given.rank] = b * (given.scale / layer.scale)
