"""Text on the disk, in blocks of some 16 to 128 KiB: any can be read without those before it.

Nothing is scanned beforehand and no index is kept, whatever the files hold: a block is a range of
bytes, and its borders are moved to where text may be cut only when it is read.

    records   (JSON lines) a line belongs to the block that it begins in
    text      a file is one document; a block of a larger one ends at an empty line, else at the
              end of a line, else before a word
"""

import glob
import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

from trivium.errors import NotFound, UsageError

SMALLEST, LARGER = 16 << 10, 128 << 10  # bytes of a block: of a small source, and of a larger one
FEW, MOST = 1 << 10, 1 << 20  # blocks from which on they are larger, and of the largest source
PIECE = 1 << 20  # bytes that are read at once
LONGEST = 64 << 20  # bytes of a line
SNIFFED = 8192  # bytes in which a binary file shows itself
READ_WHOLE = 4 << 30  # bytes of a source whose hash takes in all of them
RECORDS = (".jsonl", ".ndjson")
_BLANK = re.compile(rb"\n\r?\n")
_MARK = b"\xef\xbb\xbf"  # a byte order mark


class File(NamedTuple):
    """A file to be read. `name` is what messages call it, `unit` what they count in it."""

    path: str
    name: str
    size: int  # bytes
    records: bool
    unit: str = "line"


class Place(NamedTuple):
    """Where a document begins; as text, `data.jsonl, line 7`."""

    file: File
    offset: int

    def __str__(self) -> str:
        if not self.file.records:
            return self.file.name
        number = 1
        with open(self.file.path, "rb") as file:
            left = self.offset
            while left > 0 and (data := file.read(min(left, PIECE))):
                number += data.count(b"\n")
                left -= len(data)
        return f"{self.file.name}, {self.file.unit} {number}"


class Part(NamedTuple):
    """A plain text, or a part of one; it may start or end the document, or both."""

    text: str
    starts: bool
    ends: bool
    place: Place


class Blocks:
    """The blocks of some files, by number.

    small: as small as their number allows, for what is shuffled better in small pieces
    """

    def __init__(self, files: list[File], *, small: bool = False) -> None:
        self.files = files
        self.bytes = sum(file.size for file in files)
        larger = SMALLEST if small else min(self.bytes // FEW, LARGER)
        self.size = max(SMALLEST, larger, self.bytes // MOST)
        self._pieces = [-(-file.size // self.size) for file in files]
        self._ends = list(accumulate(self._pieces))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, number: int) -> tuple[File, int, int, int]:
        """The file of a block, its bytes from … to before the borders are moved, and of how many
        bytes the file's blocks are."""
        index = bisect_right(self._ends, number)
        pieces, file = self._pieces[index], self.files[index]
        piece = number - (self._ends[index] - pieces)
        start, end = file.size * piece // pieces, file.size * (piece + 1) // pieces
        return file, start, end, file.size // pieces

    def lines(self, number: int) -> Iterator[tuple[Place, bytes]]:
        """The lines of a block of records that are not empty, each with its place."""
        file, start, end, _ = self.place(number)
        with opened(file) as stream:
            if start:  # the line that goes on here belongs to the block before
                stream.seek(start - 1)
                start += len(_line(stream, file, start - 1)) - 1
            while start < end and (line := _line(stream, file, start)):
                place = Place(file, start)
                start += len(line)
                if place.offset == 0:
                    line = line.removeprefix(_MARK)
                if line.strip():
                    yield place, line

    def part(self, number: int) -> Part | None:
        """The text of a block; None if it is empty. Line ends become \\n."""
        file, start, end, step = self.place(number)
        with opened(file) as stream:
            first, last = _border(stream, file, start, step), _border(stream, file, end, step)
            stream.seek(first)
            data = stream.read(last - first)
        text = decoded(data, file.name, first)
        if first == 0:
            text = text.removeprefix("\ufeff")
        text = text.replace("\r\n", "\n")
        place = Place(file, first)
        return Part(text, first == 0, last == file.size, place) if text else None

    @cached_property
    def fingerprint(self) -> str:
        """Tells at once whether the files have changed: of their names and sizes."""
        said = "\n".join(f"{file.name}\0{file.size}" for file in self.files)
        return hashlib.blake2b(said.encode(errors="surrogateescape"), digest_size=8).hexdigest()

    @cached_property
    def hash(self) -> str:
        return content_hash(self.files)


def opened(file: File) -> BinaryIO:
    try:
        return open(file.path, "rb")
    except OSError as error:
        raise UsageError(f"cannot read {file.name}: {error.strerror or error}") from None


def decoded(data: bytes, name: str, start: int = 0) -> str:
    """Bytes from `start` on of a file as text. Raises UsageError for what is not UTF-8."""
    if b"\0" in data:
        raise UsageError(f"{name} is binary, not text")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {start + error.start}): convert it first, for example "
            "with iconv -f latin1 -t utf-8"
        ) from None


def _line(stream: BinaryIO, file: File, start: int) -> bytes:
    line = stream.readline(LONGEST + 1)
    if len(line) > LONGEST:
        raise UsageError(
            f"{Place(file, start)} is longer than {LONGEST >> 20} MiB: it is no record of its own"
        )
    return line


def _border(stream: BinaryIO, file: File, offset: int, step: int) -> int:
    """Where text may be cut, from `offset` on and before the next block's border."""
    if offset in (0, file.size):
        return offset
    stream.seek(offset)
    window = stream.read(max(step // 2, 1))
    if blank := _BLANK.search(window):
        return offset + blank.end()
    for mark, behind in ((b"\n", 1), (b" ", 0)):
        if (place := window.find(mark)) >= 0:
            return offset + place + behind
    whole = (i for i, byte in enumerate(window) if byte & 0xC0 != 0x80)  # begins a character
    return offset + next(whole, 0)


def files_of(source: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The paths and names of the files that a folder, glob or file name stands for, in order, and
    the binary files that were left out of a folder.

    Hidden files are left out too. Raises NotFound and UsageError.
    """
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        found: list[tuple[str, str]] = []
        binary: list[tuple[str, str]] = []
        for name in _walk(path):
            whole = os.path.join(path, name)
            (binary if _is_binary(whole) else found).append((whole, name))
        if not found:
            raise UsageError(f"no text in the folder {source}")
        return found, [name for _, name in binary]
    if not os.path.exists(path) and glob.has_magic(path):
        matches = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p))
        if not matches:
            raise NotFound(f"no file matches {source}")
        return [(match, match) for match in matches], []
    if not os.path.exists(path):
        raise NotFound(f"no such file or folder: {source}")
    if not os.path.isfile(path):
        raise UsageError(f"{source} is neither a file nor a folder")
    return [(path, source)], []


def _walk(folder: str) -> list[str]:
    """The regular files beneath `folder`, sorted; links are followed, each folder once."""

    def refuse(error: OSError) -> None:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}")

    seen, names = set(), []
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            whole = os.path.join(here, name)
            if not name.startswith(".") and os.path.isfile(whole):
                names.append(os.path.relpath(whole, folder))
    return sorted(names)


def _is_binary(path: str) -> bool:
    if path.lower().endswith((".gz", ".zst", ".parquet")):  # texts in a wrapping
        return False
    try:
        with open(path, "rb") as file:
            return b"\0" in file.read(SNIFFED)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None


def content_hash(files: list[File]) -> str:
    """SHA-256 over names, sizes and contents; of a source above 4 GiB, over a sample of each file:
    64 pieces of 1 MiB, evenly spaced. The hash says which."""
    digest = hashlib.sha256()
    whole = sum(file.size for file in files) <= READ_WHOLE
    for file in files:
        name = Path(file.name).name
        digest.update(f"{name}\0{file.size}\0".encode(errors="surrogateescape"))
        with opened(file) as stream:
            if whole or file.size <= PIECE * 64:
                while data := stream.read(PIECE):
                    digest.update(data)
            else:
                for piece in range(64):
                    stream.seek((file.size - PIECE) * piece // 63)
                    digest.update(stream.read(PIECE))
    return ("sha256:" if whole else "sampled-sha256:") + digest.hexdigest()
