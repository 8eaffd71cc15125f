"""Recurrent language models: Elman's network, the LSTM, and the LSTM that looks back (Elman 1990;
Hochreiter & Schmidhuber 1997; Sundermeyer et al. 2012; Luong et al. 2015).

    x ← √C · embedding(ids)
    h ← cell(x);  x ← x + h        for every layer
    logits ← head(top(Σ h))

The top of an LSTM with attention adds what attention finds among these sums h so far:

    a_ts = softmax_{s≤t}(h_tᵀ W h_s / √C)        top(h)_t = tanh(W_c [Σ_s a_ts h_s; h_t])

The interface is that of the Transformer, so what generates and measures there does so here. A cache
holds the state (h, c) after every token, as that of a Transformer key and value: so it can be cut
at any token, and copied up to it.

B batch, T tokens, S tokens to look at, C width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trivium.language.recurrence import CELLS, Spans, continued, init_cell
from trivium.language.transformer import Embedding, Scaled
from trivium.nn.attention import KVCache, attend
from trivium.nn.segments import Segments


@dataclass(frozen=True)
class RecurrentConfig:
    """Sizes and kinds of the parts; the defaults train on a laptop."""

    vocab_size: int = 4096
    context: int = 512  # tokens; what it is trained and used with, since nothing else bounds it
    width: int = 256
    layers: int = 2
    cell: Literal["rnn", "lstm"] = "lstm"
    top: Literal["state", "attention"] = "state"  # what the head sees
    tied: bool = True  # the head is the embedding, transposed


class LastState(nn.Module):
    """The head sees the state, and nothing else of the past."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, h: Tensor, past: Tensor, segments: Tensor | None = None) -> Tensor:
        return h


class LookBack(nn.Module):
    """Attention of each state to those before it, and to itself (Luong's "general" score)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)  # W
        self.out = nn.Linear(2 * width, width, bias=False)  # W_c

    def forward(self, h: Tensor, past: Tensor, segments: Tensor | None = None) -> Tensor:
        """h (B, T, C), the last of the states in past (B, S, C) → (B, T, C). With segments (B, T),
        each looks at its own."""
        packed = None if segments is None else Segments.of(segments)
        look = attend if packed is None else packed.attend
        found = look(self.query(h)[:, None], past[:, None], past[:, None], causal=True)
        return torch.tanh(self.out(torch.cat([found[:, 0], h], dim=-1)))


TOPS: dict[str, Callable[[int], nn.Module]] = {"state": LastState, "attention": LookBack}


class Recurrent(nn.Module):
    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.width)
        self.stem = Scaled(config.width)  # the matrix is the head too, so its numbers are small
        self.layers = nn.ModuleList(CELLS[config.cell](config.width) for _ in range(config.layers))
        self.top = TOPS[config.top](config.width)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Cells by `init_cell`; all other matrices N(0, 1/C)."""
        if self.embedding.weight.is_meta:
            return
        for cell in self.layers:
            init_cell(cell)
        for name, parameter in self.named_parameters():
            if not name.startswith("layers"):
                parameter.normal_(0, self.config.width**-0.5)

    def features(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        segments: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """ids (B, T) → what the head sees (B, T, C).

        With a cache, ids continue what it holds. `segments` (B, T): where the number changes, a
        text begins, which knows nothing of the one before it; −1 is padding. `real` (B, T) is False
        at padding.
        """
        if cache is not None:
            past = continued(self.layers, self.stem(self.embedding.rows(ids)), cache)
            return self.top(past[:, -ids.shape[1] :], past)
        if real is not None:
            segments = torch.where(real, 0 if segments is None else segments, -1)
        h = self.streams(ids, [len(self.layers) - 1], segments=segments)[0]
        return self.top(h, h, segments)

    def streams(
        self, ids: Tensor, layers: Sequence[int], *, segments: Tensor | None = None
    ) -> list[Tensor]:
        """The sum of the states (B, T, C) up to each of `layers`, counted from 0, in ascending
        order."""
        spans = Spans.whole(ids) if segments is None else Spans.of(segments)
        x = self.stem(self.embedding.rows(spans.take(ids)))
        states = spans.read(self.layers[: max(layers) + 1], x)
        return [spans.put(h, ids.shape) for i, h in enumerate(states) if i in layers]

    def logits(self, features: Tensor) -> Tensor:
        """(…, C) → (…, V)"""
        return self.embedding.project(features) if self.head is None else self.head(features)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """ids (B, T) → logits (B, T, V)"""
        return self.logits(self.features(ids, cache))
