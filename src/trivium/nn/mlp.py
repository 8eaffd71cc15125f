"""The position-wise networks of a Transformer block. Shapes: (..., C) in and out."""

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """W₂ gelu(W₁x + b₁) + b₂; `approximate="tanh"` is the form GPT-2 was trained with."""

    def __init__(self, width: int, hidden: int, *, bias: bool = True, approximate: str = "tanh"):
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) ⊙ W_up x)  (Shazeer 2020); gate and up are one product."""

    def __init__(self, width: int, hidden: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GeGLU(nn.Module):
    """W_down (gelu(W_gate x) ⊙ W_up x)  (Shazeer 2020), with the tanh form of gelu; gate and up are
    one product."""

    def __init__(self, width: int, hidden: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.gelu(gate, approximate="tanh") * up)
