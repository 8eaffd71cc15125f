"""A decoding step over tensors whose shapes and addresses never change.

The sequences take seats in a `Pool`, of which their `KVCache` becomes a view: prefill, truncation
and copies go on as before, and nothing is moved when a sequence joins or leaves.

R rows of every matrix product, B batch ≤ R, S span of positions, W window, H heads, G heads of keys
and values, D channels of a head.
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trivium.language.transformer import Transformer
from trivium.nn.attention import KVCache, SelfAttention, attend
from trivium.nn.positions import Rotary, WindowedRotary

SPARE = 8  # positions behind the last one, where the padding writes


@dataclass(frozen=True)
class View:
    """What attention looks at in one step: the stores of all layers (2, B, G, capacity, D), the
    rows (B,), where each writes (B,), and what it sees (B, S) of the first S positions. `near` has
    the positions (B, W) that a window shows, and whether they exist; None where the span is no
    wider than the window."""

    stores: list[Tensor]
    rows: Tensor
    write: Tensor
    seen: Tensor
    near: tuple[Tensor, Tensor] | None


class FixedAttention(nn.Module):
    """`SelfAttention` of one new token in each of R rows, of which the first B are real."""

    def __init__(self, attention: SelfAttention, layer: int) -> None:
        super().__init__()
        self.attention, self.layer = attention, layer
        self.look = look  # what the compiler is kept away from: its shapes follow batch and span

    def forward(self, x: Tensor, angles: Any, view: View, *_: Any) -> Tensor:
        """x (R, 1, C) → (R, 1, C), as `SelfAttention.forward`"""
        of = self.attention
        heads = of.heads + of.groups
        qkv = of.qkv(x).view(-1, 1, heads + of.groups, of.head_dim)
        qk, v = qkv.split([heads, of.groups], dim=2)
        qk = of.qk_norm(qk)
        if angles is not None:
            qk = of.turn(qk, angles)
        return of.out(self.look(of, self.layer, qk, v, view))


def look(of: SelfAttention, layer: int, qk: Tensor, v: Tensor, view: View) -> Tensor:
    """qk (R, 1, H + G, D), v (R, 1, G, D) → (R, 1, H·D), zero in the padding"""
    batch = len(view.rows)
    q, k = qk[:batch, :, : of.heads], qk[:batch, :, of.heads :]
    store, seen = view.stores[layer], view.seen
    store[0][view.rows, :, view.write] = k[:, 0]
    store[1][view.rows, :, view.write] = v[:batch, 0]
    if of.window is None or view.near is None:
        shown = store[:, :, :, : seen.shape[1]]
    else:
        index, seen = view.near
        index = index.view(1, batch, 1, -1, 1).expand(2, -1, of.groups, -1, of.head_dim)
        shown = store.gather(3, index)
    y = attend(q.transpose(1, 2), shown[0], shown[1], real=seen, scale=of.scale)  # (B, H, 1, D)
    return F.pad(y.transpose(1, 2).flatten(2), (0, 0, 0, 0, 0, len(qk) - batch))


def fixed_blocks(layers: Iterable[Any]) -> list[Any]:
    """Twins of the blocks, with the same weights, for `View`s in the place of caches."""
    twins = []
    for i, block in enumerate(layers):
        twin = copy.copy(block)
        twin._modules = {**block._modules, "attention": FixedAttention(block.attention, i)}
        twins.append(twin)
    return twins


class Pool:
    """Keys and values of some sequences, in the rows of tensors that stay where they are."""

    def __init__(self, model: Transformer, rows: int, capacity: int) -> None:
        first: Any = model.layers[0]
        of, like = first.attention, parameter_of(model)
        self.rows, self.capacity, self._window = rows, capacity, model.config.window
        with torch.inference_mode(False):  # a cache may be written to outside of it later
            self._stores = [
                like.new_zeros(2, rows, of.groups, capacity + SPARE, of.head_dim)
                for _ in model.layers
            ]
            self._seats = [
                [store[:, row : row + 1, :, :capacity] for store in self._stores]
                for row in range(rows)
            ]
        self._owners: list[Callable[[], KVCache | None]] = [lambda: None] * rows

    def owner(self, row: int) -> KVCache | None:
        """Who sits there: a cache may have left for a larger store of its own, or be gone."""
        cache = self._owners[row]()
        here = cache is not None and cache._stores and cache._stores[0] is self._seats[row][0]
        return cache if here else None

    def seat(self, caches: Sequence[KVCache], batch: int) -> list[int]:
        """The row of each cache, among the first `batch`. Who is in the way and not among `caches`
        gets a store of its own."""
        owners = [self.owner(row) for row in range(batch)]
        wanted = {id(cache) for cache in caches}
        free = sorted(
            (row for row, owner in enumerate(owners) if id(owner) not in wanted),
            key=lambda row: owners[row] is not None,
        )
        rows = {id(owner): row for row, owner in enumerate(owners)}
        for cache in caches:
            if id(cache) not in rows:
                rows[id(cache)] = row = free.pop(0)
                self._vacate(row)
                for mine, theirs in zip(self._seats[row], cache._stores, strict=False):
                    mine[:, :, :, : cache.length] = theirs[:, :, :, : cache.length]
                cache._stores = list(self._seats[row])
                self._owners[row] = weakref.ref(cache)
        return [rows[id(cache)] for cache in caches]

    def vacate(self) -> None:
        """Give every cache a store of its own."""
        for row in range(self.rows):
            self._vacate(row)

    def _vacate(self, row: int) -> None:
        if (cache := self.owner(row)) is not None:
            cache._stores = [store[:, :, :, : cache.length].clone() for store in cache._stores]

    def view(self, batch: int, span: int, position: Tensor, write: Tensor) -> View:
        """Of the first `batch` rows, up to `span`; `position` and `write` are (B,)."""
        at, window, near = position[:, None], self._window, None
        if window is not None and span > window:
            index = (at - window + 1).clamp_min(0) + torch.arange(window, device=at.device)
            near = index, index <= at
        return View(
            [store[:, :batch] for store in self._stores],
            torch.arange(batch, device=at.device),
            write,
            torch.arange(span, device=at.device) <= at,
            near,
        )


def parameter_of(model: Transformer) -> Tensor:
    """A tensor of the type and on the device of the model."""
    return next(model.norm.parameters()).detach()


def angle_tables(position: nn.Module, count: int, like: Tensor) -> Any:
    """The tables of angles (count, 1, D) for every position, nested as blocks expect them."""
    if isinstance(position, WindowedRotary):
        return tuple(angle_tables(part, count, like) for part in (position.full, position.window))
    if isinstance(position, Rotary):
        return position(like.new_empty(1, count, 1), 0)[1]
    return None


def angles_at(tables: Any, position: Tensor) -> Any:
    """The angles (R, 1, 1, D) of the positions (R,)."""
    if isinstance(tables, tuple):
        return tuple(angles_at(table, position) for table in tables)
    return None if tables is None else tables[position][:, None]
