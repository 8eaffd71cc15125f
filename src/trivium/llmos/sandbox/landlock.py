"""Landlock: the kernel's per-process rules on files, TCP ports and signals (landlock(7)).

What a process may open is a list of folders and files, each with rights; everything that is not
listed is refused, for the process and all its descendants, for good. Rights that a kernel's version
of Landlock ("ABI") does not know are left out of the rules; `trivium.llmos.sandbox.seccomp` closes
the gaps that matter, by ABI:

    below 2  no rename between folders (stricter, not weaker)
    below 3  truncation is not seen: seccomp refuses truncate(2) and O_TRUNC on a read-only open
    below 4  TCP is not seen: seccomp refuses every socket
    below 6  signals and abstract sockets are not seen: a process namespace, or seccomp, stops them
"""

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from trivium.llmos.sandbox.libc import system_call

CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
SCOPES = 0b11  # abstract unix sockets, signals

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM, REFER, TRUNCATE = (
    1 << bit for bit in range(6, 15)
)
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE

READ = EXECUTE | READ_FILE | READ_DIR
# No EXECUTE: what code writes, it cannot start. No MAKE_SYM, MAKE_FIFO, MAKE_SOCK: a link that
# points out of the folder, or a pipe that never ends, would wait there for a program that trusts.
WRITE = (
    READ_FILE
    | READ_DIR
    | WRITE_FILE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | REFER
    | TRUNCATE
)
SCRATCH = WRITE | MAKE_SYM
DEVICE = READ_FILE | WRITE_FILE


def version() -> int:
    """The kernel's Landlock ABI; 0 when it has none or has it switched off."""
    try:
        return system_call("landlock_create_ruleset", None, 0, CREATE_RULESET_VERSION)
    except OSError:
        return 0


def _known_rights(abi: int) -> int:
    highest = {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)  # the 16th is IOCTL_DEV
    return (1 << highest) - 1


def restrict(rules: Iterable[tuple[str, int]], abi: int) -> None:
    """Confine this process to `rules`, pairs of an existing path and its rights, as `abi` has them.

    Needs no_new_privs. Paths that do not exist are passed over. Raises OSError.
    """
    known = _known_rights(abi)
    # struct landlock_ruleset_attr {handled_access_fs, handled_access_net, scoped}
    attributes = struct.pack("=QQQ", known, 0b11, SCOPES)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = system_call("landlock_create_ruleset", ctypes.c_char_p(attributes), size, 0)
    try:
        for path, rights in rules:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                _allow(ruleset, path, rights & known)
        system_call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            rights &= FILE_RIGHTS
        # struct landlock_path_beneath_attr, packed {allowed_access, parent_fd}
        rule = struct.pack("=Qi", rights, parent)
        system_call("landlock_add_rule", ruleset, RULE_PATH_BENEATH, ctypes.c_char_p(rule), 0)
    finally:
        os.close(parent)
