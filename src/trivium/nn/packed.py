"""Linear layers whose weights stay in the blocks of a GGUF file (Q4_0, Q4_1, Q8_0).

A few rows of input go through the native kernels, which read the blocks as they are and round the
activations to 8 bits by blocks of 32; more rows are cheaper as a matrix product, for which the
weights are widened to bfloat16 for the moment. Without the kernels, PyTorch computes the same from
the widened weights, more slowly.

N rows of weights (outputs), K columns (inputs), a multiple of 32.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trivium.nn import native

TYPES = {"Q4_0": (2, 18), "Q4_1": (3, 20), "Q8_0": (8, 34)}  # ggml's number, bytes of a block
FEW_ROWS = 16
BLOCK = 32


class PackedLinear(nn.Module):
    """In the place of `nn.Linear`. `blocks` (N, bytes of a row) may be a view of a mapped file."""

    blocks: Tensor
    bias: Tensor | None

    def __init__(self, blocks: Tensor, kind: str, bias: Tensor | None = None) -> None:
        super().__init__()
        self.kind = kind
        number, size = TYPES[kind]
        self.out_features, row_bytes = blocks.shape
        self.in_features = row_bytes // size * BLOCK
        self.register_buffer("blocks", blocks)
        self.register_buffer("bias", None if bias is None else bias.float())
        self._number = number

    def matrix(self) -> native.Matrix:
        """The weights as the kernels take them; valid as long as this module is."""
        if self.bias is not None:
            self.bias = self.bias.float()  # whatever type the model was moved to
        return native.Matrix(
            self.blocks.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            self._number,
            self.out_features,
            self.in_features,
            self.blocks.shape[1],
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) → (..., N), in the type of x"""
        flat = x.reshape(-1, self.in_features)
        if flat.shape[0] <= FEW_ROWS and (library := native.library()) is not None:
            y = self._few(library, flat)
        else:
            y = F.linear(flat.to(torch.bfloat16), self.widened())
            if self.bias is not None:
                y = y + self.bias.to(y.dtype)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    project = forward  # the matrix as the head of a model, when it is its embedding too

    def _few(self, library: ctypes.CDLL, x: Tensor) -> Tensor:
        x = x.float().contiguous()
        y = torch.empty(x.shape[0], self.out_features)
        scratch = torch.empty(x.numel() // BLOCK * native.ACT_BYTES, dtype=torch.uint8)
        library.trivium_matmul(
            ctypes.byref(self.matrix()),
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_void_p(y.data_ptr()),
            x.shape[0],
            ctypes.c_void_p(scratch.data_ptr()),
        )
        return y

    def widened(self) -> Tensor:
        """The weights (N, K) in bfloat16."""
        library = native.library()
        if library is None:
            return _dequantized(self.blocks, self.kind).to(torch.bfloat16)
        y = torch.empty(self.out_features, self.in_features, dtype=torch.bfloat16)
        library.trivium_to_bf16(ctypes.byref(self.matrix()), ctypes.c_void_p(y.data_ptr()))
        return y

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the matrix, as an embedding reads them: (...) indices → (..., K) bfloat16"""
        flat = index.reshape(-1)
        picked = _dequantized(self.blocks[flat], self.kind)
        return picked.to(torch.bfloat16).view(*index.shape, self.in_features)


def pack(weight: Tensor, kind: str = "Q8_0") -> Tensor:
    """Round `weight` (N, K) to blocks, by the reference library."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    return torch.from_numpy(quantize(weight.float().numpy(), GGMLQuantizationType[kind]))


def stack(parts: list[tuple[Tensor, str]]) -> tuple[Tensor, str]:
    """Blocks of several matrices as one of all their rows. Of types that differ, the finest
    wins."""
    kinds = {kind for _, kind in parts}
    if len(kinds) == 1:
        return parts[0] if len(parts) == 1 else (torch.cat([b for b, _ in parts]), kinds.pop())
    return pack(torch.cat([_dequantized(b, kind) for b, kind in parts]), "Q8_0"), "Q8_0"


def _dequantized(blocks: Tensor, kind: str) -> Tensor:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(blocks.contiguous().numpy(), GGMLQuantizationType[kind]))
