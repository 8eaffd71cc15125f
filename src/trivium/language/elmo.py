"""ELMo: vectors of words in their context, from two LSTM language models (Peters et al. 2018).

One reads a text forwards and learns p(next token | tokens before), the other backwards and learns
p(token before | tokens behind); they share the embedding and the head.

    loss = −Σ_k ln p→(t_k | t_1 … t_{k−1}) − Σ_k ln p←(t_k | t_{k+1} … t_n)

The vector of a token is a mix of what the layers make of it, with weights that the task at hand
learns (`Mix`):

    layer 0 [x_k; x_k], layer j [→h_kj; ←h_kj]       γ Σ_j softmax(s)_j · layer j

Tokens are those of the tokenizer (pieces of words), where the paper reads characters, and its
projections inside the layers are left out. The forward model alone is a language model like others:
`forward` and `features` are its own, so it generates and is measured as they are.

B batch, T tokens, C width, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trivium.data import IGNORE
from trivium.language.losses import head_loss
from trivium.language.recurrence import LSTM, Spans, continued, init_cell
from trivium.language.transformer import Embedding, Scaled
from trivium.nn.attention import KVCache
from trivium.train import Loss


@dataclass(frozen=True)
class ElmoConfig:
    """Sizes; the defaults train on a laptop."""

    vocab_size: int = 4096
    context: int = 512  # tokens; what it is trained and used with, since nothing else bounds it
    width: int = 256  # of each direction
    layers: int = 2
    tied: bool = True  # the head is the embedding, transposed


class Elmo(nn.Module):
    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.width)
        self.stem = Scaled(config.width)  # the matrix is the head too, so its numbers are small
        self.ahead = nn.ModuleList(LSTM(config.width) for _ in range(config.layers))
        self.back = nn.ModuleList(LSTM(config.width) for _ in range(config.layers))
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Cells by `init_cell`; embedding and head N(0, 1/C)."""
        if self.embedding.weight.is_meta:
            return
        for cell in (*self.ahead, *self.back):
            init_cell(cell)
        for part in (self.embedding, self.head):
            if part is not None:
                part.weight.normal_(0, self.config.width**-0.5)

    def features(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        *,
        segments: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """ids (B, T) → what the forward model knows behind each (B, T, C). With a cache, ids
        continue what it holds; `segments` and `real` (B, T) as in `Recurrent.features`."""
        if cache is not None:
            x = self.stem(self.embedding.rows(ids))
            return continued(self.ahead, x, cache)[:, -ids.shape[1] :]
        return self._read(self.ahead, ids, segments, real)[-1]

    def backward_features(
        self, ids: Tensor, *, segments: Tensor | None = None, real: Tensor | None = None
    ) -> Tensor:
        """ids (B, T) → what the backward model knows, which has read each and those behind it."""
        return self._read(self.back, ids, segments, real)[-1]

    def streams(
        self, ids: Tensor, layers: Sequence[int], *, segments: Tensor | None = None
    ) -> list[Tensor]:
        """The forward model's states (B, T, C) after each of `layers`, counted from 0, in
        ascending order."""
        every = self._read(self.ahead, ids, segments, None)
        return [every[i] for i in layers]

    def vectors(
        self, ids: Tensor, *, segments: Tensor | None = None, real: Tensor | None = None
    ) -> list[Tensor]:
        """ids (B, T) → the layers (B, T, 2C) that a `Mix` mixes: the embedding, twice, and both
        directions after each of the L layers."""
        x = self.stem(self.embedding.rows(ids))
        ahead = self._read(self.ahead, ids, segments, real)
        back = self._read(self.back, ids, segments, real)
        return [torch.cat(pair, -1) for pair in zip([x, *ahead], [x, *back], strict=True)]

    def _read(
        self, cells: nn.ModuleList, ids: Tensor, segments: Tensor | None, real: Tensor | None
    ) -> list[Tensor]:
        """The states (B, T, C) of all cells of a direction."""
        if real is not None:
            segments = torch.where(real, 0 if segments is None else segments, -1)
        backwards = cells is self.back
        if segments is None:
            spans = Spans.whole(ids, backwards=backwards)
        else:
            spans = Spans.of(segments, backwards=backwards)
        x = self.stem(self.embedding.rows(spans.take(ids)))
        return [spans.put(h, ids.shape) for h in spans.read(cells, x)]

    def logits(self, features: Tensor) -> Tensor:
        """(…, C) of either direction → (…, V)"""
        return self.embedding.project(features) if self.head is None else self.head(features)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """ids (B, T) → logits (B, T, V) of the forward model"""
        return self.logits(self.features(ids, cache))


class Mix(nn.Module):
    """γ Σ_j softmax(s)_j · layer j, to be learnt with a task."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(layers + 1))
        self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """The layers (B, T, 2C) of `Elmo.vectors` → (B, T, 2C)"""
        return self.gamma * torch.tensordot(self.s.softmax(0), torch.stack(list(layers)), 1)


def both_directions(model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
    """The sum of both losses over the tokens, and of each alone as `ahead` and `back`.

    batch: ids and targets (B, T), which are the tokens behind them, IGNORE at padding alone;
    optional segments (B, T). The backward model reads the targets, and predicts the ids.
    """
    assert isinstance(model, Elmo)
    ids, targets = batch["ids"], batch["targets"]
    learnt = targets != IGNORE
    segments = batch.get("segments", torch.zeros_like(ids)).masked_fill(~learnt, -1)
    read = model.features(ids, segments=segments)
    ahead = head_loss(model, read.flatten(0, 1), targets.flatten())
    read = model.backward_features(targets.clamp(min=0), segments=segments)
    back = head_loss(model, read.flatten(0, 1), ids.masked_fill(~learnt, IGNORE).flatten())
    return Loss(ahead + back, learnt.sum(), {"ahead": ahead.detach(), "back": back.detach()})
