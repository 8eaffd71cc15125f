"""Snapshots of a run: all that it takes to go on as if it had never stopped.

    snapshots/step-00000400/
        state.json            the step, settings, place in the data, the shape of every tensor
        rank-0-of-2.safetensors, …   rows of weights, optimizer state and averages
        rank-0-of-2.json, …   states of the generators of random numbers

Each rank writes what it holds, under a name that says how many there were; whole tensors are
written by the first. Any number of ranks can read them: a rank reads the rows that it needs. There
is no pickle in it, so a snapshot of somebody else is data. A snapshot is written beside its place
and renamed, so that a crash leaves none or a whole one.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trivium import files
from trivium.errors import TriviumError, UsageError
from trivium.train.parallel import World, all_agree, is_split

FOLDER = "snapshots"
STEP = re.compile(r"step-(\d{8,})")
BEST = re.compile(r"best-(\d{8,})")


@dataclass(frozen=True)
class Rows:
    """The part of a tensor that a rank holds: rows from `start` on, of `shape` in all."""

    local: Tensor
    start: int
    shape: tuple[int, ...]
    split: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "Rows":
        if not is_split(tensor):
            return cls(tensor.detach(), 0, tuple(tensor.shape), False)
        from torch.distributed.tensor import DTensor, Shard

        assert isinstance(tensor, DTensor)
        (placement,) = tensor.placements
        assert isinstance(placement, Shard) and placement.dim == 0
        local, mesh = tensor.to_local().detach(), tensor.device_mesh
        _, start = placement.local_shard_size_and_offset(
            tensor.shape[0], mesh.size(), mesh.get_local_rank()
        )
        return cls(local, start or 0, tuple(tensor.shape), True)


def prepare(folder: Path) -> None:
    """Make the place for snapshots. Raises TriviumError where nothing can be written, which is
    better known before the first step."""
    place = folder / FOLDER
    with files.writing(place):
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    for part in place.glob(".*.part"):  # of a run that was killed while it wrote
        shutil.rmtree(part, ignore_errors=True)


def newest(folder: Path, pattern: re.Pattern[str] = STEP) -> Path | None:
    """The latest whole snapshot of a run."""
    found = _all(folder, pattern)
    return found[-1] if found else None


def number_of(snapshot: Path) -> int:
    return int(snapshot.name.rpartition("-")[2])


def _all(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    place = folder / FOLDER
    found = (
        [path for path in place.iterdir() if pattern.fullmatch(path.name)] if place.is_dir() else []
    )
    return sorted(found, key=number_of)


def write(
    folder: Path,
    name: str,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    own: Mapping[str, Any],
    world: World,
    *,
    keep: int,
) -> Path:
    """Write a snapshot and delete older ones of its kind, but for the `keep` newest. `state` is the
    same on all ranks, `own` is this rank's; both are JSON.

    Raises TriviumError, on all ranks, if one of them cannot write; older snapshots are left then.
    """
    target = folder / FOLDER / name
    part = target.with_name(f".{name}.part")
    problem: Exception | None = None
    if world.first:
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed here
    _meet(world)
    try:
        with files.writing(target):
            part.mkdir(parents=True, exist_ok=True)
            _write_rank(part, tensors, own, world)
            if world.first:
                shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
                whole = {**state, "tensors": shapes, "world": world.size}
                _write_file(part / "state.json", json.dumps(whole).encode())
    except TriviumError as error:
        problem = error
    if not all_agree(problem is None, world):
        if world.first:
            shutil.rmtree(part, ignore_errors=True)
        raise problem or TriviumError(f"another rank could not write {target}")
    if world.first:
        with files.writing(target):
            if target.exists():  # the same step, reached again
                shutil.rmtree(target)
            os.replace(part, target)
            _sync(target.parent)
        kind = STEP if STEP.fullmatch(name) else BEST
        for old in _all(folder, kind)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    _meet(world)
    return target


def _meet(world: World) -> None:
    all_agree(True, world)


def _write_rank(part: Path, tensors: Mapping[str, Tensor], own: Any, world: World) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    rows = {name: Rows.of(tensor) for name, tensor in tensors.items()}
    mine = {name: r for name, r in rows.items() if r.split or world.first}
    stem = f"rank-{world.rank}-of-{world.size}"
    starts = json.dumps({name: r.start for name, r in mine.items()})
    data = {name: r.local.contiguous().cpu() for name, r in mine.items()}
    path = part / f"{stem}.safetensors"
    try:
        save_file(data, path, metadata={"starts": starts})
    except SafetensorError as error:
        raise _as_os_error(error) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())
    _write_file(part / f"{stem}.json", json.dumps(own).encode())


def _as_os_error(error: Exception) -> OSError:
    """The library tells of a full disk in words: `… (os error 28)`."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Snapshot:
    """A snapshot on the disk, read a tensor at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.state: dict[str, Any] = files.read_json(path / "state.json")
            shapes = self.state["tensors"]
            self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
            self._world = int(self.state["world"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(f"{path} is not a whole snapshot: delete it to go on") from None
        self._parts: dict[str, list[tuple[int, Any]]] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        from safetensors import SafetensorError, safe_open

        try:
            with contextlib.ExitStack() as stack:
                for rank in range(self._world):
                    path = self.path / f"rank-{rank}-of-{self._world}.safetensors"
                    file = stack.enter_context(safe_open(path, framework="pt"))
                    for name, start in json.loads(file.metadata()["starts"]).items():
                        self._parts.setdefault(name, []).append((start, file))
                yield
        except (SafetensorError, OSError, KeyError) as error:
            raise UsageError(f"{self.path} is broken ({error}): delete it to go on") from None
        finally:
            self._parts.clear()

    def own(self, world: World) -> dict[str, Any] | None:
        """What this rank wrote; None if there was another number of them."""
        if self._world != world.size:
            return None
        return files.read_json(self.path / f"rank-{world.rank}-of-{world.size}.json")

    def read_into(self, name: str, target: Tensor) -> None:
        """Fill `target`, or the rows of it that this rank holds. Raises UsageError if it has
        another shape than what was written."""
        rows = Rows.of(target)
        written = self.shapes.get(name)
        if written != rows.shape:
            raise UsageError(
                f"{self.path} does not fit the model: {name} has shape {list(written or ())} there "
                f"and {list(rows.shape)} here"
            )
        with torch.no_grad():
            if not rows.split:
                rows.local.copy_(self.read(name))
                return
            end = rows.start + len(rows.local)
            for start, piece in self._pieces(name):
                first, last = max(start, rows.start), min(start + piece.get_shape()[0], end)
                if first < last:
                    place = slice(first - rows.start, last - rows.start)
                    rows.local[place] = piece[first - start : last - start].to(rows.local.device)

    def read(self, name: str) -> Tensor:
        """The whole tensor, on the CPU."""
        parts = self._parts[name]
        if len(parts) == 1:
            tensor: Tensor = parts[0][1].get_tensor(name)
            return tensor
        return torch.cat([file.get_tensor(name) for _, file in sorted(parts, key=lambda p: p[0])])

    def _pieces(self, name: str) -> Iterable[tuple[int, Any]]:
        return [(start, file.get_slice(name)) for start, file in self._parts[name]]
