"""An append-only file of JSON lines with one writer, and how events are written in it.

A line is in the file whole or not at all: a write that fails is taken back, and a line that a crash
cut short is closed before the next, so that readers pass over it.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trivium import files
from trivium.errors import Refused
from trivium.llmos.messages import (
    Answer,
    Event,
    Failure,
    TextDelta,
    ToolCall,
    ToolResult,
    Usage,
)


class Journal:
    """The one writer of `path`, from `open` or `create` until `close`."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise Refused(
                f"conversation {path.stem} is open in another process: leave it there first, "
                "or start a new one"
            ) from None

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Raises Refused while another process has it open."""
        with files.writing(path):
            return cls(path, os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC))

    @classmethod
    def create(cls, path: Path, records: Sequence[Mapping[str, Any]]) -> "Journal":
        """A new file that begins with `records`; it and its folder are its owner's alone."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            journal = cls(path, os.open(path, flags, 0o600))
        try:
            journal.append(*records)
        except BaseException:  # not even the beginning could be written: leave nothing behind
            path.unlink()
            journal.close()
            raise
        return journal

    def close(self) -> None:
        os.close(self._handle)

    def append(self, *records: Mapping[str, Any], durable: bool = True) -> None:
        """Write all records or none; `durable` waits until the disk has them."""
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        # A lone surrogate, which UTF-8 cannot hold, becomes the JSON escape that stands for it.
        data = "".join(lines).encode(errors="backslashreplace")
        end = os.fstat(self._handle).st_size
        if end and os.pread(self._handle, 1, end - 1) != b"\n":
            data = b"\n" + data
        with files.writing(self.path):
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._handle, rest) :]
            except BaseException:
                os.ftruncate(self._handle, end)
                raise
            if durable:
                os.fsync(self._handle)


def record(kind: str, /, **values: Any) -> dict[str, Any]:
    """A line of type `kind`, with the time in seconds since 1970."""
    return {"type": kind, "time": round(time.time(), 3), **values}


def event_to_record(event: Event) -> dict[str, Any]:
    match event:
        case TextDelta():
            return record("text", text=event.text)
        case ToolCall():
            return record("call", call=event.to_json())
        case ToolResult():
            return record(
                "result",
                call_id=event.call.id,
                content=event.content,
                error=event.error,
                files=event.files,
                sources=sorted(event.sources),
                seconds=round(event.seconds, 6),
            )
        case Answer():
            usage = asdict(event.usage)
            return record("answer", text=event.text, reason=event.reason, usage=usage)
        case Failure():
            return record("failure", kind=event.kind, message=event.message)


def event_from_record(record: Mapping[str, Any], before: Sequence[Event]) -> Event | None:
    """The event that a line holds, None when it holds something else; `before` has its call."""
    match record["type"]:
        case "text":
            return TextDelta(record["text"])
        case "call":
            return ToolCall.from_json(record["call"])
        case "result":
            calls = (event for event in reversed(before) if isinstance(event, ToolCall))
            return ToolResult(
                next(call for call in calls if call.id == record["call_id"]),
                record["content"],
                record["error"],
                tuple(record["files"]),
                frozenset(record["sources"]),
                record["seconds"],
            )
        case "answer":
            return Answer(record["text"], Usage(**record["usage"]), record["reason"])
        case "failure":
            return Failure(record["kind"], record["message"])
    return None
