"""Code that takes too much, or will not end, is ended: within its limits, and all of it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from trivium.llmos.sandbox import Completed, Level, Limits, PythonSession, Sandbox, probe

pytestmark = pytest.mark.skipif(not probe().usable, reason=probe().summary)

LIMITS = Limits(
    seconds=10,
    memory=400 << 20,
    processes=20,
    output_bytes=100_000,
    disk_bytes=20 << 20,
)


@pytest.fixture(params=["full", "plain"])
def level(request: pytest.FixtureRequest) -> Level:
    if request.param == "plain":
        return replace(probe(), namespaces=False)
    if not probe().namespaces:
        pytest.skip(f"no namespaces: {probe().without_namespaces}")
    return probe()


@pytest.fixture
def sandbox(tmp_path: Path, level: Level) -> Iterator[Sandbox]:
    with Sandbox([tmp_path], limits=LIMITS, level=level) as sandbox:
        yield sandbox
    assert not sandbox.scratch.exists()
    assert survivors(sandbox.scratch) == []


def survivors(scratch: Path) -> list[int]:
    """Processes that have the environment of a sandbox with this folder."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if os.fsencode(scratch) in Path(f"/proc/{entry}/environ").read_bytes():
                    found.append(int(entry))
    return found


def python(sandbox: Sandbox, code: str, **limits: float) -> Completed:
    done = sandbox.run([sys.executable, "-I", "-S", "-c", code], limits=replace(LIMITS, **limits))
    assert survivors(sandbox.scratch) == []
    return done


FORKS = """
import os, time
count = 0
for _ in range(300):
    try:
        child = os.fork()
    except OSError:
        break
    if child == 0:
        time.sleep(20)
        os._exit(0)
    count += 1
print(count, flush=True)
"""


def test_processes_are_bounded(sandbox: Sandbox) -> None:
    done = python(sandbox, FORKS)
    assert done.reason == "exit"
    # Without namespaces the kernel counts all of the user's, and others may end meanwhile.
    slack = 0 if sandbox.level.namespaces else 10
    assert 5 < int(done.stdout) <= LIMITS.processes + slack


def test_without_a_bound_there_would_be_more(sandbox: Sandbox) -> None:
    assert int(python(sandbox, FORKS.replace("300", "60"), processes=200).stdout) == 60


def test_the_parent_counts_processes_too(sandbox: Sandbox) -> None:
    """Where the kernel does not bind the number, as for a root that cannot become another user."""
    job = sandbox.job

    def unbound(argv, cwd, limits):  # type: ignore[no-untyped-def]
        return job(argv, cwd, replace(limits, processes=2000))

    sandbox.job = unbound  # type: ignore[method-assign]
    done = python(sandbox, FORKS + "\ntime.sleep(10)", memory=8 << 30)
    assert done.reason == "processes"
    assert done.seconds < 3


def test_threads_are_bounded(sandbox: Sandbox) -> None:
    code = """
import threading, time
count = 0
try:
    for _ in range(300):
        threading.Thread(target=time.sleep, args=(20,), daemon=True).start()
        count += 1
except RuntimeError:
    pass
count
"""
    with PythonSession(sandbox, limits=LIMITS) as session:
        slack = 0 if sandbox.level.namespaces else 10
        assert 5 < int(session.run(code).value) <= LIMITS.processes + slack


def test_memory_of_one_process_is_bounded(sandbox: Sandbox) -> None:
    code = """
kept = []
try:
    for _ in range(100):
        kept.append(bytearray(16 << 20))
except MemoryError:
    pass
len(kept)
"""
    with PythonSession(sandbox, limits=LIMITS) as session:
        assert 5 < int(session.run(code).value) <= 25
        assert session.run("kept.clear()\n'alive'").value == "'alive'"


def test_memory_of_all_processes_is_bounded(sandbox: Sandbox) -> None:
    code = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        kept = b"x" * (120 << 20)
        time.sleep(20)
        os._exit(0)
time.sleep(20)
"""
    done = python(sandbox, code)
    assert done.reason == "memory"
    assert done.seconds < 5


def test_a_file_is_bounded(sandbox: Sandbox, tmp_path: Path) -> None:
    code = """
with open("big", "wb", 0) as file:
    for _ in range(100):
        file.write(bytes(1 << 20))
"""
    with PythonSession(sandbox, limits=LIMITS) as session:
        assert "File too large" in session.run(code).error
    assert (tmp_path / "big").stat().st_size == LIMITS.disk_bytes


@pytest.mark.parametrize("unlink", [False, True], ids=["named", "nameless"])
def test_many_files_are_bounded(sandbox: Sandbox, tmp_path: Path, unlink: bool) -> None:
    code = f"""
import os, time
kept = []
for n in range(100):
    kept.append(open(f"file{{n}}", "wb", 0))
    kept[-1].write(os.urandom(2 << 20))
    if {unlink}:
        os.unlink(f"file{{n}}")
    time.sleep(0.01)
"""
    done = python(sandbox, code)
    assert done.reason == "disk"
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written < 5 * LIMITS.disk_bytes


@pytest.mark.parametrize("stream", [1, 2])
def test_output_is_bounded(sandbox: Sandbox, stream: int) -> None:
    done = python(sandbox, f"import os\nfor _ in range(2000): os.write({stream}, b'x' * 50_000)")
    assert done.reason == "output"
    assert len(done.stdout) + len(done.stderr) == LIMITS.output_bytes


def test_output_of_a_session_is_bounded(sandbox: Sandbox) -> None:
    with PythonSession(sandbox, limits=LIMITS) as session:
        done = session.run("for _ in range(2000): print('x' * 50_000)")
        assert (done.reason, len(done.text)) == ("output", LIMITS.output_bytes)
        assert "printed more than" in done.lost


def test_time_is_bounded_for_those_who_ignore_signals(sandbox: Sandbox) -> None:
    code = """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU):
    signal.signal(number, signal.SIG_IGN)
print("started", flush=True)
while True:
    time.sleep(1)
"""
    done = python(sandbox, code, seconds=0.5)
    assert (done.reason, done.stdout) == ("seconds", b"started\n")
    assert done.returncode < 0
    assert done.seconds < 2


def test_processor_time_is_bounded(sandbox: Sandbox) -> None:
    done = python(sandbox, "while True: pass", cpu_seconds=1)
    assert done.reason == "exit"
    assert done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


HEARTBEAT = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 100)
        for _ in range(400):
            with open("beat", "a") as file:
                file.write("x")
            time.sleep(0.01)
    os._exit(0)
os.wait()
time.sleep(0.1)
"""


def test_a_daemon_does_not_outlive_its_program(sandbox: Sandbox, tmp_path: Path) -> None:
    assert python(sandbox, HEARTBEAT).reason == "exit"
    beats = (tmp_path / "beat").stat().st_size
    assert beats > 0
    time.sleep(0.1)
    assert (tmp_path / "beat").stat().st_size == beats


def test_nothing_runs_between_two_calls(sandbox: Sandbox, tmp_path: Path) -> None:
    code = """
import threading, time
def beat():
    for _ in range(1000):
        with open("beat", "a") as file:
            file.write("x")
        time.sleep(0.005)
threading.Thread(target=beat, daemon=True).start()
time.sleep(0.1)
"""
    with PythonSession(sandbox, limits=LIMITS) as session:
        session.run(code)
        beats = (tmp_path / "beat").stat().st_size
        assert beats > 0
        time.sleep(0.1)
        assert (tmp_path / "beat").stat().st_size == beats
        session.run("time.sleep(0.1)")
        assert (tmp_path / "beat").stat().st_size > beats


def test_deep_and_locked_folders_in_tmp_are_removed(sandbox: Sandbox) -> None:
    code = """
import os
os.chdir(os.environ["HOME"])
for _ in range(1200):
    os.mkdir("a" * 40)
    os.chdir("a" * 40)
os.mkdir("locked")
open("locked/file", "w").close()
os.chmod("locked", 0)
os.chmod(".", 0)
"""
    done = python(sandbox, code)
    # Deeper than a path can name, it may be taken for an attempt to hide what it writes.
    assert done.returncode == 0 or done.reason == "disk"


PARENT = """
import sys
from pathlib import Path
from dataclasses import replace
from trivium.llmos.sandbox import PythonSession, Sandbox, probe
level = replace(probe(), namespaces=sys.argv[2] == "True")
sandbox = Sandbox([Path(sys.argv[1])], level=level)
session = PythonSession(sandbox)
session.run("1")
print(sandbox.scratch, flush=True)
sandbox.run(["sh", "-c", "touch started; (sleep 60 &) ; sleep 60"])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_trivium(tmp_path: Path, level: Level, number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path, str(level.namespaces)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout
        scratch = Path(parent.stdout.readline().strip())
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        assert len(survivors(scratch)) >= 4
        parent.send_signal(number)
        parent.wait(5)
    deadline = time.monotonic() + 3
    while survivors(scratch) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert survivors(scratch) == []
    assert scratch.exists() == (number != signal.SIGINT)
    with contextlib.suppress(FileNotFoundError):
        scratch.rmdir()
