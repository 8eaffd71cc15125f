"""Runs the server: takes the port, loads the models behind /health, stops cleanly.

On SIGINT or SIGTERM nothing new is taken; what streams may finish for GRACE seconds and is then cut
with an error event.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from trivium.errors import TriviumError, UsageError
from trivium.server.app import Application, Settings, create_app
from trivium.server.guard import is_loopback
from trivium.server.served import Models

GRACE = 3  # seconds
BACKLOG = 512
SWITCH = 0.0005  # seconds after which a thread lets another one run Python


def bind(host: str, port: int, key: str | None) -> socket.socket:
    """A listening socket. Raises UsageError for an address that may not be served openly, and
    TriviumError when it cannot be had."""
    kind = socket.SOCK_STREAM
    try:
        found = socket.getaddrinfo(host or None, port, type=kind, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host!r} is no address of this machine: {error}") from None
    family, _, protocol, _, address = found[0]
    if not is_loopback(str(address[0])) and not key:
        raise UsageError(
            f"--host {host or address[0]} can be reached by others: give them a key "
            "(--api-key or TRIVIUM_API_KEY), or serve 127.0.0.1"
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise TriviumError(
                f"port {port} of {host} is taken: choose another with --port, or 0 for any"
            ) from None
        reason = error.strerror or os.strerror(error.errno or 0)
        raise TriviumError(f"cannot listen on {host}, port {port}: {reason}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Uvicorn(uvicorn.Server):
    """uvicorn, which cuts what still runs GRACE seconds after it was told to stop."""

    def __init__(self, application: Application) -> None:
        super().__init__(
            uvicorn.Config(
                application.asgi,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="on",
                timeout_graceful_shutdown=GRACE + 2,
            )
        )
        self._workers = application.server.workers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(GRACE, self._workers.cut)
        await super().shutdown(sockets)


def serve(
    models: Models, settings: Settings, listener: socket.socket, say: Callable[[str], None]
) -> None:
    """Answer on `listener` until a signal comes. `say` is told what a person wants to know.

    Raises what loading a model raises, and KeyboardInterrupt on Ctrl-C.
    """
    # The thread that computes must not wait 5 ms, as is usual, for one that reads a schema.
    sys.setswitchinterval(SWITCH)
    application = create_app(models, settings)
    server = Uvicorn(application)
    failures: list[BaseException] = []

    def load() -> None:
        try:
            models.load()
            if not server.should_exit:
                say("ready")
        except BaseException as error:
            failures.append(error)
            server.should_exit = True

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(0)  # uvicorn has stopped by then, and raises the signal again

    before = signal.signal(signal.SIGTERM, stop)
    loading = threading.Thread(target=load, name="trivium-load", daemon=True)
    try:
        say(f"{url_of(listener)}/v1")
        loading.start()
        server.run(sockets=[listener])
    except (KeyboardInterrupt, SystemExit) as stopped:
        loading.join(GRACE)
        if loading.is_alive():  # in C++ code, which does not survive the end of the interpreter
            os._exit(130 if isinstance(stopped, KeyboardInterrupt) else 0)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        with contextlib.suppress(OSError):
            listener.close()
    if failures:
        raise failures[0]
