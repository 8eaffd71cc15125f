"""Low-rank adaptation (LoRA: Hu et al. 2021). A matrix W that stays as it is gets a change of low
rank, which is trained:

    y = W x + (α / r) · B A dropout(x)        A (r, K) random, B (N, r) zero at first

Fused matrices, such as that of queries, keys and values, are several to LoRA: each of their parts
of rows has an A and B of its own, or none. All of them together still are two products.

K columns (inputs), N rows (outputs), r rank, P parts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trivium.nn.packed import PackedLinear, pack
from trivium.nn.quantized import Int8Linear

Base = nn.Linear | PackedLinear | Int8Linear


class LowRank(nn.Module):
    """The change B A of one part of rows."""

    def __init__(self, columns: int, rows: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))


class _Added(torch.autograd.Function):
    """y + scale · B low, part by part, in the place of y: nothing as large as y is made beside it.

    y (…, N), low (…, P·r), each B (rows, r) for the rows of y from start to end
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        low: Tensor,
        scale: float,
        where: Sequence[tuple[int, int]],
        *ups: Tensor,
    ) -> Tensor:
        lows = low.flatten(0, -2).to(y.dtype).chunk(len(ups), dim=1)
        ctx.save_for_backward(low, *ups)
        ctx.scale, ctx.where = scale, where
        ctx.mark_dirty(y)
        flat = y.view(-1, y.shape[-1])
        for (start, end), up, part in zip(where, ups, lows, strict=True):
            flat[:, start:end].addmm_(part, up.to(y.dtype).T, alpha=scale)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        low, *ups = ctx.saved_tensors
        flat = gradient.flatten(0, -2)
        of_low, of_ups = [], []
        for (start, end), up, part in zip(
            ctx.where, ups, low.flatten(0, -2).chunk(len(ups), dim=1), strict=True
        ):
            some = flat[:, start:end]
            of_low.append(some @ up.to(some.dtype))
            of_ups.append((some.T @ part.to(some.dtype)).to(up.dtype).mul_(ctx.scale))
        whole = torch.cat(of_low, dim=1).mul_(ctx.scale).view(low.shape).to(low.dtype)
        return gradient, whole, None, None, *of_ups


class LoRALinear(nn.Module):
    """In the place of a linear layer, `base`, which is frozen and may be packed or of 8 bits.

    sizes: how many rows each part has
    adapted: the parts that get a change
    """

    def __init__(
        self,
        base: Base,
        sizes: Sequence[int],
        adapted: Sequence[bool],
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        rows, columns = matrix_shape(base)
        assert sum(sizes) == rows and len(sizes) == len(adapted)
        self.base = base.requires_grad_(False)
        self.sizes, self.rank, self.alpha = list(sizes), rank, alpha
        self.scale = alpha / rank
        self._where = [
            (end - size, end)
            for size, end, wanted in zip(sizes, accumulate(sizes), adapted, strict=True)
            if wanted
        ]
        self.dropout = nn.Dropout(dropout)
        self.parts = nn.ModuleDict(
            {
                str(i): LowRank(columns, size, rank)
                for i, (size, wanted) in enumerate(zip(sizes, adapted, strict=True))
                if wanted
            }
        )

    @property
    def changes(self) -> dict[int, LowRank]:
        """The change of each part that has one."""
        return {int(i): part for i, part in self.parts.items() if isinstance(part, LowRank)}

    def forward(self, x: Tensor) -> Tensor:
        """x (…, K) → (…, N)"""
        changes = self.changes
        down = torch.cat([part.a for part in changes.values()])  # (P·r, K)
        # Autocast chooses the type itself.
        given = x if torch.is_autocast_enabled(x.device.type) else x.to(down.dtype)
        low = F.linear(self.dropout(given), down)
        ups = [part.b for part in changes.values()]
        y: Tensor = _Added.apply(self.base(x), low, self.scale, self._where, *ups)  # type: ignore[no-untyped-call]
        return y

    @torch.no_grad()
    def delta(self) -> Tensor:
        """What is added to the matrix (N, K), in float32."""
        pairs = {i: (part.a, part.b) for i, part in self.changes.items()}
        return self.scale * product(pairs, self.sizes)

    @torch.no_grad()
    def merged(self) -> Base:
        """The base with its matrix changed. A packed one is then of 8 bits: to round it to fewer
        would lose much of the change."""
        base, delta = self.base, self.delta()
        if isinstance(base, PackedLinear):
            return PackedLinear(pack(base.widened() + delta), "Q8_0", base.bias)
        if isinstance(base, Int8Linear):
            whole = base.weight.float() * base.scale.float()[:, None] + delta
            return Int8Linear.from_float(whole, base.bias)
        base.weight += delta.to(base.weight)
        return base


def product(pairs: Mapping[int, tuple[Tensor, Tensor]], sizes: Sequence[int]) -> Tensor:
    """B A of the parts that have any, zero elsewhere: (N, K), in float32."""
    like = next(iter(pairs.values()))[0]
    blocks = (
        pairs[i][1].float() @ pairs[i][0].float()
        if i in pairs
        else like.new_zeros(size, like.shape[1], dtype=torch.float32)
        for i, size in enumerate(sizes)
    )
    return torch.cat(list(blocks))


def matrix_shape(base: nn.Module) -> tuple[int, int]:
    """(N, K)"""
    if isinstance(base, Int8Linear):
        rows, columns = base.weight.shape
        return rows, columns
    assert isinstance(base, nn.Linear | PackedLinear)
    return base.out_features, base.in_features


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What is trained of a model with adapters."""
    return [
        p
        for _, layer in lora_layers(model)
        for part in layer.parts.values()
        for p in part.parameters()
    ]


def merge(model: nn.Module) -> None:
    """Put every change into the matrix it is for; the model is then as it was built, and none of
    its parameters stays frozen."""
    for name, layer in list(lora_layers(model)):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.merged())
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
