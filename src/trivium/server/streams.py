"""Answers that last: server-sent events, and noticing that the client has left.

Server-sent events are those of the WHATWG standard (HTML, section 9.2), ended by `data: [DONE]`. A
comment is sent when nothing else was for a while, so that nobody on the way takes the connection
for dead.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trivium.server import errors

PING = 15.0  # seconds
DONE = b"data: [DONE]\n\n"
Events = AsyncGenerator[list[dict[str, Any]], None]  # what is there at a time, sent together


async def _left(receive: Receive) -> None:
    """Return when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless_left(
    receive: Receive, work: "asyncio.Future[Any]", timeout: float | None = None
) -> bool:
    """Wait for `work`, which is cancelled when the client leaves; say whether it was."""
    leaving = asyncio.ensure_future(_left(receive))
    try:
        done, _ = await asyncio.wait(
            {work, leaving}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )
        gone = leaving in done and work not in done
        if gone:
            await _cancelled(work)
        return gone
    except asyncio.CancelledError:
        await _cancelled(work)
        raise
    finally:
        await _cancelled(leaving)


async def _cancelled(work: "asyncio.Future[Any]") -> None:
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
        await work


GONE = 499  # nobody reads this answer; nginx's status for it, seen in /metrics only


async def attended(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """What `work` returns; it is cancelled when the client leaves."""
    task = asyncio.ensure_future(work)
    if await _unless_left(request.receive, task):
        return Response(status_code=GONE)
    return task.result()


async def stream(request: Request, events: Events) -> Response:
    """`events` as server-sent events.

    What they raise before the first becomes an error with its HTTP status, unless the first takes
    longer than PING; later, it becomes an event.
    """
    first = asyncio.ensure_future(anext(events))
    if await _unless_left(request.receive, first, PING):
        await events.aclose()
        return Response(status_code=GONE)
    if first.done():
        first.result()  # raises what it raised
    return EventStream(events, first)


class EventStream(Response):
    """Sends `events`, of which `first` is the next, until they end or the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: Events, first: "asyncio.Future[list[dict[str, Any]]]") -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._first = events, first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        task = asyncio.ensure_future(self._send(send))
        if not await _unless_left(receive, task):
            task.result()

    async def _send(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()

        async def put(data: bytes, more: bool = True) -> None:
            nonlocal last
            last = loop.time()
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def ping() -> None:
            while True:
                await asyncio.sleep(last + PING - loop.time())
                if loop.time() >= last + PING:
                    await put(b": ping\n\n")

        pinging = asyncio.ensure_future(ping())
        async with contextlib.aclosing(self._events):
            try:
                with contextlib.suppress(StopAsyncIteration):
                    await put(_encoded(await self._first))
                async for events in self._events:
                    await put(_encoded(events))
                await put(DONE, more=False)
            except OSError:  # the client is gone
                pass
            except Exception as error:
                api = errors.of(error)
                if api.code == "internal_error":
                    logging.getLogger(__name__).exception("an answer failed")
                await put(_encoded([api.to_json()]) + DONE, more=False)
            finally:
                await _cancelled(pinging)


def _encoded(events: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(b"data: " + errors.encode(event) + b"\n\n" for event in events)
