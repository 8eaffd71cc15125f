"""Batches of preferences: the replies to a prompt, each in a row of its own.

    ids, targets (R, T)   the reply's tokens carry targets, the prompt's do not
    ends (R,)             where a row's last token is: a reward is read there
    groups (R,)           which prompt of the batch a row belongs to; −1: padding
    ranks (R,)            the reply's place from 0 on; of a pair, chosen is 0 and rejected 1

The rows of a prompt follow one another, the best first. Rows hold whole replies, their last token
too, and are padded on the right, where a causal model does not look. Prompts of similar length
share a batch, so that little is padding: R and T differ from batch to batch, and T is a multiple of
32 (or `length`, the largest).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from trivium.data import IGNORE
from trivium.data.batches import Batch, Batches, Render, marked, positive
from trivium.data.conversation import Preference
from trivium.data.corpus import Corpus, Found
from trivium.data.order import Order, drawn
from trivium.data.packing import Fruitful, Limit, Marked, State, TooLong, rendered

MULTIPLE = 32  # of tokens, that rows are padded to


class Replies(NamedTuple):
    """The replies to one prompt, each with the prompt before it, the best first."""

    samples: list[Marked]
    ranks: list[int]

    @property
    def size(self) -> int:
        return max(len(sample.ids) for sample in self.samples)


class PreferenceBatches(Batches):
    """Ranked replies, to `rows` prompts in a batch.

    render: as for ConversationBatches; it must heed a message's `weight` of 0
    too_long: what happens to replies of more than `length` tokens. Prompts of which one reply has
        nothing left to learn are dropped with all their replies.
    """

    def __init__(
        self,
        corpus: Corpus[Preference],
        render: Render,
        *,
        rows: int,
        length: int,
        filler: int = 0,
        seed: int | None = 0,
        epochs: int | None = None,
        too_long: TooLong = "error",
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.rows, self.length, self._filler = positive(rows), positive(length), filler
        self._render, self._order = render, Order(corpus, seed, epochs)
        self._limit = Limit(corpus, length, too_long)
        self._place = [0, 0, 0, 0, 0]  # epoch, pool, unit; dropped and truncated before the pool

    @property
    def source(self) -> str:
        return f"{self._order.corpus.fingerprint}/{self._order.seed}/{self.rows}"

    @property
    def dropped(self) -> int:
        return self._limit.dropped

    @property
    def truncated(self) -> int:
        return self._limit.truncated

    def place(self) -> State:
        return {"pool": list(self._place)}

    def go_to(self, place: State) -> None:
        self._place = list(place["pool"])
        self._limit.dropped, self._limit.truncated = self._place[3:]

    def units(self) -> Iterator[list[Replies]]:
        limit, first, fruitful = self._limit, self._place[2], Fruitful(self._order.corpus)
        for epoch, pool, items in self._order.pools(*self._place[:2]):
            counts = [limit.dropped, limit.truncated]
            groups = [replies for found in items for replies in self._replies(found)]
            fruitful.check(epoch, len(groups))
            units = self._similar(groups, epoch, pool)
            for number in range(first, len(units)):
                self._place = [epoch, pool, number + 1, *counts]
                yield units[number]
            first = 0

    def _replies(self, found: Found[Preference]) -> list[Replies]:
        """The replies of a preference; none if it is left out."""
        samples = rendered(self._order.corpus, self._samples, found)
        fitting = self._limit.fit(samples, found.place) if samples else None
        return [Replies(fitting, found.item.ranks)] if fitting else []

    def _samples(self, preference: Preference) -> list[Marked]:
        prompt = [
            {**message, "weight": 0} if message["role"] == "assistant" else message
            for message in preference.prompt
        ]
        return [
            marked(self._render, [*prompt, *response], preference.tools)
            for response in preference.responses
        ]

    def _similar(self, groups: list[Replies], epoch: int, pool: int) -> list[list[Replies]]:
        """Groups of similar size together, in an order that the seed draws."""
        if self._order.seed is None:
            by_size = groups
        else:
            by_size = sorted(groups, key=lambda group: group.size)  # equal ones stay as drawn
        units = [by_size[i : i + self.rows] for i in range(0, len(groups), self.rows)]
        return [units[i] for i in drawn(len(units), self._order.seed, epoch, pool, self.rows)]

    def tensors(self, unit: list[Replies] | None) -> Batch:
        groups = unit or []
        rows = [
            (sample, number, rank)
            for number, group in enumerate(groups)
            for sample, rank in zip(group.samples, group.ranks, strict=True)
        ]
        size = max((group.size for group in groups), default=1)
        length = min(-(-size // MULTIPLE) * MULTIPLE, max(self.length, size))
        count = max(len(rows), 1)
        ids = np.full((count, length), self._filler, np.int64)
        targets = np.full((count, length), IGNORE, np.int64)
        ends = np.zeros(count, np.int64)
        for i, (sample, _, _) in enumerate(rows):
            last = len(sample.ids) - 1
            ids[i, : last + 1], ends[i] = sample.ids, last
            targets[i, :last] = np.where(sample.learnt[1:], sample.ids[1:], IGNORE)
        return {
            "ids": torch.from_numpy(ids),
            "targets": torch.from_numpy(targets),
            "ends": torch.from_numpy(ends),
            "groups": torch.tensor([number for _, number, _ in rows] or [-1]),
            "ranks": torch.tensor([rank for _, _, rank in rows] or [0]),
        }
