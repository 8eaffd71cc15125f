"""Vectors of words: neighbours, analogies, pictures, and the files of word2vec.

    king − man + woman ≈ queen     the word whose vector has the largest cosine with the sum of unit
                                   vectors, the given words left out (3CosAdd: Mikolov et al. 2013)

    V words, D numbers a vector

A `.txt` or `.vec` file begins with a line `V D` and has a line for each word; GloVe's files, which
lack the first line, are read too. A `.bin` file has the numbers as float32. Other programs, such as
gensim, read and write both.
"""

import difflib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trivium.errors import NotFound, UsageError
from trivium.files import write_atomic

Array = NDArray[Any]
FILE = "vectors.bin"  # in the folder of a run
TEXT_ENDINGS, BINARY_ENDINGS = (".txt", ".vec"), (".bin",)
LONGEST_WORD, WIDEST = 4096, 65_536  # bytes; numbers of a vector
TOGETHER = 256  # questions that are answered at once


class Neighbour(NamedTuple):
    word: str
    cosine: float


@dataclass(frozen=True)
class Section:
    """Questions a : b = c : d of one kind, and how they were answered."""

    name: str
    right: int
    asked: int  # of which all four words have vectors
    left_out: int


class WordVectors:
    """words: (V,), the most frequent first; matrix: (V, D) float32."""

    def __init__(self, words: Sequence[str], matrix: Array) -> None:
        if len(words) != len(matrix):
            raise UsageError(f"{len(words)} words have {len(matrix)} vectors")
        self.words, self.matrix = tuple(words), matrix
        self._numbers = {word: i for i, word in reversed(list(enumerate(self.words)))}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._numbers or word.casefold() in self._numbers

    @cached_property
    def unit(self) -> Array:
        """The vectors at length 1: (V, D)."""
        lengths = np.linalg.norm(self.matrix, axis=1, keepdims=True)
        unit: Array = self.matrix / np.maximum(lengths, 1e-12)
        return unit

    def number(self, word: str) -> int:
        """Where a word stands; as it is written, else in small letters. Raises NotFound."""
        for spelling in (word, word.casefold()):
            if spelling in self._numbers:
                return self._numbers[spelling]
        close = difflib.get_close_matches(word.casefold(), self.words[:50_000], n=3)
        hint = f"; spelled like it: {', '.join(close)}" if close else ""
        raise NotFound(f"no vector for the word {word!r}, of {len(self):,} words{hint}")

    def __getitem__(self, word: str) -> Array:
        row: Array = self.matrix[self.number(word)]
        return row

    def similarity(self, one: str, other: str) -> float:
        """The cosine between two words."""
        return float(self.unit[self.number(one)] @ self.unit[self.number(other)])

    def nearest(
        self, plus: Sequence[str], minus: Sequence[str] = (), *, count: int = 10
    ) -> list[Neighbour]:
        """The words nearest to the sum of some words less others, without these words."""
        if not plus and not minus:
            raise UsageError("no word was given")
        given = [self.number(word) for word in (*plus, *minus)]
        signs = np.array([1.0] * len(plus) + [-1.0] * len(minus), np.float32)
        cosines = self.unit @ _unit(signs @ self.unit[given])
        cosines[given] = -np.inf
        best = np.argpartition(-cosines, min(count + 1, len(cosines) - 1))[:count]
        best = best[np.argsort(-cosines[best], kind="stable")]
        found = (Neighbour(self.words[i], float(cosines[i])) for i in best)
        return [neighbour for neighbour in found if math.isfinite(neighbour.cosine)]

    def answer(self, questions: Iterable[tuple[str, Sequence[str]]]) -> list[Section]:
        """How many questions (section, [a, b, c, d]) are right: d is nearest to b − a + c."""
        asked: dict[str, list[list[int]]] = {}
        left_out: dict[str, int] = {}
        for section, words in questions:
            rows = asked.setdefault(section, [])
            if all(word in self for word in words):
                rows.append([self.number(word) for word in words])
            else:
                left_out[section] = left_out.get(section, 0) + 1
        return [
            Section(name, self._right(rows), len(rows), left_out.get(name, 0))
            for name, rows in asked.items()
        ]

    def _right(self, rows: Sequence[Sequence[int]]) -> int:
        right, unit = 0, self.unit
        for start in range(0, len(rows), TOGETHER):
            a, b, c, d = np.array(rows[start : start + TOGETHER]).T
            cosines = (unit[b] - unit[a] + unit[c]) @ unit.T  # (Q, V)
            for given in (a, b, c):
                cosines[np.arange(len(a)), given] = -np.inf
            right += int((cosines.argmax(axis=1) == d).sum())
        return right

    def plane(self, words: Sequence[str]) -> Array:
        """Two coordinates for each word: (N, 2), the principal components of their unit vectors."""
        rows = self.unit[[self.number(word) for word in words]]
        centred = rows - rows.mean(axis=0)
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
        coordinates: Array = centred @ axes.T
        return coordinates

    def save(self, path: Path) -> None:
        binary = _is_binary(path)
        out = io.BytesIO()
        out.write(f"{len(self)} {self.matrix.shape[1]}\n".encode())
        for word, row in zip(self.words, self.matrix.astype("<f4"), strict=True):
            numbers = row.tobytes() if binary else " ".join(map(str, row.tolist())).encode()
            out.write(word.encode() + b" " + numbers + b"\n")
        write_atomic(path, out.getvalue())

    @classmethod
    def load(cls, path: Path) -> "WordVectors":
        """A file, or the folder of a run. Raises NotFound, and UsageError for what is broken."""
        if path.is_dir():
            if not (path / FILE).is_file():
                raise NotFound(f"no {FILE} in {path}: it is no folder of word vectors")
            path = path / FILE
        if not path.is_file():
            raise NotFound(f"no such file or folder: {path}")
        with path.open("rb") as file:
            words, matrix = _read_binary(file, path) if _is_binary(path) else _read_text(file, path)
        if not np.isfinite(matrix).all():
            raise UsageError(f"{path} holds vectors with numbers that are not finite")
        return cls(words, matrix)


def _unit(vector: Array) -> Array:
    row: Array = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return row


def _is_binary(path: Path) -> bool:
    if path.suffix not in (*TEXT_ENDINGS, *BINARY_ENDINGS):
        known = ", ".join((*TEXT_ENDINGS, *BINARY_ENDINGS))
        raise UsageError(f"{path} is no file of word vectors: its name ends in one of {known}")
    return path.suffix in BINARY_ENDINGS


def _sizes(line: bytes) -> tuple[int, int] | None:
    """V and D of a first line; None if it is none."""
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() and len(part) < 12 for part in parts):
        return None
    return int(parts[0]), int(parts[1])


def _read_binary(file: BinaryIO, path: Path) -> tuple[list[str], Array]:
    sizes = _sizes(file.readline(64))
    if sizes is None or not 0 < sizes[1] <= WIDEST or not sizes[0]:
        raise UsageError(f"{path} does not begin with the number of words and of their numbers")
    many, width = sizes
    if many * width * 4 > path.stat().st_size:
        raise UsageError(f"{path} is cut short: it says {many:,} words of {width} numbers")
    words, matrix = [], np.empty((many, width), np.float32)
    for row in range(many):
        words.append(_word(_until_space(file), path, row))
        numbers = file.read(4 * width)
        if len(numbers) < 4 * width:
            raise UsageError(f"{path} is cut short at word {row + 1:,} of {many:,}")
        matrix[row] = np.frombuffer(numbers, "<f4")
    return words, matrix


def _until_space(file: BinaryIO) -> bytes:
    word = bytearray()
    while (byte := file.read(1)) not in (b" ", b"") and len(word) <= LONGEST_WORD:
        if byte != b"\n" or word:  # the line break behind the vector before
            word += byte
    return bytes(word)


def _word(spelled: bytes, path: Path, row: int) -> str:
    if len(spelled) > LONGEST_WORD:
        raise UsageError(f"{path}: word {row + 1:,} is longer than {LONGEST_WORD} bytes")
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path}: word {row + 1:,} is not UTF-8 text") from None


def _read_text(file: BinaryIO, path: Path) -> tuple[list[str], Array]:
    words: list[str] = []
    rows: list[Array] = []
    for number, line in enumerate(file, start=1):
        if number == 1 and _sizes(line) is not None:
            continue
        spelled, *numbers = line.rstrip(b"\r\n ").split(b" ")
        try:
            row = np.array([float(part) for part in numbers], np.float32)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
        if not len(row) or (rows and len(row) != len(rows[0])):
            wanted = len(rows[0]) if rows else "some"
            raise UsageError(f"{path}, line {number}: {len(row)} numbers instead of {wanted}")
        words.append(_word(spelled, path, len(words)))
        rows.append(row)
    if not rows:
        raise UsageError(f"{path} holds no vectors")
    return words, np.stack(rows)


def read_questions(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The questions of a file: lines `: section`, and lines of four words a b c d."""
    section = "questions"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if words[:1] == [":"]:
            section = " ".join(words[1:])
        elif len(words) == 4:
            yield section, words
        elif words:
            raise UsageError(f"{path}, line {number}: a question is four words, not {len(words)}")
