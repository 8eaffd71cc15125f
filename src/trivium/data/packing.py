"""Rows of tokens for a language model, packed with documents that do not see one another.

A row holds T tokens and, for each, the token to predict. Several documents share a row: each is a
segment, whose positions begin at 0 and which attention does not leave, so that a packed row gives
the gradients that its segments would give in rows of their own (packing of Krell et al. 2021).

    ids        ⟨end⟩ a b c   ⟨end⟩ d e        a document is begun and ended by the end token
    targets    a b c ⟨end⟩   d e ⟨end⟩
    segments   0 0 0 0       1 1 1            −1: padding
    positions  0 1 2 3       0 1 2

Samples that begin alike, such as with the same list of tools, may share a row that has their
beginning once: its tokens are −2 in `segments`, and positions go on from there.

A stream of rows has a `state` that goes on behind the row that it gave last.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from trivium.data import IGNORE
from trivium.data.corpus import Corpus, Found
from trivium.data.encoding import Encoder, Ids
from trivium.data.order import Cursor, Order, lanes_of
from trivium.errors import UsageError

SHARED = -2  # among segments: the beginning of all samples of a row
FULL = 0.75  # of a row, of samples that share their beginning
GROUP = 1 << 16  # characters that are encoded at once
TooLong = Literal["error", "truncate", "drop"]
State = dict[str, Any]


class Row(NamedTuple):
    """One row of a batch, each part (T,)."""

    ids: Ids
    targets: Ids
    segments: Ids
    positions: Ids


def blank(length: int, filler: int) -> Row:
    """A row of padding."""
    return Row(
        np.full(length, filler, np.int64),
        np.full(length, IGNORE, np.int64),
        np.full(length, -1, np.int64),
        np.arange(length, dtype=np.int64),
    )


def columns(rows: Sequence[Row]) -> dict[str, np.ndarray[Any, Any]]:
    """Each part of the rows, (B, T)."""
    return {
        name: np.stack(column)
        for name, column in zip(Row._fields, zip(*rows, strict=True), strict=True)
    }


def put(row: Row, start: int, segment: int, ids: Ids, targets: Ids, first: int = 0) -> None:
    """`first` is the position of ids[0] in its text."""
    place = slice(start, start + len(ids))
    row.ids[place], row.targets[place], row.segments[place] = ids, targets, segment
    row.positions[place] = np.arange(first, first + len(ids))


class RowStream(ABC):
    """Rows of `length` tokens. Iterating goes on from the state."""

    length: int
    filler: int

    @abstractmethod
    def __iter__(self) -> Iterator[Row]: ...

    @abstractmethod
    def state(self) -> State:
        """JSON: where it goes on."""

    @abstractmethod
    def load(self, state: State) -> None: ...


class TextRows(RowStream):
    """The rows of texts: each full, and a document goes on in the next row if it must.

    packed=False: a row holds one document, or a part of one, and padding.
    """

    def __init__(
        self,
        order: Order[str],
        encoder: Encoder,
        length: int,
        *,
        begin: int,
        end: int,
        packed: bool,
    ) -> None:
        self._order, self._encoder = order, encoder
        self.length, self.filler = length, end
        self._begin, self._end, self._packed = begin, end, packed
        self._cursors = [Cursor() for _ in range(lanes_of(order.corpus))]
        self._turn = 0  # whose row comes next

    def state(self) -> State:
        return {"lanes": [cursor.numbers() for cursor in self._cursors], "turn": self._turn}

    def load(self, state: State) -> None:
        if len(state["lanes"]) != len(self._cursors):
            raise UsageError("the place in the data is of other data: start anew")
        self._cursors, self._turn = [Cursor(*lane) for lane in state["lanes"]], state["turn"]

    def __iter__(self) -> Iterator[Row]:
        lanes: list[Iterator[Row] | None]
        count = len(self._cursors)
        lanes = [self._lane(number) for number in range(count)]
        while any(lanes):
            number = self._turn
            self._turn = (number + 1) % count
            lane = lanes[number]
            row = None if lane is None else next(lane, None)
            if row is None:
                lanes[number] = None
            else:
                yield row

    def _lane(self, number: int) -> Iterator[Row]:
        length, cursor = self.length, self._cursors[number]
        row, filled, segment = blank(length, self.filler), 0, 0
        for place, ids in self._encoded(number, cursor):
            token = place.token
            while token < len(ids) - 1:
                count = min(length - filled, len(ids) - 1 - token)
                targets = ids[token + 1 : token + 1 + count]
                put(row, filled, segment, ids[token : token + count], targets)
                filled, segment, token = filled + count, segment + 1, token + count
                if filled == length or not self._packed:
                    self._cursors[number] = Cursor(place.epoch, place.block, place.item, token)
                    yield row
                    row, filled, segment = blank(length, self.filler), 0, 0
        self._cursors[number] = Cursor(self._order.epochs or 0)
        if filled:
            yield row

    def _encoded(self, number: int, start: Cursor) -> Iterator[tuple[Cursor, Ids]]:
        """The documents of a lane, each with its place."""
        begin, end = np.array([self._begin]), np.array([self._end])
        for group in _groups(self._order.lane(number, len(self._cursors), start)):
            encoded = self._encoder([found.item for _, found in group])
            for (place, found), ids in zip(group, encoded, strict=True):
                if (place.epoch, place.block, place.item) == (start.epoch, start.block, start.item):
                    place.token = start.token
                before, behind = begin[: int(found.starts)], end[: int(found.ends)]
                yield place, np.concatenate([before, ids, behind])


def _groups(
    items: Iterator[tuple[Cursor, Found[str]]],
) -> Iterator[list[tuple[Cursor, Found[str]]]]:
    group, size = [], 0
    for item in items:
        group.append(item)
        size += len(item[1].item)
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


class Marked(NamedTuple):
    """Tokens, and which of them are to be learnt."""

    ids: Ids
    learnt: Any  # (n,) bool


Numbered = tuple[int, Marked]


class Limit:
    """What happens to samples of more than `most` tokens, and how many there were.

    Records that cannot be rendered are left out, with skip_broken, as those that cannot be read.
    """

    def __init__(self, corpus: Corpus[Any], most: int, policy: TooLong) -> None:
        self._corpus, self._most, self._policy = corpus, most, policy
        self.dropped = self.truncated = 0

    def fit(self, samples: list[Marked], place: Any) -> list[Marked] | None:
        """Samples that belong together, cut to size; None: leave them out."""
        longest = max(len(sample.ids) for sample in samples)
        if longest > self._most:
            if self._policy == "error":
                raise UsageError(
                    f"{place}: {longest:,} tokens, more than the {self._most:,} that fit: raise "
                    "the length, or choose what is done with such samples: truncate or drop"
                )
            if self._policy == "truncate":
                samples = [Marked(s.ids[: self._most], s.learnt[: self._most]) for s in samples]
        kept = max(len(s.ids) for s in samples) <= self._most
        if not kept or not all(sample.learnt[1:].any() for sample in samples):
            self.dropped += 1
            return None
        self.truncated += longest > self._most
        return samples


class Fruitful:
    """Refuses a corpus that goes through a whole epoch without a sample."""

    def __init__(self, corpus: Corpus[Any]) -> None:
        self._corpus = corpus
        self._epoch, self._count, self._whole = -1, 0, False

    def check(self, epoch: int, count: int) -> None:
        """Some items of `epoch` gave `count` samples."""
        if epoch != self._epoch:
            if self._whole and not self._count:
                raise UsageError(f"{self._corpus.name}: no record is left that can be learnt from")
            self._whole = self._epoch >= 0  # the first may have been begun in the middle
            self._epoch, self._count = epoch, 0
        self._count += count


class SampleRows(RowStream):
    """The rows of samples, none of which is cut in two. Those of a pool are packed together, each
    into the row that it fills best (best fit decreasing).

    render: from an item to its tokens
    alike: says of an item what its sample begins with; those of which it says the same share rows
        and, in each, what they begin with
    """

    def __init__(
        self,
        order: Order[Any],
        render: Callable[[Any], Marked],
        length: int,
        *,
        filler: int,
        packed: bool,
        too_long: TooLong,
        alike: Callable[[Any], Hashable] | None = None,
    ) -> None:
        self._order, self._render, self._alike = order, render, alike
        self.length, self.filler, self._packed = length, filler, packed
        self.limit = Limit(order.corpus, length + 1, too_long)
        self._place = [0, 0, 0, 0, 0]  # epoch, pool, row; dropped and truncated before the pool

    def state(self) -> State:
        return {"pool": list(self._place)}

    def load(self, state: State) -> None:
        self._place = list(state["pool"])
        self.limit.dropped, self.limit.truncated = self._place[3:]

    def __iter__(self) -> Iterator[Row]:
        limit, first, fruitful = self.limit, self._place[2], Fruitful(self._order.corpus)
        for epoch, pool, items in self._order.pools(*self._place[:2]):
            counts = [limit.dropped, limit.truncated]
            kinds: dict[Hashable, list[Numbered]] = {}
            count = 0
            for found in items:
                for sample in self._sample(found):
                    kind = self._alike(found.item) if self._alike else None
                    kinds.setdefault(kind, []).append((count, sample))
                    count += 1
            fruitful.check(epoch, count)
            rows = self._packed_rows(kinds.values())
            rows.sort(key=lambda row: row[0])  # as the samples were drawn, not by how full rows are
            for number in range(first, len(rows)):
                self._place = [epoch, pool, number + 1, *counts]
                _, trunk, samples = rows[number]
                yield self._filled(samples, trunk)
            first = 0

    def _packed_rows(self, kinds: Iterable[list[Numbered]]) -> list[tuple[int, int, list[Marked]]]:
        """Of each row: the number of its first sample, how many tokens its samples share, and the
        samples. Those of one kind begin alike, if anything does; where they leave much of a row
        empty, they share one with others instead, whole."""
        made, loose = [], []
        for numbered in kinds:
            samples = [sample for _, sample in numbered]
            trunk = _shared(samples) if self._alike and len(samples) > 1 else 0
            for row in self._fitted(samples, trunk):
                filled = trunk + sum(len(samples[i].ids) - 1 - trunk for i in row)
                if self._alike and self._packed and filled < FULL * self.length:
                    loose += [numbered[i] for i in row]
                else:
                    made.append((numbered[row[0]][0], trunk, [samples[i] for i in row]))
        samples = [sample for _, sample in loose]
        for row in self._fitted(samples, 0):
            made.append((loose[row[0]][0], 0, [samples[i] for i in row]))
        return made

    def _fitted(self, samples: Sequence[Marked], trunk: int) -> Iterator[list[int]]:
        room = self.length - trunk if self._packed else 0
        for row in best_fit([len(sample.ids) - 1 - trunk for sample in samples], room):
            yield sorted(row)

    def _sample(self, found: Found[Any]) -> list[Marked]:
        sample = rendered(self._order.corpus, self._render, found)
        return [] if sample is None else self.limit.fit([sample], found.place) or []

    def _filled(self, samples: list[Marked], trunk: int) -> Row:
        row, filled = blank(self.length, self.filler), trunk
        if trunk:
            beginning = samples[0].ids[:trunk]
            put(row, 0, SHARED, beginning, np.full(trunk, IGNORE))
        for segment, (ids, learnt) in enumerate(samples):
            targets = np.where(learnt[1:], ids[1:], IGNORE)
            put(row, filled, segment, ids[trunk:-1], targets[trunk:], trunk)
            filled += len(ids) - 1 - trunk
        return row


def _shared(samples: Sequence[Marked]) -> int:
    """How many tokens all samples begin with, and none has to learn or to foretell."""
    first = samples[0].ids
    most = min(min(int(sample.learnt.argmax()), len(sample.ids)) for sample in samples) - 1
    for sample in samples[1:]:
        same = sample.ids[:most] == first[:most]
        most = int(same.argmin()) if not same.all() else most
    return max(most, 0)


def rendered(corpus: Corpus[Any], render: Callable[[Any], Any], found: Found[Any]) -> Any:
    """What `render` makes of an item; None if the item is left out because it cannot."""
    try:
        return render(found.item)
    except UsageError as error:
        corpus.leave_out(found.place, error)
        return None


def best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Which of `sizes` share a row of `room`; each in one of its own if it does not fit."""
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
