"""Rows of tokens for a language model, packed with documents that do not see one another.

A row holds T tokens and, for each, the token to predict. Several documents share a row: each is a
segment, whose positions begin at 0 and which attention does not leave, so that a packed row gives
the gradients that its segments would give in rows of their own (packing of Krell et al. 2021).

    ids        ⟨end⟩ a b c   ⟨end⟩ d e        a document is begun and ended by the end token
    targets    a b c ⟨end⟩   d e ⟨end⟩
    segments   0 0 0 0       1 1 1
    positions  0 1 2 3       0 1 2

A corpus is dealt out to lanes, from which rows are taken in turn: 64 blocks are open at once, far
apart, and each lane reads its own from the first to the last. The order of the blocks, and that of
the documents in each, is drawn anew for every epoch, from the seed alone. So a place in a lane is
four small numbers, and reading goes on from any of them at once.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trivium.data import IGNORE
from trivium.data.corpus import Corpus, Found
from trivium.errors import UsageError

LANES, BLOCKS_OF_A_LANE = 64, 16
GROUP = 1 << 16  # characters that are encoded at once

Ids = NDArray[np.int64]
EncodeMany = Callable[[Sequence[str]], Sequence[Sequence[int]]]


class Row(NamedTuple):
    """One row of a batch, each part (T,)."""

    ids: Ids
    targets: Ids
    segments: Ids
    positions: Ids


@dataclass
class Cursor:
    """A place in a lane: what is read next. `block` counts the lane's blocks of this epoch, `item`
    those of the block, in their drawn order, and `token` those of the item, or rows."""

    epoch: int = 0
    block: int = 0
    item: int = 0
    token: int = 0


@lru_cache(maxsize=4)
def drawn_order(count: int, *seed: int | None) -> tuple[int, ...]:
    """A permutation of `count` numbers that `seed` decides; the identity if it begins with None.

    Random numbers of Python's generator stay the same in all its versions, which is not promised of
    its permutations.
    """
    if seed[0] is None:
        return tuple(range(count))
    generator = random.Random("/".join(map(str, seed)))
    keys = [generator.random() for _ in range(count)]
    return tuple(sorted(range(count), key=keys.__getitem__))


def lanes_of(corpus: Corpus[Any], epochs: int | None) -> int:
    """How many lanes: a power of two that leaves each enough blocks, so that it depends on the data
    alone. One for a given number of epochs, since lanes do not end together."""
    lanes = 1
    while not epochs and lanes < LANES and len(corpus.blocks) >= 2 * lanes * BLOCKS_OF_A_LANE:
        lanes *= 2
    return lanes


class Lane:
    """The items of every `lanes`-th block, from `cursor` on. `seed` None: in the files' order."""

    def __init__(
        self,
        corpus: Corpus[Any],
        number: int,
        lanes: int,
        cursor: Cursor,
        *,
        seed: int | None,
        epochs: int | None,
    ) -> None:
        self._corpus, self._number, self._lanes = corpus, number, lanes
        self.cursor, self._seed, self._epochs = cursor, seed, epochs

    def blocks(self) -> Iterator[list[Found[Any]]]:
        """The items of each block in their drawn order. The caller moves the cursor within a
        block; this moves it to the next one."""
        cursor = self.cursor
        while self._epochs is None or cursor.epoch < self._epochs:
            order = drawn_order(len(self._corpus.blocks), self._seed, cursor.epoch)
            own = order[self._number :: self._lanes]
            while cursor.block < len(own):
                number = own[cursor.block]
                items = self._corpus.read(number)
                within = drawn_order(len(items), self._seed, cursor.epoch, number)
                yield [items[i] for i in within]
                cursor.block, cursor.item, cursor.token = cursor.block + 1, 0, 0
            cursor.epoch, cursor.block = cursor.epoch + 1, 0


class TextRows:
    """The rows of a lane of texts: each full, and a document goes on in the next row if it must.

    packed=False: a row holds one document, or a part of one, and padding.
    """

    def __init__(
        self,
        lane: Lane,
        encode_many: EncodeMany,
        length: int,
        *,
        begin: int,
        end: int,
        packed: bool,
    ) -> None:
        self._lane, self._encode_many = lane, encode_many
        self._length, self._begin, self._end, self._packed = length, begin, end, packed

    def __iter__(self) -> Iterator[Row]:
        length, end = self._length, self._end
        row, filled, segment = blank(length, end), 0, 0
        cursor = self._lane.cursor
        for ids in self._documents():
            while cursor.token < len(ids) - 1:
                start = cursor.token
                count = min(length - filled, len(ids) - 1 - start)
                place = slice(filled, filled + count)
                row.ids[place] = ids[start : start + count]
                row.targets[place] = ids[start + 1 : start + 1 + count]
                row.segments[place] = segment
                row.positions[place] = np.arange(count)
                filled, segment = filled + count, segment + 1
                cursor.token += count
                if filled == length or not self._packed:
                    yield row
                    row, filled, segment = blank(length, end), 0, 0
            cursor.item, cursor.token = cursor.item + 1, 0
        if filled:
            yield row

    def _documents(self) -> Iterator[Ids]:
        for items in self._lane.blocks():
            at = self._lane.cursor.item
            while at < len(items):
                group, size = [], 0
                while at < len(items) and size < GROUP:
                    group.append(items[at])
                    size += len(items[at].item)
                    at += 1
                encoded = self._encode_many([found.item for found in group])
                for found, ids in zip(group, encoded, strict=True):
                    before = [self._begin] if found.starts else []
                    behind = [self._end] if found.ends else []
                    yield np.array([*before, *ids, *behind], dtype=np.int64)


def blank(length: int, filler: int) -> Row:
    """A row of padding, in a segment −1 of its own."""
    return Row(
        np.full(length, filler, np.int64),
        np.full(length, IGNORE, np.int64),
        np.full(length, -1, np.int64),
        np.arange(length, dtype=np.int64),
    )


class Marked(NamedTuple):
    """Tokens, and which of them are to be learnt."""

    ids: list[int]
    learnt: list[bool]


class WholeRows:
    """The rows of a lane of samples, none of which is cut in two. Those of a block are packed
    together, the longest first, each into the row that it fills best (best fit decreasing).

    prepare: from an item to its samples, none longer than length + 1
    """

    def __init__(
        self,
        lane: Lane,
        prepare: Callable[[Found[Any]], list[Marked]],
        length: int,
        *,
        end: int,
        packed: bool,
    ) -> None:
        self._lane, self._prepare = lane, prepare
        self._length, self._end, self._packed = length, end, packed

    def __iter__(self) -> Iterator[Row]:
        cursor = self._lane.cursor
        for items in self._lane.blocks():
            samples = [sample for found in items for sample in self._prepare(found)]
            rows = best_fit([len(s.ids) - 1 for s in samples], self._length if self._packed else 0)
            rows.sort(key=min)  # as the samples were drawn, not by how full rows are
            while cursor.item < len(rows):
                row = self._filled([samples[i] for i in rows[cursor.item]])
                cursor.item += 1
                yield row

    def _filled(self, samples: list[Marked]) -> Row:
        row, filled = blank(self._length, self._end), 0
        for segment, (ids, learnt) in enumerate(samples):
            count = len(ids) - 1
            place = slice(filled, filled + count)
            row.ids[place] = ids[:-1]
            row.targets[place] = np.where(learnt[1:], ids[1:], IGNORE)
            row.segments[place] = segment
            row.positions[place] = np.arange(count)
            filled += count
        return row


def best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Which of `sizes` share a row of `room`; each in one of its own if it does not fit."""
    from bisect import bisect_left, insort

    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # room left, row; ascending
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = bisect_left(free, (sizes[i], -1))
        if at < len(free):
            left, row = free.pop(at)
            rows[row].append(i)
        else:
            left, row = room, len(rows)
            rows.append([i])
        if left > sizes[i]:
            insort(free, (left - sizes[i], row))
    return rows


def cursors_from(places: Sequence[Sequence[int]], lanes: int) -> list[Cursor]:
    """Cursors from a state. Raises UsageError where the number of lanes is another one."""
    if len(places) != lanes:
        raise UsageError("the place in the data is of other data: start anew")
    return [Cursor(*place) for place in places]


def places(cursors: Sequence[Cursor]) -> list[list[int]]:
    return [list(astuple(cursor)) for cursor in cursors]
