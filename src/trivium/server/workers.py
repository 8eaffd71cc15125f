"""The line before the work, and the way back from the threads that do it to the event loop.

A job is a function that starts the work for one answer and returns at once; the work goes on
elsewhere (in a batch, in a thread) and puts what it makes into the `Place` that the job was given.
At most `capacity` places are taken at a time; other jobs wait in line, first come, first served.
What is put in is unbounded (an answer is bounded by the context), so a slow reader keeps nobody
waiting. A reader that leaves gives up its places and its part of the line at once, and whoever
works for it finds `Place.left` set.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from trivium.language.generation import End
from trivium.server.errors import ApiError

T = TypeVar("T")
PREPARERS = 4  # threads that read requests: tokenise, compile grammars


@dataclass(frozen=True)
class _Ended:
    error: Exception | None = None


class Mail:
    """Carries things from any thread to the event loop: all that there is with one wake-up."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._posted: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._called = False

    def post(self, receive: Callable[[T], None], item: T) -> None:
        """Have `receive(item)` called on the event loop, in the order of the posts."""
        self._posted.append((receive, item))
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False  # first: what is posted from here on may need a call of its own
        while self._posted:
            receive, item = self._posted.popleft()
            receive(item)


class _Inbox:
    """What came for one reader, on the event loop."""

    def __init__(self) -> None:
        self._items: list[tuple[int, Any]] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, index: int, items: Sequence[Any]) -> None:
        self._items += [(index, item) for item in items]
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[tuple[int, Any]]:
        """All that there is, at least one thing."""
        if not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._items = self._items, []
        return taken


@dataclass(eq=False)
class Place(Generic[T]):
    """Where a job puts what it makes. `left` is set when nobody waits for it any more."""

    index: int
    job: "Job[T]"
    left: threading.Event
    _inbox: _Inbox
    _workers: "Workers"
    _ended: bool = field(default=True)  # until it is started

    def post(self, items: Sequence[T]) -> None:
        """Say what was made. Of any thread, as all of these."""
        self._workers.mail.post(self._receive, items)

    def end(self, error: Exception | None = None) -> None:
        """Say that this was all, or what went wrong."""
        self._workers.mail.post(self._receive, [_Ended(error)])

    def tell(self, events: Sequence[T] | Exception) -> None:
        """`post` and `end` in one, for a batcher."""
        if isinstance(events, Exception):
            self.end(events)
        else:
            ended = [_Ended()] if isinstance(events[-1], End) else []
            self._workers.mail.post(self._receive, [*events, *ended])

    def thread(self, function: Callable[[], None]) -> None:
        """Run `function`, which may take its time, in a thread. What it raises ends the job."""

        def run() -> None:
            try:
                if not self.left.is_set():
                    function()
            except Exception as error:
                self.end(error)

        self._workers.threads.submit(run)

    def start(self) -> None:
        self._ended = False
        try:
            self.job(self)
        except Exception as error:
            self._receive([_Ended(error)])

    def give_up(self) -> None:
        """Free the place, if it is taken."""
        if not self._ended:
            self._ended = True
            self._workers.freed()

    def _receive(self, items: Sequence[Any]) -> None:
        if self._ended:
            return
        self._inbox.put(self.index, items)
        if isinstance(items[-1], _Ended):
            self.give_up()


Job = Callable[[Place[T]], None]


class Workers:
    """`queue` jobs may wait when a request comes; it is turned away (429) if there are more."""

    mail: Mail  # from the first request on

    def __init__(self, capacity: int, queue: int) -> None:
        self.capacity, self.queue, self.running = capacity, queue, 0
        self.threads = ThreadPoolExecutor(capacity, "trivium-worker")
        self._preparers = ThreadPoolExecutor(PREPARERS, "trivium-prepare")
        self._line: deque[Place[Any]] = deque()
        self._open: set[_Inbox] = set()
        self._closing = False

    @property
    def waiting(self) -> int:
        return len(self._line)

    def admit(self) -> None:
        """Raises ApiError when there is no room for one more request."""
        if self._closing:
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry=5)
        if self.running >= self.capacity and self.waiting >= self.queue:
            raise ApiError(
                429,
                f"the server is busy: {self.running} answers are being made and {self.waiting} "
                "wait; try again in a moment",
                code="rate_limit_exceeded",
                retry=1,
            )

    async def prepare(self, function: Callable[[], T]) -> T:
        """What `function` returns, computed off the event loop."""
        self.admit()
        return await asyncio.get_running_loop().run_in_executor(self._preparers, function)

    async def run(self, jobs: Sequence[Job[T]]) -> AsyncGenerator[list[tuple[int, T]], None]:
        """What all jobs make, as it comes: each thing with the index of its job.

        Raises what a job raises, and ApiError when the line is full or the server stops. To be
        closed by whoever reads it.
        """
        self.admit()
        if not hasattr(self, "mail"):
            self.mail = Mail()
        inbox, left = _Inbox(), threading.Event()
        places = [Place(i, job, left, inbox, self) for i, job in enumerate(jobs)]
        self._line += places
        self._open.add(inbox)
        self._advance()
        try:
            unfinished = len(jobs)
            while unfinished:
                taken = await inbox.take()
                if made := [pair for pair in taken if not isinstance(pair[1], _Ended)]:
                    yield made
                for _, item in taken:
                    if isinstance(item, _Ended):
                        unfinished -= 1
                        if item.error is not None:
                            raise item.error
        finally:
            left.set()
            self._open.discard(inbox)
            self._line = deque(place for place in self._line if place.left is not left)
            for place in places:
                place.give_up()

    def _advance(self) -> None:
        while self._line and self.running < self.capacity:
            self.running += 1
            self._line.popleft().start()

    def freed(self) -> None:
        self.running -= 1
        self._advance()

    def cut(self) -> None:
        """End every answer with an error, and take no further request."""
        self._closing = True
        error = ApiError(503, "the server is shutting down", code="shutting_down", retry=5)
        self._line.clear()
        for inbox in self._open:
            inbox.put(0, [_Ended(error)])

    async def close(self) -> None:
        """Cut what runs and wait for the threads to end."""
        self.cut()
        for threads in (self._preparers, self.threads):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)
