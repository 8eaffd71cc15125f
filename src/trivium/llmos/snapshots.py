"""Snapshots of a folder: a manifest of every entry, and the contents of files by their SHA-256.

    manifest   path → Entry(kind, mode, content, size, …)
    content    of a file its hash, of a link its target; None where it cannot be brought back

A file whose size, times and inode are those of the last snapshot is not read again. Times have a
grain, so a file changed within that grain before it was read is not trusted the next time (git
calls such entries racily clean). Not kept: owners, extended attributes, hard links, and the times
of folders.
"""

import errno
import fcntl
import hashlib
import io
import os
import secrets
import shutil
import sqlite3
import stat
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from trivium.errors import TriviumError
from trivium.files import writing
from trivium.llmos import beneath

Kind = Literal["file", "folder", "link", "other"]
_GRAIN = 50_000_000  # nanoseconds; file systems stamp changes with the kernel's tick, up to 10 ms
_SMALL = 128 * 2**10  # bytes
_TABLE = "CREATE TABLE IF NOT EXISTS small (digest TEXT PRIMARY KEY, data BLOB)"
_FICLONE = 0x40049409  # ioctl: share the blocks of another file, where the file system can


class Entry(NamedTuple):
    kind: Kind
    mode: int
    content: str | None
    size: int
    modified: int  # nanoseconds
    changed: int  # nanoseconds; no program can set it back
    inode: int
    settled: bool  # whether equal stamps prove equal contents

    def same(self, other: "Entry | None") -> bool:
        """Whether a person would call both the same: kind, permissions, content."""
        if other is None or (self.kind, self.mode) != (other.kind, other.mode):
            return False
        if self.content is None and self.kind in ("file", "other"):
            return self.size == other.size and self.modified == other.modified
        return self.content == other.content


Manifest = dict[str, Entry]


class Objects:
    """File contents by their SHA-256, each kept once: small ones in a table, large ones as files.

    A table, because to make a file for each of thousands costs more than all else in a snapshot.
    """

    def __init__(self, folder: Path, small: sqlite3.Connection) -> None:
        self.folder, self._small = folder, small

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator["Objects"]:
        """The store in `folder`. What the block puts in is there when it ends, and only then."""
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with closing(sqlite3.connect(folder / "small.sqlite")) as small, small:
                small.execute(_TABLE)
                yield cls(folder, small)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                with writing(folder):
                    raise OSError(errno.ENOSPC, "no space left") from error
            raise TriviumError(
                f"the undo store {folder.parent} cannot be used: {error}; removing that folder "
                "starts a new one"
            ) from error

    def put(self, file: BinaryIO) -> str:
        """Keep the contents of an opened file; their hash."""
        data = file.read(_SMALL + 1)
        if len(data) <= _SMALL:
            digest = hashlib.sha256(data).hexdigest()
            self._small.execute("INSERT OR IGNORE INTO small VALUES (?, ?)", (digest, data))
            return digest
        temporary = self.folder / f"new-{secrets.token_hex(8)}"
        with temporary.open("wb+") as copy:
            try:
                fcntl.ioctl(copy.fileno(), _FICLONE, file.fileno())
            except OSError:
                copy.write(data)
                shutil.copyfileobj(file, copy, 2**20)
            copy.seek(0)
            digest = hashlib.file_digest(copy, "sha256").hexdigest()
        place = self._large(digest)
        place.parent.mkdir(exist_ok=True, mode=0o700)
        os.replace(temporary, place)
        return digest

    def _large(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest[2:]

    def read(self, digest: str) -> io.BufferedIOBase:
        """The contents with this hash. TriviumError where they are not there."""
        row = self._small.execute("SELECT data FROM small WHERE digest = ?", (digest,)).fetchone()
        if row is not None:
            return io.BytesIO(row[0])
        try:
            return self._large(digest).open("rb")
        except FileNotFoundError:
            raise TriviumError(f"the undo store {self.folder.parent} lacks {digest}") from None

    def check(self, digest: str) -> None:
        """TriviumError unless the contents are there and whole."""
        with self.read(digest) as contents:
            if hashlib.file_digest(contents, "sha256").hexdigest() != digest:
                raise TriviumError(f"the undo store {self.folder.parent} is damaged at {digest}")

    def keep_only(self, wanted: Container[str]) -> None:
        """Remove all other contents, and what a crash left half-written."""
        kept = self._small.execute("SELECT digest FROM small").fetchall()
        self._small.executemany(
            "DELETE FROM small WHERE digest = ?", [row for row in kept if row[0] not in wanted]
        )
        for path in self.folder.glob("new-*"):
            path.unlink()
        for path in self.folder.glob("??/*"):
            if path.parent.name + path.name not in wanted:
                path.unlink()


def scan(
    root: Path, known: Mapping[str, Entry], objects: Objects, max_files: int, max_bytes: int
) -> tuple[Manifest, bool]:
    """The manifest of everything below `root`, and whether all contents could be kept.

    Contents past the first `max_files` files or `max_bytes` bytes are listed, not kept.
    """
    manifest: Manifest = {}
    files = total = 0
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        parts = waiting.pop()
        try:
            listing = beneath.entries(root, parts)
        except OSError:
            if not parts:
                raise
            continue  # gone, or not ours to read: its entry stands for all that is in it
        for name, status in listing:
            here = (*parts, name)
            path = "/".join(here)
            if stat.S_ISDIR(status.st_mode):
                waiting.append(here)
            elif stat.S_ISREG(status.st_mode):
                files, total = files + 1, total + status.st_size
            keep = objects if files <= max_files and total <= max_bytes else None
            manifest[path] = _entry(root, here, status, known.get(path), keep)
    return manifest, files <= max_files and total <= max_bytes


def _entry(
    root: Path,
    parts: tuple[str, ...],
    status: os.stat_result,
    known: Entry | None,
    objects: Objects | None,
) -> Entry:
    """The entry of one path; its content goes into `objects` unless it is `known` to be there."""
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        return Entry("folder", mode, None, 0, 0, 0, status.st_ino, True)
    stamps = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    if stat.S_ISLNK(status.st_mode):
        return Entry("link", mode, _target(root, parts), *stamps, True)
    if not stat.S_ISREG(status.st_mode):
        return Entry("other", mode, None, *stamps, True)
    if known and known.settled and known.kind == "file" and known[3:7] == stamps:
        return known._replace(mode=mode)
    settled = max(status.st_mtime_ns, status.st_ctime_ns) < time.time_ns() - _GRAIN
    content = None
    if objects is not None:
        try:
            file = beneath.open_file(root, parts)
        except OSError:
            return Entry("file", mode, None, *stamps, False)  # gone, or not ours to read
        with file, writing(objects.folder):
            content = objects.put(file)
            after = os.fstat(file.fileno())
        settled = settled and stamps == (
            (after.st_size, after.st_mtime_ns, after.st_ctime_ns, after.st_ino)
        )
    return Entry("file", mode, content, *stamps, settled and content is not None)


def _target(root: Path, parts: tuple[str, ...]) -> str | None:
    with beneath.folder(root, parts[:-1]) as handle:
        try:
            return os.readlink(parts[-1], dir_fd=handle)
        except OSError:
            return None  # replaced since it was listed


def restore(root: Path, wanted: Mapping[str, Entry | None], objects: Objects) -> list[str]:
    """Make each path what its entry says, or absent; the paths whose content was never kept.

    Contents are checked before anything is touched. A folder that is to go stays if something else
    is in it.
    """
    lost = [path for path, entry in wanted.items() if entry and _is_lost(entry)]
    todo = {path: entry for path, entry in wanted.items() if path not in lost}
    for entry in todo.values():
        if entry is not None and entry.kind == "file":
            objects.check(str(entry.content))
    shallow_first = sorted(todo, key=lambda path: (path.count("/"), path))
    modes = _unlock(root, shallow_first)
    modes.update({path: e.mode for path, e in todo.items() if e and e.kind == "folder"})
    try:
        for path in reversed(shallow_first):
            _clear(root, path.split("/"), todo[path])
        for path in shallow_first:
            entry = todo[path]
            if entry is not None:
                _put(root, path.split("/"), entry, objects)
    finally:
        for path in sorted(modes, key=lambda path: path.count("/"), reverse=True):
            with suppress(FileNotFoundError), beneath.folder(root, _parts(path)) as handle:
                beneath.set_folder_mode(handle, modes[path])
    return sorted(lost)


def _parts(path: str) -> list[str]:
    return path.split("/") if path else []


def _is_lost(entry: Entry) -> bool:
    return entry.kind != "folder" and entry.content is None


def _unlock(root: Path, paths: Iterable[str]) -> dict[str, int]:
    """Let the owner into all folders on the way to `paths`; the modes of those that were locked."""
    folders = {""}
    for path in paths:
        names = path.split("/")
        folders.update("/".join(names[: depth + 1]) for depth in range(len(names)))
    modes = {}
    for path in sorted(folders, key=lambda path: path.count("/") if path else -1):
        with suppress(OSError), beneath.folder(root, _parts(path)) as handle:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            if mode & stat.S_IRWXU != stat.S_IRWXU:
                beneath.set_folder_mode(handle, mode | stat.S_IRWXU)
                modes[path] = mode
    return modes


def _clear(root: Path, parts: list[str], entry: Entry | None) -> None:
    """Remove what stands at a path, except a file or folder that only takes on new contents."""
    try:
        with beneath.folder(root, parts[:-1]) as handle:
            mode = os.stat(parts[-1], dir_fd=handle, follow_symlinks=False).st_mode
            if entry is not None and entry.kind == "folder" and stat.S_ISDIR(mode):
                return
            if entry is not None and entry.kind == "file" and stat.S_ISREG(mode):
                return
            if stat.S_ISDIR(mode):
                os.rmdir(parts[-1], dir_fd=handle)
            else:
                os.unlink(parts[-1], dir_fd=handle)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.ELOOP):
            raise


def _put(root: Path, parts: list[str], entry: Entry, objects: Objects) -> None:
    """Make one path what `entry` says; its place was cleared. Folders stay open to the owner."""
    if entry.kind == "folder":
        with beneath.folder(root, parts, create=True) as handle:
            beneath.set_folder_mode(handle, entry.mode | stat.S_IRWXU)
    elif entry.kind == "link":
        with beneath.folder(root, parts[:-1], create=True) as handle:
            os.symlink(str(entry.content), parts[-1], dir_fd=handle)
    else:
        with (
            beneath.replacing(root, parts, entry.mode) as copy,
            objects.read(str(entry.content)) as contents,
        ):
            shutil.copyfileobj(contents, copy, 2**20)
            copy.flush()
            os.utime(copy.fileno(), ns=(entry.modified, entry.modified))
