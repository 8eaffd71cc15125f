"""The log of what the tools did: JSON lines, only ever appended, each with the hash of the last.

`previous` is the SHA-256 of the preceding line's bytes, or 64 zeros on the first. A line that is
changed, removed or put in later breaks the chain; lines cut off the end do not, unless the head
that `verify` returned is kept elsewhere. Whoever can write the file can also make a new chain: the
log shows damage and afterthoughts, it does not prove innocence.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from trivium.errors import TriviumError
from trivium.files import writing

_START = "0" * 64
_KEPT = 16_000  # characters of one text that the log holds


def shortened(text: str) -> str | dict[str, Any]:
    """`text`, or its beginning with the length and the hash of the whole."""
    if len(text) <= _KEPT:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return {"begins": text[:_KEPT], "characters": len(text), "sha256": digest}


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add `record` to the chain and flush it to the disk; safe between processes."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            last = _last_line(file)
            # A crash may have cut the last line short: it is closed, and stays in the chain.
            closing = b"" if not last or last.endswith(b"\n") else b"\n"
            previous = hashlib.sha256(last.rstrip(b"\n")).hexdigest() if last else _START
            # ASCII: text that somebody else wrote must not play tricks on the reader of a log.
            line = json.dumps({"previous": previous, **record}).encode("ascii")
            file.write(closing + line + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _last_line(file: BinaryIO) -> bytes:
    """The last line with its newline, if it has one; nothing for an empty file."""
    tail = b""
    position = file.seek(0, os.SEEK_END)
    while position and b"\n" not in tail[:-1]:
        step = min(position, 65_536)
        position -= step
        file.seek(position)
        tail = file.read(step) + tail
    return tail[tail[:-1].rfind(b"\n") + 1 :]


def verify(path: Path) -> tuple[int, str]:
    """Check the chain; the number of its lines and the hash of the last.

    TriviumError names the first line that does not follow from the one before it.
    """
    count, head = 0, _START
    with path.open("rb") as file:
        for count, raw in enumerate(file, start=1):
            line = raw.rstrip(b"\n")
            try:
                previous = json.loads(line)["previous"]
            except ValueError:
                previous = head  # cut short by a crash; the next line vouches for what is left
            except (KeyError, TypeError):
                previous = None
            if previous != head:
                raise TriviumError(f"{path}, line {count}: the chain of the log is broken here")
            head = hashlib.sha256(line).hexdigest()
    return count, head
