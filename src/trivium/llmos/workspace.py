"""The workspace: the one folder that tools see, and the part of it that they may change.

A path of the model is relative to `root` and may not lead out of it, whether by `..`, as an
absolute path, or through a symbolic link. Tools write below `writable` only, and every write is
recorded so that it can be undone. That is `root` itself where it can be snapshotted within limits;
else, as for a home folder, it is `root/outputs`, and `note` says why.
"""

import difflib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

from trivium.errors import NotFound, Refused, UsageError
from trivium.files import state_home, writing
from trivium.llmos import beneath
from trivium.llmos.confirmation import visible
from trivium.llmos.tools import ToolError
from trivium.llmos.undo import Change, Step, UndoStore

_LONGEST_PATH = 4096
_SEARCHED = 2000  # entries looked through for a file that a wrong path may have meant


def _own_places() -> tuple[Path, ...]:
    """What runs Trivium, and so may not be changed by a tool."""
    return (
        Path(sys.prefix).resolve(),
        Path(sys.base_prefix).resolve(),
        Path(__file__).resolve().parents[1],
    )


class Workspace:
    """`root` must be a folder, else NotFound or UsageError. The limits are those of a snapshot."""

    def __init__(
        self, root: Path, *, max_files: int = 20_000, max_bytes: int = 512 * 2**20
    ) -> None:
        if not root.exists():
            raise NotFound(f"no such folder: {root}; make it first, or name another workspace")
        if not root.is_dir():
            raise UsageError(f"{root} is not a folder: name the folder that holds it")
        try:
            self.root = root.resolve()
        except FileNotFoundError as error:
            raise NotFound(f"no such folder: {root}; it has been deleted, go elsewhere") from error
        self._max_files, self._max_bytes = max_files, max_bytes

    @cached_property
    def note(self) -> str:
        """Why only `outputs` may be written; empty when all of the workspace may."""
        state = state_home().resolve()
        if self.root == Path(self.root.anchor):
            reason = "it is the root of the file system"
        elif self.root == Path.home().resolve():
            reason = "it is your home folder"
        elif state.is_relative_to(self.root) or self.root.is_relative_to(state):
            reason = "Trivium keeps its own state in it"
        elif any(place.is_relative_to(self.root) for place in _own_places()):
            reason = "the Python that runs Trivium is in it"
        elif not self._fits():
            reason = (
                f"it holds more than {self._max_files} files or {self._max_bytes // 2**20} MiB, "
                "too much to be able to undo changes"
            )
        else:
            return ""
        return f"tools write only in {self.root / 'outputs'}, not in all of {self.root}: {reason}"

    @cached_property
    def writable(self) -> Path:
        """The folder below which tools write; made if need be."""
        if not self.note:
            return self.root
        outputs = self.root / "outputs"
        with writing(outputs):
            outputs.mkdir(exist_ok=True)
        if outputs.is_symlink():
            raise Refused(f"{outputs} is a link: move it away, or choose another workspace")
        return outputs

    def _fits(self) -> bool:
        files = size = 0
        waiting: list[tuple[str, ...]] = [()]
        while waiting:
            parts = waiting.pop()
            try:
                listing = beneath.entries(self.root, parts, self._max_files - files + 1)
            except OSError:
                continue  # gone, or not ours to read
            files += len(listing)
            size += sum(status.st_size for _, status in listing)
            if files > self._max_files or size > self._max_bytes:
                return False
            waiting += [(*parts, name) for name, status in listing if stat.S_ISDIR(status.st_mode)]
        return True

    def resolve(self, path: str, *, must_exist: bool = True) -> Path:
        """The real path that `path` names. ToolError when it leads outside or is not usable."""
        if "\0" in path or len(path) > _LONGEST_PATH or not path:
            raise ToolError(f"{visible(path[:80])!r} is not a path: name a file of the workspace")
        try:
            real = Path(os.path.realpath(self.root / path))
            if not real.is_relative_to(self.root):
                raise ToolError(
                    f"{visible(path)} is outside the workspace: give a path relative to it, "
                    "such as notes.txt"
                )
            mode = real.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            if must_exist:
                raise self._missing(path) from None
            return real
        except OSError as error:
            raise ToolError(f"{visible(path)} cannot be used: {error.strerror}") from error
        except ValueError as error:
            raise ToolError(f"{visible(path)} is not a path: {error}") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ToolError(f"{visible(path)} is {_special(mode)}, not a file or folder")
        return real

    def relative(self, real: Path) -> str:
        """A resolved path as the model writes it: relative to the root, with forward slashes."""
        return real.relative_to(self.root).as_posix()

    def parts(self, real: Path) -> tuple[str, ...]:
        """A resolved path as `beneath` takes it, relative to the root."""
        return real.relative_to(self.root).parts

    def _missing(self, path: str) -> ToolError:
        """An error that offers the files whose name is like the one that was asked for."""
        wanted = path.rstrip("/").rpartition("/")[2]
        known = [relative for relative, _ in self.walk(self.root, _SEARCHED)]
        names = {relative.rpartition("/")[2] for relative in known}
        near = difflib.get_close_matches(wanted, names, n=3)
        found = [relative for relative in known if relative.rpartition("/")[2] in near][:3]
        if not found:
            return ToolError(f"there is no {visible(path)} in the workspace: list_files shows all")
        offer = " or ".join(visible(relative) for relative in found)
        sources = frozenset({"names:."})
        return ToolError(f"there is no {visible(path)} in the workspace; is it {offer}?", sources)

    def walk(self, folder: Path, limit: int) -> Iterator[tuple[str, os.stat_result]]:
        """Paths relative to the root with their stats, breadth first, at most `limit`.

        Folders whose name begins with a dot are named, not entered; links are not followed.
        """
        waiting, seen = [self.parts(folder)], 0
        while waiting:
            parts = waiting.pop(0)
            try:
                listing = beneath.entries(self.root, parts, limit - seen)
            except OSError:
                continue  # gone, or not ours to read
            for name, status in listing:
                seen += 1
                yield "/".join((*parts, name)), status
                if stat.S_ISDIR(status.st_mode) and not name.startswith("."):
                    waiting.append((*parts, name))
            if seen >= limit:
                return

    def recording(self, label: str) -> AbstractContextManager[Change]:
        """Record what the block changes below `writable` as one step that `undo` takes back."""
        return self._store.recording(label)

    def undo(self, *, force: bool = False) -> str:
        """Take the last recorded step back; what was done, in words. See UndoStore.undo."""
        return self._store.undo(force=force)

    def history(self) -> tuple[Step, ...]:
        """The recorded steps, oldest first."""
        return self._store.history()

    @cached_property
    def _store(self) -> UndoStore:
        return UndoStore(
            self.writable,
            self.parts(self.writable),
            max_files=self._max_files,
            max_bytes=self._max_bytes,
        )


def _special(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFLNK: "a link that leads in a circle",
    }
    return kinds.get(stat.S_IFMT(mode), "something special")
