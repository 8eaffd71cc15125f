"""Batches to train on: seeded, resumable to the bit, split between processes, streamed.

    TokenBatches         texts as rows of tokens
    ConversationBatches  conversations, of which the assistant's turns are learnt
    Mixture              rows of several of them, in given shares

Those of preferences are in trivium.data.replies.

A batch is a dict of tensors, of B rows and T tokens: `ids` and `targets` (IGNORE where nothing is
learnt), `segments` and `positions` (see trivium.data.packing; what a model needs of them is
`segments`).

Micro-batches have one global order, whatever the number of processes: of `world` ranks, each takes
every `world`-th of them. So two ranks see in a step what one process sees in two micro-batches, and
the state, which is the same on all ranks, goes on with any number of them. Each rank encodes the
whole order, since only encoding tells where rows end.

Batches are made ahead by a thread; `state()` is that of the batch which the caller got last.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trivium.data import background
from trivium.data.conversation import Conversation
from trivium.data.corpus import Corpus
from trivium.data.encoding import EncodeMany, Encoder
from trivium.data.order import Order
from trivium.data.packing import (
    Marked,
    Row,
    RowStream,
    SampleRows,
    State,
    TextRows,
    TooLong,
    blank,
    columns,
)
from trivium.errors import UsageError

AHEAD = 16  # batches that are made before they are asked for

Batch = dict[str, Tensor]
Render = Callable[[Sequence[dict[str, Any]], Any], tuple[Sequence[int], Sequence[bool]]]


class Batches(ABC):
    """Iterating goes on behind the batch that was given last, or from the state that was loaded.

    rank, world: of how many processes this is which one
    ahead: how many batches a thread makes before they are asked for; 0: no thread
    """

    def __init__(self, *, rank: int = 0, world: int = 1, ahead: int = AHEAD) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        self.rank, self.world, self.ahead = rank, world, ahead
        self._state: State | None = None  # behind the last batch; None: at the beginning

    @abstractmethod
    def units(self) -> Iterator[Any]:
        """What becomes a micro-batch each, of all ranks, from the place on."""

    @abstractmethod
    def tensors(self, unit: Any) -> Batch:
        """The batch of a unit; of None: one in which nothing is learnt."""

    @abstractmethod
    def place(self) -> State:
        """Where `units` goes on after what it gave last."""

    @abstractmethod
    def go_to(self, place: State) -> None:
        """Let `units` go on there."""

    @property
    @abstractmethod
    def source(self) -> str:
        """Tells data and order from others: a state fits only its own."""

    def state(self) -> State:
        """JSON: what `load` needs to go on behind the last batch, on any number of ranks."""
        return {"source": self.source, "place": self._state or self.place()}

    def load(self, state: State) -> None:
        """Go on from a state. Raises UsageError if the data are others than they were."""
        if state.get("source") != self.source:
            raise UsageError(
                "the data, or the seed that orders them, are not those of the snapshot: start anew "
                f"or bring them back ({state.get('source')} then, {self.source} now)"
            )
        self._state = state["place"]

    def __iter__(self) -> Iterator[Batch]:
        if self._state is None:
            self._state = self.place()
        self.go_to(self._state)
        for batch, state in background.ahead(self._made(), self.ahead):
            self._state = state
            yield batch

    def _made(self) -> Iterator[tuple[Batch, State]]:
        units = self.units()
        while round := list(islice(units, self.world)):
            # At the very end, a rank may be left without a unit while the others have one.
            unit = round[self.rank] if self.rank < len(round) else None
            yield self.tensors(unit), self.place()


class RowBatches(Batches):
    """Batches of `rows` rows of a stream."""

    def __init__(self, stream: RowStream, source: str, *, rows: int, **more: Any) -> None:
        super().__init__(**more)
        if rows < 1:
            raise UsageError(f"a batch needs at least one row, not {rows}")
        self.stream, self.rows, self._source = stream, rows, source
        self.length = stream.length

    @property
    def source(self) -> str:
        return self._source

    def place(self) -> State:
        return self.stream.state()

    def go_to(self, place: State) -> None:
        self.stream.load(place)

    def units(self) -> Iterator[list[Row]]:
        rows = iter(self.stream)
        while unit := list(islice(rows, self.rows)):
            yield unit

    def tensors(self, unit: list[Row] | None) -> Batch:
        rows = list(unit or [])
        rows += [blank(self.length, self.stream.filler)] * (self.rows - len(rows))
        return {name: torch.from_numpy(column) for name, column in columns(rows).items()}


class TokenBatches(RowBatches):
    """Texts as rows of `length` tokens.

    encode_many: from texts to the ids of each, without special tokens
    end, begin: the ids around a document; begin is end unless given
    epochs: None: without end
    packed: False: a row holds (a part of) one document only
    seed: of the order; None: that of the files
    """

    def __init__(
        self,
        corpus: Corpus[str],
        encode_many: EncodeMany,
        *,
        rows: int,
        length: int,
        end: int,
        begin: int | None = None,
        seed: int | None = 0,
        epochs: int | None = None,
        packed: bool = True,
        **more: Any,
    ) -> None:
        stream = TextRows(
            Order(corpus, seed, epochs),
            Encoder(encode_many),
            positive(length),
            begin=end if begin is None else begin,
            end=end,
            packed=packed,
        )
        super().__init__(stream, f"{corpus.fingerprint}/{seed}", rows=rows, **more)


class ConversationBatches(RowBatches):
    """Conversations as rows of `length` tokens, none cut in two, several to a row if packed.

    render: from messages and tools to ids, and which of them are to be learnt; see
        trivium.language.rendering
    filler: the id of padding
    too_long: what happens to those of more than length + 1 tokens; `truncated` and `dropped` count
        them. Those without anything to learn are dropped in any case.
    shared: conversations with the same tools and system message share rows, which hold that
        beginning once, so that short ones cost little beside a long list of tools
    """

    stream: SampleRows

    def __init__(
        self,
        corpus: Corpus[Conversation],
        render: Render,
        *,
        rows: int,
        length: int,
        filler: int = 0,
        seed: int | None = 0,
        epochs: int | None = None,
        packed: bool = True,
        too_long: TooLong = "error",
        shared: bool = False,
        **more: Any,
    ) -> None:
        stream = SampleRows(
            Order(corpus, seed, epochs),
            lambda conversation: marked(render, *conversation),
            positive(length),
            filler=filler,
            packed=packed,
            too_long=too_long,
            alike=_beginning if shared else None,
        )
        super().__init__(stream, f"{corpus.fingerprint}/{seed}", rows=rows, **more)

    @property
    def dropped(self) -> int:
        return self.stream.limit.dropped

    @property
    def truncated(self) -> int:
        return self.stream.limit.truncated


class Mixture(Batches):
    """Rows of several TokenBatches and ConversationBatches, in shares of `weights`.

        Mixture([(TokenBatches(general, …), 0.9), (TokenBatches(chemistry, …), 0.1)])

    Of any n rows that follow one another, each part has its share, but for a row or so: the part
    that lags most behind its share gives the next row. `parts` (B,) says which part a row is of.
    Rows, rank and world are those of the first; it ends with the first part that does.
    """

    def __init__(self, parts: Sequence[tuple[RowBatches, float]]) -> None:
        if not parts or any(not weight > 0 for _, weight in parts):
            raise UsageError("a mixture needs parts, each of a weight above 0")
        first = parts[0][0]
        if any(part.length != first.length for part, _ in parts):
            raise UsageError("the parts of a mixture must have rows of the same length")
        super().__init__(rank=first.rank, world=first.world, ahead=first.ahead)
        self._parts = [part for part, _ in parts]
        total = sum(weight for _, weight in parts)
        self._shares = [weight / total for _, weight in parts]
        self._given = [0] * len(parts)  # rows
        self.rows, self.length = first.rows, first.length

    @property
    def source(self) -> str:
        shares = zip(self._parts, self._shares, strict=True)
        return " + ".join(f"{share:.6g} × {part.source}" for part, share in shares)

    def place(self) -> State:
        return {"given": list(self._given), "parts": [part.place() for part in self._parts]}

    def go_to(self, place: State) -> None:
        self._given = list(place["given"])
        for part, own in zip(self._parts, place["parts"], strict=True):
            part.go_to(own)

    def units(self) -> Iterator[list[tuple[int, Row]]]:
        rows = self._rows()
        while unit := list(islice(rows, self.rows)):
            yield unit

    def _rows(self) -> Iterator[tuple[int, Row]]:
        rows = [iter(part.stream) for part in self._parts]
        while True:
            count = sum(self._given) + 1
            lags = [s * count - n for s, n in zip(self._shares, self._given, strict=True)]
            number = lags.index(max(lags))
            row = next(rows[number], None)
            if row is None:
                return
            self._given[number] += 1
            yield number, row

    def tensors(self, unit: list[tuple[int, Row]] | None) -> Batch:
        numbered = unit or []
        numbers = [number for number, _ in numbered] + [0] * (self.rows - len(numbered))
        batch = self._parts[0].tensors([row for _, row in numbered])
        return {**batch, "parts": torch.tensor(numbers)}


def _beginning(conversation: Conversation) -> str:
    """What a conversation is certain to begin with."""
    first = conversation.messages[0]
    system = first if first["role"] == "system" else None
    return json.dumps([system, conversation.tools], sort_keys=True)


def marked(render: Render, messages: Sequence[dict[str, Any]], tools: Any) -> Marked:
    ids, learnt = render(messages, tools)
    return Marked(np.array(ids, dtype=np.int64), np.array(learnt, dtype=bool))


def positive(length: int) -> int:
    if length < 1:
        raise UsageError(f"a row needs at least one token, not {length}")
    return length
