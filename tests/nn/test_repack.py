"""Blocks of K-quants and of Q5_0 as blocks of the kernels: the weights stay what the reference
library reads."""

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from trivium.nn.packed import PackedLinear
from trivium.nn.repack import REPACKED

HALVES = {"Q4_K": 2, "Q5_0": 1}  # of a block: its scales, before anything else


def random_blocks(kind: str, rows: int = 7, across: int = 3) -> np.ndarray:
    """Any bits as codes, finite numbers as scales."""
    random = np.random.default_rng(0)
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (rows, across, size), dtype=np.uint8)
    scales = random.uniform(1e-3, 1e-2, (rows, across, HALVES[kind])).astype(np.float16)
    blocks[..., : 2 * HALVES[kind]] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("kind", list(REPACKED))
def test_weights_stay(kind: str) -> None:
    blocks = random_blocks(kind)
    expected = torch.from_numpy(dequantize(blocks, GGMLQuantizationType[kind]))
    into, repack = REPACKED[kind]
    made = repack(torch.from_numpy(blocks))
    ours = torch.from_numpy(dequantize(made.numpy(), GGMLQuantizationType[into]))
    if kind == "Q5_0":
        assert torch.equal(ours, expected)
    # Two numbers rounded to half precision, of which one is multiplied by up to 15.
    assert (ours - expected).abs().max() <= expected.abs().max() * 2**-10
    assert torch.equal(PackedLinear(made, into).widened(), ours)
