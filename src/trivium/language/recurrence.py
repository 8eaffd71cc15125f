"""Recurrences: what is known of the past is a state of fixed size, and each token changes it.

    Elman      h_t = tanh(U x_t + V h_{t−1} + b)                               (Elman 1990)

    LSTM       i, f, g, o = U x_t + V h_{t−1} + b            (Hochreiter & Schmidhuber 1997;
               c_t = σ(f) ⊙ c_{t−1} + σ(i) ⊙ tanh(g)          forget gate: Gers et al. 2000)
               h_t = σ(o) ⊙ tanh(c_t)

Cells are stacked with residual connections (Wu et al. 2016): each reads the sum of the tokens and
of the states below, and what comes out is the sum of the states. Without them, a second layer makes
learning slower, not faster.

A cell computes one step as it is written here, and whole spans with PyTorch's fused kernels; the
tests hold one against the other. Since nothing crosses a span's border, a packed row is read as if
each of its texts stood in a row of its own: the first tokens of all spans in one step, then all
second ones, and so on.

B rows, T tokens of a row, N tokens in all, C width.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from trivium.nn.attention import KVCache

REACH = 100  # tokens


class Elman(nn.RNN):
    """One layer. U is `weight_ih_l0`, V `weight_hh_l0`, and b the sum of the two biases."""

    weight_hh_l0: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def reset_parameters(self) -> None:
        """Nothing: the model draws its weights (see `init_cell`)."""

    def step(self, u: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """From U x_t + b and the state before, all (B, C), to the state (h, c); c is h here."""
        h = torch.tanh(u + F.linear(h, self.weight_hh_l0))
        return h, h


class LSTM(nn.LSTM):
    """One layer; U, V and b as in `Elman`, each with the rows of i, f, g and o one after the
    other."""

    weight_hh_l0: Tensor
    bias_ih_l0: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def reset_parameters(self) -> None:
        """Nothing: the model draws its weights (see `init_cell`)."""

    def step(self, u: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """From U x_t + b (B, 4C) and the state before, h and c (B, C), to the state."""
        i, f, g, o = (u + F.linear(h, self.weight_hh_l0)).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


CELLS: dict[str, type[Elman] | type[LSTM]] = {"rnn": Elman, "lstm": LSTM}


@torch.no_grad()
def init_cell(cell: Any) -> None:
    """U N(0, 1/C), V orthogonal for each gate (Saxe et al. 2014), biases 0.

    But a forget gate that is half open, as with a bias of 0, forgets within a few tokens, and what
    is forgotten teaches nothing. With a bias of ln u it remembers for u tokens or so (Tallec &
    Ollivier 2018); those of a fresh LSTM have all scales from 1 to REACH.
    """
    width = cell.hidden_size
    cell.weight_ih_l0.normal_(0, width**-0.5)
    for gate in cell.weight_hh_l0.split(width):
        nn.init.orthogonal_(gate)
    cell.bias_ih_l0.zero_()
    cell.bias_hh_l0.zero_()
    if isinstance(cell, LSTM):
        cell.bias_ih_l0[width : 2 * width].uniform_(0, math.log(REACH))


# -- step by step ---------------------------------------------------------------------------------


def steps(cell: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, T, C) behind the state h, c (B, C) → the states after each token, both (B, T, C)."""
    driven = F.linear(x, cell.weight_ih_l0, cell.bias_ih_l0 + cell.bias_hh_l0)
    states = []
    for u in driven.unbind(1):
        h, c = cell.step(u, h, c)
        states.append((h, c))
    hs, cs = zip(*states, strict=True)
    return torch.stack(hs, 1), torch.stack(cs, 1)


def continued(cells: Iterable[Any], x: Tensor, cache: KVCache) -> Tensor:
    """x (B, T, C) behind what the cache holds, read by a stack of cells → the sum of their h after
    each of all S tokens so far (B, S, C)."""
    total = x.new_zeros(())
    for layer, cell in enumerate(cells):
        zeros = x.new_zeros(len(x), 1, x.shape[-1])
        h, c = cache.last(layer) or (zeros, zeros)
        h, c = steps(cell, x, h[:, 0], c[:, 0])
        x = x + h
        every, _ = cache.update(layer, h[:, None], c[:, None])
        total = total + every[:, 0]
    cache.advance(x.shape[1])
    return total


# -- whole spans ----------------------------------------------------------------------------------


class Spans(NamedTuple):
    """In which order the tokens of some rows are read.

    order: (N,) their places in the rows, laid end to end: all first tokens (that of the longest
        span first), then all second ones, …; padding is left out
    sizes: how many first tokens, second ones, … there are; on the CPU
    """

    order: Tensor
    sizes: Tensor

    @classmethod
    def whole(cls, ids: Tensor, *, backwards: bool = False) -> "Spans":
        """Each row of ids (B, T) is a span."""
        B, T = ids.shape
        places = torch.arange(B * T, device=ids.device).view(B, T).t()
        order = places.flip(0) if backwards else places
        return cls(order.flatten(), torch.full((T,), B))

    @classmethod
    def of(cls, segments: Tensor, *, backwards: bool = False) -> "Spans":
        """segments (B, T): a span ends where the number changes, and −1 is padding."""
        starts = torch.ones_like(segments, dtype=torch.bool)
        starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
        starts = starts.flatten()
        number = starts.cumsum(0) - 1  # of the span that a token is in
        lengths = number.bincount()
        step = torch.arange(len(number), device=number.device) - starts.nonzero()[number, 0]
        if backwards:
            step = lengths[number] - 1 - step
        rank = lengths.argsort(descending=True, stable=True).argsort()
        order = (step * len(lengths) + rank[number]).argsort()
        real = segments.flatten() >= 0
        return cls(order[real[order]], step[real].bincount().cpu())

    def read(self, cells: Iterable[Any], x: Tensor) -> Iterator[Tensor]:
        """x (N, C), read by a stack of cells → the sum of their h (N, C) up to each of them, in the
        order of the spans. Every span starts from a state of zeros."""
        total = torch.zeros_like(x)
        for cell in cells:
            if len(x):
                h = cell(PackedSequence(x, self.sizes))[0].data
                x, total = x + h, total + h
            yield total

    def take(self, ids: Tensor) -> Tensor:
        """ids (B, T) → (N,) in the order of the spans."""
        return ids.flatten()[self.order]

    def put(self, x: Tensor, shape: torch.Size) -> Tensor:
        """x (N, C) → (B, T, C) for ids of this shape; zeros stand at padding."""
        rows = x.new_zeros(shape.numel(), x.shape[-1]).index_copy(0, self.order, x)
        return rows.view(*shape, -1)
