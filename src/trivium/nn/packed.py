"""Linear layers whose weights stay in the blocks of a GGUF file (Q4_0, Q4_1, Q8_0).

The native kernels read the blocks and round the activations to 8 bits by blocks of 32; every row of
the result has the same bits whatever other rows there are. Without the kernels, PyTorch computes
the same from weights widened to bfloat16 for the moment, more slowly.

For the kernels, blocks of several rows are interleaved into panels (see native/products.h).

N rows of weights (outputs), K columns (inputs), a multiple of 32.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trivium.nn import native

# ggml's number, bytes of a block, bytes of its scale and minimum
TYPES = {"Q4_0": (2, 18, 2), "Q4_1": (3, 20, 4), "Q8_0": (8, 34, 2)}
BLOCK = 32


class PackedLinear(nn.Module):
    """In the place of `nn.Linear`. `blocks` (N, bytes of a row) are copied into panels."""

    panels: Tensor  # (panels, K / 32, lanes · bytes of a block)
    bias: Tensor | None

    def __init__(self, blocks: Tensor, kind: str, bias: Tensor | None = None) -> None:
        super().__init__()
        self.kind = kind
        self._number, size, _ = TYPES[kind]
        self.out_features, row_bytes = blocks.shape
        self.in_features = row_bytes // size * BLOCK
        self.register_buffer("panels", _panels(blocks.contiguous(), kind))
        self.register_buffer("bias", None if bias is None else bias.float())

    def matrix(self, *, fine: bool = False) -> native.Matrix:
        """The weights as the kernels take them; valid as long as this module is. `fine`: for
        activations of 16 bits instead of 8."""
        if self.bias is not None:
            self.bias = self.bias.float()  # whatever type the model was moved to
        return native.Matrix(
            self.panels.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            self._number,
            self.out_features,
            self.in_features,
            1 + fine,
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) → (..., N), in the type of x"""
        flat = x.reshape(-1, self.in_features)
        if (library := native.library()) is not None:
            y = self._product(library, flat)
        else:
            y = F.linear(flat.to(torch.bfloat16), self.widened().to(torch.bfloat16))
            if self.bias is not None:
                y = y + self.bias.to(y.dtype)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    project = forward  # the matrix as the head of a model, when it is its embedding too

    def _product(self, library: ctypes.CDLL, x: Tensor) -> Tensor:
        x = x.float().contiguous()
        y = torch.empty(x.shape[0], self.out_features)
        scratch = torch.empty(x.numel() // BLOCK * native.ACT_BYTES, dtype=torch.uint8)
        library.trivium_threads(torch.get_num_threads())
        library.trivium_matmul(
            ctypes.byref(self.matrix()),
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_void_p(y.data_ptr()),
            x.shape[0],
            ctypes.c_void_p(scratch.data_ptr()),
        )
        return y

    def widened(self) -> Tensor:
        """The weights (N, K) in float32."""
        return _dequantized(self.blocks(), self.kind)

    def blocks(self) -> Tensor:
        """The blocks (N, bytes of a row) in the order of a GGUF file."""
        _, size, head = TYPES[self.kind]
        count, across, row = self.panels.shape
        lanes = row // size
        scales, codes = self.panels[..., : lanes * head], self.panels[..., lanes * head :]
        parts = [
            part.view(count, across, -1, lanes, width).transpose(2, 3).flatten(3)
            for part, width in ((scales, 2), (codes, 4))
        ]
        rows = torch.cat(parts, -1).transpose(1, 2)  # (panels, lanes, K / 32, bytes)
        return rows.reshape(count * lanes, across * size)[: self.out_features]

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the matrix, as an embedding reads them: (...) indices → (..., K) bfloat16"""
        flat = index.reshape(-1).contiguous()
        if (library := native.library()) is not None:
            picked = torch.empty(len(flat), self.in_features)
            library.trivium_rows(
                ctypes.byref(self.matrix()),
                ctypes.c_void_p(flat.data_ptr()),
                len(flat),
                ctypes.c_void_p(picked.data_ptr()),
            )
        else:
            picked = self.widened()[flat]
        return picked.to(torch.bfloat16).view(*index.shape, self.in_features)


def _panels(blocks: Tensor, kind: str) -> Tensor:
    """Blocks in the order of a file → panels; of one row each where there are no kernels."""
    number, size, _ = TYPES[kind]
    rows, across = blocks.shape[0], blocks.shape[1] // size
    library = native.library()
    if library is None:
        return blocks.clone().view(rows, across, size)
    lanes = library.trivium_lanes()
    made = torch.empty(-(-rows // lanes), across, lanes * size, dtype=torch.uint8)
    library.trivium_threads(torch.get_num_threads())
    library.trivium_panels(
        ctypes.c_void_p(blocks.data_ptr()),
        ctypes.c_void_p(made.data_ptr()),
        number,
        rows,
        across * BLOCK,
    )
    return made


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
