"""Scaled dot-product attention, softmax(QKᵀ/√D)V (Vaswani et al. 2017), over everything or over a
sliding window (Beltagy et al. 2020), and the cache for decoding.

B batch, T new tokens, S tokens to look at, H heads, G heads of keys and values, D channels of a
head.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trivium.nn.positions import rotate

if TYPE_CHECKING:
    from trivium.nn.segments import Segments


SCORES = 2**25  # at most, of what attends by products: they are kept for the backward pass
BLOCK = 128  # queries whose products are made at a time


class KVCache:
    """Keys and values of the tokens seen so far, for every layer; storage doubles when it is full.

    Layers write with `update`; the model advances `length` once, after the last layer.
    """

    def __init__(self) -> None:
        self.length = 0
        self._stores: list[Tensor] = []

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, G, T, D) of the new tokens; return those of all tokens (B, G, S, D)."""
        batch, groups, count, width = k.shape
        end = self.length + count
        if layer == len(self._stores):
            size = max(256, 1 << (end - 1).bit_length())
            self._stores.append(k.new_empty(2, batch, groups, size, width))
        store = self._grown(layer, end)
        store[0, :, :, self.length : end] = k
        store[1, :, :, self.length : end] = v
        seen = store[:, :, :, :end].to(k.dtype)  # the same tensor, but for a cache of native code
        return seen[0], seen[1]

    def last(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """The pair (B, G, D) that was stored of the last token; None if there is none."""
        if not self.length:
            return None
        newest = self._stores[layer][:, :, :, self.length - 1]
        return newest[0], newest[1]

    def reserve(self, count: int, layers: int, groups: int, width: int) -> list[Tensor]:
        """The stores of all layers (2, 1, G, capacity, D) in half precision, with room for `count`
        more tokens; for native code that writes into them itself."""
        end = self.length + count
        if self._stores:  # the last layer is the last to grow
            last = self._stores[-1]
            if last.shape[3] >= end and last.dtype == torch.float16:
                return self._stores
        else:
            size = max(256, 1 << (end - 1).bit_length())
            store = torch.empty(2, 1, groups, size, width, dtype=torch.float16)
            self._stores = [torch.empty_like(store) for _ in range(layers)]
        self._stores = [store.to(torch.float16) for store in self._stores]
        return [self._grown(layer, end) for layer in range(layers)]

    def _grown(self, layer: int, end: int) -> Tensor:
        store = self._stores[layer]
        if store.shape[3] < end:
            batch, groups, _, width = store.shape[1:]
            larger = store.new_empty(2, batch, groups, 1 << (end - 1).bit_length(), width)
            larger[:, :, :, : self.length] = store[:, :, :, : self.length]
            self._stores[layer] = store = larger
        return store

    def advance(self, count: int) -> None:
        self.length += count

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on."""
        assert 0 <= length <= self.length
        self.length = length

    def follow(self, other: "KVCache", length: int) -> None:
        """Append what `other` holds from this cache's end up to position `length`."""
        assert self.length <= length <= other.length
        if not self._stores:
            self._stores = other.copy(length)._stores
        else:
            for layer, theirs in enumerate(other._stores):
                mine = self._grown(layer, length)
                mine[:, :, :, self.length : length] = theirs[:, :, :, self.length : length]
        self.length = length

    def copy(self, length: int) -> "KVCache":
        """A cache of its own that holds the first `length` tokens."""
        assert length <= self.length
        twin = KVCache()
        twin.length = length
        for store in self._stores:
            fresh = torch.empty_like(store)
            fresh[:, :, :, :length] = store[:, :, :, :length]
            twin._stores.append(fresh)
        return twin


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    real: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(QKᵀ·scale + bias)V for q (B, H, T, D) and k, v (B, G, S, D) with G dividing H.

    causal: the T queries are the last of the S positions, and none looks ahead
    window: with `causal`, each query sees itself and the window − 1 positions before it
    real: (B, S) bool, False where a key is padding that nobody may look at
    bias: (B, H, T, S), −∞ where a query may not look; instead of the three before
    scale: 1/√D unless given
    """
    if bias is not None:
        assert not causal and window is None and real is None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    batch, heads, count, width = q.shape
    if window is not None:  # drop the keys that no query reaches
        reach = window + count - 1
        k, v = k[:, :, -reach:], v[:, :, -reach:]
        real = None if real is None else real[:, -reach:]
    groups, span = k.shape[1], k.shape[2]
    grouped = heads != groups
    shown = None if real is None else real[:, None, None]  # (B, 1, 1, S)
    if count == 1:
        # The heads of a group share keys, so they can stand as its queries: one product a group.
        folded = q.reshape(batch, groups, -1, width)
        y = F.scaled_dot_product_attention(folded, k, v, attn_mask=shown, scale=scale)
        return y.view(batch, heads, 1, width)
    past = span - count
    open_ = shown is None and (window is None or span <= window)  # all but what lies ahead is seen
    if open_ and (causal or not past) and _by_products(q, k, v):
        return _products(q.to(v.dtype), k.to(v.dtype), v, causal=causal, scale=scale)
    triangle = open_ and not past
    if causal and not triangle:
        seen = torch.ones(count, span, dtype=torch.bool, device=q.device).tril_(past)
        if window is not None:
            seen = seen.triu_(past - window + 1)
        shown = seen if shown is None else seen & shown
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=shown,
        is_causal=causal and triangle,
        enable_gqa=grouped,
        scale=scale,
    )


def _by_products(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether products are faster than PyTorch's fused kernel: trained in bfloat16 on a CPU, by 5
    times for texts of 32 tokens, twice for 512 and 1.3 times for 1,024
    (bench/training_parts.py)."""
    trained = torch.is_grad_enabled() and v.requires_grad
    scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    return trained and v.device.type == "cpu" and v.dtype == torch.bfloat16 and scores <= SCORES


def _products(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float | None) -> Tensor:
    """What `attend` gives, by the equation. The heads of a group stand as its queries."""
    (B, H, T, D), G = q.shape, k.shape[1]
    past = k.shape[2] - T
    q = (q * (D**-0.5 if scale is None else scale)).view(B, G, H // G, T, D)
    if not causal:
        y = _weighted(q, k, v, None)
    else:  # a block of queries at a time: the keys behind it cost nothing
        ahead = torch.full((T, past + T), -torch.inf, dtype=q.dtype, device=q.device)
        ahead.triu_(past + 1)
        parts = []
        for i in range(0, T, BLOCK):
            end = min(i + BLOCK, T)
            seen = past + end
            bias = ahead[i:end, :seen]
            parts.append(_weighted(q[:, :, :, i:end], k[:, :, :seen], v[:, :, :seen], bias))
        y = torch.cat(parts, dim=3)
    return y.reshape(B, H, T, D)


def _weighted(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(qkᵀ + bias)v for q (B, G, H/G, T, D), k and v (B, G, S, D), bias (T, S)."""
    (B, G, M, T, D), S = q.shape, k.shape[2]
    scores = torch.bmm(q.reshape(B * G, M * T, D), k.reshape(B * G, S, D).transpose(1, 2))
    scores = scores.view(B * G, M, T, S)
    if bias is not None:
        scores = scores + bias
    y = torch.bmm(scores.softmax(-1).view(B * G, M * T, S), v.reshape(B * G, S, D))
    return y.view(B, G, M, T, D)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, with grouped keys and values when G < H.

    qk_norm: applied to the heads of queries and keys (B, T, H + G, D) before they are turned
    turn: turns them by the angles of their positions
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        groups: int | None = None,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        qk_norm: nn.Module | None = None,
        turn: Callable[[Tensor, Any], Tensor] = rotate,
        causal: bool = True,
        window: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups or heads
        self.head_dim = head_dim or width // heads
        self.turn, self.causal, self.window, self.scale = turn, causal, window, scale
        rows = (self.heads + 2 * self.groups) * self.head_dim
        self.qkv = nn.Linear(width, rows, bias=qkv_bias)
        self.qk_norm = qk_norm or nn.Identity()
        self.out = nn.Linear(self.heads * self.head_dim, width, bias=out_bias)

    def forward(
        self,
        x: Tensor,
        angles: Any = None,
        cache: KVCache | None = None,
        layer: int = 0,
        real: Tensor | None = None,
        segments: "Segments | None" = None,
    ) -> Tensor:
        """x (B, T, C) → (B, T, C). `angles` come from the position; `cache` holds what came
        before; `real` (B, T) is False at padding. With `segments`, and neither of the two, no text
        of a row sees another."""
        B, T, _ = x.shape
        H, G = self.heads, self.groups
        qkv = self.qkv(x).view(B, T, H + 2 * G, self.head_dim)
        qk, v = qkv.split([H + G, G], dim=2)
        qk = self.qk_norm(qk)
        if angles is not None:
            qk = self.turn(qk, angles)
        q, k = qk.split([H, G], dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or G, T, D)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        causal, window, scale = self.causal, self.window, self.scale
        if segments is None:
            y = attend(q, k, v, causal=causal, window=window, real=real, scale=scale)
        else:
            y = segments.attend(q, k, v, causal=causal, window=window, scale=scale)
        return self.out(y.transpose(1, 2).reshape(B, T, H * self.head_dim))
