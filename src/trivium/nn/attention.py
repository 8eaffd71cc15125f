"""Scaled dot-product attention, softmax(QKᵀ/√D)V (Vaswani et al. 2017), and the cache for decoding.

B batch, T new tokens, S tokens to look at, H heads, G heads of keys and values, D channels of a
head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trivium.nn.positions import rotate


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
        store = self._stores[layer]
        if store.shape[3] < end:
            larger = k.new_empty(2, batch, groups, 1 << (end - 1).bit_length(), width)
            larger[:, :, :, : self.length] = store[:, :, :, : self.length]
            self._stores[layer] = store = larger
        store[0, :, :, self.length : end] = k
        store[1, :, :, self.length : end] = v
        return store[0, :, :, :end], store[1, :, :, :end]

    def advance(self, count: int) -> None:
        self.length += count

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on."""
        assert 0 <= length <= self.length
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


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(QKᵀ/√D)V for q (B, H, T, D) and k, v (B, G, S, D) with G dividing H.

    With `causal`, the T queries are the last of the S positions, and none looks ahead.
    """
    batch, heads, count, width = q.shape
    groups, span = k.shape[1], k.shape[2]
    grouped = heads != groups
    if count == 1:
        # The heads of a group share keys, so they can stand as its queries: one product a group.
        folded = F.scaled_dot_product_attention(q.reshape(batch, groups, -1, width), k, v)
        return folded.view(batch, heads, 1, width)
    if not causal:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    if count == span:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    past = span - count
    mask = torch.ones(count, span, dtype=torch.bool, device=q.device).tril_(past)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, with grouped keys and values when G < H."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        groups: int | None = None,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups or heads
        self.head_dim = head_dim or width // heads
        rows = (self.heads + 2 * self.groups) * self.head_dim
        self.qkv = nn.Linear(width, rows, bias=qkv_bias)
        self.out = nn.Linear(self.heads * self.head_dim, width, bias=out_bias)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        *,
        causal: bool = True,
    ) -> Tensor:
        """x (B, T, C) → (B, T, C). `angles` come from `Rotary`; `cache` holds what came before."""
        B, T, _ = x.shape
        H, G = self.heads, self.groups
        qkv = self.qkv(x).view(B, T, H + 2 * G, self.head_dim)
        qk, v = qkv.split([H + G, G], dim=2)
        if angles is not None:
            qk = rotate(qk, angles)
        q, k = qk.split([H, G], dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or G, T, D)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        y = attend(q, k, v, causal=causal)
        return self.out(y.transpose(1, 2).reshape(B, T, H * self.head_dim))
