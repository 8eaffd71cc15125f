"""The outside of the sandbox's door: starts the keeper, attends to its pipes, and ends it.

See `launch` for the processes on the other side.
"""

import contextlib
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import trivium
from trivium.errors import TriviumError
from trivium.llmos.sandbox.limits import Reason
from trivium.llmos.sandbox.watch import Watch

TICK = 0.05  # seconds between two looks at what a program uses
KEEPER_SECONDS = 10.0  # more than it ever takes to kill what is below it
BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from trivium.llmos.sandbox.launch import main; main()"
)
SOURCE = str(Path(trivium.__file__).parents[1])


class NamespacesRefused(TriviumError):
    """This system does not let us make namespaces."""


class Jail:
    """One keeper and what runs below it, from start to end."""

    def __init__(
        self,
        job: Mapping[str, Any],
        environment: Mapping[str, str],
        *,
        stdin: int = subprocess.DEVNULL,
        stderr: int = subprocess.PIPE,
        pipes: Sequence[int] = (),
    ) -> None:
        """Start it. `pipes` are handed to a Python worker: where it reads, where it replies."""
        self.started = time.monotonic()
        control, self._control = os.pipe()
        self.status, status = os.pipe()
        self._told = b""
        arguments = [str(number) for number in (control, status, *pipes)]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", BOOT, SOURCE, *arguments],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                cwd="/",
                pass_fds=(control, status, *pipes),
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            os.close(self._control)
            os.close(self.status)
            raise
        finally:
            os.close(control)
            os.close(status)
        payload = json.dumps(job).encode()
        with contextlib.suppress(BrokenPipeError):
            os.write(self._control, len(payload).to_bytes(4, "big") + payload)

    def listen(self) -> bool:
        """Take in what the other side tells about its state. False at its end."""
        part = os.read(self.status, 4096)
        self._told += part
        return bool(part)

    def returncode(self) -> int | None:
        """The program's, once it is known.

        Raises NamespacesRefused or TriviumError when the sandbox could not be set up.
        """
        for line in self._told.decode(errors="replace").splitlines():
            word, _, rest = line.partition(" ")
            if word == "namespaces":
                raise NamespacesRefused(rest)
            if word == "error":
                raise TriviumError(f"the sandbox could not be set up: {rest}")
            if word == "exit":
                return os.waitstatus_to_exitcode(int(rest))
        return None

    def end(self) -> None:
        """Kill everything below the keeper, and wait until it is gone."""
        if self._control >= 0:
            os.close(self._control)
            self._control = -1
        # Its end of the status pipe is the last thing the keeper lets go of.
        deadline = time.monotonic() + KEEPER_SECONDS
        while select.select([self.status], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if not self.listen():
                self.process.wait()
                return
        self.process.kill()
        self.process.wait()
        raise TriviumError("a process of the sandbox could not be ended")

    def close(self) -> None:
        try:
            self.end()
        finally:
            for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
            if self.status >= 0:
                os.close(self.status)
                self.status = -1


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


class Output:
    """What a program printed, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._parts: dict[int, bytearray] = {}

    def reader(self, pipe: IO[bytes]) -> Callable[[], bool]:
        """A handler for `attend` that takes from `pipe`; False at its end."""
        kept = self._parts.setdefault(pipe.fileno(), bytearray())

        def take() -> bool:
            part = os.read(pipe.fileno(), 65536)
            kept.extend(part[: max(0, self.limit - self.size)])
            self.size += len(part)
            return bool(part)

        return take

    def drain(self, pipe: IO[bytes]) -> None:
        """Take what is in the pipe already."""
        os.set_blocking(pipe.fileno(), False)
        take = self.reader(pipe)
        with contextlib.suppress(BlockingIOError):
            while self.size <= self.limit and take():
                pass
        os.set_blocking(pipe.fileno(), True)

    def text(self, pipe: IO[bytes]) -> bytes:
        return bytes(self._parts[pipe.fileno()])


def feeder(pipe: int, data: bytes, close: Callable[[], None]) -> Callable[[], bool]:
    """A handler for `attend` that writes `data` into `pipe`; False when done, after `close`."""
    os.set_blocking(pipe, False)
    left = memoryview(data)

    def feed() -> bool:
        nonlocal left
        try:
            left = left[os.write(pipe, left[:65536]) :]
        except BrokenPipeError:  # a program need not read its input
            left = left[:0]
        if left:
            return True
        close()
        return False

    return feed


def attend(
    readers: Mapping[int, Callable[[], bool]],
    writers: Mapping[int, Callable[[], bool]],
    *,
    output: Output,
    watch: Watch,
    deadline: float,
    done: Callable[[], bool] = lambda: False,
) -> Reason:
    """Serve the pipes until all of `readers` have returned False, `done`, or to the first limit.

    A handler is called when its pipe is ready, until it returns False.
    """
    next_look = time.monotonic() + TICK
    with selectors.DefaultSelector() as selector:
        for pipe, handler in readers.items():
            selector.register(pipe, selectors.EVENT_READ, handler)
        for pipe, handler in writers.items():
            selector.register(pipe, selectors.EVENT_WRITE, handler)
        waiting = set(readers)
        while waiting and not done():
            now = time.monotonic()
            if output.size > output.limit:
                return "output"
            if now >= deadline:
                return "seconds"
            if now >= next_look:
                if breach := watch.breach():
                    return breach
                next_look = time.monotonic() + TICK
            for key, _ in selector.select(max(0.0, min(next_look, deadline) - now)):
                if not key.data():
                    selector.unregister(key.fd)
                    waiting.discard(key.fd)
    return "exit"
