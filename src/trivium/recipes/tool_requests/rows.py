"""Rows of conversations without end, made while the model trains, by other processes if it wishes.

They come in lots, each drawn from a seed of its own, so that rows and their order are the same
whatever the number of processes. Of a lot, the last rows that fill no batch are left out.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trivium.data import IGNORE, Batch, Batches, ConversationBatches, Conversations, conversations
from trivium.data.packing import Row, State, blank, columns
from trivium.errors import UsageError
from trivium.language.chat_template import ChatTemplate
from trivium.language.rendering import render
from trivium.language.tokenizer import Tokenizer
from trivium.recipes.tool_requests.dialogues import dialogues
from trivium.recipes.tool_requests.problems import Problem
from trivium.recipes.tool_requests.replay import Reply
from trivium.recipes.tool_requests.written import part

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
WAITING = 2  # lots for each process that are made before they are asked for

Columns = Mapping[str, np.ndarray[Any, Any]]  # each of some rows and `length` tokens


@dataclass(frozen=True)
class Maker:
    """What rows are made of. `plain` and `problems` are used in turn; the tokens that nobody has to
    answer with, of requests and results, are foretold too, with the weight `asked`."""

    tokenizer: Tokenizer
    plain: Sequence[Reply]
    problems: Sequence[Problem]
    length: int
    asked: float = 0.0

    def conversations(self, seed: int | str, count: int, *, held: bool = False) -> Conversations:
        """Of requests that are `held` back, or of the others."""
        plain, problems = part(self.plain, held), part(self.problems, held)
        made = islice(dialogues(seed, plain, problems, held=held), count)
        return conversations(
            [{"messages": d.messages, "tools": d.tools or None} for d in made],
            name="conversations with tools",
        )

    def rows(self, found: Conversations, **order: Any) -> ConversationBatches:
        """Those with the same tools share rows, one row at a time; those too long are left out."""
        return ConversationBatches(
            found,
            Spelling(self.tokenizer, self.plain),
            rows=1,
            length=self.length,
            filler=self.filler,
            too_long="drop",
            shared=True,
            epochs=1,
            **order,
        )

    @property
    def filler(self) -> int:
        return self.tokenizer.control_tokens["<|im_end|>"]

    def lot(self, seed: str, count: int) -> Columns:
        """The rows of `count` conversations."""
        rows = list(self.rows(self.conversations(seed, count), seed=0).stream)
        if not rows:
            raise UsageError(f"none of {count} conversations is of {self.length} tokens or less")
        return self.batch(rows)

    def batch(self, rows: Sequence[Row]) -> Columns:
        """The rows, with what is foretold in them."""
        found = {name: column.astype(np.int32) for name, column in columns(rows).items()}
        return _all_foretold(found, self.asked) if self.asked else found


def _all_foretold(rows: Columns, weight: float) -> Columns:
    """The rows with a target for every token that another one of its text follows."""
    ids, targets, segments = rows["ids"], rows["targets"].copy(), rows["segments"]
    learnt = targets != IGNORE
    followed = np.zeros_like(learnt)
    followed[:, :-1] = (segments[:, 1:] == segments[:, :-1]) & (segments[:, :-1] >= 0)
    further = followed & ~learnt
    targets[further] = np.roll(ids, -1, axis=1)[further]
    weights = np.where(learnt, 1.0, np.where(further, weight, 0.0)).astype(np.float32)
    return {**rows, "targets": targets, "weights": weights}


class Spelling:
    """Conversations as tokens. The last answer of some was cut: it has no end that is learnt."""

    def __init__(self, tokenizer: Tokenizer, plain: Sequence[Reply]) -> None:
        self._tokenizer, self._template = tokenizer, ChatTemplate(TEMPLATE.read_text())
        self._cut = {reply.answer for reply in plain if not reply.whole}

    def __call__(
        self, messages: Sequence[Mapping[str, Any]], tools: Any
    ) -> tuple[list[int], list[bool]]:
        ids, learnt = render(self._tokenizer, self._template, messages, tools)
        if messages[-1].get("content") in self._cut:
            learnt[len(learnt) - 1 - learnt[::-1].index(True)] = False
        return ids, learnt


class MadeRows(Batches):
    """Batches of `rows` rows.

    lot: conversations of one
    processes: how many make lots; 0: a thread
    source: tells what they are made of
    """

    def __init__(
        self,
        maker: Maker,
        *,
        rows: int,
        lot: int,
        seed: int,
        processes: int,
        source: str,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        if rows < 1 or lot < 1 or processes < 0:
            raise UsageError(
                f"rows={rows} and lot={lot} are at least 1, processes={processes} at least 0"
            )
        self._maker, self._rows, self._lot, self._seed = maker, rows, lot, seed
        self._processes, self._source = processes, source
        self._place = (0, 0)  # a lot, and of its rows the next one

    @property
    def source(self) -> str:
        return f"{self._source}/{self._seed}/{self._lot}/{self._rows}"

    def place(self) -> State:
        return {"lot": self._place[0], "row": self._place[1]}

    def go_to(self, place: State) -> None:
        self._place = (place["lot"], place["row"])

    def units(self) -> Iterator[Columns]:
        number, row = self._place
        for made in self._lots(number):
            count = len(made["ids"])
            if count < self._rows:
                raise UsageError(
                    f"lot={self._lot} conversations fill {count} rows, fewer than rows={self._rows}"
                )
            while row + self._rows <= count:
                row += self._rows
                self._place = (number, row)
                yield {name: column[row - self._rows : row] for name, column in made.items()}
            number, row = number + 1, 0

    def tensors(self, unit: Columns | None) -> Batch:
        if unit is None:
            unit = self._maker.batch([blank(self._maker.length, self._maker.filler)] * self._rows)
        made = {name: torch.from_numpy(column) for name, column in unit.items()}
        return {name: v if v.is_floating_point() else v.long() for name, v in made.items()}

    def _lots(self, number: int) -> Iterator[Columns]:
        """Those from `number` on."""
        waiting: deque[Future[Columns]] = deque()
        with self._executor() as pool:
            try:
                while True:
                    while len(waiting) < WAITING * max(1, self._processes):
                        seed = f"{self._seed}/{number}"
                        waiting.append(pool.submit(self._maker.lot, seed, self._lot))
                        number += 1
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _executor(self) -> Executor:
        if not self._processes:
            return ThreadPoolExecutor(1)
        # Not forked: a process that holds threads and a GPU cannot be.
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._processes, spawn, initializer=_aside)


def _aside() -> None:
    """In a process beside the training: on one core, and left alone by the Ctrl-C of a terminal,
    which the training answers with a snapshot."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
