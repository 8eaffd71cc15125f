"""The decoding step of a model that is being trained: several sequences in one matrix product.

On a CPU an `Engine` reads the tokens of float models one sequence at a time, so that an answer is
the same to the bit alone or in a batch. Where that does not matter, sixteen sequences together take
little longer than one: the weights are read once. Attention looks at each sequence's own cache.

B sequences, H heads, G heads of keys and values, D channels of a head, V vocabulary.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trivium.language.engine import Engine
from trivium.language.pretrained import LanguageModel
from trivium.language.slots import Slot, Slots
from trivium.language.transformer import Transformer
from trivium.nn.attention import KVCache, SelfAttention, attend


class RowsAttention(nn.Module):
    """`SelfAttention` of one new token of each of B sequences, with a cache each."""

    def __init__(self, attention: SelfAttention, layer: int) -> None:
        super().__init__()
        self.attention, self.layer = attention, layer

    def forward(self, x: Tensor, angles: Any, caches: Sequence[KVCache], *_: Any) -> Tensor:
        """x (B, 1, C) → (B, 1, C)"""
        of = self.attention
        heads = of.heads + of.groups
        qkv = of.qkv(x).view(len(x), 1, heads + of.groups, of.head_dim)
        qk, v = qkv.split([heads, of.groups], dim=2)
        qk = of.qk_norm(qk)
        if angles is not None:
            qk = of.turn(qk, angles)
        q, k = qk.split([of.heads, of.groups], dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or G, 1, D)
        rows = []
        for i, cache in enumerate(caches):
            keys, values = cache.update(self.layer, k[i : i + 1], v[i : i + 1])
            one = q[i : i + 1]
            rows.append(attend(one, keys, values, causal=True, window=of.window, scale=of.scale))
        y = torch.cat(rows)  # (B, H, 1, D)
        return of.out(y.transpose(1, 2).flatten(2))


class RowsEngine(Engine):
    """An engine whose model may change: `forget` has to be called when it did."""

    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__(language_model)
        self._layers = None
        if self._native is None and self._compiled is None and type(self.model) is Transformer:
            self._layers = [_twin(block, i) for i, block in enumerate(self.model.layers)]

    def forget(self) -> None:
        """Drop what was computed with weights that have changed."""
        self.slots = Slots()

    @torch.inference_mode()
    def extend(self, slots: Sequence[Slot], ids: Sequence[Sequence[int]]) -> list[Tensor]:
        if self._layers is None or len(slots) == 1 or any(len(new) != 1 for new in ids):
            return super().extend(slots, ids)
        caches = [slot.cache for slot in slots]
        try:
            logits = self._together([new[0] for new in ids], caches)
        except BaseException:
            for slot in slots:
                slot.truncate(len(slot.ids))
            raise
        for slot, new in zip(slots, ids, strict=True):
            slot.cache.advance(1)
            slot.ids += new
        return list(logits[:, None])

    def _together(self, tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """float32 logits (B, V)"""
        assert self._layers is not None
        device = self.language_model.device
        column = torch.tensor(tokens, device=device)[:, None]
        lengths = [cache.length for cache in caches]
        places = torch.tensor(lengths, device=device)[:, None]
        x, angles = self.model.enter(column, max(lengths), places)
        for i, block in enumerate(self._layers):
            x = block(x, angles, caches, i)
        return self.model.logits(self.model.norm(x[:, 0])).float()


def _twin(block: Any, layer: int) -> Any:
    """The block with the same weights, for several caches in the place of one."""
    twin = copy.copy(block)
    twin._modules = {**block._modules, "attention": RowsAttention(block.attention, layer)}
    return twin
