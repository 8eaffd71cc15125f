"""Several texts in a row that do not see one another (packing: Krell et al. 2021).

    segments   0 0 0 1 1 1 1 −1 −1      which text of its row a token belongs to; −1: padding
    positions  0 1 2 0 1 2 3  0  1      where it stands in its text

Attention is computed text by text, so that its cost is Σ length² instead of B·T² and no mask of
(B, T, T) ever exists: on a GPU by one kernel for texts of any lengths (FlashAttention, Dao et al.
2022), elsewhere by tiles. A long text is a tile of its own; short neighbours share one behind a
mask of its size.

B rows, T tokens of a row, H heads, G heads of keys and values, D channels of a head.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trivium.nn.attention import attend
from trivium.nn.untraced import untraced

PADDING = -1
TILE = 128  # tokens, up to which short texts share a tile
WIDEST = 256  # channels of a head that FlashAttention takes


class Tile(NamedTuple):
    lengths: list[int]  # of its texts
    real: bool  # False: padding, whose attention is zero

    @property
    def length(self) -> int:
        return sum(self.lengths)


class Segments:
    """Where the texts of a batch stand. A segment is a run of equal numbers in a row.

    positions: (B, T), of each token in its segment
    """

    def __init__(self, numbers: Tensor) -> None:
        starts = torch.ones_like(numbers, dtype=torch.bool)
        starts[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        at = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
        self.positions = at - torch.where(starts, at, 0).cummax(1).values
        first = starts.flatten().nonzero().squeeze(1)
        self._bounds = F.pad(first, (0, 1), value=numbers.numel())
        self._real = numbers.flatten()[first] != PADDING
        self._masks: dict[tuple[int, bool, int | None], Tensor] = {}

    @classmethod
    @untraced
    def of(cls, numbers: Tensor) -> "Segments | None":
        """The segments (B, T) of a batch; None if every row is one text."""
        return None if bool((numbers == numbers[:, :1]).all()) else cls(numbers)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """What `trivium.nn.attention.attend` gives for each text alone: q (B, H, T, D) and k, v
        (B, G, T, D) → (B, H, T, D)."""
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast, turning gave float32
        if (varlen := _varlen(v)) is None:
            return self._by_tiles(q, k, v, causal, window, scale)
        bounds, longest = self._bounds.to(torch.int32), q.shape[2]
        behind = -1 if window is None else window - 1
        y = varlen(
            *(x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)),  # (B·T, H or G, D)
            bounds,
            bounds,
            longest,
            longest,
            scale=scale,
            window_size=(behind, 0) if causal else (-1, -1),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return y.unflatten(0, (q.shape[0], longest)).transpose(1, 2)

    @untraced
    def _by_tiles(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float | None
    ) -> Tensor:
        rows, heads, count, width = q.shape
        lengths = [tile.length for tile in self._tiles]
        # Along all rows. Views, and the backward of `split` is one copy.
        flat = (x.transpose(1, 2).reshape(1, rows * count, -1, width) for x in (q, k, v))
        pieces = zip(*(torch.split(x, lengths, 1) for x in flat), strict=True)
        parts = []
        for i, (tile, piece) in enumerate(zip(self._tiles, pieces, strict=True)):
            q_, k_, v_ = (x.transpose(1, 2) for x in piece)  # (1, H or G, length, D)
            if not tile.real:
                y = torch.zeros_like(q_)
            elif len(tile.lengths) == 1:
                y = attend(q_, k_, v_, causal=causal, window=window, scale=scale)
            else:
                mask, grouped = self._mask(i, causal, window), heads != k.shape[1]
                y = F.scaled_dot_product_attention(
                    q_, k_, v_, attn_mask=mask, enable_gqa=grouped, scale=scale
                )
            parts.append(y.transpose(1, 2))
        return torch.cat(parts, 1).view(rows, count, heads, width).transpose(1, 2)

    @functools.cached_property
    def _tiles(self) -> list[Tile]:
        """The tiles of all rows, one row after the other."""
        tiles: list[Tile] = []
        for length, real in zip(self._bounds.diff().tolist(), self._real.tolist(), strict=True):
            last = tiles[-1] if tiles else None
            if last and last.real and real and last.length + length <= TILE:
                last.lengths.append(length)
            else:
                tiles.append(Tile([length], real))
        return tiles

    def _mask(self, number: int, causal: bool, window: int | None) -> Tensor:
        """Who sees whom in a tile: (length, length), the same for all layers of a kind."""
        key = (number, causal, window)
        if key not in self._masks:
            lengths = torch.tensor(self._tiles[number].lengths)
            owner = torch.arange(len(lengths)).repeat_interleave(lengths)
            seen = owner[:, None] == owner
            if causal:
                seen = seen.tril_()
            if window is not None:
                seen = seen.triu_(1 - window)
            self._masks[key] = seen.to(self._bounds.device)
        return self._masks[key]


@functools.cache
def _kernel() -> Callable[..., Any] | None:
    """PyTorch's attention over texts of any lengths; None before it took all we need to say."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= known.keys() else None


def _varlen(v: Tensor) -> Callable[..., Any] | None:
    """The kernel, if there is one for keys and values such as v."""
    half = v.dtype in (torch.bfloat16, torch.float16)
    if v.device.type != "cuda" or not half or v.shape[-1] % 8 or v.shape[-1] > WIDEST:
        return None
    return _kernel() if torch.cuda.get_device_capability(v.device) >= (8, 0) else None
