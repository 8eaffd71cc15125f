"""The sandbox: runs programs and Python that nobody has read, confined by the Linux kernel.

    with Sandbox(writable=[folder]) as sandbox:
        sandbox.run(["sh", "-c", "wc -l *.csv"]).stdout
        with PythonSession(sandbox, cwd=folder) as session:
            session.run("x = 2 ** 100")
            session.run("x").value

It needs no administrator, container or package: Landlock (which files), seccomp (which system
calls), rlimits and a watching parent (how much), and user, mount, process, network, IPC and UTS
namespaces where the system allows them. Where Landlock or seccomp is missing it refuses to run
anything (`Level.require`).

What is covered. Confined code cannot
    - open, change, create or delete a file outside the folders given as writable; nor read one
      but those given as readable, the interpreter with its packages, and the system's programs;
    - use a network or another program's socket, signal or inspect a process outside, gain rights;
    - change mode, owner, times or attributes of a file outside, or make a set-user-id file;
    - leave in the folder a link, pipe, socket or device for another program to trip over;
    - outlive its time, Trivium, or (Python) run between two calls; take more memory, disk,
      processes, output or open files than `Limits`.
The Python session is one process for good; the terminal may start programs, but not ones that were
written into the folder.

What is not covered.
    - A defect of the kernel itself, or of the processor (side channels in time and caches).
    - Everything in the readable and writable folders can be read and, since it is output, told.
      Files that another program will later obey (Makefile, .git/hooks) can be written there.
    - Names, sizes and times of files outside can be seen with stat(2), as Landlock does not hide
      them; so can the load and the processors of the machine.
    - Without namespaces, chmod, chown and utime succeed without effect, even in the folder, for the
      kernel has no way to allow them there alone.
    - Below Landlock ABI 6 and without namespaces, a terminal command cannot signal its children.
    - Run as root, code has nobody as its real user, for only so its processes can be counted. Then
      access(2) answers for nobody, which confuses git in a private folder, and the C library takes
      TMPDIR from programs. Better not be root.
    - Limits on memory of several processes together, and on disk, are watched twenty times a
      second: a program may overshoot by what it can take in that time.
    - The processors themselves: confined code may keep them busy until its time is over.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trivium.llmos.sandbox.level import Level as Level
    from trivium.llmos.sandbox.level import probe as probe
    from trivium.llmos.sandbox.limits import Limits as Limits
    from trivium.llmos.sandbox.session import Execution as Execution
    from trivium.llmos.sandbox.session import PythonSession as PythonSession
    from trivium.llmos.sandbox.supervisor import Completed as Completed
    from trivium.llmos.sandbox.supervisor import Sandbox as Sandbox

_HOMES = {
    "Level": "level",
    "probe": "level",
    "Execution": "session",
    "PythonSession": "session",
    "Completed": "supervisor",
    "Limits": "limits",
    "Sandbox": "supervisor",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # Resolved when asked for: the child imports this package too, and pays for each module.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
