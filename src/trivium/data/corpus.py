"""Documents of text: what a language model learns from, wherever it lies.

    for text in documents("books/"):              a folder, a file, a glob, or hf:NAME
        ...
    train, held_out = documents(None).split(0.1)  None: the text that comes with CPython

A text file is a document (a large one several: trivium.data.textfiles), and so is a line of a
JSON-lines file. Nothing is read before it is needed, and never more than a block at a time.
"""

import hashlib
import importlib
import json
import math
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

from trivium.data.converted import hub_data, plain
from trivium.data.held import Held
from trivium.data.textfiles import RECORDS, Blocks, Part, files_of
from trivium.errors import UsageError

FIELDS = ("text", "content")  # of a record, where its text stands
TABLES = (*RECORDS, ".json", ".csv", ".tsv", ".parquet")  # endings of files that hold records
Item = TypeVar("Item")


class Found(NamedTuple, Generic[Item]):
    """A document or another item; it starts or ends here, or goes on in another block."""

    item: Item
    starts: bool
    ends: bool
    place: Any  # as text: where it is


class Corpus(ABC, Generic[Item]):
    """Items of one kind in blocks of files, or in memory.

    name         what the source is called
    bytes        of the whole source
    licence      of the items, where it is known
    broken       how many records were left out so far (with skip_broken)
    first_broken what was wrong with the first few of them, each with its place
    """

    kind = "items"
    licence: str | None = None

    def __init__(
        self, name: str, blocks: Blocks | Held, *, skip_broken: bool = False, note: str = ""
    ) -> None:
        self.name, self.blocks, self.bytes = name, blocks, blocks.bytes
        self.first_broken: list[str] = []
        self._broken: set[Any] = set()  # places: a record that is read again counts once
        self._skip_broken, self._note = skip_broken, note
        self._range = (0.0, 1.0)  # of the numbers that decide which part an item is in

    @abstractmethod
    def parse(self, record: Any) -> Item:
        """The item of a record. Raises UsageError, which need not say where the record is."""

    def find(self, block: int) -> Iterator[tuple[Found[Item], bytes]]:
        """All items of a block, each with the bytes that decide which part it is in."""
        for place, line in self.blocks.lines(block):
            try:
                item = self.parse(_json(line))
            except UsageError as error:
                self.leave_out(place, error)
                continue
            yield Found(item, True, True, place), line.strip()

    def leave_out(self, place: Any, error: UsageError) -> None:
        """Count a record as broken; without skip_broken, raise `error` with the place."""
        if not self._skip_broken:
            raise UsageError(f"{place}: {error}") from None
        if place not in self._broken and len(self.first_broken) < 10:
            self.first_broken.append(f"{place}: {error}")
        self._broken.add(place)

    @property
    def broken(self) -> int:
        return len(self._broken)

    def read(self, block: int) -> list[Found[Item]]:
        """The items of a block, by its number, that are in this part."""
        low, high = self._range
        if (low, high) == (0.0, 1.0):
            return [found for found, _ in self.find(block)]
        return [found for found, key in self.find(block) if low <= _share(key) < high]

    def found(self) -> Iterator[Found[Item]]:
        for block in range(len(self.blocks)):
            yield from self.read(block)

    def __iter__(self) -> Iterator[Item]:
        """The items in the order of the files."""
        return (found.item for found in self.found())

    def split(self, fraction: float) -> tuple[Self, Self]:
        """The part to train on, and about `fraction` of the documents, held out.

        The hash of an item alone decides, so the order of the files plays no part, and equal
        documents are never on both sides. Neither side is empty.
        """
        if not 0 < fraction < 1:
            raise UsageError(f"the share to hold out is between 0 and 1, not {fraction}")
        start, end = self._range
        border = start + fraction * (end - start)
        lowest, highest = 1.0, 0.0
        for block in range(len(self.blocks)):
            for _, key in self.find(block):
                share = _share(key)
                if start <= share < end:
                    lowest, highest = min(lowest, share), max(highest, share)
            if lowest < border <= highest:
                break
        if lowest >= highest:
            raise UsageError(f"{self.name} is a single document: no part of it can be held out")
        if not lowest < border <= highest:
            border = math.nextafter(lowest, 1) if lowest >= border else highest
        train, held_out = copy(self), copy(self)
        train._range, held_out._range = (border, end), (start, border)
        return train, held_out

    @property
    def share(self) -> float:
        """Of the source, how much this part is."""
        low, high = self._range
        return high - low

    @property
    def fingerprint(self) -> str:
        """Tells at once whether the data are others; see `hash` for their contents."""
        return f"{self.blocks.fingerprint}{self._part}"

    @property
    def hash(self) -> str:
        """Of the contents, for the record of a run. It reads the source (above 4 GiB: a sample)."""
        return f"{self.blocks.hash}{self._part}"

    @property
    def _part(self) -> str:
        low, high = self._range
        return "" if (low, high) == (0.0, 1.0) else f":{low:.6g}-{high:.6g}"

    @property
    def description(self) -> str:
        """One line: what it is and how large."""
        count = len(self.blocks) if isinstance(self.blocks, Held) else len(self.blocks.files)
        things = self.kind if isinstance(self.blocks, Held) else "files"
        many = f"{count:,} {things}, " if count > 1 else ""
        note = f"; {self._note}" if self._note else ""
        part = f" ({self.share:.1%} of it)" if self._part else ""
        return f"{self.name} ({many}{self.bytes:,} bytes{note}){part}"


class Documents(Corpus[str]):
    """Texts. Iterating gives each as a string; see `documents`."""

    kind = "documents"

    def __init__(
        self, name: str, blocks: Blocks | Held, *, field: str | None = None, **more: Any
    ) -> None:
        super().__init__(name, blocks, **more)
        self.field = field

    def parse(self, record: Any) -> str:
        if isinstance(record, str):
            return whole(record)
        if not isinstance(record, dict):
            raise UsageError("expected a JSON object or a text")
        names = (self.field,) if self.field else FIELDS
        text = next((record[name] for name in names if name in record), None)
        if isinstance(text, str):
            return whole(text)
        if text is not None:
            raise UsageError(f"expected a text, not {json.dumps(text)[:60]}")
        wanted = " or ".join(map(repr, names))
        given = ", ".join(map(repr, record)) or "none at all"
        raise UsageError(f"no field {wanted}: the record has {given}")

    def find(self, block: int) -> Iterator[tuple[Found[str], bytes]]:
        part = _text_of(self.blocks, block)
        if part is None:
            for found, _ in super().find(block):
                if found.item:
                    yield found, found.item.encode()
        elif part.text:
            yield Found(*part), part.text.encode()


def _text_of(blocks: Blocks | Held, number: int) -> Part | None:
    """The text of a block of a text file; None for a block of records."""
    if isinstance(blocks, Held) or blocks.place(number)[0].records:
        return None
    return blocks.part(number)


def documents(
    source: str | Path | Sequence[str] | None = None,
    *,
    field: str | None = None,
    skip_broken: bool = False,
    name: str = "the texts given",
) -> Documents:
    """The documents of a file, a folder, a glob or hf:NAME; of the embedded text for None; or texts
    in memory, which messages call `name`.

    field: of a record, where its text is (default: text, else content)
    skip_broken: leave out records that cannot be read, and count them in `.broken`

    Raises NotFound and UsageError, also while reading: the message names file and line.
    """
    if source is None:
        return embedded()
    if not isinstance(source, str | Path):
        texts = [text for text in source if text]
        if not texts:
            raise UsageError(f"{name}: no text among them")
        return Documents(name, Held(name, texts))
    name, blocks, note = blocks_of(str(source))
    return Documents(name, blocks, field=field, skip_broken=skip_broken, note=note)


def embedded() -> Documents:
    """The language reference that ships inside CPython, topic by topic."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError:
        raise UsageError(
            "this Python comes without its language reference (pydoc_data), the text that is read "
            "when none is given: name a file or folder of text"
        ) from None
    name = f"the language reference inside CPython {platform.python_version()}"
    found = documents([topics[topic] for topic in sorted(topics)], name=name)
    found.licence = "PSF-2.0"
    return found


def blocks_of(source: str, *, records: bool = False) -> tuple[str, Blocks, str]:
    """The name of a source, its blocks, and what is to be said about them.

    records: whatever the files are called, they hold records; of a folder, only those that are
        called so are read
    """
    left_out: list[str] = []
    if source.startswith("hf:"):
        files = [hub_data(source)]
    else:
        found, left_out = files_of(source)
        if records and os.path.isdir(os.path.expanduser(source)):
            others = [name for _, name in found if not _is_table(name)]
            found = [(path, name) for path, name in found if _is_table(name)]
            left_out += others
        files = [plain(path, name) for path, name in found]
    if records:
        files = [file._replace(records=True) for file in files]
    blocks = Blocks([file for file in files if file.size], small=records)
    if not blocks.files:
        what = "holds no records" if records and not files else "holds no text: all files are empty"
        raise UsageError(f"{source} {'is empty' if len(files) == 1 else what}")
    note = f"{len(left_out):,} other files left out" if left_out else ""
    return source, blocks, note


def _is_table(name: str) -> bool:
    inner = Path(name)
    while inner.suffix.lower() in (".gz", ".zst"):
        inner = inner.with_suffix("")
    return inner.suffix.lower() in TABLES


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise UsageError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"not valid JSON ({error.msg}, character {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not valid JSON ({error})") from None


def _share(key: bytes) -> float:
    """A number in [0, 1) that only the bytes decide."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=6).digest()) / 2**48


def whole(text: str) -> str:
    """`text` without halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
