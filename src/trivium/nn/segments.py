"""Several texts in a row that do not see one another (packing: Krell et al. 2021).

    segments   0 0 0 1 1 1 1 −1 −1      which text of its row a token belongs to; −1: padding
    positions  0 1 2 0 1 2 3  0  1      where it stands in its text

or texts that begin alike, of which the beginning, −2, is computed once and seen by all of the row:

    segments  −2 −2 −2 0 0 1 1 1 −1
    positions  0  1  2 3 4 3 4 5  0

Attention is computed text by text, so that it costs Σ length² instead of B·T² and no mask of
(B, T, T) exists: on a GPU by one kernel for texts of any lengths (FlashAttention, Dao et al. 2022),
to which a beginning is given once for each of its texts, keys and values only; elsewhere in a loop
over the texts, which on a CPU is as fast as that (bench/training_parts.py).

B rows, T tokens of a row, H heads, G heads of keys and values, D channels of a head.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trivium.nn.attention import attend
from trivium.nn.untraced import untraced

PADDING = -1
SHARED = -2  # the beginning of all texts of a row
WIDEST = 256  # channels of a head that FlashAttention takes


class Segments:
    """Where the texts of a batch stand. A segment is a run of equal numbers in a row; a beginning
    that texts share is the first of its row.

    positions: (B, T), of each token in its segment
    """

    def __init__(self, numbers: Tensor) -> None:
        starts = torch.ones_like(numbers, dtype=torch.bool)
        starts[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        at = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
        shared = numbers == SHARED
        behind = ~shared & (numbers != PADDING)
        own = at - torch.where(starts, at, 0).cummax(1).values
        trunks = behind * shared.sum(1, keepdim=True)  # tokens of the beginning before each
        self.positions = own + trunks
        first = starts.flatten().nonzero().squeeze(1)
        self._bounds = torch.cat([first, first.new_tensor([numbers.numel()])])
        self._numbers = numbers.flatten()[first]
        self._branched = bool(shared.any())
        if self._branched:
            begins = trunks.flatten()[first]
            self._keys, self._key_bounds = _behind(begins, self._bounds, numbers.shape[1])

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
        """What `trivium.nn.attention.attend` gives for each text alone, or behind the beginning of
        its row: q (B, H, T, D) and k, v (B, G, T, D) → (B, H, T, D)."""
        assert causal or not self._branched, "a shared beginning cannot see what comes behind it"
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast, turning gave float32
        varlen = _varlen(v)
        if varlen is None:
            return self._one_by_one(q, k, v, causal, window, scale)
        longest = q.shape[2]
        own, *seen = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (B·T, H or G, D)
        bounds = key_bounds = self._bounds.to(torch.int32)
        if self._branched:
            seen = [x.index_select(0, self._keys) for x in seen]
            key_bounds = self._key_bounds.to(torch.int32)
        behind = -1 if window is None else window - 1
        y = varlen(
            own,
            *seen,
            bounds,
            key_bounds,
            longest,
            longest,
            scale=scale,
            window_size=(behind, 0) if causal else (-1, -1),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return y.unflatten(0, (q.shape[0], longest)).transpose(1, 2)

    @untraced
    def _one_by_one(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float | None
    ) -> Tensor:
        rows, heads, count, width = q.shape
        lengths, numbers = self._pieces
        # Along all rows. Views, and the backward of `split` is one copy.
        flat = (x.transpose(1, 2).reshape(1, rows * count, -1, width) for x in (q, k, v))
        pieces = zip(*(torch.split(x, lengths, 1) for x in flat), strict=True)
        parts: list[Tensor] = []
        at, before = 0, None
        for length, number, qkv in zip(lengths, numbers, pieces, strict=True):
            if at % count == 0:
                before = None
            at += length
            if number == PADDING:
                parts.append(torch.zeros_like(qkv[0]))
                continue
            own, *seen = (x.transpose(1, 2) for x in qkv)  # (1, H or G, length, D)
            if before is not None:
                seen = [torch.cat(pair, 2) for pair in zip(before, seen, strict=True)]
            y = attend(own, *seen, causal=causal, window=window, scale=scale)
            parts.append(y.transpose(1, 2))
            if number == SHARED:
                before = seen
        return torch.cat(parts, 1).view(rows, count, heads, width).transpose(1, 2)

    @functools.cached_property
    def _pieces(self) -> tuple[list[int], list[int]]:
        """How long each segment is, one row after the other, and its number."""
        return self._bounds.diff().tolist(), self._numbers.tolist()


def _behind(trunks: Tensor, bounds: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Which tokens each text sees, one text after the other, of rows of a length: the first
    `trunks` (S,) of its row, then its own, from bounds (S + 1,). And where each list begins."""
    starts, counts = bounds[:-1], bounds.diff() + trunks
    ends = counts.cumsum(0)
    text = torch.repeat_interleave(counts)
    at = torch.arange(len(text), device=text.device) - (ends - counts)[text]
    trunk, start = trunks[text], starts[text]
    keys = torch.where(at < trunk, start // length * length + at, start + at - trunk)
    return keys, torch.cat([ends.new_zeros(1), ends])


@functools.cache
def _kernel() -> Callable[..., Any] | None:
    """PyTorch's attention over texts of any lengths; None before it took all we need to say."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters.keys()
    if not {"scale", "window_size"} <= known:
        return None
    return varlen_attn if "enable_gqa" in known else _with_heads_repeated(varlen_attn)


def _with_heads_repeated(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that wants as many heads of keys and values as of queries, given fewer."""

    def call(q: Tensor, k: Tensor, v: Tensor, *where: Any, enable_gqa: bool, **more: Any) -> Any:
        if enable_gqa:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        return kernel(q, k, v, *where, **more)

    return call


def _varlen(v: Tensor) -> Callable[..., Any] | None:
    """The kernel, if there is one for keys and values such as v."""
    half = v.dtype in (torch.bfloat16, torch.float16)
    if v.device.type != "cuda" or not half or v.shape[-1] % 8 or v.shape[-1] > WIDEST:
        return None
    return _kernel() if torch.cuda.get_device_capability(v.device) >= (8, 0) else None
