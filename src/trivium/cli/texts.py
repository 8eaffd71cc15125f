"""Texts from a file or from stdin, read in passing: the file may be larger than memory.

lines   a text is a line
jsonl   a text is a field of a JSON object, or a JSON string; one a line
csv     a text is a field of a row, whose quotes may hold line breaks; tsv: between tabs
"""

import codecs
import csv
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trivium.errors import NotFound, UsageError

LONGEST = 10 << 20  # bytes of one text
PART = 1 << 16  # bytes
USUAL = ("text", "input")  # the field of a record, if none is named
FORMATS = ("lines", "jsonl", "csv", "tsv")
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}


def format_of(path: Path) -> str:
    return _ENDINGS.get(path.suffix.lower(), "lines")


@dataclass
class Input:
    """An open file. `done`: bytes read so far; `size`: of all, None where nobody knows."""

    name: str
    file: BinaryIO
    size: int | None
    done: int = 0

    def parts(self) -> Iterator[str]:
        """The whole text, in parts. Raises UsageError for what is not UTF-8 text."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        data = b"start"
        while data:
            data = self.file.read(PART)
            self.done += len(data)
            if b"\0" in data:
                raise UsageError(f"{self.name} is binary, not text")
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                place = self.done - len(data) + error.start
                raise UsageError(
                    f"{self.name} is not UTF-8 text (near byte {max(place, 0)}): convert it first, "
                    "for example with iconv -f latin1 -t utf-8"
                ) from None
            if text:
                yield text

    def texts(self, format: str, field: str | None = None) -> Iterator[tuple[int, str]]:
        """The texts, each with the number of the line that it ends in.

        field: which one of a record; by default `text`, `input`, or the only one there is
        Raises UsageError, which names the line, for what is wrong with it.
        """
        if format == "jsonl":
            return self._records(field)
        if format in ("csv", "tsv"):
            return self._rows("," if format == "csv" else "\t", field)
        if field is not None:
            raise UsageError(f"--field {field}: the lines of {self.name} have no fields")
        return ((number, line.rstrip("\r\n")) for number, line in self._lines())

    def _lines(self) -> Iterator[tuple[int, str]]:
        number = 0
        while line := self.file.readline(LONGEST + 1):
            number += 1
            self.done += len(line)
            if len(line) > LONGEST:
                raise UsageError(
                    f"{self.name}, line {number}, is longer than {LONGEST >> 20} MB: it is no text "
                    "to be taken as one"
                )
            if b"\0" in line:
                raise UsageError(f"{self.name}, line {number}, is binary, not text")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UsageError(f"{self.name}, line {number}, is not UTF-8 text") from None

    def _records(self, field: str | None) -> Iterator[tuple[int, str]]:
        for number, line in self._lines():
            if not line.strip():
                continue
            place = f"{self.name}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{place}: not valid JSON ({error})") from None
            text = (
                record[_chosen(list(record), field, place)] if isinstance(record, dict) else record
            )
            if not isinstance(text, str):
                raise UsageError(f"{place}: expected text, not {json.dumps(text)[:80]}")
            yield number, text

    def _rows(self, delimiter: str, field: str | None) -> Iterator[tuple[int, str]]:
        csv.field_size_limit(LONGEST)
        reader = csv.reader((line for _, line in self._lines()), delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            column = header.index(_chosen(header, field, self.name))
            for row in reader:
                if not row:
                    continue
                if len(row) <= column:
                    raise UsageError(
                        f"{self.name}, line {reader.line_num}: no {header[column]!r} in this row"
                    )
                yield reader.line_num, row[column]
        except csv.Error as error:
            raise UsageError(f"{self.name}, line {reader.line_num}: {error}") from None


def _chosen(names: list[str], field: str | None, place: str) -> str:
    """The name of the field that holds the text."""
    likely = [name for name in USUAL if name in names] or (names if len(names) == 1 else [])
    if field is not None or not likely:
        likely = [name for name in names if name == field]
    if likely:
        return likely[0]
    wanted = f"no field {field!r}" if field is not None else "which field is the text?"
    raise UsageError(f"{place}: {wanted} --field takes one of {', '.join(map(repr, names))}")


@contextmanager
def opened(path: Path) -> Iterator[Input]:
    """A file, or stdin for `-`. Raises NotFound and UsageError."""
    if str(path) == "-":
        yield Input("stdin", sys.stdin.buffer, None)
        return
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFound(f"no such file: {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    with file:
        status = os.fstat(file.fileno())
        yield Input(str(path), file, status.st_size if stat.S_ISREG(status.st_mode) else None)
