"""Calls to the kernel that Python's standard library does not make."""

import ctypes
import functools
import os
import sys
from typing import Any

from trivium.errors import Refused

ARCHITECTURES = ("x86_64", "aarch64")

# (x86_64, aarch64), from the kernel's `unistd.h`
NUMBERS = {
    "capset": (126, 91),
    "close_range": (436, 436),
    "landlock_add_rule": (445, 445),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "seccomp": (317, 277),
    "unshare": (272, 97),
}


def architecture() -> str:
    """The machine's name. Raises Refused where the sandbox has no table for it."""
    machine = os.uname().machine if sys.platform == "linux" else "another system"
    if machine not in ARCHITECTURES:
        raise Refused(
            "code is not run here: the sandbox needs Linux on "
            f"{' or '.join(ARCHITECTURES)}, this is {machine} ({sys.platform})"
        )
    return machine


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def system_call(name: str, *arguments: Any) -> int:
    """Make the system call `name`. Raises OSError with the call's name."""
    number = NUMBERS[name][ARCHITECTURES.index(architecture())]
    return _checked(name, _libc().syscall(ctypes.c_long(number), *_words(arguments)))


def libc_call(name: str, *arguments: Any) -> int:
    """Call libc's function `name` (prctl, mount). Raises OSError with its name."""
    return _checked(name, getattr(_libc(), name)(*_words(arguments)))


def _words(arguments: tuple[Any, ...]) -> list[Any]:
    # A bare int would be passed as a 32-bit value: every argument of a system call is a full word.
    return [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]


def _checked(name: str, result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result
