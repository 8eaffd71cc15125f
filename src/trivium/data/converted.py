"""Data in a wrapping, unwrapped once into a file of JSON lines or text that can be read anywhere.

    .gz .zst          what they hold
    .json             an array of records (a .json file of JSON lines is read as it is)
    .csv .tsv         a row is a record, by the names in the first one
    .parquet          needs pyarrow
    hf:NAME[:CONFIG[:SPLIT]]   a data set of the Hugging Face hub; needs datasets. SPLIT is train
                      unless given, and may end in [:N], the first N records

The copies lie in the cache and are made again when the original changes.
"""

import csv
import gzip
import hashlib
import importlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from trivium import files
from trivium.data.textfiles import LONGEST, PIECE, RECORDS, File
from trivium.errors import TriviumError, UsageError


def plain(path: str, name: str, unit: str = "line") -> File:
    """The file to read in the place of `path`. Raises UsageError for a wrapping that is broken."""
    kind = os.path.splitext(path)[1].lower()
    if kind in (".gz", ".zst"):
        inner = os.path.splitext(os.path.splitext(path)[0])[1].lower() or ".txt"
        return plain(_copy(path, name, inner, UNWRAP[kind]), name)
    if kind == ".json" and _begins_with(path, b"["):
        return plain(_copy(path, name, ".jsonl", _json_array), name, "record")
    if kind in (".csv", ".tsv"):
        return plain(_copy(path, name, ".jsonl", _rows), name, "record")
    if kind == ".parquet":
        return plain(_copy(path, name, ".jsonl", _parquet), name, "record")
    return File(path, name, os.path.getsize(path), kind in (*RECORDS, ".json"), unit)


def hub_data(spec: str) -> File:
    """The file with the records of `hf:NAME[:CONFIG[:SPLIT]]`, fetched if it is not here yet."""
    match = re.fullmatch(r"hf:([^:]+)(?::([^:\[]*))?(?::([^:\[]+)(?:\[:(\d+)\])?)?", spec)
    if match is None:
        raise UsageError(f"{spec!r} is not hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT")
    name, config, split, count = match.groups()
    copy = _cached(spec, f"{Path(name).name}.jsonl")
    if not copy.is_file():
        if os.environ.get("TRIVIUM_OFFLINE"):
            raise UsageError(f"{spec} is not in the cache, and TRIVIUM_OFFLINE is set")
        datasets = _needed("datasets", spec)
        try:
            rows = datasets.load_dataset(
                name, config or None, split=split or "train", streaming=True
            )
            _write(copy, _as_lines(rows.take(int(count)) if count else rows))
        except TriviumError:
            raise
        except Exception as error:  # the library raises whatever its many parts do
            said = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise TriviumError(f"cannot fetch the data set {name}: {said}") from error
    return File(str(copy), spec, copy.stat().st_size, True, "record")


def _copy(path: str, name: str, ending: str, convert: Callable[[str, str], Iterable[bytes]]) -> str:
    """The path of the converted copy, which is made if it is not there."""
    status = os.stat(path)
    key = f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}"
    copy = _cached(key, Path(path).name.split(".")[0] + ending)
    if not copy.is_file():
        _write(copy, convert(path, name))
    return str(copy)


def _cached(key: str, name: str) -> Path:
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return files.cache_home() / "data" / digest / name


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    """Write pieces as they come; the file is there when all are."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = part.open("wb")
        with stream:
            for piece in pieces:
                with files.writing(path):
                    stream.write(piece)
            with files.writing(path):
                stream.flush()
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _as_lines(records: Iterable[Any]) -> Iterator[bytes]:
    for record in records:
        yield json.dumps(record, ensure_ascii=True, default=str).encode() + b"\n"


def _needed(module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UsageError(f"reading {what} needs {module}: pip install {module}") from None


def _begins_with(path: str, wanted: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == wanted


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{name} is broken, or cut short: {error}") from None


def _gunzip(path: str, name: str) -> Iterator[bytes]:
    with _reading(name), gzip.open(path) as stream:
        while data := stream.read(PIECE):
            yield data


def _unzstd(path: str, name: str) -> Iterator[bytes]:
    zstandard = _needed("zstandard", name)
    with open(path, "rb") as raw:
        try:
            with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
                while data := stream.read(PIECE):
                    yield data
        except zstandard.ZstdError as error:
            raise UsageError(f"{name} is broken, or cut short: {error}") from None


UNWRAP = {".gz": _gunzip, ".zst": _unzstd}


def _json_array(path: str, name: str) -> Iterator[bytes]:
    """The elements of an array, a few at a time: the file may be larger than memory."""
    decode, blank = json.JSONDecoder().raw_decode, re.compile(r"[ \t\r\n]*")
    with _text(path, name) as stream:
        held, at, number = stream.read(PIECE), 0, 1

        def skip(mark: str = "") -> str:
            """The next character behind blanks; `mark` is passed over if it is that."""
            nonlocal held, at
            while (at := blank.match(held, at).end()) == len(held):  # type: ignore[union-attr]
                held, at = stream.read(PIECE), 0
                if not held:
                    return ""
            if held[at] == mark:
                at += 1
                return skip()
            return held[at]

        next_one = skip("[")
        while next_one != "]":
            try:
                value, at = decode(held, at)
            except (ValueError, RecursionError) as error:
                more = stream.read(max(PIECE, len(held)))
                if not more or len(held) - at > LONGEST:
                    said = getattr(error, "msg", error)
                    raise UsageError(f"{name}, record {number}: not valid JSON ({said})") from None
                held, at = held[at:] + more, 0
                continue
            yield from _as_lines([value])
            number += 1
            if skip() not in (",", "]"):
                raise UsageError(
                    f"{name}, record {number}: expected a comma, or the end of the array"
                )
            next_one = skip(",")


def _rows(path: str, name: str) -> Iterator[bytes]:
    csv.field_size_limit(LONGEST)
    with _text(path, name) as stream:
        delimiter = "\t" if path.lower().endswith(".tsv") else ","
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    wanted = len(reader.fieldnames or ())
                    raise UsageError(f"{name}, line {reader.line_num}: expected {wanted} cells")
                yield from _as_lines([row])
        except csv.Error as error:
            raise UsageError(f"{name}, line {reader.line_num}: {error}") from None


@contextmanager
def _text(path: str, name: str) -> Iterator[IO[str]]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        try:
            yield stream
        except UnicodeDecodeError:
            raise UsageError(f"{name} is not UTF-8 text: convert it first") from None


def _parquet(path: str, name: str) -> Iterator[bytes]:
    parquet = _needed("pyarrow", name) and importlib.import_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from _as_lines(batch.to_pylist())
    except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
        raise UsageError(f"cannot read {name}: {str(error).splitlines()[0]}") from None
