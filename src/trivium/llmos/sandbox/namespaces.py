"""Linux namespaces (namespaces(7)): a sandbox that sees its own processes and an empty network.

They need no rights of the administrator, but some systems refuse them (containers, Ubuntu 24.04's
AppArmor). They are the second wall; Landlock and seccomp hold without them.
"""

import os
import struct
from collections.abc import Sequence

from trivium.llmos.sandbox.libc import libc_call, system_call

NEW_MOUNT, NEW_UTS, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USER, NEW_PROCESS, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000

NOBODY = 65534

AT_FDCWD = -100
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
MS_REC, MS_PRIVATE = 0x4000, 0x40000


def enter(writable: Sequence[str]) -> None:
    """Move this process into new namespaces; its next child is process 1 of the new family.

    Every mount becomes read-only but the folders `writable`. Raises OSError when refused.
    """
    user, group = os.geteuid(), os.getegid()
    # Root is mapped together with nobody, see `bind_process_limit`; only a process that stays
    # outside may map two users.
    users = [user, NOBODY] if user == 0 else [user]
    proceed_read, proceed_write = os.pipe()
    target = os.getpid()
    mapper = os.fork()
    if mapper == 0:
        os.close(proceed_write)
        status = 1
        try:
            if os.read(proceed_read, 1):
                _map(target, users, group)
                status = 0
        finally:
            os._exit(status)
    os.close(proceed_read)
    try:
        system_call("unshare", NEW_USER | NEW_MOUNT | NEW_UTS | NEW_IPC | NEW_PROCESS | NEW_NETWORK)
        os.write(proceed_write, b"1")
    finally:
        os.close(proceed_write)
        _, status = os.waitpid(mapper, 0)
    if status:
        raise PermissionError("the user namespace could not be mapped")
    _make_read_only(writable)


def _map(process: int, users: Sequence[int], group: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", "\n".join(f"{user} {user} 1" for user in users)),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/{process}/{name}", "w") as file:
            file.write(text)


def _make_read_only(writable: Sequence[str]) -> None:
    libc_call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
    copies = [
        (system_call("open_tree", AT_FDCWD, os.fsencode(path), flags), path) for path in writable
    ]
    # struct mount_attr {attr_set, attr_clr, propagation, userns_fd}
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    system_call("mount_setattr", AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
    for copy, path in copies:
        system_call("move_mount", copy, b"", AT_FDCWD, os.fsencode(path), MOVE_MOUNT_F_EMPTY_PATH)
        os.close(copy)
