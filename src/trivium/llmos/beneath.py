"""Files below a folder, reached so that no symbolic link can lead out of it.

A check of a path and its use are two moments, and code in the sandbox may swap a folder for a link
in between. So each folder on the way is opened from the one before, links refused (what openat2(2)
calls RESOLVE_NO_SYMLINKS), and the last name is used relative to that descriptor.

`parts` are the names of a path below `root`, without `.` and `..`.
"""

import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = ".trivium-"
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def folder(root: Path, parts: Sequence[str] = (), *, create: bool = False) -> Iterator[int]:
    """A descriptor of a folder, for use as `dir_fd`. OSError where a part is not a real folder."""
    handle = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            if create and not _exists(part, handle):
                os.mkdir(part, dir_fd=handle)
            inner = os.open(part, _STEP, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _exists(name: str, handle: int) -> bool:
    try:
        os.stat(name, dir_fd=handle, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def entries(
    root: Path, parts: Sequence[str], limit: int | None = None
) -> list[tuple[str, os.stat_result]]:
    """Names and stats (links not followed) in a folder, sorted; the first `limit` found."""
    with folder(root, parts) as handle:
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle)
        try:
            found = []
            with os.scandir(readable) as listing:
                for entry in islice(listing, limit):
                    try:
                        found.append((entry.name, entry.stat(follow_symlinks=False)))
                    except FileNotFoundError:
                        continue  # gone since it was listed
        finally:
            os.close(readable)
    return sorted(found)


def open_file(root: Path, parts: Sequence[str]) -> BinaryIO:
    """Open a regular file for reading. Never waits: a pipe or a device is an OSError at once."""
    with folder(root, parts[:-1]) as handle:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        file = os.open(parts[-1], flags, dir_fd=handle)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"not a regular file: {'/'.join(parts)}")
    return os.fdopen(file, "rb")


def is_left_over(name: str) -> bool:
    """Whether a file is what a process leaves that dies within `replacing`."""
    return name.startswith(_TEMPORARY) and len(name) == len(_TEMPORARY) + 16


@contextmanager
def replacing(root: Path, parts: Sequence[str], mode: int | None = None) -> Iterator[BinaryIO]:
    """Write a file beside `parts`, then put it in its place: whole or not at all.

    It is on the disk when the caller has flushed it there, within the block or later.

    Folders on the way are made. `mode` is exact; without it the file keeps the one it had, and a
    new file gets what the umask leaves.
    """
    with folder(root, parts[:-1], create=True) as handle:
        name, temporary = parts[-1], f"{_TEMPORARY}{secrets.token_hex(8)}"
        if mode is None and _exists(name, handle):
            mode = stat.S_IMODE(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(temporary, flags, 0o666, dir_fd=handle)
        try:
            with os.fdopen(file, "wb") as stream:
                yield stream
                stream.flush()
                if mode is not None:
                    os.fchmod(stream.fileno(), mode)
            os.replace(temporary, name, src_dir_fd=handle, dst_dir_fd=handle)
        except BaseException:
            os.unlink(temporary, dir_fd=handle)
            raise


def set_folder_mode(handle: int, mode: int) -> None:
    """Set the permissions of an opened folder, which fchmod cannot do on an O_PATH descriptor."""
    os.chmod(f"/proc/self/fd/{handle}", mode)
