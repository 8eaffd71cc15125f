"""The model that a policy is held near to: what it was before training, which is frozen.

With LoRA it is the policy's own weights without the change, so that no second copy exists.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trivium.nn.lora import lora_layers


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """LoRA's changes are left out meanwhile."""
    layers: list[Any] = [layer for _, layer in lora_layers(model)]
    for layer in layers:
        layer.forward = layer.base.forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class Reference:
    """`with reference as model:` gives the reference, without gradients.

    policy: if it has LoRA layers, the reference is what they are added to; else a copy is made
    """

    def __init__(self, policy: nn.Module) -> None:
        self._shared = any(True for _ in lora_layers(policy))
        self._model = policy if self._shared else frozen_copy(policy)
        self._stack = contextlib.ExitStack()

    def to(self, device: torch.device) -> "Reference":
        self._model.to(device)
        return self

    def __enter__(self) -> nn.Module:
        self._stack.enter_context(torch.no_grad())
        if self._shared:
            self._stack.enter_context(unchanged(self._model))
        return self._model

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def frozen_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)
