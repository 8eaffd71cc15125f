"""Llama-like models with packed weights, computed by one call of native code for all layers.

A call takes some tokens of each of several sequences: a prompt, one token each of a batch, or both.
Every token's logits are computed by the same sums whatever else is in the call, so that a text read
at once, in pieces or token by token has the same logits to the bit.

Activations are rounded to 8 bits by blocks of 32 before a product; to 16 where they make queries,
keys, values and logits, which suffer most (two thirds of the divergence from float32 comes from
there). The stream is float32; keys and values are kept in half precision in the `KVCache` of each
sequence.
"""

import ctypes
from array import array
from collections.abc import Sequence
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trivium.language.transformer import Block, SandwichBlock, Scaled, Transformer
from trivium.nn import native
from trivium.nn.attention import KVCache, SelfAttention
from trivium.nn.mlp import GeGLU, SwiGLU
from trivium.nn.norms import QKNorm, RMSNorm
from trivium.nn.packed import PackedLinear
from trivium.nn.positions import (
    Rotary,
    WindowedRotary,
    frequencies,
    rotate,
    rotate_full,
    rotate_window,
)

ACTIVATIONS = {SwiGLU: 0, GeGLU: 1}
QUERIES, WIDEST = 32, 256  # of a unit of attention, as attention.h has them
_NOWHERE = np.empty((0, 3), np.int64)


class NativeStep:
    """Continues several sequences. Made by `of`, which knows what it can serve."""

    def __init__(self, model: Transformer, library: ctypes.CDLL) -> None:
        self._library = library
        self._kept: list[Tensor] = []  # what the structure points into
        config, attention = model.config, _attention(model.layers[0])
        self._layers = (native.Layer * config.layers)(*map(self._layer, model.layers))
        embedding, head = _ends(model)
        self._shape = (config.layers, attention.groups, attention.head_dim)
        self._model = native.Model(
            config.layers,
            config.width,
            attention.heads,
            attention.groups,
            attention.head_dim,
            config.hidden,
            config.vocab_size,
            ACTIVATIONS[type(_mlp(model.layers[0]))],
            config.norm_eps,
            attention.head_dim**-0.5 if attention.scale is None else attention.scale,
            model.stem.factor if isinstance(model.stem, Scaled) else 1.0,
            self._pointer(model.get_parameter("norm.weight")),
            *(None if theta is None else self._pointer(theta) for theta in _angles(model)),
            ctypes.cast(self._layers, ctypes.POINTER(native.Layer)),
            embedding.matrix(),
            head.matrix(fine=True),
        )
        self._source = model  # its modules own the weights
        self._places = WeakKeyDictionary[KVCache, tuple[list[Tensor], NDArray[np.int64]]]()

    @classmethod
    def of(cls, model: nn.Module) -> "NativeStep | None":
        """A step for `model`; None where the kernels are missing or do not know its parts."""
        if not isinstance(model, Transformer) or (library := native.library()) is None:
            return None
        if not all(map(_known, model.layers)):
            return None
        if tuple(map(type, _ends(model))) != (PackedLinear, PackedLinear):
            return None
        known = (Rotary, WindowedRotary), (nn.Identity, Scaled), (RMSNorm,)
        parts = (model.position, model.stem, model.norm)
        if not all(type(part) in kinds for part, kinds in zip(parts, known, strict=True)):
            return None
        return cls(model, library)

    def __call__(self, tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """Append a token to each cache; float32 logits (B, V)."""
        return self.extend([[token] for token in tokens], caches)

    def extend(
        self, ids: Sequence[Sequence[int]], caches: Sequence[KVCache], *, every: bool = False
    ) -> Tensor:
        """Append some tokens to each cache, at least one. No cache may be given twice.

        Returns float32 logits (B, V) after the last token of each sequence; with `every`, those
        after each token, one sequence after the other.
        """
        token, sequence = array("q"), array("i")
        position, wanted = array("i"), array("i")
        for i, (new, cache) in enumerate(zip(ids, caches, strict=True)):
            token.extend(new)
            sequence.extend([i] * len(new))
            position.extend(range(cache.length, cache.length + len(new)))
            wanted.append(len(token) - 1)
        if every:
            wanted = array("i", range(len(token)))
        table = np.stack(
            [self._stores(cache, len(new)) for new, cache in zip(ids, caches, strict=True)], axis=1
        )
        logits = torch.empty(len(wanted), self._model.vocab)
        self._library.trivium_threads(torch.get_num_threads())
        failed = self._library.trivium_forward(
            ctypes.byref(self._model),
            len(token),
            *map(_address, (token, sequence, position)),
            len(caches),
            ctypes.c_void_p(table.ctypes.data),
            len(wanted),
            _address(wanted),
            ctypes.c_void_p(logits.data_ptr()),
        )
        if failed:
            raise MemoryError(f"no memory to read {len(token)} tokens")
        for new, cache in zip(ids, caches, strict=True):
            cache.advance(len(new))
        return logits

    def _stores(self, cache: KVCache, count: int) -> NDArray[np.int64]:
        """Where the cache keeps keys and values, with room for `count` more tokens: (layers, 3)
        as `native.Cache` has them."""
        stores = cache.reserve(count, *self._shape)
        known, places = self._places.get(cache, ([], _NOWHERE))
        if len(known) != len(stores) or not all(map(is_, known, stores)):
            rows = [(store[0].data_ptr(), store[1].data_ptr(), store.shape[3]) for store in stores]
            places = np.array(rows, np.int64)
            self._places[cache] = list(stores), places
        return places

    def _layer(self, block: Any) -> native.Layer:
        attention = block.attention
        norm = attention.qk_norm if isinstance(attention.qk_norm, QKNorm) else None
        norms = {"attention_norm": block.attention_norm.weight, "mlp_norm": block.mlp_norm.weight}
        if norm is not None:
            norms |= {"q_norm": norm.q, "k_norm": norm.k}
        if isinstance(block, SandwichBlock):
            norms |= {
                "attention_post_norm": block.attention_post_norm.weight,
                "mlp_post_norm": block.mlp_post_norm.weight,
            }
        return native.Layer(
            **{name: self._pointer(weight) for name, weight in norms.items()},
            window=attention.window or 0,
            qkv=attention.qkv.matrix(fine=True),
            out=attention.out.matrix(),
            gate_up=block.mlp.gate_up.matrix(),
            down=block.mlp.down.matrix(),
        )

    def _pointer(self, tensor: Tensor) -> int:
        own = tensor.detach().float().contiguous()
        self._kept.append(own)
        return own.data_ptr()


def _address(numbers: "array[int]") -> ctypes.c_void_p:
    return ctypes.c_void_p(numbers.buffer_info()[0])


def _attention(block: Any) -> SelfAttention:
    found: SelfAttention = block.attention
    return found


def _mlp(block: Any) -> nn.Module:
    found: nn.Module = block.mlp
    return found


def _ends(model: Transformer) -> tuple[Any, Any]:
    """The embedding and the head."""
    return model.embedding, model.embedding if model.head is None else model.head


def _angles(model: Transformer) -> tuple[Tensor, Tensor | None]:
    """The angles per position of layers that see everything, and of those with a window."""
    position: Any = model.position
    kinds = (
        [position, position] if isinstance(position, Rotary) else [position.full, position.window]
    )
    full, window = (frequencies(r.head_dim, r.base, r.scaling) for r in kinds)
    return full, window


def _known(block: Any) -> bool:
    """Whether every part of the block is one that the kernels compute."""
    if type(block) not in (Block, SandwichBlock) or type(block.attention) is not SelfAttention:
        return False
    if type(block.mlp) not in ACTIVATIONS or type(block.attention_norm) is not RMSNorm:
        return False
    attention = block.attention
    turn = (rotate, rotate_full if attention.window is None else rotate_window)
    return (
        attention.causal
        and attention.turn in turn
        and type(attention.qk_norm) in (nn.Identity, QKNorm)
        and attention.head_dim % 16 == 0
        and attention.head_dim <= WIDEST
        and attention.heads // attention.groups <= QUERIES
        and all(
            isinstance(linear, PackedLinear)
            for linear in (attention.qkv, attention.out, block.mlp.gate_up, block.mlp.down)
        )
    )
