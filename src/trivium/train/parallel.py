"""Several processes that train one model, as `torchrun` starts them.

    ddp    every rank holds the whole model; gradients are averaged while the backward pass runs
           (Li et al. 2020)
    fsdp   weights, gradients and the optimizer's state are split between the ranks by rows; the
           weights of a block are whole only while it computes (Zhao et al. 2023; PyTorch's
           `fully_shard`)

One process is the case of world size 1, which needs none of this.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trivium.errors import UsageError
from trivium.nn.devices import pick_device
from trivium.train.config import TrainConfig

METHODS = ("features",)  # that a loss may call instead of the model itself


@dataclass(frozen=True)
class World:
    """Which of how many processes this is, and where it computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


def rank() -> int:
    """This process's number among those of `torchrun`; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: str) -> World:
    """Meet the other processes, if there are any."""
    if world_size() == 1:
        return World(0, 1, pick_device(device))
    place = pick_device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo",
            device_id=place if place.type == "cuda" else None,
        )
    return World(rank(), world_size(), place)


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """`join`, and part again at the end if this was the first to join."""
    before = dist.is_available() and dist.is_initialized()
    world = join(device)
    try:
        yield world
    finally:
        if world.size > 1 and not before and dist.is_initialized():
            dist.destroy_process_group()


def spread(
    model: nn.Module, objective: nn.Module, config: TrainConfig, world: World
) -> Callable[..., Any]:
    """What is to be called in the place of `objective`, after which all ranks have the same
    gradient: the mean over them."""
    if world.size == 1:
        return objective
    if config.parallel == "fsdp":
        _shard(model, config)
        return objective
    return DistributedDataParallel(
        objective,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a model: what its outermost `nn.ModuleList`s hold."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found


def _shard(model: nn.Module, config: TrainConfig) -> None:
    from torch.distributed.fsdp import (  # takes a second to import
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if is_split(model):
        return  # by an earlier run over the same model
    half = torch.bfloat16 if config.precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)
    for block in blocks(model):
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    for name in METHODS:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


@contextlib.contextmanager
def last_only(objective: Callable[..., Any], model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients are exchanged in the last micro-batch of a step only."""
    if isinstance(objective, DistributedDataParallel):
        with contextlib.nullcontext() if last else objective.no_sync():
            yield
    elif is_split(model):
        model.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield
    else:
        yield


def settle(model: nn.Module) -> None:
    """Let weights that were gathered to compute be split again, so that what is written to the
    parts counts from now on."""
    if is_split(model):
        model.reshard()  # type: ignore[operator]


def summed(values: Tensor, world: World) -> Tensor:
    """The sum over all ranks."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def all_agree(yes: bool, world: World) -> bool:
    """Whether all ranks say yes."""
    if world.size == 1:
        return yes
    votes = torch.tensor([float(yes)], device=world.device)
    return bool(summed(votes, world).item() == world.size)


def told(value: float, world: World) -> float:
    """What the first rank says."""
    if world.size == 1:
        return value
    said = torch.tensor([value], dtype=torch.float64, device=world.device)
    dist.broadcast(said, 0)
    return float(said.item())


def is_split(part: nn.Module | Tensor) -> bool:
    """Whether a model, or a tensor, lies on several ranks."""
    if "torch.distributed.fsdp" not in sys.modules:  # then nothing does
        return False
    return isinstance(part, dist.fsdp.FSDPModule | dist.tensor.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor that may be split between the ranks, which must all ask."""
    return tensor.full_tensor() if is_split(tensor) else tensor  # type: ignore[attr-defined]


def whole_state(model: nn.Module) -> Mapping[str, Tensor]:
    """The weights of a model that may be split between the ranks, on the CPU. All must ask."""
    return {name: whole(tensor).detach().cpu() for name, tensor in model.state_dict().items()}


def check(config: TrainConfig, world: World) -> None:
    """Raises UsageError for settings that do not go together."""
    if config.parallel == "fsdp" and world.size == 1:
        raise UsageError(
            "parallel=fsdp splits a model between several processes, and this is a single one: "
            "start them with torchrun"
        )
