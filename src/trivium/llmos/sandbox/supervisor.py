"""`Sandbox`: what confined code may use, and running one program in it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trivium.errors import TriviumError, UsageError
from trivium.llmos.sandbox import folders, seccomp
from trivium.llmos.sandbox.jail import Jail, Output, attend, feeder
from trivium.llmos.sandbox.level import Level, probe
from trivium.llmos.sandbox.libc import architecture
from trivium.llmos.sandbox.limits import Limits, Reason
from trivium.llmos.sandbox.watch import Watch

DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Completed:
    """How a program ended: by itself ("exit") or at a limit, beyond which output is cut.

    `returncode` is negative for a signal, as in `subprocess`.
    """

    returncode: int
    stdout: bytes
    stderr: bytes
    reason: Reason
    seconds: float


class Sandbox:
    """A place where programs may write in `writable`, read there and in `readable`, and no more.

    They have no network, none of our environment, and a folder for temporary files of their own
    that lives as long as the sandbox (`scratch`). Raises Refused where the kernel cannot confine.
    """

    def __init__(
        self,
        writable: Sequence[Path],
        readable: Sequence[Path] = (),
        limits: Limits = DEFAULT_LIMITS,
        *,
        level: Level | None = None,
    ) -> None:
        self.level = level or probe()
        self.level.require()
        self.limits = limits
        self.writable = [folders.resolved(folder, writable=True) for folder in writable]
        self.readable = [folders.resolved(folder, writable=False) for folder in readable]
        try:
            self.scratch = Path(tempfile.mkdtemp(prefix="trivium-sandbox-")).resolve()
        except OSError as error:
            raise TriviumError(
                f"no folder for temporary files ({error.strerror}): free some disk space, or set "
                "TMPDIR to a folder on another disk"
            ) from error
        if os.geteuid() == 0:
            self.scratch.chmod(0o770)  # see `launch.main`
        self._finalizer = weakref.finalize(self, folders.remove, self.scratch)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder for temporary files."""
        self._finalizer()

    def environment(self) -> dict[str, str]:
        """All the environment that confined code gets."""
        threads = str(min(4, os.cpu_count() or 1))
        found = {
            "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.scratch),
            # The C library takes TMPDIR from programs whose real user is not the effective one.
            **dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(self.scratch)),
            "LANG": "C.UTF-8",
            "MPLBACKEND": "Agg",
            "MPLCONFIGDIR": str(self.scratch / ".matplotlib"),
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONDONTWRITEBYTECODE": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            # Each arena reserves address space, which `Limits.memory` counts.
            "MALLOC_ARENA_MAX": "2",
        }
        return found | {name: os.environ[name] for name in ("TZ",) if name in os.environ}

    def job(self, argv: Sequence[str] | None, cwd: Path, limits: Limits) -> dict[str, Any]:
        """What the keeper is told, see `launch`. Without `argv` it starts a Python worker."""
        policy = seccomp.Policy(
            spawn=argv is not None,
            landlock=self.level.landlock,
            contained=self.level.namespaces,
            root=os.geteuid() == 0,
        )
        return {
            "argv": None if argv is None else list(argv),
            "cwd": str(cwd),
            "plots": str((self.writable or [self.scratch])[0]),
            "site": folders.site_folders(),
            "rules": folders.rules(self.writable, self.readable, self.scratch),
            "writable": [str(path) for path in (*self.writable, self.scratch)],
            "limits": asdict(limits),
            "namespaces": self.level.namespaces,
            "landlock": self.level.landlock,
            "filter": seccomp.program(architecture(), policy),
        }

    def watch(self, jail: Jail, limits: Limits) -> Watch:
        return Watch(jail.process.pid, [*self.writable, self.scratch], limits)

    def run(
        self,
        argv: Sequence[str],
        stdin: bytes = b"",
        cwd: Path | None = None,
        limits: Limits | None = None,
        *,
        merge: bool = False,
    ) -> Completed:
        """Run a program to its end or to a limit. No process of it is left behind.

        cwd: the folder it starts in, by default the first writable one
        merge: standard error goes where standard output goes, in order
        """
        try:
            usable = bool(argv) and all(b"\0" not in os.fsencode(text) for text in argv)
        except UnicodeEncodeError:
            usable = False
        if not usable:
            raise UsageError(f"not a command line: {list(argv)!a}")
        limits = limits or self.limits
        cwd = cwd or (self.writable or [self.scratch])[0]
        jail = Jail(
            self.job(argv, cwd, limits),
            self.environment(),
            stdin=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
        )
        try:
            process, output = jail.process, Output(limits.output_bytes)
            assert process.stdin and process.stdout
            printed = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None]
            stdin_pipe = process.stdin.fileno()
            reason = attend(
                {pipe.fileno(): output.reader(pipe) for pipe in printed}
                | {jail.status: jail.listen},
                {stdin_pipe: feeder(stdin_pipe, stdin, process.stdin.close)},
                output=output,
                watch=self.watch(jail, limits),
                deadline=jail.started + limits.seconds,
            )
            jail.end()
            for pipe in printed:
                output.drain(pipe)
            code = jail.returncode()
            return Completed(
                returncode=-signal.SIGKILL if code is None else code,
                stdout=output.text(process.stdout),
                stderr=b"" if process.stderr is None else output.text(process.stderr),
                reason=reason,
                seconds=time.monotonic() - jail.started,
            )
        finally:
            jail.close()


def trial(level: Level) -> None:
    """Start an empty sandbox. Raises NamespacesRefused or TriviumError when that cannot be."""
    with Sandbox([], level=level) as sandbox:
        sandbox.run(["true"])
