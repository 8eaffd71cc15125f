"""Where a run stands: weights, optimizers, averages, random numbers, the place in the data."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trivium.errors import NotFound, UsageError
from trivium.train import snapshots
from trivium.train.config import TrainConfig
from trivium.train.optimizers import Optimizers
from trivium.train.parallel import World, is_split, settle, told
from trivium.train.randomness import Randomness, kept
from trivium.train.snapshots import Snapshot

FEW = 16  # values of a frozen tensor that tell it from others


class RunState:
    """Built anew, or from the newest snapshot in `folder`.

    number   steps that were made
    taken    micro-batches that were taken for them, on this rank
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        batches: Iterable[Mapping[str, Tensor]],
        world: World,
        folder: Path | None,
    ) -> None:
        self.model, self.config, self.world, self.folder = model, config, world, folder
        self.optimizers = Optimizers(model, config)
        self.number = self.taken = 0
        self.averages = (
            {name: p.detach().clone() for name, p in self.optimizers.named.items()}
            if config.ema
            else {}
        )
        self._batches = batches
        self._place: dict[str, Any] | None = None  # in the data, of batches that have one
        self._best: tuple[float, int] | None = (
            None  # the lowest value told to `judge`, and its step
        )
        self._misses = 0
        self._random = Randomness.seeded(config.seed + 1_000_003 * world.rank, world.device)
        if folder is not None:
            snapshots.prepare(folder)
            if (newest := snapshots.newest(folder)) is not None:
                self._load(Snapshot(newest))

    # -- the data and the random numbers ----------------------------------------------------------

    def batches(self) -> Iterator[Mapping[str, Tensor]]:
        """The micro-batches from this place on."""
        if self._place is not None and hasattr(self._batches, "load"):
            self._batches.load(self._place)
            return iter(self._batches)
        with self.drawing() if not self.taken else kept(self.world.device):
            source = iter(self._batches)
            next(islice(source, self.taken, self.taken), None)
        return source

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Random numbers are the run's meanwhile, and the caller's again afterwards."""
        device = self.world.device
        theirs = Randomness.now(device)
        self._random.use(device)
        try:
            yield
        finally:
            self._random = Randomness.now(device)
            theirs.use(device)

    # -- averages ---------------------------------------------------------------------------------

    @torch.no_grad()
    def average(self) -> None:
        """a ← d·a + (1 − d)·w, with d rising from 2/11 to the config's decay."""
        if self.averages:
            decay = min(self.config.ema, (1 + self.number) / (10 + self.number))
            weights: list[Tensor] = [self.optimizers.named[name] for name in self.averages]
            torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the averaged weights meanwhile, if the run keeps them."""
        with torch.no_grad():
            own = {name: self.optimizers.named[name].clone() for name in self.averages}
            self._set(self.averages)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, weights: Mapping[str, Tensor]) -> None:
        settle(self.model)
        for name, value in weights.items():
            self.optimizers.named[name].copy_(value)

    # -- snapshots --------------------------------------------------------------------------------

    def judge(self, value: float) -> int:
        """Take note of a validation loss. The weights with the lowest one (averaged, if they are)
        are kept in the folder. Returns how many times in a row it was not lower; the first rank's
        value counts for all."""
        value = told(value, self.world)
        if self._best is not None and not value < self._best[0]:
            self._misses += 1
            return self._misses
        self._best, self._misses = (value, self.number), 0
        if self.folder is not None:
            with self.averaged():
                snapshots.write(
                    self.folder,
                    f"best-{self.number:08}",
                    _weights(self.model),
                    {"step": self.number, "value": value},
                    {},
                    self.world,
                    keep=1,
                )
        return 0

    def save(self) -> None:
        """Write a snapshot, if there is a folder for it."""
        if self.folder is None:
            return
        tensors = _weights(self.model)
        for name, what, tensor in self.optimizers.state():
            tensors[f"optimizer/{name}/{what}"] = tensor
        for name, tensor in self.averages.items():
            tensors[f"average/{name}"] = tensor
        state = {
            "step": self.number,
            "taken": self.taken,
            "config": asdict(self.config),
            "best": self._best,
            "misses": self._misses,
            "data": self._batches.state() if hasattr(self._batches, "state") else None,
            "frozen": _frozen(self.model),
        }
        own = {"random": self._random.record()}
        snapshots.write(
            self.folder,
            f"step-{self.number:08}",
            tensors,
            state,
            own,
            self.world,
            keep=self.config.keep,
        )

    def _load(self, snapshot: Snapshot) -> None:
        state = snapshot.state
        for name in ("optimizer", "ema"):
            written, wanted = state["config"][name], getattr(self.config, name)
            if written != wanted and (name == "optimizer" or not (written and wanted)):
                raise UsageError(
                    f"{snapshot.path} was trained with {name}={written}, not {wanted}: give the "
                    "same, or start anew in another folder"
                )
        if state.get("frozen", "") != _frozen(self.model):
            raise UsageError(
                f"{snapshot.path} belongs to a model whose frozen weights are others: give the "
                "model that the run began with, or start anew in another folder"
            )
        self.number, self.taken, self._place = state["step"], state["taken"], state["data"]
        self._best = None if state["best"] is None else tuple(state["best"])
        self._misses = state["misses"]
        named = self.optimizers.named
        with snapshot.opened():
            _read_weights(self.model, snapshot)
            for name, average in self.averages.items():
                snapshot.read_into(f"average/{name}", average)
            for key, shape in snapshot.shapes.items():
                if key.startswith("optimizer/"):
                    name, _, what = key.removeprefix("optimizer/").rpartition("/")
                    like = named[name]
                    if shape == tuple(like.shape):
                        value = torch.zeros_like(like)
                        snapshot.read_into(key, value)
                    else:
                        value = snapshot.read(key)
                    self.optimizers.restore(name, what, value)
        own = snapshot.own(self.world)
        if own is not None:
            self._random = Randomness.from_record(own["random"])
        else:  # of another number of ranks: new numbers, but the same ones each time
            seed = self.config.seed + 1_000_003 * self.world.rank + 7_919 * self.number
            self._random = Randomness.seeded(seed, self.world.device)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {f"model/{name}": tensor for name, tensor in _unshared(model).items()}


def _unshared(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors that training may change, each under one name only. What is frozen, such
    as the model under an adapter, is there before training and need not be kept."""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        if id(tensor) not in seen and not frozen:
            seen.add(id(tensor))
            kept[name] = tensor.detach()
    return kept


def _frozen(model: nn.Module) -> str:
    """Tells frozen weights from others, by some values of each; "" if there are none."""
    digest = hashlib.sha256()
    found = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    for name, parameter in found:
        digest.update(f"{name} {list(parameter.shape)}".encode())
        if not is_split(parameter):  # which each rank sees another part of
            flat = parameter.detach().flatten()
            some = flat[:: max(1, len(flat) // FEW)][:FEW].float().cpu()
            digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:16] if found else ""


def _read_weights(model: nn.Module, snapshot: Snapshot) -> None:
    wanted = _weights(model)
    written = {name for name in snapshot.shapes if name.startswith("model/")}
    if other := sorted(wanted.keys() ^ written):
        raise UsageError(
            f"{snapshot.path} is of another model: {len(other)} tensors are in one of them only, "
            f"such as {other[0].removeprefix('model/')}"
        )
    for name, tensor in wanted.items():
        snapshot.read_into(name, tensor)


def restore_best(model: nn.Module, folder: Path) -> int:
    """Give `model` the weights of the best judgement of the run in `folder`; returns its step."""
    found = snapshots.newest(folder, snapshots.BEST)
    if found is None:
        raise NotFound(f"no best weights in {folder}: nothing was judged there")
    snapshot = Snapshot(found)
    with snapshot.opened():
        _read_weights(model, snapshot)
    return snapshots.number_of(found)
