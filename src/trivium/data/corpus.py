"""Documents of text: what a language model learns from, wherever it lies.

    for text in documents("books/"):              a folder, a file, a glob, or hf:NAME
        ...
    train, held_out = documents(None).split(0.1)  None: the text that comes with CPython

A text file is a document (a large one several: trivium.textfiles), and so is a line of a JSON-lines
file. Nothing is read before it is needed, and never more than a block at a time.
"""

import hashlib
import importlib
import json
import math
import platform
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

from trivium.data.converted import hub_data, plain
from trivium.data.textfiles import Blocks, Place, content_hash, files_of, fingerprint
from trivium.errors import UsageError

FIELDS = ("text", "content")  # of a record, where its text stands
Item = TypeVar("Item")


class Found(NamedTuple, Generic[Item]):
    """A document or another item; it starts or ends here, or goes on in another block."""

    item: Item
    starts: bool
    ends: bool
    place: Any  # as text: where it is


class Corpus(ABC, Generic[Item]):
    """Items of one kind in blocks of files.

    name         what the source is called
    description  one line: what it is and how large
    bytes        of the whole source
    broken       how many records were left out so far (with skip_broken)
    """

    def __init__(self, name: str, blocks: Blocks, *, skip_broken: bool = False, note: str = ""):
        self.name, self.blocks, self.bytes = name, blocks, blocks.bytes
        self.broken = 0
        self._skip_broken, self._note = skip_broken, note
        self._range = (0.0, 1.0)  # of the numbers that decide which part an item is in

    @abstractmethod
    def parse(self, record: Any, place: Place) -> Item:
        """The item of a record. Raises UsageError that begins with the place."""

    def find(self, block: int) -> Iterator[tuple[Found[Item], bytes]]:
        """All items of a block, each with the bytes that decide which part it is in."""
        for place, line in self.blocks.lines(block):
            try:
                try:
                    item = self.parse(json.loads(line.decode()), place)
                except UnicodeDecodeError:
                    raise UsageError(f"{place}: not UTF-8 text") from None
                except (ValueError, RecursionError) as error:
                    raise UsageError(f"{place}: not valid JSON ({error})") from None
            except UsageError:
                if not self._skip_broken:
                    raise
                self.broken += 1
                continue
            yield Found(item, True, True, place), line.strip()

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
    def fingerprint(self) -> str:
        """Tells at once whether the data are others; see `hash` for their contents."""
        low, high = self._range
        return f"{self._fingerprint}:{low:.6g}-{high:.6g}"

    @property
    def hash(self) -> str:
        """Of the contents, for the record of a run. It reads the source (above 4 GiB: a sample)."""
        low, high = self._range
        part = "" if (low, high) == (0.0, 1.0) else f":{low:.6g}-{high:.6g}"
        return self._hash + part

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.blocks.files)

    @cached_property
    def _hash(self) -> str:
        return content_hash(self.blocks.files)

    @property
    def description(self) -> str:
        count = len(self.blocks.files)
        many = f"{count:,} files, " if count > 1 else ""
        note = f"; {self._note}" if self._note else ""
        low, high = self._range
        part = "" if (low, high) == (0.0, 1.0) else f" ({high - low:.1%} of it)"
        return f"{self.name} ({many}{self.bytes:,} bytes{note}){part}"


class Documents(Corpus[str]):
    """Texts. Iterating gives each as a string; see `documents`."""

    def __init__(self, name: str, blocks: Blocks, *, field: str | None = None, **more: Any) -> None:
        super().__init__(name, blocks, **more)
        self.field = field

    def parse(self, record: Any, place: Place) -> str:
        if isinstance(record, str):
            return _whole(record)
        if not isinstance(record, dict):
            raise UsageError(f"{place}: expected a JSON object or a text")
        names = (self.field,) if self.field else FIELDS
        text = next((record[name] for name in names if name in record), None)
        if isinstance(text, str):
            return _whole(text)
        if text is not None:
            raise UsageError(f"{place}: expected a text, not {json.dumps(text)[:60]}")
        raise UsageError(
            f"{place}: no field {' or '.join(map(repr, names))}; the record has "
            f"{', '.join(map(repr, record)) or 'none at all'}"
        )

    def find(self, block: int) -> Iterator[tuple[Found[str], bytes]]:
        if self.blocks.place(block)[0].records:
            for found, _ in super().find(block):
                if found.item:
                    yield found, found.item.encode()
        elif part := self.blocks.part(block):
            yield Found(part.text, part.starts, part.ends, part.place), part.text.encode()


class Texts(Documents):
    """Documents that are in memory already."""

    def __init__(self, name: str, texts: Sequence[str]) -> None:
        super().__init__(name, Blocks([]))
        self._texts = [_whole(text) for text in texts if text]
        if not self._texts:
            raise UsageError(f"{name} holds no text")
        self.blocks = range(len(self._texts))  # type: ignore[assignment]  # one document each
        self.bytes = sum(len(text.encode()) for text in self._texts)

    def find(self, block: int) -> Iterator[tuple[Found[str], bytes]]:
        text = self._texts[block]
        yield Found(text, True, True, f"{self.name}, document {block + 1}"), text.encode()

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256()
        for text in self._texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        return "sha256:" + digest.hexdigest()

    @cached_property
    def _fingerprint(self) -> str:
        return self._hash[:23]

    @property
    def description(self) -> str:
        low, high = self._range
        part = "" if (low, high) == (0.0, 1.0) else f" ({high - low:.1%} of it)"
        return f"{self.name} ({len(self._texts):,} documents, {self.bytes:,} bytes){part}"


def documents(
    source: str | Path | None = None, *, field: str | None = None, skip_broken: bool = False
) -> Documents:
    """The documents of a file, a folder, a glob or hf:NAME; of the embedded text for None.

    field: of a record, where its text is (default: text, else content)
    skip_broken: leave out records that cannot be read, and count them in `.broken`

    Raises NotFound and UsageError, also while reading: the message names file and line.
    """
    if source is None:
        return embedded()
    name, blocks, note = blocks_of(str(source))
    return Documents(name, blocks, field=field, skip_broken=skip_broken, note=note)


def embedded() -> Texts:
    """The language reference that ships inside CPython, topic by topic."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError:
        raise UsageError(
            "this Python comes without its language reference (pydoc_data), the text that is read "
            "when none is given: name a file or folder of text"
        ) from None
    version = platform.python_version()
    texts = [topics[name] for name in sorted(topics)]
    return Texts(f"the language reference inside CPython {version}", texts)


def blocks_of(source: str, size: int | None = None) -> tuple[str, Blocks, str]:
    """The name of a source, its blocks, and what is to be said about them."""
    binary: list[str] = []
    if source.startswith("hf:"):
        files = [hub_data(source)]
    else:
        found, binary = files_of(source)
        files = [plain(path, name) for path, name in found]
    blocks = Blocks([file for file in files if file.size], size)
    if not blocks.files:
        what = "is empty" if len(files) == 1 else "holds no text: all its files are empty"
        raise UsageError(f"{source} {what}")
    note = f"{len(binary):,} binary files left out" if binary else ""
    return source, blocks, note


def _share(key: bytes) -> float:
    """A number in [0, 1) that only the bytes decide."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=6).digest()) / 2**48


def _whole(text: str) -> str:
    """`text` without halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
