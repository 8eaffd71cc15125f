"""The answers of a file, as JSON lines that are added while they are made.

    {"index": 0, "input": …, "output": …, "model": …, "task": …}
    {"index": 1, "input": …, "output": null, "error": …, "model": …, "task": …}

A line is in the file whole or not at all. Whoever opens the file again goes on behind its last
whole line, after the inputs of the lines before it have been found to be the same.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from trivium import files
from trivium.errors import Refused, TriviumError, UsageError
from trivium.llmos.tasks.asking import ItemError, Outcome
from trivium.llmos.tasks.inputs import Item


class OutputFile:
    """The one writer of `path`, from its making until `close`.

    `model` and `task` are written into every line: lines of others are not continued. `done` lines
    are there already. Raises Refused while another process writes it, and UsageError for a file of
    something else.
    """

    def __init__(self, path: Path, *, model: str, task: str, overwrite: bool = False) -> None:
        self.path, self._own = path, {"model": model, "task": task}
        with files.writing(path):
            self._file: IO[bytes] = path.open("ab+", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if overwrite:
                self._file.truncate(0)
            self._end = self._whole()
            self._file.seek(0)
        except BlockingIOError:
            self._file.close()
            raise Refused(f"another process is writing {path}: let it end, or stop it") from None
        except BaseException:
            self._file.close()
            raise

    def _whole(self) -> int:
        """Where the last whole line ends. What follows it was cut short by a crash."""
        end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            self._file.seek(start)
            at = self._file.read(end - start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
        return 0

    def compare(self, index: int, item: Item) -> bool:
        """Whether the next line is there and answers this input; False behind the last line.

        Raises UsageError when it answers something else.
        """
        if self._file.tell() >= self._end:
            return False
        line = self._next_line()
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or "index" not in found:
            raise self._other(f"line {index + 1} is not an answer of `trivium run --input`")
        for name, value in self._own.items():
            if found.get(name) != value:
                raise self._other(f"it was made by another {name} ({found.get(name)})")
        if {key: found.get(key) for key in ("index", "input")} != _asked(index, item):
            raise self._other(f"its line {index + 1} answers another input")
        return True

    def _next_line(self) -> bytes:
        start, pieces = self._file.tell(), list[bytes]()
        while True:
            piece = self._file.read(1 << 16)
            at = piece.find(b"\n")
            if at >= 0:
                self._file.seek(start + sum(map(len, pieces)) + at + 1)
                return b"".join([*pieces, piece[:at]])
            pieces.append(piece)

    def at_end(self) -> None:
        """The inputs are over. Raises UsageError when there are answers behind them."""
        if self._file.tell() < self._end:
            raise self._other("it answers more inputs than there are")

    def _other(self, why: str) -> TriviumError:
        return UsageError(f"{self.path} is of something else: {why}; --overwrite begins anew")

    def append(self, index: int, item: Item, outcome: Outcome | ItemError) -> None:
        data = line_of(index, item, outcome, self._own)
        with files.writing(self.path):
            self._file.truncate(self._end)  # takes away a line that was cut short
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
            except BaseException:
                self._file.truncate(self._end)
                raise
        self._end += len(data)

    def close(self) -> None:
        with files.writing(self.path):
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def line_of(index: int, item: Item, outcome: Outcome | ItemError, more: Mapping[str, str]) -> bytes:
    """The JSON line of one answer."""
    line = _asked(index, item)
    line["output"] = outcome.value if isinstance(outcome, Outcome) else None
    if isinstance(outcome, ItemError):
        line["error"] = str(outcome)
    elif outcome.cut:
        line["cut"] = True
    text = json.dumps({**line, **more}, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")


def _asked(index: int, item: Item) -> dict[str, Any]:
    return {"index": index, "input": item if isinstance(item, str) else None}
