"""word2vec: a vector for each word, from the words it stands among (Mikolov et al. 2013).

    vocabulary = count_words(texts)
    encode(texts, vocabulary, file)        the text as word numbers, on the disk
    learning = Learning(vocabulary, Config())
    for progress in learning.run(file):
        …
    learning.vectors                       trivium.language.word_vectors

The text is read twice, in a stream; then every epoch reads the numbers. `save` after an epoch, and
`resume` goes on from there. What is learnt, and how: trivium.language.negative_sampling.
"""

import json
import os
import re
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trivium.errors import TriviumError, UsageError
from trivium.files import write_atomic, writing
from trivium.language import negative_sampling
from trivium.language.negative_sampling import MOST_ROWS, Array, Found, Tables, stride_of
from trivium.language.word_vectors import WordVectors

STATE = "word2vec.safetensors"
BLOCKS = 20  # of an epoch, after each of which `learn` tells where it is
SMALLEST, LARGEST = 20_000, 4_000_000  # words of a block
# Scripts that put no spaces between words: each of their characters counts as one.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
RATES = {"skip-gram": 0.025, "cbow": 0.1}  # of learning, unless told otherwise


@dataclass(frozen=True)
class Config:
    """How vectors are learnt. The defaults are those of the paper's program."""

    kind: Literal["skip-gram", "cbow"] = "skip-gram"
    width: int = 100  # numbers a vector
    window: int = 5  # words to each side, at most
    negative: int = 5  # noise words a pair
    subsample: float = 1e-3  # frequent words are left out beyond this share of the text; 0: never
    epochs: int = 5
    learning_rate: float = 0.0  # falls to a 10,000th; 0: 0.025 for skip-gram, 0.1 for CBOW
    threads: int = 0  # 0: as many as there are cores; 1 gives the same vectors every time
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in RATES:
            raise UsageError(f"kind is skip-gram or cbow, not {self.kind!r}")
        for name, low, high in (
            ("width", 1, 4096),
            ("window", 1, MOST_ROWS // 2),
            ("negative", 1, MOST_ROWS - 1),
            ("subsample", 0, 1),
            ("epochs", 1, 10_000),
            ("learning_rate", 0, 10),
            ("threads", 0, 1024),
        ):
            if not low <= (value := getattr(self, name)) <= high:
                raise UsageError(f"{name} is between {low} and {high}, not {value!r}")


@dataclass(frozen=True)
class Vocabulary:
    """Words by their number, the most frequent first, and how often each occurs."""

    words: tuple[str, ...]
    counts: Array  # (V,) int64

    def numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


@dataclass(frozen=True)
class Progress:
    epoch: int  # 1 … epochs
    done: float  # share of all epochs
    loss: float  # of a pair and its noise words, since the last Progress
    words_per_second: float
    ends_epoch: bool


Split = Callable[[str], list[str]]


def words_of(text: str) -> list[str]:
    """Runs of letters and digits without regard to case; of Chinese and the like, characters."""
    return _WORD.findall(text.casefold())


def between_spaces(text: str) -> list[str]:
    """For text that was cut into words already."""
    return text.split()


def count_words(
    texts: Iterable[str], *, min_count: int = 5, most: int = 1_000_000, split: Split = words_of
) -> Vocabulary:
    """The words that occur at least `min_count` times, at most `most` of them."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(split(text))
    kept = [word for word, many in found.items() if many >= min_count]
    kept = sorted(kept, key=lambda word: (-found[word], word))[:most]
    if len(kept) < 2:
        top = found.most_common(1)
        said = f"; the most frequent, {top[0][0]!r}, occurs {top[0][1]} times" if top else ""
        raise UsageError(f"the text has fewer than two words that occur {min_count} times{said}")
    return Vocabulary(tuple(kept), np.array([found[word] for word in kept]))


def encode(
    texts: Iterable[str], vocabulary: Vocabulary, path: Path, *, split: Split = words_of
) -> int:
    """Write the numbers of the words to a file of int32, -1 behind each text; return how many
    words. Words outside the vocabulary are left out. The file is there when it is whole."""
    numbers, many = vocabulary.numbers(), 0
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = part.open("wb")
        with file:
            for text in texts:
                row = array("i", (numbers[word] for word in split(text) if word in numbers))
                many += len(row)
                row.append(-1)
                with writing(path):
                    file.write(row.tobytes())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return many


def _block(words: int) -> int:
    return min(max(-(-words // BLOCKS), SMALLEST), LARGEST)


class Learning:
    """Vectors on their way. `epoch`: how many are done."""

    def __init__(self, vocabulary: Vocabulary, config: Config) -> None:
        self.vocabulary, self.config, self.epoch = vocabulary, config, 0
        size, width = len(vocabulary.words), config.width
        random = np.random.default_rng(config.seed)
        inputs = np.zeros((size, stride_of(width)), np.float32)
        for start in range(0, size, 1 << 16):
            part = inputs[start : start + (1 << 16), :width]
            part[:] = (random.random(part.shape, np.float32) - 0.5) / width
        chance, alias = negative_sampling.alias_table(vocabulary.counts**0.75)
        self.tables = Tables(
            inputs,
            np.zeros_like(inputs),
            negative_sampling.kept(vocabulary.counts, config.subsample),
            chance,
            alias,
            config.window,
            config.negative,
            config.kind == "cbow",
        )
        threads = config.threads or os.cpu_count() or 1
        self.states = random.integers(0, 1 << 63, threads).astype(np.uint64)

    def run(self, numbers: Path) -> Iterator[Progress]:
        """Learn what is left of the epochs."""
        if not numbers.stat().st_size:
            raise UsageError("the text holds no word of the vocabulary")
        ids = np.memmap(numbers, np.int32, "r")
        epochs, first = self.config.epochs, self.config.learning_rate or RATES[self.config.kind]
        block = _block(len(ids))

        def rate(done: float) -> float:
            return max(first * (1 - done), first * 1e-4)

        while self.epoch < epochs:
            for start in range(0, len(ids), block):
                part = np.array(ids[start : start + block])
                done = (self.epoch + start / len(ids)) / epochs
                then = (self.epoch + (start + len(part)) / len(ids)) / epochs
                found, clock = Found(), time.perf_counter()
                negative_sampling.advance(
                    self.tables, part, rate(done), rate(then), self.states, found
                )
                ends = start + len(part) == len(ids)
                self.epoch += ends
                speed = int((part >= 0).sum()) / max(time.perf_counter() - clock, 1e-9)
                if not np.isfinite(found.loss):
                    raise TriviumError(
                        f"the vectors grew without bounds: lower the learning rate of {first:g}"
                    )
                yield Progress(self.epoch + (not ends), then, found.mean, speed, bool(ends))

    @staticmethod
    def blocks(numbers: Path) -> int:
        """How many Progress an epoch gives."""
        many = numbers.stat().st_size // 4
        return -(-many // _block(many))

    @property
    def matrix(self) -> Array:
        """(V, D)"""
        return self.tables.inputs[:, : self.config.width]

    @property
    def vectors(self) -> WordVectors:
        return WordVectors(self.vocabulary.words, self.matrix)

    def _described(self) -> dict[str, Any]:
        return asdict(self.config) | {"threads": len(self.states)}

    def save(self, folder: Path) -> None:
        """All that is needed to go on, in one file that is whole or not there."""
        from safetensors.numpy import save as to_bytes

        said = {"epoch": self.epoch, "config": self._described()}
        arrays = {
            "inputs": np.ascontiguousarray(self.matrix),
            "outputs": np.ascontiguousarray(self.tables.outputs[:, : self.config.width]),
            "states": self.states,
            "counts": np.asarray(self.vocabulary.counts, np.int64),
        }
        write_atomic(folder / STATE, to_bytes(arrays, {"word2vec": json.dumps(said)}))

    def resume(self, folder: Path) -> None:
        """Go on from what `save` wrote, if anything. UsageError if it is of another run."""
        from safetensors import SafetensorError, safe_open

        path = folder / STATE
        if not path.is_file():
            return
        try:
            with safe_open(path, framework="np") as file:
                said = json.loads((file.metadata() or {}).get("word2vec", "{}"))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            same = arrays["counts"].tolist() == self.vocabulary.counts.tolist()
            if said["config"] != self._described() or not same:
                raise UsageError(
                    f"{path} is of a run with other settings or another text: give another folder"
                )
            width = self.config.width
            self.tables.inputs[:, :width] = arrays["inputs"]
            self.tables.outputs[:, :width] = arrays["outputs"]
            self.states[:], self.epoch = arrays["states"], int(said["epoch"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UsageError(f"{path} is no state of word2vec ({error}): delete it") from None
