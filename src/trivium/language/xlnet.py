"""XLNet: a language model of all orders of factorisation (Yang et al. 2019).

    max E_z Σ_{t>c} log p(x_{z_t} | x_{z_1} … x_{z_{t−1}})           z: an order of the T places

Tokens stay where they are; the order says only who sees whom. Two streams share all weights. The
content stream h holds what a token is and sees; the query stream g knows its place but not its
token, so that it can predict it:

    h_i ← attention(h_i; what stands up to i in the order, i included)
    g_i ← attention(g_i; what stands before i in the order)          g_i begins as one learnt vector

Scores depend on distance alone (Dai et al. 2019, Transformer-XL), and on whether two tokens are of
the same type (segment):

    s_ij = ((q_i + u)·k_j + (q_i + v)·W_r R_{i−j} + (q_i + w)·e_[type_i ≠ type_j]) / √D

B rows, T tokens, P places to predict, S tokens to look at, C width, H heads, D channels of a head,
V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trivium.language.transformer import Embedding
from trivium.nn.attention import KVCache, attend
from trivium.nn.mlp import MLP
from trivium.nn.norms import LayerNorm


@dataclass(frozen=True)
class XLNetConfig:
    """Sizes; the defaults train on a laptop."""

    vocab_size: int = 4096
    context: int = 512  # tokens; what it is trained and used with, since nothing else bounds it
    width: int = 256
    layers: int = 4
    heads: int = 4
    head_dim: int | None = None  # None: width / heads
    hidden: int = 1024  # width inside the MLP
    mlp: Literal["gelu", "gelu_tanh"] = "gelu"
    norm_eps: float = 1e-12
    token_types: int = 0  # 2: tokens can be of two types, told apart in attention


APPROXIMATIONS = {"gelu": "none", "gelu_tanh": "tanh"}


class View(NamedTuple):
    """What the queries at P places see of S tokens.

    waves: (N, C), the sinusoids R of the distances that occur, ascending
    distance: (B or 1, P, S), the row of `waves` for each place and token
    hidden: (B or 1, P, S) bool, True where the place may not see the token
    other: (B, P, S) of 0 and 1, which is where they are of two types; None: all are of one
    """

    waves: Tensor
    distance: Tensor
    hidden: Tensor
    other: Tensor | None = None


def view(places: Tensor, hidden: Tensor, like: Tensor, *, other: Tensor | None = None) -> View:
    """The view of the queries at `places` (B or 1, P) on the S tokens that `hidden` is about. The
    sinusoids have the width and type of `like`."""
    S, C = hidden.shape[-1], like.shape[-1]
    distance = places[..., None] - torch.arange(S, device=places.device)
    # Of distances that nobody sees, the nearest one that somebody does.
    lowest, highest = distance.masked_fill(hidden, 0).aminmax()
    distances = torch.arange(int(lowest), int(highest) + 1, device=places.device)
    frequency = 10000 ** (-torch.arange(0, C, 2, device=places.device) / C)
    angles = distances[:, None] * frequency
    waves = torch.cat([angles.sin(), angles.cos()], -1).to(like.dtype)
    return View(waves, distance.clamp(lowest, highest) - lowest, hidden, other)


class RelativeAttention(nn.Module):
    """Multi-head attention whose scores depend on distance."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.heads, self.head_dim = heads, config.head_dim or width // heads
        rows = heads * self.head_dim
        self.q = nn.Linear(width, rows, bias=False)
        self.kv = nn.Linear(width, 2 * rows, bias=False)
        self.distance = nn.Linear(width, rows, bias=False)  # W_r
        self.content_bias = nn.Parameter(torch.zeros(heads, self.head_dim))  # u
        self.distance_bias = nn.Parameter(torch.zeros(heads, self.head_dim))  # v
        if config.token_types:
            self.type_bias = nn.Parameter(torch.zeros(heads, self.head_dim))  # w
            self.types = nn.Parameter(torch.zeros(2, heads, self.head_dim))  # e: the same, another
        self.out = nn.Linear(rows, width, bias=False)

    def keys(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The content stream (B, S, C) → keys and values (B, H, S, D)."""
        B, S, _ = h.shape
        k, v = self.kv(h).view(B, S, 2 * self.heads, self.head_dim).transpose(1, 2).chunk(2, dim=1)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, seen: View) -> Tensor:
        """A stream x (B, P, C) looks at k, v (B, H, S, D) → (B, P, C)."""
        B, P, _ = x.shape
        H, D = self.heads, self.head_dim
        q = self.q(x).view(B, P, H, D).transpose(1, 2)  # (B, H, P, D)
        scale = D**-0.5
        r = self.distance(seen.waves).view(-1, H, D).permute(1, 2, 0)  # (H, D, N)
        by_distance = (q + self.distance_bias[:, None]) @ r  # (B, H, P, N)
        bias = by_distance.gather(-1, seen.distance[:, None].expand(B, H, P, -1))  # (B, H, P, S)
        if seen.other is not None:
            by_type = torch.einsum("bhpd,zhd->bhpz", q + self.type_bias[:, None], self.types)
            bias = bias + by_type.gather(-1, seen.other[:, None].expand(B, H, P, -1))
        bias = (bias * scale).masked_fill(seen.hidden[:, None], -math.inf)
        y = attend(q + self.content_bias[:, None], k, v, bias=bias, scale=scale)
        return self.out(y.transpose(1, 2).reshape(B, P, H * D))


class Block(nn.Module):
    """Attention and MLP, norms behind the sums; both streams pass through the same one."""

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.attention = RelativeAttention(config)
        self.attention_norm = LayerNorm(width, eps=eps)
        self.mlp = MLP(width, config.hidden, approximate=APPROXIMATIONS[config.mlp])
        self.mlp_norm = LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, seen: View) -> Tensor:
        x = self.attention_norm(x + self.attention(x, k, v, seen))
        return self.mlp_norm(x + self.mlp(x))


class XLNet(nn.Module):
    """
    predict    the query stream at some places, in any order of factorisation: what it learns
    encode     the content stream, in which everything sees everything: vectors in context
    features   the query stream behind each token, from left to right: a language model
    """

    def __init__(self, config: XLNetConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.width)
        self.query = nn.Parameter(torch.zeros(config.width))  # what the query stream begins as
        self.layers: Any = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.embedding.bias = nn.Parameter(torch.zeros(config.vocab_size))  # of the head
        self.head = None  # the embedding, transposed
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """N(0, 0.02²), also of u, v, w and e; norms 1, other biases 0."""
        for name, parameter in self.named_parameters():
            if parameter.is_meta or "norm" in name:
                continue
            if name.endswith(".bias"):
                parameter.zero_()
            else:
                parameter.normal_(0, 0.02)

    def predict(
        self,
        ids: Tensor,
        order: Tensor,
        places: Tensor,
        *,
        segments: Tensor | None = None,
        types: Tensor | None = None,
    ) -> Tensor:
        """The query stream at places (B, P) of ids (B, T) → (B, P, C).

        order: (B, T), when a token becomes known; those of equal order see one another, and no
            query sees what is of its own order or a later one
        segments: (B, T), texts of a packed row, which do not see one another
        types: (B, T), 0 or 1: of which type a token is
        """
        B, T = ids.shape
        at = torch.arange(T, device=ids.device)[None]
        later = order[:, None] > order[:, :, None]  # (B, T, T)
        own = order.gather(1, places)[..., None]
        unknown = order[:, None] >= own  # (B, P, T)
        if segments is not None:
            later = later | (segments[:, None] != segments[:, :, None])
            unknown = unknown | (segments[:, None] != segments.gather(1, places)[..., None])
        h = self.embedding.rows(ids)
        g = self.query.expand(B, places.shape[1], -1)
        known = view(at, later, h, other=_others(types, at.expand(B, T)))
        wanted = view(places, unknown, h, other=_others(types, places))
        return self._two_streams(h, g, known, wanted)

    def encode(
        self, ids: Tensor, *, real: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """ids (B, T) → the content stream (B, T, C), where every token sees all others, but for
        padding, where real (B, T) is False."""
        B, T = ids.shape
        at = torch.arange(T, device=ids.device)[None]
        hidden = torch.zeros(1, T, T, dtype=torch.bool, device=ids.device)
        if real is not None:
            hidden = _padding(real)
        h = self.embedding.rows(ids)
        seen = view(at, hidden, h, other=_others(types, at.expand(B, T)))
        for block in self.layers:
            h = block(h, *block.attention.keys(h), seen)
        return h

    def features(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        segments: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """ids (B, T) → the query stream (B, T, C) at the place behind each, which sees it and those
        before it. With a cache, ids continue what it holds; `segments` (B, T) are texts that do not
        see one another, and `real` (B, T) is False at padding."""
        h, known, wanted = self._left_to_right(ids, cache, segments, real)
        g = self.query.expand(h.shape)
        g = self._two_streams(h, g, known, wanted, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        return g

    def streams(self, ids: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The content stream (B, T, C) after each of `layers`, counted from 0, in ascending order;
        read from left to right."""
        h, known, _ = self._left_to_right(ids)
        kept = []
        for i, block in enumerate(self.layers[: max(layers) + 1]):
            h = block(h, *block.attention.keys(h), known)
            if i in layers:
                kept.append(h)
        return kept

    def _left_to_right(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        segments: Tensor | None = None,
        real: Tensor | None = None,
    ) -> tuple[Tensor, View, View]:
        """The embedded tokens, and what is seen from their places and from those behind them."""
        T, start = ids.shape[1], cache.length if cache is not None else 0
        at = torch.arange(start, start + T, device=ids.device)[None]
        hidden = torch.arange(start + T, device=ids.device) > at[..., None]  # (1, T, S)
        if segments is not None:
            hidden = hidden | (segments[:, None] != segments[:, :, None])
        if real is not None:
            hidden = hidden | _padding(real)
        h = self.embedding.rows(ids)
        return h, view(at, hidden, h), view(at + 1, hidden, h)

    def _two_streams(
        self, h: Tensor, g: Tensor, known: View, wanted: View, cache: KVCache | None = None
    ) -> Tensor:
        """The content stream h (B, T, C) and the query stream g (B, P, C) → g behind the last
        block."""
        for i, block in enumerate(self.layers):
            k, v = block.attention.keys(h)
            if cache is not None:
                k, v = cache.update(i, k, v)
            g = block(g, k, v, wanted)
            if i + 1 < len(self.layers):  # nobody looks at the last one's h
                h = block(h, k, v, known)
        return g

    def logits(self, features: Tensor) -> Tensor:
        """(…, C) → (…, V)"""
        return self.embedding.project(features)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """ids (B, T) → logits (B, T, V) of the token behind each"""
        return self.logits(self.features(ids, cache))


def _padding(real: Tensor) -> Tensor:
    """real (B, T) → (B, T, T), what is hidden: padding, but from itself."""
    return ~(real[:, None] | torch.eye(real.shape[1], dtype=torch.bool, device=real.device))


def _others(types: Tensor | None, places: Tensor) -> Tensor | None:
    """types (B, T) at places (B, P) → (B, P, T) of 1 where two are not the same."""
    if types is None:
        return None
    return (types.gather(1, places)[..., None] != types[:, None]).long()
