"""Blocks of other GGUF types as blocks that the kernels compute with.

    Q4_K  w = (d·s)·q − (e·t)   in eight blocks of 32 that share d, e   → Q4_1, q as it is
    Q5_0  w = d·(q − 16)                                                → Q8_0, exactly

The scales d·s and minima e·t of Q4_K have up to 17 bits and are rounded to half precision (one part
in 4,096 at most, a hundredth of what 4 bits cost). Other types are widened and rounded to Q8_0 by
whoever loads them: that adds at most 1/254 of a block's largest weight, where 5 and 6 bits have
cost 1/62 and 1/126 already.

N rows, B blocks of a row.
"""

from collections.abc import Callable

import torch
from torch import Tensor

HALF = 2  # bytes of a number in half precision


def from_q4_k(blocks: Tensor) -> Tensor:
    """(N, B·144) → (N, 8B·20)"""
    rows = blocks.shape[0]
    whole = blocks.reshape(rows, -1, 144)
    d, e = _halves(whole[..., :2]), _halves(whole[..., 2:4])  # (N, B, 1)
    s, t = _six_bits(whole[..., 4:16])  # (N, B, 8)
    pairs = whole[..., 16:].reshape(rows, -1, 4, 32)  # block 2i in the low nibbles, 2i + 1 above
    codes = torch.stack([pairs & 15, pairs >> 4], dim=3).reshape(rows, -1, 8, 32)
    packed = codes[..., :16] | codes[..., 16:] << 4
    heads = torch.stack([d * s, -e * t], dim=-1).half().view(torch.uint8)  # (N, B, 8, 4)
    return torch.cat([heads, packed], dim=-1).reshape(rows, -1)


def from_q5_0(blocks: Tensor) -> Tensor:
    """(N, B·22) → (N, B·34)"""
    rows = blocks.shape[0]
    whole = blocks.reshape(rows, -1, 22)
    nibbles = torch.cat([whole[..., 6:] & 15, whole[..., 6:] >> 4], dim=-1)
    shifts = torch.arange(8, dtype=torch.uint8)
    fifth = (whole[..., 2:6, None] >> shifts & 1).flatten(-2)  # (N, B, 32)
    codes = ((nibbles | fifth << 4).to(torch.int8) - 16).view(torch.uint8)
    return torch.cat([whole[..., :2], codes], dim=-1).reshape(rows, -1)


def _halves(two: Tensor) -> Tensor:
    return two.contiguous().view(torch.float16).float()


def _six_bits(scales: Tensor) -> tuple[Tensor, Tensor]:
    """The 8 scales and the 8 minima in 12 bytes: six bits each, the upper two of the last four
    of both in what the first four leave free."""
    first, second, third = torch.tensor_split(scales, 3, dim=-1)
    s = torch.cat([first & 63, third & 15 | first >> 6 << 4], dim=-1)
    t = torch.cat([second & 63, third >> 4 | second >> 6 << 4], dim=-1)
    return s.float(), t.float()


# type of a file: the one it becomes, and how
REPACKED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "Q4_K": ("Q4_1", from_q4_k),
    "Q5_0": ("Q8_0", from_q5_0),
}
