"""Checkpoints: a folder holding config.json and model.safetensors. Data, never code.

Weights of other projects are read through a literal table that stands beside the module it serves.
Its keys are our names, its values the `Part`s that make them, stacked by rows; `{}` runs over the
layers:

    "layers.{}.attention.qkv.weight": (Part("blk.{}.attn_q.weight", unpair("heads")), …)
"""

import json
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trivium.errors import NotFound, UsageError
from trivium.files import read_json, write_atomic
from trivium.gguf_file import GGUFFile
from trivium.nn import packed
from trivium.nn.repack import REPACKED

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHOWN_NAMES = 8


@dataclass(frozen=True)
class Change:
    """What is done to another project's tensor to make it ours, and its inverse. Both take the
    tensor and the model's config."""

    read: Callable[[Tensor, Any], Tensor]
    write: Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Part:
    """One tensor of another project's checkpoint, and how it becomes ours."""

    name: str
    change: Change | None = None


Table = Mapping[str, tuple[Part, ...]]


# (in, out) ↔ (out, in)
transpose = Change(lambda tensor, config: tensor.t(), lambda tensor, config: tensor.t())

# Gains of a norm stored as their distance from 1. In float32, where that sum is exact enough.
plus_one = Change(
    lambda tensor, config: tensor.float() + 1, lambda tensor, config: tensor.float() - 1
)


def unpair(heads_field: str) -> Change:
    """Rows of a rotary projection from neighbouring pairs (GGUF) to halves: (H·D/2·2, …) ↔
    (H·2·D/2, …).

    `heads_field` names the config field that holds the number of heads.
    """

    def swap(tensor: Tensor, config: Any, rows: int, columns: int) -> Tensor:
        heads = getattr(config, heads_field) or config.heads
        shape = (heads, rows, columns, *tensor.shape[1:])
        return tensor.reshape(shape).transpose(1, 2).reshape(tensor.shape)

    def read(tensor: Tensor, config: Any) -> Tensor:
        return swap(tensor, config, -1, 2)

    def write(tensor: Tensor, config: Any) -> Tensor:
        return swap(tensor, config, 2, -1)

    return Change(read, write)


class Tensors(Protocol):
    """Weights on the disk, read one at a time."""

    path: Path

    def names(self) -> Iterable[str]: ...

    def read(self, name: str) -> Tensor: ...

    def blocks(self, part: Part, config: Any) -> tuple[Tensor, str] | None:
        """The blocks of a quantised matrix (rows, bytes) and their kind; None for anything else."""
        ...

    def release(self) -> None:
        """Let go of what was read: it has been copied."""
        ...


# What TensorFlow called the parameters of a norm, as in the first checkpoints of BERT.
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class SafetensorsFolder:
    """model.safetensors, or the shards that model.safetensors.index.json lists; memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._files: dict[str, tuple[Any, str]] = {}  # who has it, and by what name
        index = folder / INDEX
        if index.is_file():
            files = sorted(set(read_json(index)["weight_map"].values()))
        elif (folder / WEIGHTS).is_file():
            files = [WEIGHTS]
        else:
            found = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt"))
            pickled = f" ({found[0]} is a pickle, which can run code: convert it)" if found else ""
            raise NotFound(f"no {WEIGHTS} in {folder}{pickled}")
        for name in files:
            handle = _open_safetensors(folder / Path(name).name)
            names = list(handle.keys())
            self._files.update({_new_name(stored): (handle, stored) for stored in names})

    def names(self) -> Iterable[str]:
        return self._files.keys()

    def read(self, name: str) -> Tensor:
        handle, stored = self._files[name]
        tensor: Tensor = handle.get_tensor(stored)
        return tensor

    def blocks(self, part: Part, config: Any) -> tuple[Tensor, str] | None:
        return None

    def release(self) -> None:
        """Nothing: the library reads, it does not map."""


def _new_name(name: str) -> str:
    for old, new in OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise NotFound(f"missing shard: {path}")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UsageError(f"{path} is not a whole safetensors file ({error})") from None


class GGUFTensors:
    """The tensors of a GGUF file. `whole`: those that are not wanted in blocks."""

    def __init__(self, file: GGUFFile, *, whole: Container[str] = ()) -> None:
        self.path = file.path
        self.file, self._whole = file, whole

    def names(self) -> Iterable[str]:
        return self.file.tensors.keys()

    def read(self, name: str) -> Tensor:
        return torch.from_numpy(self.file.read(name))

    def release(self) -> None:
        self.file.release()

    def blocks(self, part: Part, config: Any) -> tuple[Tensor, str] | None:
        info = self.file.tensors[part.name]
        kind = info.type_name
        if (kind not in packed.TYPES and kind not in REPACKED) or len(info.shape) != 2:
            return None
        if part.change is transpose or part.name in self._whole:
            return None  # a block runs along a row
        rows = torch.from_numpy(self.file.raw(part.name)).view(info.shape[0], -1)
        if kind in REPACKED:
            kind, repack = REPACKED[kind]
            rows = repack(rows)
        return (part.change.read(rows, config) if part.change else rows), kind


def expand(table: Table, layers: int) -> dict[str, tuple[Part, ...]]:
    """Write a table out for a number of layers."""
    rows: dict[str, tuple[Part, ...]] = {}
    for ours, parts in table.items():
        for i in range(layers) if "{}" in ours else (0,):
            rows[ours.format(i)] = tuple(Part(p.name.format(i), p.change) for p in parts)
    return rows


def fill(
    model: nn.Module,
    tensors: Tensors,
    rows: Mapping[str, tuple[Part, ...]],
    place: Callable[[str, Tensor], None],
    *,
    place_blocks: Callable[[str, Tensor, str], None] | None = None,
    prefix: str = "",
    ignored: Iterable[str] = (),
) -> None:
    """Read every parameter of `model` by the expanded table and hand it to `place(name, tensor)`.

    With `place_blocks`, matrices that the file holds in blocks which `trivium.nn.packed` can use go
    to `place_blocks(name, blocks, kind)` as they are.

    One tensor is in memory at a time, so that weights are never held twice. Names may have `prefix`
    before them, or not. Raises UsageError when the checkpoint lacks a tensor, has one that nobody
    asked for, or has one of another shape.
    """
    names = set(tensors.names())
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    rows = {ours: tuple(_prefixed(p, prefix, names) for p in parts) for ours, parts in rows.items()}
    wanted = {part.name for ours in shapes for part in rows.get(ours, ())}
    no_source = [ours for ours in shapes if ours not in rows]
    missing = sorted(wanted - names) + no_source
    unexpected = sorted(n for n in names - wanted if not n.endswith(tuple(ignored)))
    if missing or unexpected:
        raise UsageError(
            f"{tensors.path} does not fit its config: "
            + "; ".join(
                f"{len(group)} tensors {what}: {_abridged(group)}"
                for what, group in (("missing", missing), ("not expected", unexpected))
                if group
            )
        )
    config = getattr(model, "config", None)
    for ours, shape in shapes.items():
        found = [] if place_blocks is None else [tensors.blocks(p, config) for p in rows[ours]]
        if place_blocks is not None and all(piece is not None for piece in found):
            place_blocks(ours, *packed.stack([piece for piece in found if piece is not None]))
        else:
            whole = _whole(tensors, rows[ours], config)
            if whole.shape != shape:
                raise UsageError(
                    f"{tensors.path}: {ours} has shape {list(whole.shape)}, "
                    f"the config says {list(shape)}"
                )
            place(ours, whole)
        tensors.release()


def _prefixed(part: Part, prefix: str, names: Container[str]) -> Part:
    return part if part.name in names else replace(part, name=prefix + part.name)


def _whole(tensors: Tensors, parts: Iterable[Part], config: Any) -> Tensor:
    """A parameter, stacked from its parts."""
    pieces = []
    for part in parts:
        tensor = tensors.read(part.name)
        try:
            pieces.append(part.change.read(tensor, config) if part.change else tensor)
        except RuntimeError as error:
            raise UsageError(f"{tensors.path}: {part.name} {list(tensor.shape)}: {error}") from None
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _abridged(names: list[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def save(
    folder: Path,
    model: nn.Module,
    kind: str,
    config: Any,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `model` so that `trivium.models.load` gives it back. Each file is replaced whole.

    state: its weights, if the model holds only a part of them (trivium.train.whole_state)
    """
    from safetensors.torch import save as to_bytes

    state = model.state_dict() if state is None else state
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    write_atomic(folder / WEIGHTS, to_bytes(state))
    write_atomic(folder / "config.json", json.dumps({"kind": kind, **asdict(config)}, indent=2))


Kinds = Mapping[str, tuple[type[nn.Module], type[Any]]]  # kind → (class, class of its config)


def empty(folder: Path, kinds: Kinds) -> tuple[str, Any]:
    """The kind of the model that `save` wrote, and a model of that kind without storage."""
    raw = read_json(folder / "config.json")
    kind = raw.pop("kind", None)
    if kind not in kinds:
        raise UsageError(f"{folder}: kind {kind!r} is not known; known: {', '.join(kinds)}")
    model_class, config_class = kinds[kind]
    unknown = sorted(raw.keys() - {f.name for f in fields(config_class)})
    if unknown:
        raise UsageError(f"{folder}/config.json: {kind} has no setting {', '.join(unknown)}")
    if not (folder / WEIGHTS).is_file():
        raise NotFound(f"no {WEIGHTS} in {folder}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}  # no JSON tuples
    try:
        with torch.device("meta"):
            return kind, model_class(config_class(**values))
    except (TypeError, KeyError, RuntimeError) as error:
        raise UsageError(f"{folder}/config.json makes no {kind}: {error}") from None


def load(folder: Path, kinds: Kinds) -> Any:
    """The model that `save` wrote, in its own precision, on the CPU."""
    _, model = empty(folder, kinds)
    tensors = SafetensorsFolder(folder)
    state = {name: tensors.read(name) for name in tensors.names()}
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UsageError(
            f"{folder} does not fit its config: {' '.join(str(error).split())}"
        ) from None
    return model
