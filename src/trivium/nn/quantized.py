"""Linear layers with int8 weights: w ≈ q · s, one scale s for each row of the output.

The scale is rounded to bfloat16 before the weights are divided by it, so that rounding it adds no
error of its own. One or a few rows of input go through the packed product of PyTorch, which reads
the weights once, as bytes; more rows are cheaper as a bfloat16 matrix product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 12  # measured: from about 16 rows on, the matrix product wins


class Int8Linear(nn.Module):
    """In the place of `nn.Linear`; input and output in bfloat16 (other types are converted)."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)  # (out, in) int8
        self.register_buffer("scale", scale)  # (out,) bfloat16
        self.register_buffer("bias", bias)

    @classmethod
    def from_float(cls, weight: Tensor, bias: Tensor | None = None) -> "Int8Linear":
        """Round `weight` (out, in) to 8 bits, symmetric, by rows."""
        limit = weight.abs().amax(dim=1).clamp_min_(1e-12)
        scale = (limit.float() / 127).to(torch.bfloat16)
        # Rounding may have made the scale too small for the largest weight: clamp, do not wrap.
        whole = torch.div(weight, scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        return cls(whole, scale, None if bias is None else bias.to(torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) → (..., out)"""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if rows.shape[0] <= FEW_ROWS and rows.device.type == "cpu":
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            y = F.linear(rows, self.weight.to(torch.bfloat16)).mul_(self.scale)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1)

    project = forward  # the matrix as the head of a model, when it is its embedding too

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the matrix, as an embedding reads them: (...) indices → (..., in)"""
        return self.weight[index].to(torch.bfloat16) * self.scale[index].unsqueeze(-1)
