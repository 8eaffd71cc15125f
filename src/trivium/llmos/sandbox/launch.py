"""The inside of the sandbox's door: from a fresh interpreter to confined code.

    trivium ── keeper ──(── process 1 ──)── confined program or Python worker

The *keeper* is a small trusted process. It lives as long as the control pipe from Trivium is open
and its child runs; when either ends it kills everything below it, so that nothing outlives a
crashed or killed Trivium. With namespaces there is a *process 1*, whose end the kernel makes the
end of all in them; without, the keeper adopts orphans and hunts them down.

The confined process tells over the status pipe, before it runs anything: `ready`, or
`error <what>`; the keeper or process 1 adds `exit <status>`.

Started as `python -I -S -c BOOT`, see `jail`; it imports little, for it runs at every start.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
from typing import Any, NoReturn

from trivium.llmos.sandbox import landlock, namespaces, privileges, worker
from trivium.llmos.sandbox.libc import libc_call, system_call

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

RESET_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    *(signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ),
)
RIGHTS = {
    "read": landlock.READ,
    "write": landlock.WRITE,
    "scratch": landlock.SCRATCH,
    "device": landlock.DEVICE,
}


def main() -> NoReturn:
    control, status, *pipes = (int(text) for text in sys.argv[1:])
    with os.fdopen(control, "rb", closefd=False, buffering=0) as file:
        job = json.loads(worker.read_frame(file))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit())
    wake, wake_writer = os.pipe()
    os.set_blocking(wake_writer, False)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        if os.geteuid() == 0:
            # access(2) asks for the real user, which will be nobody: let the group answer for root.
            os.umask(os.umask(0) & ~0o070)
        if job["namespaces"]:
            _volunteer_for_the_oom_killer()
            try:
                namespaces.enter(job["writable"])
            except OSError as error:
                _say(status, f"namespaces {error}")
                os._exit(1)
            child = os.fork()
            if child == 0:
                libc_call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                _be_process_one(job, status, pipes)
        else:
            libc_call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            child = _start(job, status, pipes)
        _let_go(pipes)
        _keep(child, control, wake, status, report=not job["namespaces"])
    finally:
        _end_all()
        os._exit(0)


def _say(status: int, text: str) -> None:
    os.write(status, text.replace("\n", " ").encode(errors="replace") + b"\n")


def _let_go(pipes: list[int]) -> None:
    """Close the program's pipes in a process that only waits: their end must mean its end."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    for pipe in pipes:
        os.close(pipe)


def _keep(child: int, control: int, wake: int, status: int, *, report: bool) -> None:
    """Reap until `child` has ended or Trivium closes the control pipe."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        ready = [number for number, _ in poll.poll()]
        if control in ready:
            return
        os.read(wake, 4096)
        while True:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid == child:
                if report:
                    _say(status, f"exit {wait_status}")
                return
            if pid == 0:
                break


def _end_all() -> None:
    """Kill everything below this process, again and again until there is nothing left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            select.select([], [], [], 0.001)


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, nearest first."""
    found: list[int] = []
    for parent in [pid]:
        found += _children(parent)
    for parent in found:
        found += _children(parent)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{pid}/task/{task}/children", "rb") as file,
            ):
                found += [int(child) for child in file.read().split()]
    return found


def _be_process_one(job: dict[str, Any], status: int, pipes: list[int]) -> NoReturn:
    child = _start(job, status, pipes)
    _let_go(pipes)
    while True:
        pid, wait_status = os.wait()
        if pid == child:
            _say(status, f"exit {wait_status}")
            os._exit(0)


def _start(job: dict[str, Any], status: int, pipes: list[int]) -> int:
    child = os.fork()
    if child == 0:
        try:
            _confine(job)
            _say(status, "ready")
        except Exception as error:
            _say(status, f"error {error}")
            os._exit(1)
        # From here on the process is the untrusted one.
        os.close(status)
        try:
            _become(job, pipes)
        finally:
            os._exit(1)
    return child


def _volunteer_for_the_oom_killer() -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _confine(job: dict[str, Any]) -> None:
    signal.set_wakeup_fd(-1)
    for number in RESET_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    os.chdir(job["cwd"])
    alone, limits = job["namespaces"], job["limits"]
    if not alone:
        _volunteer_for_the_oom_killer()
    privileges.drop_privileges()
    privileges.bind_process_limit(limits["processes"], alone=alone)
    libc_call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    landlock.restrict([(path, RIGHTS[kind]) for path, kind in job["rules"]], job["landlock"])
    privileges.limit_resources(limits)
    privileges.filter_system_calls(job["filter"])


def _become(job: dict[str, Any], pipes: list[int]) -> NoReturn:
    """Run the program, or be the Python worker, with no open file but its own pipes."""
    copies = [fcntl.fcntl(pipe, fcntl.F_DUPFD, 10) for pipe in pipes]
    for place, copy in enumerate(copies, start=3):
        os.dup2(copy, place)
    system_call("close_range", 3 + len(pipes), 0xFFFFFFFF, 0)
    argv = job["argv"]
    if argv is None:
        worker.serve(3, 4, job["site"], job["plots"])
        os._exit(0)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {os.strerror(error.errno or 0)}\n".encode(errors="replace"))
        os._exit(127)
