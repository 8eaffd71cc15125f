"""A Python session in the sandbox: what one call defines, the next can use.

Between two calls every thread of the session is stopped, so that nothing happens, least of all to
the workspace, that is not part of a call.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import stat
import subprocess
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.llmos.sandbox import worker
from trivium.llmos.sandbox.jail import Jail, Output, attend, feeder, signal_name
from trivium.llmos.sandbox.launch import descendants
from trivium.llmos.sandbox.limits import Limits, Reason
from trivium.llmos.sandbox.supervisor import Sandbox

REPLY_BYTES = 1 << 20
PLOTS = 50
STOP_SECONDS = 1.0


@dataclass(frozen=True)
class Execution:
    """What a call gave.

    text: what the code printed, standard output and error in order
    value: the repr of its last expression, "" when that is None or not an expression
    error: a short traceback, "" when there was no error
    plots: names of PNG files in the sandbox's first writable folder
    lost: why the session ended and its variables are gone; "" while it lives
    """

    text: str
    value: str
    error: str
    plots: tuple[str, ...]
    reason: Reason
    lost: str
    seconds: float


class PythonSession:
    """Runs cells of Python one after another in one confined process.

    The process is started by `start` or the first call, and anew by the call after it was lost.
    cwd: the folder it works in, by default the sandbox's first writable one, where its plots go
    """

    def __init__(
        self, sandbox: Sandbox, cwd: Path | None = None, limits: Limits | None = None
    ) -> None:
        self.sandbox = sandbox
        self.cwd = cwd or sandbox.writable[0]
        self.limits = limits or sandbox.limits
        self._finalizer: weakref.finalize[..., PythonSession] | None = None
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._cells = 0

    def __enter__(self) -> "PythonSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process without waiting for it, so that the first call finds it warm."""
        with self._lock:
            self._living_worker()

    def close(self) -> None:
        with self._lock:
            self._end()

    def run(self, code: str, seconds: float | None = None) -> Execution:
        """Run one cell, for at most `seconds`. Raises TriviumError where it cannot be set up."""
        with self._lock:
            living = self._living_worker()
            self._cells += 1
            try:
                execution = living.run(code, self._cells, seconds or self.limits.seconds)
            except BaseException:
                self._end()
                raise
            if execution.lost:
                self._end()
            return execution

    def _living_worker(self) -> "_Worker":
        if self._worker is None:
            self._worker = _Worker(self.sandbox, self.cwd, self.limits)
            self._finalizer = weakref.finalize(self, self._worker.close)
        return self._worker

    def _end(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._worker = self._finalizer = None


class _Worker:
    """One process, from its start to its end."""

    def __init__(self, sandbox: Sandbox, cwd: Path, limits: Limits) -> None:
        self.plots = sandbox.writable[0]
        self.limits = limits
        request, self.requests = os.pipe()
        self.replies, reply = os.pipe()
        job = sandbox.job(None, cwd, limits)
        # The session may live for days; a call's processor time is bounded by its wall time.
        job["limits"]["cpu_seconds"] = 0
        try:
            self.jail = Jail(
                job, sandbox.environment(), stderr=subprocess.STDOUT, pipes=(request, reply)
            )
        except BaseException:
            os.close(self.requests)
            os.close(self.replies)
            raise
        finally:
            os.close(request)
            os.close(reply)
        self.watch = sandbox.watch(self.jail, limits)
        self.process: int | None = None  # a pidfd: a number could come to mean another process

    def close(self) -> None:
        try:
            self.jail.close()
        finally:
            for pipe in (self.requests, self.replies, self.process):
                if pipe is not None:
                    os.close(pipe)

    def run(self, code: str, cell: int, seconds: float) -> Execution:
        started = time.monotonic()
        printed = self.jail.process.stdout
        assert printed
        if self.process is not None:
            signal.pidfd_send_signal(self.process, signal.SIGCONT)
        self.watch.restart()
        output = Output(self.limits.output_bytes)
        reply = _Reply(self.replies, self.plots)
        request = worker.frame({"token": reply.token, "code": code, "cell": cell})
        reason = attend(
            {
                printed.fileno(): output.reader(printed),
                self.replies: reply.take,
                self.jail.status: self.jail.listen,
            },
            {self.requests: feeder(self.requests, request, lambda: None)},
            output=output,
            watch=self.watch,
            deadline=started + seconds,
            # A pipe that ended means a process that is ending: wait for what it tells.
            done=lambda: reply.complete and not reply.ended,
        )
        if reason == "exit" and reply.record is not None:
            self._stop()
        else:
            self.jail.end()
        output.drain(printed)
        record = reply.record or {"value": "", "error": "", "plots": ()}
        return Execution(
            text=output.text(printed).decode(errors="replace"),
            **record,
            reason=reason,
            lost=self._why_lost(reason, reply, seconds),
            seconds=time.monotonic() - started,
        )

    def _why_lost(self, reason: Reason, reply: "_Reply", seconds: float) -> str:
        if reason == "seconds":
            return f"it was still running after {seconds:g} seconds"
        if reason != "exit":
            return self.limits.describe(reason)
        if reply.record is not None:
            return ""
        if reply.complete and not reply.ended:
            return "it wrote to the pipe that carries results"
        code = self.jail.returncode()
        if code is None or code >= 0:
            return f"its process ended with exit status {code or 0}"
        return f"its process was ended by {signal_name(-code)}"

    def _stop(self) -> None:
        """Stop every thread of the process, and wait until all have."""
        if self.process is None:
            pid = descendants(self.jail.process.pid)[-1]
            self.process = os.pidfd_open(pid)
            self.pid = pid
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.process, signal.SIGSTOP)
        deadline = time.monotonic() + STOP_SECONDS
        while _running(self.pid) and time.monotonic() < deadline:
            time.sleep(0.0005)


def _running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[0] not in (b"T", b"t", b"Z", b"X"):
                    return True
    return False


class _Reply:
    """The worker's answer to one request, of which nothing is taken on trust."""

    def __init__(self, pipe: int, plots: Path) -> None:
        self.pipe = pipe
        self.plots = plots
        # An answer that was left in the pipe by an earlier call cannot know it.
        self.token = secrets.token_hex(16)
        self.record: dict[str, Any] | None = None
        self.complete = False
        self.ended = False
        self._buffer = bytearray()

    def take(self) -> bool:
        part = os.read(self.pipe, 65536)
        self._buffer += part
        self.ended = not part
        size = int.from_bytes(self._buffer[:4], "big")
        if self.ended or (len(self._buffer) >= 4 and size > REPLY_BYTES):
            self.complete = True
        elif len(self._buffer) >= 4 + size:
            self.complete = True
            if len(self._buffer) == 4 + size:
                self.record = self._checked(bytes(self._buffer[4:]))
        return not self.complete

    def _checked(self, payload: bytes) -> dict[str, Any] | None:
        try:
            record = json.loads(payload)
            value, error, plots = record["value"], record["error"], record["plots"]
            honest = (
                record["token"] == self.token
                and isinstance(value, str)
                and isinstance(error, str)
                and isinstance(plots, list)
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not honest:
            return None
        return {
            "value": _clean(value),
            "error": _clean(error),
            "plots": tuple(name for name in plots[:PLOTS] if self._is_plot(name)),
        }

    def _is_plot(self, name: object) -> bool:
        if not isinstance(name, str) or not re.fullmatch(r"plot-[0-9]{1,6}\.png", name):
            return False
        with contextlib.suppress(OSError):
            return stat.S_ISREG(os.lstat(self.plots / name).st_mode)
        return False


def _clean(text: str) -> str:
    """Without lone surrogates, which no output could carry."""
    return text.encode(errors="replace").decode()
