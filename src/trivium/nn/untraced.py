"""What PyTorch's compiler is to leave alone, said without importing it.

`torch.compiler.disable` as a decorator imports the whole compiler with the module it stands in:
half a second and 70 MB for every program, whether it compiles anything or not.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which runs as it is within compiled code too."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            left_alone: Callable[P, R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
            return left_alone(*args, **kwargs)
        return function(*args, **kwargs)

    return call
