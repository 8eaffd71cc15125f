"""N-gram language models: P(w | history) ≈ P(w | the N − 1 tokens before) (Markov; Shannon 1948).

Every smoothing of trivium.language.smoothing gives the same table, in the form of a back-off model
(Katz 1987): a probability for each n-gram that was seen, and a weight γ for each context h,

    P(w | h) = p(h w)               where h w was seen
             = γ(h) P(w | h')       elsewhere; h' is h without its first token

Interpolation is of this form too, since p(h w) can hold its share of the shorter contexts.

    levels[n-1].probability  (E_n,)  p of each n-gram, on the trie of trivium.language.ngram_counts
    levels[n-1].backoff      (E_n,)  γ of it as a context; 1 if nothing was seen behind it
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trivium.errors import NotFound, UsageError
from trivium.files import read_json, write_atomic
from trivium.language.ngram_counts import Array, Trie, before, word_type

WEIGHTS = "model.safetensors"
PIECE = 1 << 20  # tokens that are scored at once


@dataclass(frozen=True)
class Level:
    probability: Array
    backoff: Array


@dataclass(frozen=True)
class Score:
    """Σ log P over the tokens of some documents, but not over the token that begins each."""

    tokens: int
    nll: float  # nats

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.tokens)

    def bits_per_byte(self, size: int) -> float:
        """size: bytes of the text that the tokens spell."""
        return self.nll / math.log(2) / size


@dataclass(frozen=True)
class NGram:
    """A model of `trie.order` orders.

    begin      the token that begins each document, and is never predicted; None: there is none
    unseen     γ of a context that was never seen
    smoothing  how it was made, in words
    settings   and in numbers
    """

    trie: Trie
    levels: tuple[Level, ...]
    begin: int | None
    smoothing: str
    unseen: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        trie = self.trie
        arrays = [*trie.words, *trie.first]
        return sum(a.nbytes for a in arrays) + sum(
            level.probability.nbytes + level.backoff.nbytes for level in self.levels
        )

    def probabilities(self, ids: Array) -> Array:
        """P of each token of a document, given those before it: (T,)."""
        nodes = self.trie.walk(ids)
        p = self.levels[0].probability[ids].astype(np.float64)
        for n in range(2, self.trie.order + 1):
            contexts, here = before(nodes[n - 2]), nodes[n - 1]
            weight = np.where(contexts >= 0, self.levels[n - 2].backoff[contexts], self.unseen)
            weight[: n - 1] = 1  # so near the beginning there is no context of this length
            longer = self.levels[n - 1].probability
            seen = here >= 0
            p = np.where(seen, longer[np.where(seen, here, 0)], weight * p) if len(longer) else p
        return p

    def score(self, documents: Iterable[Sequence[int] | Array]) -> Score:
        """How likely documents are, each a row of ids (which begins with `begin`, if there is one).

        Raises UsageError if the model holds a token for impossible.
        """
        tokens, nll = 0, 0.0
        for document in documents:
            for ids, known in _pieces(np.asarray(document, np.int64), self.trie.order):
                p = self.probabilities(ids)[known:]
                p = p[ids[known:] != self.begin] if self.begin is not None else p
                if len(p) and p.min() <= 0:
                    raise UsageError(
                        f"{self.smoothing} holds a token of the text for impossible: it has no "
                        "perplexity there; use a smoothing that leaves something for every token"
                    )
                tokens += len(p)
                nll -= float(np.log(p).sum())
        if not tokens:
            raise UsageError("there is no text to score")
        return Score(tokens, nll)

    def next(self, context: Sequence[int]) -> Array:
        """P of every token behind `context`: (V,)."""
        p = self.levels[0].probability.astype(np.float64)
        longest = list(context)[max(len(context) - self.trie.order + 1, 0) :]
        for length in range(1, len(longest) + 1):
            node = self._node(longest[-length:])
            if node is None:
                p *= self.unseen
                continue
            p *= self.levels[length - 1].backoff[node]
            start, end = (int(i) for i in self.trie.first[length][node : node + 2])
            p[self.trie.words[length][start:end]] = self.levels[length].probability[start:end]
        return p

    def _node(self, ids: Sequence[int]) -> int | None:
        node = ids[0]
        for n, word in enumerate(ids[1:], start=2):
            start, end = (int(i) for i in self.trie.first[n - 1][node : node + 2])
            place = start + int(np.searchsorted(self.trie.words[n - 1][start:end], word))
            if place == end or self.trie.words[n - 1][place] != word:
                return None
            node = place
        return int(node)

    def generate(
        self,
        context: Sequence[int],
        *,
        end: int | None = None,
        max_tokens: int = 100,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """Draw tokens behind `context`, until `end` or max_tokens. temperature 0: the likeliest."""
        random = np.random.default_rng(seed)
        ids = list(context)
        for _ in range(max_tokens):
            p = self.next(ids)
            if temperature == 0:
                token = int(p.argmax())
            else:
                running = np.cumsum(p if temperature == 1 else p ** (1 / temperature))
                token = int(np.searchsorted(running, random.random() * running[-1], side="right"))
                token = min(token, len(p) - 1)
            if token == end:
                return
            yield token
            ids = [*ids[-self.trie.order :], token]

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors, each whole or not at all."""
        from safetensors.numpy import save as to_bytes

        arrays: dict[str, Array] = {}
        for n, (words, first) in enumerate(zip(self.trie.words, self.trie.first, strict=True), 1):
            arrays |= {f"words.{n}": words, f"first.{n}": first} if n > 1 else {}
            arrays[f"probability.{n}"] = self.levels[n - 1].probability
            if n < self.trie.order:
                arrays[f"backoff.{n}"] = self.levels[n - 1].backoff
        config = {
            "kind": "ngram",
            "order": self.trie.order,
            "vocab_size": self.trie.vocab_size,
            "begin": self.begin,
            "unseen": self.unseen,
            "smoothing": self.smoothing,
            "settings": self.settings,
        }
        write_atomic(folder / WEIGHTS, to_bytes(arrays))
        write_atomic(folder / "config.json", json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "NGram":
        """What `save` wrote. Raises NotFound, and UsageError for files that are not whole."""
        config = read_json(folder / "config.json")
        if config.get("kind") != "ngram":
            raise UsageError(f"{folder} holds no n-gram model, but {config.get('kind')!r}")
        arrays = _read(folder / WEIGHTS)
        try:
            return _assembled(config, arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{folder} does not fit its config: {error}") from None


def _pieces(ids: Array, order: int) -> Iterator[tuple[Array, int]]:
    """A document in pieces; of each, how many tokens were in the one before and are only read."""
    for start in range(0, len(ids), PIECE):
        known = min(order - 1, start)
        yield ids[start - known : start + PIECE], known


def _read(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise NotFound(f"no such file: {path}")
    try:
        arrays: dict[str, Array] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a whole safetensors file ({error})") from None
    return arrays


def _assembled(config: dict[str, Any], arrays: dict[str, Array]) -> NGram:
    """The model, after its arrays were checked: a node out of range would read other memory's."""
    order, vocab_size = int(config["order"]), int(config["vocab_size"])
    words = [np.arange(vocab_size, dtype=word_type(vocab_size))]
    first = [np.array([0, vocab_size], np.uint32)]
    levels = []
    for n in range(1, order + 1):
        if n > 1:
            words.append(arrays[f"words.{n}"])
            first.append(arrays[f"first.{n}"])
        size, parents = len(words[-1]), len(words[-2]) if n > 1 else 1
        edges = first[-1].astype(np.int64)
        whole = len(edges) == parents + 1 and edges[0] == 0 and edges[-1] == size
        if not whole or (np.diff(edges) < 0).any() or (size and words[-1].max() >= vocab_size):
            raise ValueError(f"the table of order {n} is broken")
        none = np.ones(0, np.float32)
        backoff = arrays[f"backoff.{n}"] if n < order else none
        level = Level(arrays[f"probability.{n}"], backoff)
        if len(level.probability) != size or len(backoff) != (size if n < order else 0):
            raise ValueError(f"the table of order {n} has {size} n-grams, its weights differ")
        levels.append(level)
    begin = config["begin"]
    if begin is not None and not 0 <= int(begin) < vocab_size:
        raise ValueError(f"begin is {begin}, of {vocab_size} tokens")
    return NGram(
        Trie(tuple(words), tuple(first)),
        tuple(levels),
        begin,
        str(config["smoothing"]),
        float(config["unseen"]),
        dict(config["settings"]),
    )
