"""One decoding step in native code, for Llama-like models whose weights are packed.

The step reads and writes the same `KVCache` as the PyTorch path, so that a prompt can be computed
by the one (a matrix product) and continued by the other (products with one row).
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trivium.language.transformer import Block, Transformer
from trivium.nn import native
from trivium.nn.attention import KVCache, SelfAttention
from trivium.nn.mlp import SwiGLU
from trivium.nn.norms import QKNorm, RMSNorm
from trivium.nn.packed import PackedLinear
from trivium.nn.positions import Rotary, frequencies, rotate


class NativeStep:
    """Continues several sequences by one token each. Made by `of`, which knows what it can
    serve."""

    def __init__(self, model: Transformer, library: ctypes.CDLL) -> None:
        self._library = library
        config = model.config
        self._kept: list[Tensor] = []  # what the structure points into
        self._layers = (native.Layer * config.layers)(*map(self._layer, model.layers))
        head_dim = config.head_dim or config.width // config.heads
        embedding, head = _ends(model)
        self._model = native.Model(
            config.layers,
            config.width,
            config.heads,
            config.groups or config.heads,
            head_dim,
            config.hidden,
            config.vocab_size,
            config.norm_eps,
            self._pointer(model.get_parameter("norm.weight")),
            self._pointer(frequencies(head_dim, config.rope_base, config.rope_scaling)),
            ctypes.cast(self._layers, ctypes.POINTER(native.Layer)),
            embedding.matrix(),
            head.matrix(),
        )
        self._source = model  # its modules own the weights

    @classmethod
    def of(cls, model: Transformer) -> "NativeStep | None":
        """A step for `model`; None where the kernels are missing or do not know its parts."""
        library = native.library()
        if library is None or not all(map(_known, model.layers)):
            return None
        parts = (*map(type, _ends(model)), type(model.position), type(model.stem), type(model.norm))
        if parts != (PackedLinear, PackedLinear, Rotary, nn.Identity, RMSNorm):
            return None
        return cls(model, library)

    def __call__(self, tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """Append a token to each cache; float32 logits (B, V). No cache may be empty or be given
        twice."""
        count = len(tokens)
        self._library.trivium_threads(torch.get_num_threads())
        logits = torch.empty(count, self._model.vocab)
        token = torch.tensor(tokens, dtype=torch.int64)
        position = torch.tensor([cache.length for cache in caches], dtype=torch.int32)
        stores = [cache.reserve(1) for cache in caches]
        table = (native.Cache * (self._model.layers * count))(
            *(
                native.Cache(store[i][0].data_ptr(), store[i][1].data_ptr(), store[i].shape[3])
                for i in range(self._model.layers)
                for store in stores
            )
        )
        failed = self._library.trivium_step(
            ctypes.byref(self._model),
            count,
            ctypes.c_void_p(token.data_ptr()),
            ctypes.c_void_p(position.data_ptr()),
            table,
            ctypes.c_void_p(logits.data_ptr()),
        )
        if failed:
            raise MemoryError("no memory for a decoding step")
        for cache in caches:
            cache.advance(1)
        return logits

    def _layer(self, block: Any) -> native.Layer:
        attention = block.attention
        norm = attention.qk_norm if isinstance(attention.qk_norm, QKNorm) else None
        return native.Layer(
            self._pointer(block.attention_norm.weight),
            self._pointer(block.mlp_norm.weight),
            None if norm is None else self._pointer(norm.q),
            None if norm is None else self._pointer(norm.k),
            attention.qkv.matrix(),
            attention.out.matrix(),
            block.mlp.gate_up.matrix(),
            block.mlp.down.matrix(),
        )

    def _pointer(self, tensor: Tensor) -> int:
        own = tensor.detach().float().contiguous()
        self._kept.append(own)
        return own.data_ptr()


def _ends(model: Transformer) -> tuple[Any, Any]:
    """The embedding and the head."""
    return model.embedding, model.embedding if model.head is None else model.head


def _known(block: Any) -> bool:
    """Whether every part of the block is one that the kernels compute."""
    parts = (block.attention_norm, block.mlp_norm, block.attention, block.mlp)
    if tuple(map(type, (block, *parts))) != (Block, RMSNorm, RMSNorm, SelfAttention, SwiGLU):
        return False
    attention = block.attention
    if not attention.causal or attention.window is not None or attention.scale is not None:
        return False
    if attention.turn is not rotate or type(attention.qk_norm) not in (nn.Identity, QKNorm):
        return False
    linears = (block.attention.qkv, block.attention.out, block.mlp.gate_up, block.mlp.down)
    return all(isinstance(linear, PackedLinear) for linear in linears)
