"""Normalisation over the last dimension. Shapes: (..., C) in and out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = g · x / √(mean(x²) + eps)  (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class QKNorm(nn.Module):
    """RMSNorm of every head of the queries and keys, with one gain for all heads of a kind
    (Henry et al. 2020). x: (B, T, H + G, D), the H heads of queries first."""

    def __init__(self, heads: int, groups: int, head_dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.ones(head_dim))
        self.k = nn.Parameter(torch.ones(head_dim))
        self.counts, self.eps = [heads, groups], eps

    def forward(self, x: Tensor) -> Tensor:
        q, k = torch.split(x, self.counts, dim=2)
        shape = x.shape[-1:]
        return torch.cat(
            [F.rms_norm(q, shape, self.q, self.eps), F.rms_norm(k, shape, self.k, self.eps)], dim=2
        )


LayerNorm = nn.LayerNorm
