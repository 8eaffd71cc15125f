"""The texts of a file, one after the other: lines, JSONL or CSV. The file may exceed the memory.

Something wrong with one text is an `ItemError` in its place; the ones behind it are read all the
same.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from trivium.errors import NotFound, UsageError
from trivium.llmos.tasks.asking import ItemError

LARGEST = 10 << 20  # bytes of one text
FIELDS = ("input", "text")  # where a text is sought when no field is named

Item = str | ItemError
Positioned = tuple[Item, int]  # with how many bytes of the file have been read by then


def read_texts(path: Path, field: str | None = None) -> Iterator[Positioned]:
    """The texts of `path`, by its suffix: .jsonl, .ndjson, .csv, .tsv; of any other, its lines.

    Blank lines are passed over. Raises NotFound and UsageError for a file that cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFound(f"no such file: {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    with file:
        yield from texts_of(file, path.suffix.lower(), str(path), field)


def texts_of(
    file: IO[bytes], suffix: str, name: str, field: str | None = None
) -> Iterator[Positioned]:
    """The texts of an open file."""
    if suffix in (".csv", ".tsv"):
        return _rows(file, "," if suffix == ".csv" else "\t", name, field)
    if suffix in (".jsonl", ".ndjson") or (field is not None and suffix == ""):
        return _lines(file, lambda line: _of_json(line, field))
    if field is not None:
        raise UsageError(f"--field is for JSONL and CSV; {name} is read line by line")
    return _lines(file, _plain)


def _plain(line: str) -> Item:
    return line


def _of_json(line: str, field: str | None) -> Item:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ItemError(f"not valid JSON ({error})")
    return value if isinstance(value, str) and field is None else _of_record(value, field)


def _of_record(value: Any, field: str | None) -> Item:
    if not isinstance(value, Mapping):
        return ItemError(f"expected a JSON object, got {type(value).__name__}")
    named = [field] if field is not None else [name for name in FIELDS if name in value]
    if field is None and not named and len(value) == 1:
        named = list(value)
    if not named or named[0] not in value:
        has = ", ".join(map(str, value)) or "none"
        wanted = f"no field {field!r}" if field is not None else "which field is it? (--field)"
        return ItemError(f"{wanted}; there is {has}")
    text = value[named[0]]
    if not isinstance(text, str):
        return ItemError(f"the field {named[0]!r} holds {type(text).__name__}, not text")
    return text


def _lines(file: IO[bytes], read: Callable[[str], Item]) -> Iterator[Positioned]:
    position = 0
    while line := file.readline(LARGEST + 1):
        position += len(line)
        large = len(line) > LARGEST
        while large and line and not line.endswith(b"\n"):  # to its end, without keeping it
            line = file.readline(LARGEST)
            position += len(line)
        item = ItemError(f"larger than the {LARGEST >> 20} MB that a text may have")
        if not large:
            if not line.strip():
                continue
            item = _decoded(line.rstrip(b"\r\n"), read)
        yield _sound(item), position


def _decoded(line: bytes, read: Callable[[str], Item]) -> Any:
    if b"\0" in line:
        return ItemError("binary, not text")
    try:
        return read(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return ItemError(f"not UTF-8 text (byte {error.start})")


def _rows(file: IO[bytes], delimiter: str, name: str, field: str | None) -> Iterator[Positioned]:
    """The rows below the header. Cells may be quoted, and hold line breaks."""
    position = 0

    def lines() -> Iterator[str]:
        nonlocal position
        for number, line in enumerate(file):
            position += len(line)
            # Bytes that are no UTF-8 become surrogates, which `_sound` reports in their row.
            yield line.decode("utf-8-sig" if number == 0 else "utf-8", errors="surrogateescape")

    before = csv.field_size_limit(LARGEST)
    try:
        rows = csv.DictReader(lines(), delimiter=delimiter, strict=True)
        header = list(rows.fieldnames or ())
        if field is not None and header and field not in header:
            raise UsageError(f"{name} has no column {field!r}; it has {', '.join(header)}")
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield ItemError(f"not CSV, from line {rows.line_num + 1} on ({error})"), position
                return
            if row is None:
                return
            whole = {key: cell for key, cell in row.items() if key is not None and cell is not None}
            yield _sound(_of_record(whole, field)), position
    finally:
        csv.field_size_limit(before)


def _sound(item: Item) -> Item:
    if isinstance(item, str):
        if not item.strip():
            return ItemError("empty")
        try:
            item.encode()
        except UnicodeEncodeError:
            return ItemError("not UTF-8 text")
    return item
