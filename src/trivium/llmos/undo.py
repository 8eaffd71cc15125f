"""What tools did to a folder, kept so that it can be taken back.

    <state home>/undo/<hash of the folder's path>/
    ├── lock            held while a tool runs or a step is undone
    ├── folder.txt      whose store this is
    ├── objects/        contents of files by SHA-256
    ├── index.json      manifest of the folder when last looked at
    ├── pending.json    the step that is being recorded
    └── steps/N.json    label, time, and the entries of every changed path before and after

A step is written when its tool has ended. If the process dies before that, `pending.json` is found
by the next one, which closes the step with whatever has changed since. The oldest steps are dropped
past `max_steps` or `max_bytes`.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium.errors import NotFound, Refused, TriviumError, UsageError
from trivium.files import state_home, write_atomic, writing
from trivium.llmos import beneath
from trivium.llmos.confirmation import visible
from trivium.llmos.snapshots import Entry, Manifest, Objects, restore, scan

_PATIENCE = 30.0  # seconds to wait for another process at work in the same folder


@dataclass
class Change:
    """What happened in a recorded block; filled in when it ends. Paths of files, sorted."""

    label: str
    files: tuple[str, ...] = ()  # created or changed
    deleted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One recorded step, as `history` shows it. `time` is in seconds since 1970."""

    label: str
    time: float
    files: tuple[str, ...]
    deleted: tuple[str, ...]


class UndoStore:
    """The steps of the folder `area`; paths are reported below `prefix`.

    `max_files` and `max_bytes` limit a snapshot of it, `max_bytes` also what all steps hold.
    """

    def __init__(
        self,
        area: Path,
        prefix: Sequence[str] = (),
        *,
        max_files: int,
        max_bytes: int,
        max_steps: int = 100,
    ) -> None:
        self.area = area
        self._prefix = "".join(f"{name}/" for name in prefix)
        name = hashlib.sha256(os.fsencode(area)).hexdigest()[:24]
        self.folder = state_home() / "undo" / name
        self._max_files, self._max_bytes, self._max_steps = max_files, max_bytes, max_steps
        self._saved: Manifest | None = None  # what index.json holds

    @contextmanager
    def recording(self, label: str) -> Iterator[Change]:
        """Record what the block changes as one step. Refused when the folder is too large."""
        change = Change(label)
        with self._locked():
            self._recover()
            before, whole = self._look()
            if not whole:
                raise Refused(
                    f"{self.area} holds more than {self._max_files} files or "
                    f"{self._max_bytes // 2**20} MiB, too much to be able to undo changes to it"
                )
            self._begin(label, before)
            try:
                yield change
            finally:
                step = self._end(before)
                if step is not None:
                    change.files, change.deleted = step.files, step.deleted

    def history(self) -> tuple[Step, ...]:
        """The steps that can be undone, oldest first."""
        if not self.folder.exists():
            return ()
        with self._locked():
            self._recover()
            return tuple(self._step(self._read(path)) for path in self._steps())

    def undo(self, *, force: bool = False) -> str:
        """Take the last step back exactly; what was done, in words.

        Refused when a path of it was changed since by somebody else, or may have been, because the
        step was interrupted. `force` takes it back all the same, and records that as a step, so
        that what is lost by it can be brought back.
        """
        with self._locked():
            self._recover()
            steps = self._steps()
            if not steps:
                raise UsageError(f"nothing to undo in {self.area}")
            record = self._read(steps[-1])
            before, after = _entries(record["before"]), _entries(record["after"])
            now, _ = self._look()
            touched = _touched_since(now, before, after)
            if record.get("interrupted"):  # nobody knows when it ended, and who came after it
                touched = sorted({*touched, *before})
            if touched and not force:
                raise Refused(
                    f"cannot undo {record['label']!r}: {_listed(touched)} changed since, or may "
                    "have; force the undo to overwrite that"
                )
            if touched:
                self._begin(f"forced undo of {record['label']}", now)
            stale = {path: None for path in now if beneath.is_left_over(path.rpartition("/")[2])}
            with self._objects() as objects:
                lost = restore(self.area, stale | before | _ways(now, before), objects)
            os.sync()  # the step goes only when what it brought back is on the disk
            steps[-1].unlink()
            if touched:
                self._end(now)
            else:
                self._save_index(self._look()[0])
            return _description(record["label"], before, lost)

    def _look(self) -> tuple[Manifest, bool]:
        if not self.area.is_dir():
            raise NotFound(f"no such folder: {self.area}; it was there before")
        index = self.folder / "index.json"
        self._saved = _manifest(self._read(index)) if index.exists() else None
        with self._objects() as objects:
            return scan(self.area, self._saved or {}, objects, self._max_files, self._max_bytes)

    def _objects(self) -> AbstractContextManager[Objects]:
        return Objects.opened(self.folder / "objects")

    def _begin(self, label: str, before: Manifest) -> None:
        self._save_index(before)
        steps = self._steps()
        number = int(steps[-1].stem) + 1 if steps else 1
        pending = {"label": label, "time": time.time(), "number": number}
        self._write(self.folder / "pending.json", pending)

    def _end(self, before: Manifest) -> Step | None:
        """Close the pending step: what differs from `before` now. None when nothing does."""
        after, _ = self._look()
        pending = self._read(self.folder / "pending.json")
        changed = [
            path
            for path in before.keys() | after.keys()
            if not (path in before and before[path].same(after.get(path)))
        ]
        record = {
            "label": pending["label"],
            "time": pending["time"],
            "interrupted": pending.get("interrupted", False),
            "before": {path: before.get(path) for path in sorted(changed)},
            "after": {path: after.get(path) for path in sorted(changed)},
        }
        if changed:
            self._write(self.folder / "steps" / f"{pending['number']:08}.json", record)
        self._save_index(after)
        (self.folder / "pending.json").unlink()
        if changed:
            self._drop_oldest(after)
        return self._step(record) if changed else None

    def _step(self, record: Mapping[str, Any]) -> Step:
        before, after = _entries(record["before"]), _entries(record["after"])
        files = [path for path, entry in after.items() if entry and entry.kind != "folder"]
        gone = [
            path
            for path, entry in before.items()
            if entry and entry.kind != "folder" and after[path] is None
        ]
        return Step(record["label"], record["time"], self._shown(files), self._shown(gone))

    def _shown(self, paths: list[str]) -> tuple[str, ...]:
        return tuple(self._prefix + path for path in paths)

    def _recover(self) -> None:
        """Close the step that a process left open when it died."""
        path = self.folder / "pending.json"
        if not path.exists():
            return
        pending = self._read(path)
        if (self.folder / "steps" / f"{pending['number']:08}.json").exists():
            path.unlink()  # it died between writing the step and saying so
            return
        label = f"{pending['label']} (interrupted)"
        self._write(path, {**pending, "label": label, "interrupted": True})
        self._end(_manifest(self._read(self.folder / "index.json")))

    def _drop_oldest(self, index: Manifest) -> None:
        """Hold the limits, and remove contents that nothing refers to any more."""
        current = {entry.content for entry in index.values() if entry.kind == "file"}
        wanted: set[str] = {content for content in current if content}
        total = 0
        for kept, path in enumerate(reversed(self._steps())):
            before = _entries(self._read(path)["before"]).values()
            files = [e for e in before if e and e.kind == "file" and e.content]
            total += sum(entry.size for entry in files if entry.content not in wanted)
            if kept and (kept >= self._max_steps or total > self._max_bytes):
                path.unlink()
            else:
                wanted |= {str(entry.content) for entry in files}
        with self._objects() as objects:
            objects.keep_only(wanted)

    def _steps(self) -> list[Path]:
        return sorted((self.folder / "steps").glob("*.json"))

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
        except ValueError as error:
            raise TriviumError(f"{path} is damaged; removing {self.folder} starts anew") from error
        return record

    def _write(self, path: Path, record: Mapping[str, Any]) -> None:
        write_atomic(path, json.dumps(record, separators=(",", ":")), private=True)

    def _save_index(self, manifest: Manifest) -> None:
        if manifest != self._saved:
            self._write(self.folder / "index.json", manifest)
            self._saved = manifest

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes, and other threads, from working in the same folder meanwhile."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.folder / "folder.txt").write_bytes(os.fsencode(self.area) + b"\n")
            lock = (self.folder / "lock").open("ab")
        with lock:
            deadline = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Refused(
                            f"another run is at work in {self.area}: wait until it has ended"
                        ) from None
                    time.sleep(0.05)
            try:
                yield
            finally:
                # A forked child may hold a copy of the descriptor, so closing it is not enough.
                fcntl.flock(lock, fcntl.LOCK_UN)


def _manifest(record: Mapping[str, Any]) -> Manifest:
    return {path: Entry(*entry) for path, entry in record.items()}


def _entries(record: Mapping[str, Any]) -> dict[str, Entry | None]:
    return {path: Entry(*entry) if entry else None for path, entry in record.items()}


def _touched_since(
    now: Manifest, before: Mapping[str, Entry | None], after: Mapping[str, Entry | None]
) -> list[str]:
    """Paths that hold neither what a step left there nor what was there before it."""

    def differs(path: str) -> bool:
        entry = now.get(path)  # nothing is lost by bringing back what has gone since
        return entry is not None and not (entry.same(after[path]) or entry.same(before[path]))

    touched = {path for path in before if differs(path)} | _ways(now, before).keys()
    new_folders = {path for path, entry in before.items() if entry is None}
    for path in now.keys() - before.keys():
        if not new_folders.isdisjoint(_parents(path)):
            touched.add(path)
    return sorted(touched)


def _ways(now: Manifest, before: Mapping[str, Entry | None]) -> dict[str, Entry | None]:
    """Folders that lead to what is to be restored, but have since gone or become something else."""
    needed = {parent for path, entry in before.items() if entry for parent in _parents(path)}
    missing = {path for path in needed - before.keys() if path not in now}
    missing |= {path for path in needed & now.keys() - before.keys() if now[path].kind != "folder"}
    return {path: Entry("folder", 0o755, None, 0, 0, 0, 0, True) for path in missing}


def _parents(path: str) -> list[str]:
    names = path.split("/")
    return ["/".join(names[:depth]) for depth in range(1, len(names))]


def _listed(paths: list[str]) -> str:
    shown = ", ".join(visible(path) for path in paths[:5])
    return shown if len(paths) <= 5 else f"{shown} and {len(paths) - 5} more"


def _description(label: str, before: Mapping[str, Entry | None], lost: list[str]) -> str:
    restored = [path for path, e in before.items() if e and e.kind != "folder" and path not in lost]
    removed = [path for path, entry in before.items() if entry is None]
    parts = [f"brought back {_listed(restored)}"] if restored else []
    parts += [f"removed {_listed(removed)}"] if removed else []
    parts += [f"could not bring back {_listed(lost)}"] if lost else []
    return f"undid {label!r}: {'; '.join(parts) or 'folders only'}"
