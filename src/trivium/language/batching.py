"""Continuous batching: the requests of many threads share the steps of one engine.

One thread, the `Worker`, computes: it owns the models, so that nothing else touches their caches
and no two computations fight for the cores. It goes in rounds. In each, every `Batcher` (the
requests of one model) takes a turn, and one piece of other work may be done (`call`), which gets at
most half of the time. In its turn a batcher

1. drops the requests that nobody waits for any more and takes in new ones;
2. reads a chunk of their prompts (`Engine.chunk_behind`), whoever they belong to. The prompt with
   the least left to read and the one that came first are served by turns, so that short prompts
   pass long ones and long ones still get on;
3. makes one step, a token or more for everybody else.

So however many come, and however long their prompts, between two tokens of an answer lie a chunk, a
step of each model and one piece of other work. A token of a batch costs little more than a token
alone, because the weights are read once for all; and it is the same token: every sequence has its
own cache and its own random numbers, prompts are cut in the same places, and a row of a step does
not depend on its neighbours.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trivium.errors import TriviumError
from trivium.language.constrain import Constraint
from trivium.language.engine import Engine
from trivium.language.generation import End, Request, Run, Token

T = TypeVar("T")
Events = Sequence[Token | End]
Tell = Callable[[Events | Exception], None]
BATCH = 16  # sequences in one step


class Cancelled(TriviumError):
    """Nobody waits for the answer any more."""


class Worker:
    """The thread that computes, for any number of batchers. `close` ends it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()  # there may be something to do
        self._batchers: list[Batcher] = []
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="trivium-compute", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], T]) -> "Future[T]":
        """Have `function` computed between two steps; others wait meanwhile, so let it be short.

        Calls are made in the order they came, one in a round, and none before the batchers had as
        long as the last one took. Raises TriviumError after `close`.
        """
        future: Future[T] = Future()
        with self.changed:
            if self._closed:
                raise TriviumError("the engine is shutting down")
            self._calls.append((function, future))
            self.changed.notify()
        return future

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises, computed between two steps."""
        if threading.current_thread() is self._thread:
            return function()
        return self.submit(function).result()

    def close(self) -> None:
        """End the thread; what still waits for it is told. May be called twice."""
        with self.changed:
            self._closed = True
            self.changed.notify()
        self._thread.join()

    def add(self, batcher: "Batcher") -> None:
        with self.changed:
            self._batchers.append(batcher)

    def remove(self, batcher: "Batcher") -> None:
        with self.changed:
            self._batchers.remove(batcher)

    def _work(self) -> None:
        owed = 0.0  # seconds that the batchers may have before the next call
        while self._due():
            start = time.monotonic()
            for batcher in list(self._batchers):
                batcher.turn()
            between = time.monotonic()
            owed -= between - start
            if self._calls and (owed <= 0 or not any(b.busy for b in self._batchers)):
                _compute(*self._calls.popleft())
                owed = time.monotonic() - between
        shut = TriviumError("the engine was shut down")
        for _, future in self._calls:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(shut)
        for batcher in list(self._batchers):
            batcher.cut()

    def _due(self) -> bool:
        """Sleep while there is nothing to do; False when the worker is to end."""
        with self.changed:
            self.changed.wait_for(
                lambda: self._closed or self._calls or any(b.busy for b in self._batchers)
            )
            return not self._closed


def _compute(function: Callable[[], Any], future: "Future[Any]") -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


class Batcher:
    """The requests of one model. At most `batch` are answered at once; the others wait in line.

    `generate` is that of an engine, for any number of threads. Without a `worker` it has one of its
    own, which ends with it.
    """

    def __init__(self, engine: Engine, batch: int = BATCH, *, worker: Worker | None = None) -> None:
        self.engine = engine
        self.worker = worker or Worker()
        self._owns_worker = worker is None
        self._batch = batch
        self._waiting: deque[_Job] = deque()
        self._active: list[_Job] = []
        self._oldest_first = False
        self._closed = False
        self.worker.add(self)

    @property
    def load(self) -> tuple[int, int]:
        """How many requests are being answered, and how many wait."""
        return len(self._active), len(self._waiting)

    @property
    def busy(self) -> bool:
        return bool(self._active or self._waiting)

    def run(self, request: Request, constraint: Constraint | None = None) -> Run:
        """The request, ready for `submit`; in the thread of who asks, since it may take a while.

        Raises ContextOverflow and UsageError.
        """
        return Run(self.engine, request, constraint)

    def submit(
        self, run: Run, tell: Tell, left: threading.Event | None = None
    ) -> "Callable[[], None]":
        """Let `run` join. Returns a function that takes it out again; so does setting `left`.

        `tell` is called by the worker, at most twice a round: with the tokens made since, the last
        time with the End or with what went wrong. It must be quick.
        """
        job = _Job(run, tell, left or threading.Event())
        with self.worker.changed:
            if self._closed:
                raise TriviumError("the engine is shutting down")
            self._waiting.append(job)
            self.worker.changed.notify()
        return job.cancelled.set

    def generate(self, request: Request, left: threading.Event | None = None) -> "Stream":
        """As `Engine.generate`, but begun at once. Closing the iterator takes the request out of
        the batch. When `left` is set, it ends with `Cancelled`.
        """
        return Stream(self, self.run(request), left)

    def close(self) -> None:
        """Cut all requests. May be called twice."""
        if self._owns_worker:
            self.worker.close()
        elif not self._closed:
            with contextlib.suppress(TriviumError):  # the worker is closed: it has cut them
                self.worker.call(self.cut)
            self.worker.remove(self)
        self._closed = True

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- on the worker's thread -----------------------------------------------------------------

    def turn(self) -> None:
        """What the batcher does in a round. Never raises: who asked is told what went wrong."""
        try:
            self._admit()
            self._read_prompts()
            self._deliver()
            if due := [job for job in self._active if job.run.made]:
                self._step(due)
                self._deliver()
        except Exception as error:
            for job in list(self._active):
                self._fail(job, error)

    def cut(self) -> None:
        """End all requests with an error."""
        with self.worker.changed:
            self._closed = True
            jobs = [*self._active, *self._waiting]
            self._waiting.clear()
        for job in jobs:
            self._fail(job, TriviumError("the engine was shut down"))

    def _admit(self) -> None:
        """Drop who left, take in who waits."""
        with self.worker.changed:
            gone = [job for job in (*self._active, *self._waiting) if job.gone]
            self._waiting = deque(job for job in self._waiting if job not in gone)
        for job in gone:
            self._fail(job, Cancelled("nobody waits for this answer"))
        while len(self._active) < self._batch and self._waiting:
            job = self._waiting.popleft()
            self._active.append(job)
            with self._reporting(job):
                job.run.join()

    def _read_prompts(self) -> None:
        """A chunk, or as many short prompts as are one together."""
        room = 1.0
        while (job := self._newcomer()) and job.run.share <= room:
            room -= job.run.share
            self._oldest_first = not self._oldest_first
            with self._reporting(job):
                if job.run.read_prompt():
                    self._choose(job)

    def _newcomer(self) -> "_Job | None":
        """Whose prompt is to be read next."""
        new = [job for job in self._active if not job.run.made and not job.gone]
        if not new:
            return None
        return new[0] if self._oldest_first else min(new, key=lambda job: job.run.unread)

    def _step(self, due: list["_Job"]) -> None:
        try:
            self.engine.advance([job.run for job in due])
        except Exception as error:  # of all of them: who is to blame is not known
            for job in due:
                self._fail(job, error)
            return
        for job in due:
            with self._reporting(job):
                self._choose(job)

    def _choose(self, job: "_Job") -> None:
        for event in job.run.choose():
            job.fresh.append(event)

    @contextlib.contextmanager
    def _reporting(self, job: "_Job") -> Iterator[None]:
        """An error of one request is its own, and nobody else's."""
        try:
            yield
        except Exception as error:
            self._fail(job, error)

    def _deliver(self) -> None:
        """Tell what was made, all at once: who listens wakes up while the next step is computed."""
        for job in [job for job in self._active if job.fresh]:
            fresh, job.fresh = job.fresh, []
            if job.run.ended:
                self._end(job)
            job.tell(fresh)

    def _fail(self, job: "_Job", error: Exception) -> None:
        self._end(job)
        if job.fresh:
            job.tell(job.fresh)
        job.tell(error)

    def _end(self, job: "_Job") -> None:
        job.run.close()
        if job in self._active:
            self._active.remove(job)


@dataclass(eq=False)
class _Job:
    run: Run
    tell: Tell
    left: threading.Event  # may be shared with other jobs of the same answer
    cancelled: threading.Event = field(default_factory=threading.Event)
    fresh: list[Token | End] = field(default_factory=list)

    @property
    def gone(self) -> bool:
        return self.cancelled.is_set() or self.left.is_set()


class Stream(Iterator[Token | End]):
    """What a request made and makes, for a thread that waits for it."""

    def __init__(self, batcher: Batcher, run: Run, left: threading.Event | None) -> None:
        self._inbox: queue.SimpleQueue[Events | Exception] = queue.SimpleQueue()
        self._ready: deque[Token | End] = deque()
        self._ended = False
        self.close = batcher.submit(run, self._inbox.put, left)

    def __next__(self) -> Token | End:
        if not self._ready:
            if self._ended:
                raise StopIteration
            events = self._inbox.get()
            if isinstance(events, Exception):
                self._ended = True
                raise events
            self._ready.extend(events)
            self._ended = isinstance(events[-1], End)
        return self._ready.popleft()

    def __del__(self) -> None:
        if hasattr(self, "close"):  # it was submitted
            self.close()
