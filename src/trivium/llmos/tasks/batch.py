"""A task for every text of a file: several at once, written in order, continued after a stop."""

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trivium.llmos.tasks.asking import Asker, ItemError, Outcome
from trivium.llmos.tasks.inputs import Item, Positioned, read_texts
from trivium.llmos.tasks.outputs import OutputFile
from trivium.llmos.tasks.task import Task

AHEAD = 2  # inputs taken for each one that is answered, so that a slow one holds up nobody


@dataclass(frozen=True)
class Done:
    """An answer in its place. `position`: bytes of the input that are done with it."""

    index: int
    item: Item
    outcome: Outcome | ItemError
    position: int = 0


def run_file(
    task: Task,
    asker: Asker,
    source: Path,
    target: Path,
    *,
    field: str | None = None,
    overwrite: bool = False,
) -> Iterator[Done]:
    """Answer every text of `source` into `target`, and yield what is added to it.

    Nothing is done before the first answer is asked for. Closing the iterator stops the work; what
    was yielded is in the file, and the next call goes on behind it.
    """
    with OutputFile(target, model=asker.name, task=task.fingerprint, overwrite=overwrite) as output:
        remaining = unanswered(read_texts(source, field), output)
        for done in answers(task, asker, remaining):
            output.append(done.index, done.item, done.outcome)
            yield done


def unanswered(texts: Iterable[Positioned], output: OutputFile) -> Iterator["Question"]:
    """The texts that `output` has no line for. Raises UsageError when its lines are of others."""
    going_on = True
    for index, (item, position) in enumerate(texts):
        going_on = going_on and output.compare(index, item)
        if not going_on:
            yield Question(index, item, position)
    if going_on:
        output.at_end()


def numbered(texts: Iterable[Positioned]) -> Iterator["Question"]:
    for index, (item, position) in enumerate(texts):
        yield Question(index, item, position)


def answers(task: Task, asker: Asker, questions: Iterator["Question"]) -> Iterator[Done]:
    """The answers in the order of the questions, of which few are taken in advance.

    What is no fault of one input (a full disk, an endpoint that is down) is raised, after the
    answers before it.
    """
    waiting: deque[Question] = deque()
    todo: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
    for _ in range(asker.parallel):
        threading.Thread(target=_work, args=(task, asker, todo), daemon=True).start()
    ahead, complete = 1, False
    try:
        for question in questions:
            waiting.append(question)
            todo.put(question)
            if len(waiting) >= ahead:
                yield waiting.popleft().done()
                # The first went alone: it computed what all share, the instruction and examples.
                ahead = AHEAD * asker.parallel
        while waiting:
            yield waiting.popleft().done()
        complete = True
    finally:
        if not complete:
            asker.cancel()
        for _ in range(asker.parallel):
            todo.put(None)


def _work(task: Task, asker: Asker, todo: "queue.SimpleQueue[Question | None]") -> None:
    while (question := todo.get()) is not None:
        question.answer(task, asker)


class Question:
    """An input on its way to its answer."""

    def __init__(self, index: int, item: Item, position: int) -> None:
        self.index, self._item, self._position = index, item, position
        self._answered = threading.Event()
        self._outcome: Outcome | BaseException = (
            item if isinstance(item, ItemError) else Outcome("")
        )

    def answer(self, task: Task, asker: Asker) -> None:
        try:
            if isinstance(self._item, str):
                self._outcome = task.run(asker, self._item)
        except BaseException as error:
            self._outcome = error
        self._answered.set()

    def done(self) -> Done:
        """Wait for the answer. Raises what is no fault of this input."""
        self._answered.wait()
        if isinstance(self._outcome, BaseException) and not isinstance(self._outcome, ItemError):
            raise self._outcome
        return Done(self.index, self._item, self._outcome, self._position)
