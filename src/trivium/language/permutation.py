"""What an XLNet learns from: some tokens of a row, in an order that is drawn for each row (Yang et
al. 2019, partial prediction).

    order     0 0 2 0 0 1 0 0     0: known from the start; the others become known one by one
    places    5 2                 which they are, in that order
    targets   their ids

With one token in `share` (the paper's K) to predict, the others give the context.

B rows, T tokens, P = T / share places to predict.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trivium.data import IGNORE
from trivium.language.losses import head_loss
from trivium.language.xlnet import XLNet
from trivium.train import Loss

SHARE = 6


def permuted(
    batch: Mapping[str, Tensor], generator: torch.Generator, *, share: int = SHARE
) -> dict[str, Tensor]:
    """The batch for `permuted_token`, from ids (B, T) and optional segments (B, T), −1 being
    padding, which is not predicted."""
    ids = batch["ids"]
    count = max(1, ids.shape[1] // share)
    numbers = torch.rand(ids.shape, generator=generator)
    made = {"ids": ids}
    if "segments" in batch:
        made["segments"] = batch["segments"]
        numbers[batch["segments"] < 0] = -1
    drawn, places = numbers.topk(count, dim=1)
    ranks = torch.arange(1, count + 1).expand(len(ids), -1)
    made["order"] = torch.zeros_like(ids).scatter(1, places, ranks)
    made["places"] = places
    made["targets"] = ids.gather(1, places).masked_fill(drawn < 0, IGNORE)
    return made


class PermutedBatches:
    """Batches whose rows are `permuted`. What is drawn depends on the seed and on the number of the
    micro-batch alone, among those of all ranks: so training resumes to the bit.

    batches: of dicts with ids (B, T), and segments (B, T) if they are packed, −1 at padding
    """

    def __init__(self, batches: Any, *, seed: int = 0, share: int = SHARE) -> None:
        self._batches, self._seed, self._share = batches, seed, share
        self._rank, self._world = getattr(batches, "rank", 0), getattr(batches, "world", 1)
        self._number = 0  # of micro-batches, of all ranks

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self._batches:
            number, self._number = self._number + self._rank, self._number + self._world
            yield self.permuted(batch, number)

    def permuted(self, batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """The batch as micro-batch `number`."""
        digest = hashlib.sha256(f"{self._seed}/{number}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        return permuted(batch, generator, share=self._share)

    def state(self) -> dict[str, Any]:
        return {"batches": self._batches.state(), "number": self._number}

    def load(self, state: Mapping[str, Any]) -> None:
        self._batches.load(state["batches"])
        self._number = int(state["number"])


def permuted_token(model: nn.Module, batch: Mapping[str, Tensor]) -> Loss:
    """The sum of −ln p of the tokens at `places`, each given what is known before it."""
    assert isinstance(model, XLNet)
    features = model.predict(
        batch["ids"], batch["order"], batch["places"], segments=batch.get("segments")
    )
    targets = batch["targets"].flatten()
    return Loss(head_loss(model, features.flatten(0, 1), targets), (targets != IGNORE).sum())
