"""What a process gives up before it runs code it does not trust: rights, and more than its share.

Everything here lasts until the process ends and passes on to all it starts.
"""

import contextlib
import ctypes
import errno
import os
import resource
import struct
from collections.abc import Mapping, Sequence

from trivium.llmos.sandbox.libc import libc_call, system_call
from trivium.llmos.sandbox.namespaces import NOBODY

PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 4, 24, 28, 38
# The user id 0 brings no rights, set-user-id programs neither; each bit with its lock.
SECURE_BITS = 0b11 | 0b1100 | 0b11000000
CAPABILITY_VERSION_3 = 0x20080522
SECCOMP_SET_MODE_FILTER = 1
# Stands in a filter for the number of the process that is going to be confined by it.
OWN_PID = 0xFFFF0001


def limit_resources(limits: Mapping[str, int]) -> None:
    """`memory`, `disk_bytes` (of one file), `open_files`, `cpu_seconds` (0: only by the clock)."""
    _limit(resource.RLIMIT_AS, limits["memory"])
    _limit(resource.RLIMIT_FSIZE, limits["disk_bytes"])
    _limit(resource.RLIMIT_NOFILE, limits["open_files"])
    _limit(resource.RLIMIT_MEMLOCK, 0)
    _limit(resource.RLIMIT_MSGQUEUE, 0)
    # 1 and not 0: only 1 keeps the kernel from piping a dump to a program outside the sandbox.
    _limit(resource.RLIMIT_CORE, 1)
    if limits["cpu_seconds"]:
        _limit(resource.RLIMIT_CPU, limits["cpu_seconds"])


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def drop_privileges() -> None:
    """Give up every capability, and the ways to get one back.

    RLIMIT_NPROC does not bind the real user root, so root's real user becomes nobody; the
    effective one stays root, without any capability: the owner of root's files and nothing more.
    """
    with contextlib.suppress(PermissionError):  # an ordinary user has none to give up
        libc_call("prctl", PR_SET_SECUREBITS, SECURE_BITS, 0, 0, 0)
        for capability in range(64):
            try:
                libc_call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
            except OSError as error:
                if error.errno == errno.EINVAL:  # beyond the last that this kernel has
                    break
                raise
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):  # root without CAP_SETUID: see Watch.processes
            os.setresuid(NOBODY, 0, 0)
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    system_call("capset", ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))
    libc_call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def bind_process_limit(processes: int, *, alone: bool) -> None:
    """At most `processes` more processes and threads. `alone`: in a user namespace of its own.

    The kernel counts by user and user namespace. Without one, whatever else this user runs counts
    too, some of it perhaps out of our sight: then the limit is raised until a process can start.
    """
    user = os.getuid()
    if not alone:
        others = _processes_of(user)
    else:  # the keeper and process 1, which are root where the real user here is nobody
        others = 2 if user == os.geteuid() else 0
    limit = processes + others
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    highest = hard if hard != resource.RLIM_INFINITY else 1 << 22
    limit = min(limit, highest)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
    while not alone and limit < highest and not _can_start():
        limit = min(limit * 2, highest)
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))


def _can_start() -> bool:
    try:
        child = os.fork()
    except BlockingIOError:
        return False
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True


def _processes_of(user: int) -> int:
    """The processes and threads that the real user `user` runs, as far as we see them."""
    total = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/status", "rb") as file:
                status = dict(line.split(b":", 1) for line in file if b":" in line)
                if int(status[b"Uid"].split()[0]) == user:
                    total += int(status[b"Threads"])
    return total


def filter_system_calls(code: Sequence[Sequence[int]]) -> None:
    """Put a filter that `seccomp.program` wrote in force. Needs no_new_privs."""
    own = os.getpid()
    packed = b"".join(
        struct.pack("=HBBI", *head, own if constant == OWN_PID else constant)
        for *head, constant in code
    )
    buffer = ctypes.create_string_buffer(packed, len(packed))
    # struct sock_fprog {unsigned short len; struct sock_filter *filter}
    header = struct.pack("@HP", len(code), ctypes.addressof(buffer))
    system_call("seccomp", SECCOMP_SET_MODE_FILTER, 0, ctypes.c_char_p(header))
