"""Records in memory, in blocks of one, that are read as those of a file are."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple


class HeldPlace(NamedTuple):
    """Where a record is; as text, `the examples, record 7`."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}, record {self.number}"


class Held:
    """What `trivium.data.textfiles.Blocks` is for files. `records` are JSON values."""

    def __init__(self, name: str, records: Sequence[Any]) -> None:
        self.name = name
        self._lines = [json.dumps(record).encode() for record in records]
        texts = all(isinstance(record, str) for record in records)
        self.bytes = sum(map(_size, records)) if texts else sum(map(len, self._lines))
        self.size = self.bytes // max(len(self._lines), 1)  # of a block, on average

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self, number: int) -> Iterator[tuple[HeldPlace, bytes]]:
        yield HeldPlace(self.name, number + 1), self._lines[number]

    @property
    def fingerprint(self) -> str:
        return self.hash[:23]

    @cached_property
    def hash(self) -> str:
        digest = hashlib.sha256()
        for line in self._lines:
            digest.update(hashlib.sha256(line).digest())
        return "sha256:" + digest.hexdigest()


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))
