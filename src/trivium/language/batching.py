"""Continuous batching: requests of many threads share the decoding steps of one engine.

One worker thread owns the model. Between two steps requests join (their prompt is computed in
chunks, so that the others go on meanwhile) and leave. A token of a batch costs little more than a
token alone, because the weights are read once for all; and it is the same token: every sequence has
its own cache, its own random numbers, and sums that do not depend on its neighbours.
"""

import contextlib
import itertools
import queue
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from trivium.errors import TriviumError
from trivium.language.engine import End, Engine, Request, Run, Token

BATCH = 16  # sequences in one step


class Batcher:
    """`generate` as an engine has it, for any number of threads. `close` ends the worker.

    At most `batch` requests run at once; the others wait in the order they came.
    """

    def __init__(self, engine: Engine, batch: int = BATCH) -> None:
        self.engine = engine
        self._batch = batch
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._running = 0
        self._worker = threading.Thread(target=self._work, name="trivium-batcher", daemon=True)
        self._worker.start()

    @property
    def load(self) -> tuple[int, int]:
        """How many requests run, and how many wait."""
        return self._running, len(self._waiting)

    def generate(self, request: Request) -> Iterator[Token | End]:
        """As `Engine.generate`. Closing the iterator takes the request out of the batch."""
        self.engine.room(request.prompt, request.max_tokens)  # say so at once, in this thread
        job = _Job(request)
        with self._changed:
            if self._closed:
                raise TriviumError("the engine is shutting down")
            self._waiting.append(job)
            self._changed.notify()
        return self._events(job)

    def _events(self, job: "_Job") -> Iterator[Token | End]:
        try:
            while True:
                event = job.events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, End):
                    return
        finally:
            job.cancelled.set()

    def close(self) -> None:
        """Cut all requests and end the worker. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the worker -----------------------------------------------------------------------------

    def _work(self) -> None:
        active: list[_Job] = []
        while self._admit(active):
            self._advance(active)
        for job in itertools.chain(active, self._waiting):
            job.events.put(TriviumError("the engine was shut down"))

    def _admit(self, active: list["_Job"]) -> bool:
        """Drop who left, take in who waits; sleep while there is nothing to do."""
        with self._changed:
            while True:
                for job in [job for job in active if job.cancelled.is_set()]:
                    self._end(job, active)
                while self._waiting and len(active) < self._batch:
                    job = self._waiting.popleft()
                    if not job.cancelled.is_set():
                        active.append(job)
                self._running = len(active)
                if self._closed:
                    return False
                if active:
                    return True
                self._changed.wait()

    def _advance(self, active: list["_Job"]) -> None:
        """A chunk of the prompt for a newcomer, a token for everybody else."""
        due = []
        for job in list(active):
            with self._reporting(job, active):
                if job.run is None:
                    job.run = Run(self.engine, job.request)
                if job.run.made:
                    due.append(job.run)
                elif job.run.read_prompt():
                    self._choose(job, active)
        if due:
            self._step(due, active)

    def _step(self, due: list[Run], active: list["_Job"]) -> None:
        jobs = [job for job in active if job.run in due]
        try:
            self.engine.advance(due)
        except Exception as error:  # of all of them: who is to blame is not known
            for job in jobs:
                job.events.put(error)
                self._end(job, active)
            return
        for job in jobs:
            with self._reporting(job, active):
                self._choose(job, active)

    def _choose(self, job: "_Job", active: list["_Job"]) -> None:
        assert job.run is not None
        for event in job.run.choose():
            job.events.put(event)
        if job.run.ended:
            self._end(job, active)

    @contextlib.contextmanager
    def _reporting(self, job: "_Job", active: list["_Job"]) -> Iterator[None]:
        """An error of one request is its own, and nobody else's."""
        try:
            yield
        except Exception as error:
            job.events.put(error)
            self._end(job, active)

    def _end(self, job: "_Job", active: list["_Job"]) -> None:
        if job.run is not None:
            job.run.close()
        if job in active:
            active.remove(job)


@dataclass(eq=False)
class _Job:
    request: Request
    run: Run | None = None
    events: "queue.SimpleQueue[Token | End | BaseException]" = field(
        default_factory=queue.SimpleQueue
    )
    cancelled: threading.Event = field(default_factory=threading.Event)
