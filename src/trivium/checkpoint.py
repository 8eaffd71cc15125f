"""Checkpoints: a folder holding config.json and model.safetensors. Data, never code.

Weights of other projects are read through a literal table that stands beside the module it serves.
Its keys are our names, its values the `Part`s that make them, stacked by rows; `{}` runs over the
layers:

    "layers.{}.attention.qkv.weight": (Part("blk.{}.attn_q.weight", unpair("heads")), …)
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
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


class SafetensorsFolder:
    """model.safetensors, or the shards that model.safetensors.index.json lists; memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._files: dict[str, Any] = {}
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
            self._files.update(dict.fromkeys(handle.keys(), handle))

    def names(self) -> Iterable[str]:
        return self._files.keys()

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def blocks(self, part: Part, config: Any) -> tuple[Tensor, str] | None:
        return None

    def release(self) -> None:
        """Nothing: the library reads, it does not map."""


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise NotFound(f"missing shard: {path}")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UsageError(f"{path} is not a whole safetensors file ({error})") from None


class GGUFTensors:
    def __init__(self, file: GGUFFile) -> None:
        self.path = file.path
        self.file = file

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
        if part.change is transpose:
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

    One tensor is in memory at a time, so that weights are never held twice. Raises UsageError when
    the checkpoint lacks a tensor, has one that nobody asked for, or has one of another shape.
    """
    names = set(tensors.names())
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    wanted = {prefix + part.name for ours in shapes for part in rows.get(ours, ())}
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
            whole = _whole(tensors, rows[ours], config, prefix)
            if whole.shape != shape:
                raise UsageError(
                    f"{tensors.path}: {ours} has shape {list(whole.shape)}, "
                    f"the config says {list(shape)}"
                )
            place(ours, whole)
        tensors.release()


def _whole(tensors: Tensors, parts: Iterable[Part], config: Any, prefix: str) -> Tensor:
    """A parameter, stacked from its parts."""
    pieces = []
    for part in parts:
        tensor = tensors.read(prefix + part.name)
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
