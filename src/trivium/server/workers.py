"""Where the work is done: threads that run iterators, and a line before them.

A job is a function that returns an iterator, such as a generation. At most `capacity` jobs run at a
time; others wait in line, first come, first served. What a job yields goes to an unbounded inbox
(an answer is bounded by the context), so a slow reader keeps neither its thread nor anybody else
waiting. A reader that leaves takes its jobs out of the line, and those that run end before their
next item.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from trivium.server.errors import ApiError

T = TypeVar("T")
Job = Callable[[], Iterator[T]]
PREPARERS = 2  # threads that read requests: tokenise, compile grammars


@dataclass(frozen=True)
class _Ended:
    error: BaseException | None = None


@dataclass
class _Ticket:
    index: int
    job: Job[Any]
    inbox: "asyncio.Queue[tuple[int, Any]]"
    left: threading.Event


class Workers:
    """`queue` jobs may wait when a request comes; it is turned away (429) if there are more."""

    def __init__(self, capacity: int, queue: int) -> None:
        self.capacity, self.queue, self.running = capacity, queue, 0
        self._line: deque[_Ticket] = deque()
        self._open: set[asyncio.Queue[tuple[int, Any]]] = set()
        self._threads = ThreadPoolExecutor(capacity, "trivium-worker")
        self._preparers = ThreadPoolExecutor(PREPARERS, "trivium-prepare")
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

    async def run(self, jobs: Sequence[Job[T]]) -> AsyncGenerator[tuple[int, T], None]:
        """The items of all jobs as they come, each with the index of its job.

        Raises what a job raises, and ApiError when the line is full or the server stops. To be
        closed by whoever reads it.
        """
        self.admit()
        inbox: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        left = threading.Event()
        self._line += [_Ticket(index, job, inbox, left) for index, job in enumerate(jobs)]
        self._open.add(inbox)
        self._advance()
        try:
            unfinished = len(jobs)
            while unfinished:
                index, item = await inbox.get()
                if not isinstance(item, _Ended):
                    yield index, item
                elif item.error is not None:
                    raise item.error
                else:
                    unfinished -= 1
        finally:
            left.set()
            self._open.discard(inbox)
            self._line = deque(ticket for ticket in self._line if ticket.left is not left)

    def _advance(self) -> None:
        loop = asyncio.get_running_loop()
        while self._line and self.running < self.capacity:
            self.running += 1
            self._threads.submit(_work, self._line.popleft(), loop, self._finished)

    def _finished(self) -> None:
        self.running -= 1
        self._advance()

    def cut(self) -> None:
        """End every answer with an error, and take no further request."""
        self._closing = True
        error = ApiError(503, "the server is shutting down", code="shutting_down", retry=5)
        for inbox in self._open:
            inbox.put_nowait((0, _Ended(error)))

    async def close(self) -> None:
        """Cut what runs and wait for the threads to end."""
        self.cut()
        self._line.clear()
        for threads in (self._preparers, self._threads):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)


def _work(ticket: _Ticket, loop: asyncio.AbstractEventLoop, finished: Callable[[], None]) -> None:
    """Run one job, in a thread of its own, to its end or until nobody reads it."""

    def tell(function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            loop.call_soon_threadsafe(function, *arguments)

    def post(item: Any) -> None:
        tell(ticket.inbox.put_nowait, (ticket.index, item))

    try:
        if not ticket.left.is_set():
            with contextlib.closing(ticket.job()) as items:  # type: ignore[type-var]
                for item in items:
                    if ticket.left.is_set():
                        break
                    post(item)
        post(_Ended())
    except BaseException as error:
        post(_Ended(error))
    finally:
        tell(finished)
