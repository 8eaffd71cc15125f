"""Positions. Rotary embedding: pairs of channels turn by an angle that grows with the position.

    θ_j = base^(−2j/D),  (x_j, x_{j+D/2}) ↦ rotation by t·θ_j        (Su et al. 2021)

B batch, T tokens, H heads, D channels of a head. Channel j is paired with j + D/2 (the layout of
the published checkpoints on the Hugging Face hub; GGUF files of Llama store neighbouring pairs).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trivium.errors import UsageError
from trivium.nn.untraced import untraced

SCALINGS = ("default", "linear", "llama3", "factors")


def scaling_kind(scaling: Mapping[str, Any] | None) -> str:
    """The kind of a `rope_scaling` entry. Raises UsageError for one that we would get wrong."""
    given = scaling or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in SCALINGS:
        raise UsageError(f"rope scaling {kind!r} is not supported: {', '.join(SCALINGS)} are")
    return kind


def frequencies(head_dim: int, base: float, scaling: Mapping[str, Any] | None = None) -> Tensor:
    """The angles per position, (D/2,) in float32.

    `scaling` is the `rope_scaling` entry of a published config: "linear" divides every frequency by
    `factor`, "factors" each by its own (GGUF); "llama3" divides only the long waves (Llama 3.1,
    blending between the two wavelengths).
    """
    theta = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    kind = scaling_kind(scaling)
    if scaling is None or kind == "default":
        return theta
    factor = scaling["factor"]
    if kind == "linear":
        return theta / factor
    if kind == "factors":
        return theta / torch.tensor(factor, dtype=torch.float32)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * theta / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return theta * keep + theta / factor * (1 - keep)


class Rotary(nn.Module):
    """Leaves x alone and gives the angles its positions are to be turned by, in float32 precision.

    The table of cosines and sines is computed on first use and grown on demand.
    """

    def __init__(
        self, head_dim: int, base: float = 10000.0, scaling: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        scaling_kind(scaling)  # refuse now, not at the first token
        self.head_dim, self.base, self.scaling = head_dim, base, scaling
        self._table: tuple[Tensor, Tensor] | None = None

    def forward(
        self, x: Tensor, start: int, positions: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """x (B, T, C) at positions start … start+T−1 → x, and cos and sin of (T, 1, D). The first
        half of sin is negated, so that the rotation is x·cos + swap(x)·sin. With `positions`
        (B, T), all below start + T, these are of (B, T, 1, D)."""
        end = start + x.shape[1]
        table = self._table
        if table is None or len(table[0]) < end or not _alike(table[0], x):
            table = self._table = self._made(end, x)
        where = slice(start, end) if positions is None else positions
        return x, (table[0][where], table[1][where])

    @untraced
    @torch.inference_mode(False)  # what was made while a text was generated serves training too
    def _made(self, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        theta = frequencies(self.head_dim, self.base, self.scaling)
        size = max(256, 1 << (end - 1).bit_length())
        angles = torch.outer(torch.arange(size, dtype=torch.float32), theta)[:, None]
        cos, sin = angles.cos(), angles.sin()
        return (
            torch.cat([cos, cos], -1).to(like.device, like.dtype),
            torch.cat([-sin, sin], -1).to(like.device, like.dtype),
        )


class WindowedRotary(nn.Module):
    """Two sets of angles, (full, window): one for the layers that look at everything, one for
    those that look through a sliding window (Gemma 3)."""

    def __init__(self, full: Rotary, window: Rotary) -> None:
        super().__init__()
        self.full, self.window = full, window

    def forward(
        self, x: Tensor, start: int, positions: Tensor | None = None
    ) -> tuple[Tensor, tuple[Any, Any]]:
        """x (B, T, C) → x, and the angles of both kinds."""
        return x, (self.full(x, start, positions)[1], self.window(x, start, positions)[1])


class LearnedPosition(nn.Module):
    """Adds a learned vector to every position (GPT-2, BERT)."""

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(context, width))

    def forward(
        self, x: Tensor, start: int, positions: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        where = slice(start, start + x.shape[1]) if positions is None else positions
        return x + self.weight[where], None


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turn x (B, T, H, D) by the angles of its positions."""
    cos, sin = angles
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def rotate_full(x: Tensor, angles: tuple[Any, Any]) -> Tensor:
    """Turn x (B, T, H, D) by the first of the angles of a `WindowedRotary`."""
    return rotate(x, angles[0])


def rotate_window(x: Tensor, angles: tuple[Any, Any]) -> Tensor:
    """Turn x (B, T, H, D) by the second of the angles of a `WindowedRotary`."""
    return rotate(x, angles[1])
