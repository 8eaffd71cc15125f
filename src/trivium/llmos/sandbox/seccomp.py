"""The list of system calls that sandboxed code may make (seccomp(2)); all others fail with EPERM.

`program` writes the filter as classic BPF, the kernel's language for it: a list of
(code, jump if true, jump if false, constant) over `struct seccomp_data {nr, arch, ip, args[6]}`.
A call is allowed by its number alone, or by tests on its arguments. Calls that are newer than our
table answer ENOSYS, so that the C library falls back to an older one.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

from trivium.llmos.sandbox.libc import system_call
from trivium.llmos.sandbox.privileges import OWN_PID
from trivium.llmos.sandbox.system_calls import FIRST_UNKNOWN, names, number

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000

LOAD, AND, RETURN = 0x20, 0x54, 0x06
JUMP_EQUAL, JUMP_GREATER, JUMP_AT_LEAST = 0x15, 0x25, 0x35

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

Instruction = tuple[int, int, int, int]


class Policy(NamedTuple):
    """What differs between one sandbox and the next.

    spawn: may start programs (the terminal) or is one process for good (Python)
    landlock: the ABI in force, see `trivium.llmos.sandbox.landlock`
    contained: in namespaces of its own, where it sees its own processes only, and every mount
        but the writable folders is read-only
    root: the effective user is root, without rights, and the real user nobody
    """

    spawn: bool
    landlock: int
    contained: bool
    root: bool


class Test(NamedTuple):
    """The argument of that number, masked, must be one of `values`; `whole`: all 64 bits 0."""

    argument: int
    values: tuple[int, ...] = (0,)
    mask: int = 0xFFFFFFFF
    whole: bool = False


class Rule(NamedTuple):
    """The call is allowed when all tests hold; else it answers `refusal` (0 feigns success)."""

    name: str
    tests: tuple[Test, ...] | None = ()
    refusal: int = errno.EPERM


_SET_ID_BITS = 0o6000
_CLONE_THREAD = 0x00010000
# The six namespaces clone(2) can make, CLONE_PTRACE and CLONE_PARENT.
_CLONE_FORBIDDEN = 0x7E020000 | 0x00002000 | 0x00008000

_TERMINAL_QUERIES = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)
# Duplicates, flags and locks: nothing that names another process or sends a signal.
_FILE_CONTROLS = (*range(8), *range(36, 39), 1025, 1027, 1030, 1032, 1034)
# Names of threads and mappings, and questions about oneself.
_PROCESS_CONTROLS = (3, 15, 16, 21, 23, 30, 39, 0x53564D41, 0x41555856)


def _mode(index: int) -> Test:
    """No set-user-id or set-group-id bit: such a file would lend the user's rights to others."""
    return Test(index, mask=_SET_ID_BITS)


def _opening(index: int) -> Test:
    """O_TRUNC only with a right to write: below ABI 3, Landlock sees a mere read."""
    values = (0, 1, 2, 3, os.O_TRUNC | 1, os.O_TRUNC | 2, os.O_TRUNC | 3)
    return Test(index, values, os.O_TRUNC | os.O_ACCMODE)


def rules(policy: Policy) -> list[Rule]:
    """Every call whose answer depends on its arguments, or is not EPERM."""
    # Its process group, which the keeper is not in, and itself.
    own = (Test(0, (0, OWN_PID)),)
    signals_stay_inside = policy.contained or policy.landlock >= 6
    thread = 0 if policy.spawn else _CLONE_THREAD
    found = [
        Rule("open", (_opening(1), _mode(2))),
        Rule("openat", (_opening(2), _mode(3))),
        Rule("creat", (_mode(1),)),
        Rule("truncate", () if policy.landlock >= 3 else None),
        Rule("ioctl", (Test(1, _TERMINAL_QUERIES),), errno.ENOTTY),
        Rule("fcntl", (Test(1, _FILE_CONTROLS),)),
        Rule("prctl", (Test(0, _PROCESS_CONTROLS),)),
        Rule("prlimit64", (Test(0),)),
        Rule("setpriority", (Test(0), Test(1))),
        Rule("personality", (Test(0, (0xFFFFFFFF,)),)),
        # A datagram socket could send to any other socket of the machine, by its name.
        Rule("socketpair", (Test(0, (1,)), Test(1, (1,), 0xF))),
        Rule("sendto", (Test(4, whole=True),)),
        Rule("kill", () if signals_stay_inside else own),
        Rule("tgkill", () if signals_stay_inside else own),
        Rule("tkill", () if signals_stay_inside else None),
        Rule("clone", (Test(0, (thread,), _CLONE_FORBIDDEN | thread),)),
    ]
    found += [Rule(name, None, errno.ENOSYS) for name in names("absent")]
    found += [Rule(name, None, errno.EOPNOTSUPP) for name in names("attributes")]
    if policy.contained:
        found += [
            Rule(name, (_mode(1 if name in ("chmod", "fchmod") else 2),)) for name in names("mode")
        ]
        found += [Rule(name) for name in names("owner", "times")]
    else:
        # These reach files outside the folder, and tar or sed stop when they fail: do nothing.
        found += [Rule(name, None, 0) for name in names("mode", "owner", "times")]
    if policy.root:
        # Shells make their real user the effective one, and complain when they may not.
        found += [Rule(name, None, 0) for name in names("identity")]
    if policy.spawn:
        found += [Rule(name) for name in names("spawn")]
    return found


def program(machine: str, policy: Policy) -> list[Instruction]:
    """The filter for `machine` under `policy`."""
    code: list[Instruction] = [
        (LOAD, 0, 0, 4),
        (JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, 0),
        (JUMP_AT_LEAST, 0, 1, X32_BIT),
        (RETURN, 0, 0, ERRNO | errno.EPERM),
        (JUMP_AT_LEAST, 0, 1, FIRST_UNKNOWN),
        (RETURN, 0, 0, ERRNO | errno.ENOSYS),
    ]
    plain = [*names("files", "memory", "process", "time", "signals", "sockets")]
    for rule in rules(policy):
        called = number(rule.name, machine)
        if rule.tests == ():
            plain.append(rule.name)
        elif called is not None:
            body = _body(rule)
            code += [(JUMP_EQUAL, 0, len(body), called), *body]
    numbers = (number(name, machine) for name in plain)
    for first, last in _ranges(n for n in numbers if n is not None):
        code += [(JUMP_AT_LEAST, 0, 2, first), (JUMP_GREATER, 1, 0, last), (RETURN, 0, 0, ALLOW)]
    return [*code, (RETURN, 0, 0, ERRNO | errno.EPERM)]


def _body(rule: Rule) -> list[Instruction]:
    refuse = (RETURN, 0, 0, ERRNO | rule.refusal)
    if rule.tests is None:
        return [refuse]
    code: list[Instruction] = []
    for test in rule.tests:
        offset = 16 + 8 * test.argument  # both architectures are little-endian: the low word first
        if test.whole:
            code += [(LOAD, 0, 0, offset + 4), (JUMP_EQUAL, 1, 0, 0), refuse]
        code.append((LOAD, 0, 0, offset))
        if test.mask != 0xFFFFFFFF:
            code.append((AND, 0, 0, test.mask))
        left = len(test.values)
        code += [(JUMP_EQUAL, left - i, 0, value) for i, value in enumerate(test.values)]
        code.append(refuse)
    return [*code, (RETURN, 0, 0, ALLOW)]


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for value in sorted(set(numbers)):
        if found and found[-1][1] == value - 1:
            found[-1] = (found[-1][0], value)
        else:
            found.append((value, value))
    return found


def available() -> bool:
    """Whether the kernel takes seccomp filters."""
    get_action_available = 2
    action = ctypes.c_char_p(struct.pack("=I", ERRNO))
    try:
        system_call("seccomp", get_action_available, 0, action)
    except OSError:
        return False
    return True
