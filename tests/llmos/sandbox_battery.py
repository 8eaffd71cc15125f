"""Runs the attacks of `sandbox_attacks` in one kind of sandbox, or in none, and reports as JSON.

A program of its own, because the same battery runs as root and as nobody:

    python sandbox_battery.py MODE LEVEL     MODE: python, terminal, fuzz or free (no sandbox)
                                             LEVEL: full, plain (no namespaces) or old (and ABI 1)

Prints {"attacks": [{"name", "claim", "error", "traces"}], "lost", "traces", "level"}.
`traces` are the changes of the world outside the sandbox that followed an attack.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

import sandbox_attacks  # noqa: E402

from trivium.llmos.sandbox import (  # noqa: E402
    Limits,
    PythonSession,
    Sandbox,
    probe,
    system_calls,
)

NEIGHBOUR = """
import ctypes, os, signal, sys, time
token = ctypes.create_string_buffer(os.environ["TRIVIUM_ATTACK_TOKEN"].encode())
seen = lambda number, frame: os.write(log, b"signal %d\\n" % number)
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
for number in (signal.SIGUSR1, signal.SIGURG, signal.SIGTERM):
    signal.signal(number, seen)
secret = os.open(sys.argv[2], os.O_RDONLY)
print(ctypes.addressof(token), secret, flush=True)
while True:
    time.sleep(1)
"""


class World:
    """All that an attack may wish to reach, made for this run."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="trivium-battery-"))
        self.token = "secret-" + secrets.token_hex(16)
        names = ("outside", "shared", "workspace", "log")
        self.outside, self.shared, self.workspace, self.log = (self.root / n for n in names)
        for folder in (self.outside, self.outside / "empty", self.shared, self.workspace):
            folder.mkdir()
        for name in ("secret", "target", "doomed", "loose"):
            (self.outside / f"{name}.txt").write_text(self.token)
        (self.shared / "shared.txt").write_text("shared")
        self.listen()
        os.environ["TRIVIUM_ATTACK_TOKEN"] = self.token
        self.neighbour = subprocess.Popen(
            [sys.executable, "-S", "-c", NEIGHBOUR, self.log, self.outside / "secret.txt"],
            stdout=subprocess.PIPE,
            text=True,
        )
        address, descriptor = self.neighbour.stdout.readline().split()
        self.description = {
            "outside": str(self.outside),
            "shared": str(self.shared),
            "home": str(Path.home()),
            "parent": os.getpid(),
            "neighbour": self.neighbour.pid,
            "address": int(address),
            "descriptor": int(descriptor),
            "token": self.token,
            "tcp": self.sockets["tcp"].getsockname()[1],
            "udp": self.sockets["udp"].getsockname()[1],
            "abstract": self.abstract,
        }
        self.signals: list[int] = []
        for number in (signal.SIGUSR1, signal.SIGURG):
            signal.signal(number, lambda number, _: self.signals.append(number))
        self.before = self.state()

    def listen(self) -> None:
        self.abstract = f"trivium-{secrets.token_hex(8)}"
        kinds = {
            "tcp": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "udp": (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "stream": (socket.AF_UNIX, socket.SOCK_STREAM, str(self.outside / "stream")),
            "datagram": (socket.AF_UNIX, socket.SOCK_DGRAM, str(self.outside / "datagram")),
            "abstract": (socket.AF_UNIX, socket.SOCK_STREAM, "\0" + self.abstract),
        }
        self.sockets = {}
        for name, (family, kind, address) in kinds.items():
            self.sockets[name] = socket.socket(family, kind)
            self.sockets[name].bind(address)
            if kind == socket.SOCK_STREAM:
                self.sockets[name].listen(100)
            self.sockets[name].setblocking(False)

    def state(self) -> dict[str, object]:
        """Everything an attack could change, by name."""
        found: dict[str, object] = {}
        for folder in (self.outside, self.shared):
            for path in [folder, *sorted(folder.rglob("*"))]:
                status = path.lstat()
                kept = [status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns]
                if stat.S_ISREG(status.st_mode):
                    kept += [status.st_size, status.st_ctime_ns, os.listxattr(path)]
                    kept.append(hashlib.sha256(path.read_bytes()).hexdigest())
                found[f"file {path.relative_to(self.root)}"] = kept
        for path in sorted(self.workspace.rglob("*")):
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or mode & 0o6000:
                found[f"trap {path.name}"] = oct(mode)
        pid = self.neighbour.pid
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found["neighbour's state"] = fields[0].replace("R", "S")
        found["neighbour's tracer"] = [
            line
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith(("TracerPid", "Cpus_allowed:", "Uid"))
        ]
        found["neighbour's priority"] = os.getpriority(os.PRIO_PROCESS, pid)
        libc = ctypes.CDLL(None)
        number = {"x86_64": 252, "aarch64": 31}[os.uname().machine]
        found["neighbour's disk priority"] = libc.syscall(number, 1, pid)
        found["neighbour's limits"] = Path(f"/proc/{pid}/limits").read_text()
        found["neighbour's log"] = self.log.read_text()
        found["signals here"] = list(self.signals)
        for name, link in self.sockets.items():
            found[f"socket {name}"] = self.visits(name, link)
        return found

    def visits(self, name: str, link: socket.socket) -> int:
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                if name in ("udp", "datagram"):
                    link.recv(100)
                else:
                    link.accept()[0].close()
                count += 1
        return count

    def traces(self) -> list[str]:
        """What changed since the last time."""
        now = self.state()
        names = sorted({*now, *self.before})
        found = [name for name in names if now.get(name) != self.before.get(name)]
        self.before = now
        # That the sockets were visited is reported once.
        self.before.update({f"socket {name}": 0 for name in self.sockets})
        return found

    def close(self) -> None:
        self.neighbour.kill()
        self.neighbour.wait()
        self.neighbour.stdout.close()
        for link in self.sockets.values():
            link.close()
        shutil.rmtree(self.root)


def free(world: World) -> dict[str, object]:
    """The harmless attacks without a sandbox, the one that stops the neighbour last."""
    names = sorted(sandbox_attacks.HARMLESS, key=lambda name: (name == "trace_the_neighbour", name))
    description = world.root / "world.json"
    description.write_text(json.dumps(world.description))
    attacks = []
    with subprocess.Popen(
        [sys.executable, "-m", "sandbox_attacks", str(description), *names],
        cwd=world.workspace,
        env=os.environ | {"PYTHONPATH": str(HERE)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        for line in process.stdout:
            time.sleep(0.01)  # for signals to arrive
            attacks.append(json.loads(line) | {"traces": world.traces()})
            process.stdin.write("\n")
    return {"attacks": attacks, "lost": [], "traces": []}


def in_python(world: World, sandbox: Sandbox) -> dict[str, object]:
    """Each attack as a cell of one session."""
    attacks, lost = [], []
    start = f"import sandbox_attacks\nsandbox_attacks.WORLD.update({world.description!r})\n"
    with PythonSession(sandbox) as session:
        for name in sandbox_attacks.ATTACKS:
            done = session.run(f"{start}sandbox_attacks.attempt({name!r})", seconds=10)
            if done.lost:
                lost.append(f"{name}: {done.lost}")
            record = json.loads(done.text) if done.text else {"name": name, "claim": done.error}
            attacks.append(record | {"traces": world.traces()})
    return {"attacks": attacks, "lost": lost, "traces": []}


def in_terminal(world: World, sandbox: Sandbox) -> dict[str, object]:
    """All attacks by one program; traces are looked for at the end."""
    description = world.workspace / "world.json"
    description.write_text(json.dumps(world.description))
    names = [name for name in sandbox_attacks.ATTACKS if name not in sandbox_attacks.PYTHON_ONLY]
    argv = [sys.executable, "-E", "-s", "-m", "sandbox_attacks", "world.json", *names]
    done = sandbox.run(argv)
    records = [json.loads(line) | {"traces": []} for line in done.stdout.splitlines()]
    lost = (
        []
        if done.reason == "exit" and done.returncode == 0
        else [f"{done.reason} {done.returncode} after {records[-1]['name']}"]
    )
    return {"attacks": records, "lost": lost, "traces": world.traces()}


FUZZ = """
import ctypes, os, random, signal
libc = ctypes.CDLL(None)
generator = random.Random({seed})
paths = [ctypes.create_string_buffer(name.encode(), 1 << 17) for name in {paths!r}]
room = ctypes.create_string_buffer(1 << 17)
numbers = [-1, 0, 1, 2, 3, {parent}, {neighbour}, -100, 0o4755, 4096, 65536]
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
signal.signal(signal.SIGALRM, lambda *_: None)
for _ in range(2000):
    arguments = []
    for _ in range(6):
        kind = generator.random()
        if kind < 0.4:
            arguments.append(generator.choice(paths))
        elif kind < 0.6:
            arguments.append(room)
        else:
            arguments.append(ctypes.c_long(generator.choice(numbers)))
    number = generator.randrange(470)
    if number not in {suicidal}:
        libc.syscall(ctypes.c_long(number), *arguments)
print("all calls made")
"""
# What only ends or confuses the process that calls it, too soon to be of interest.
SUICIDAL = (
    *("exit", "exit_group", "munmap", "mprotect", "mremap", "mmap", "brk", "madvise", "arch_prctl"),
    *("rt_sigreturn", "rt_sigaction", "rt_sigprocmask", "sigaltstack", "kill", "tkill", "tgkill"),
    *("close", "close_range", "dup2", "dup3", "set_tid_address", "set_robust_list", "rseq"),
    *("pkey_mprotect", "setrlimit", "prlimit64", "futex", "read", "readv", "write", "writev"),
    *("pause", "rt_sigsuspend", "rt_sigtimedwait", "alarm", "setitimer", "nanosleep", "flock"),
)


def fuzz(world: World, sandbox: Sandbox) -> dict[str, object]:
    """Random system calls with telling arguments. The session may end, and nothing else."""
    attacks = []
    place = world.description
    paths = [".", "..", "file", place["outside"], place["shared"], "/", "/proc/self", "/dev/null"]
    paths += [f"{place['outside']}/{name}" for name in ("secret.txt", "target.txt", "empty")]
    machine = os.uname().machine
    suicidal = {system_calls.number(name, machine) for name in SUICIDAL}
    # uprobe and uretprobe, which the kernel answers with SIGILL and shows to no filter.
    suicidal |= {335, 336}
    with PythonSession(sandbox) as session:
        for seed in range(12):
            code = FUZZ.format(seed=seed, paths=paths, suicidal=suicidal, **place)
            done = session.run(code, seconds=2)
            record = {"name": f"seed {seed}", "claim": world.token in done.text}
            record["error"] = "" if "all calls made" in done.text else done.lost or done.error
            attacks.append(record | {"traces": world.traces()})
    return {"attacks": attacks, "lost": [], "traces": []}


def survivors(scratch: Path) -> list[str]:
    """Processes that still have the environment of a sandbox that is closed."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if os.fsencode(scratch) in Path(f"/proc/{entry}/environ").read_bytes():
                    found.append(f"process {entry} is still there")
    return found


def main(mode: str, level_name: str) -> dict[str, object]:
    level = probe()
    if level_name != "full":
        level = replace(level, namespaces=False)
    if level_name == "old":
        level = replace(level, landlock=1)
    world = World()
    try:
        if mode == "free":
            return free(world)
        shutil.copytree(HERE / "sandbox_attacks", world.workspace / "sandbox_attacks")
        limits = Limits(seconds=30, output_bytes=4 << 20, disk_bytes=64 << 20)
        with Sandbox([world.workspace], [world.shared], limits, level=level) as sandbox:
            ways = {"python": in_python, "terminal": in_terminal, "fuzz": fuzz}
            result = ways[mode](world, sandbox)
            result["traces"] += survivors(sandbox.scratch)
        result["level"] = level.summary
        return result
    finally:
        world.close()


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
