"""How often every run of 1 to N tokens occurs in a corpus: a trie in flat sorted arrays.

Level n − 1 of the trie holds the n-grams, sorted by their tokens, so those that continue one
(n−1)-gram lie side by side. An n-gram is known by its place there, its *node*:

    words[n-1]   (E_n,)          its last token; 2 bytes each up to 65,536 tokens, else 4
    first[n-1]   (E_{n-1} + 1,)  where the n-grams that continue each (n−1)-gram begin
    counts[n-1]  (E_n,)          how often it occurs

On level 0 the node of a token is its id. N-grams do not cross the borders of documents.

Counting is streamed: a chunk of tokens is counted by itself, and chunks are merged in pairs of like
size, as sorted runs are. Memory is that of the trie (two or three times, while merging) and of a
chunk, however long the corpus is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivium.errors import UsageError

Array = NDArray[Any]
CHUNK = 1 << 22  # tokens that are counted at once
LARGEST_ORDER, LARGEST_VOCABULARY = 10, 1 << 24


@dataclass(frozen=True)
class Trie:
    words: tuple[Array, ...]
    first: tuple[Array, ...]

    @property
    def order(self) -> int:
        return len(self.words)

    @property
    def vocab_size(self) -> int:
        return len(self.words[0])

    @property
    def sizes(self) -> list[int]:
        """E_n: how many different n-grams there are, by order."""
        return [len(words) for words in self.words]

    def parents(self, n: int) -> Array:
        """For each n-gram the node of its first n − 1 tokens: (E_n,)."""
        first = self.first[n - 1]
        return np.repeat(np.arange(len(first) - 1, dtype=np.uint32), np.diff(first))

    def totals(self, n: int, values: Array) -> Array:
        """Σ of values (E_n,) over the n-grams that continue each (n−1)-gram: (E_{n-1},)."""
        first = self.first[n - 1]
        running = np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])
        return running[first[1:]] - running[first[:-1]]

    def find(self, n: int, parents: Array, words: Array) -> Array:
        """The nodes of n-grams by their first n − 1 tokens (-1: none) and their last; -1: none.

        All are looked for at once, by bisection.
        """
        if n == 1:
            return words.astype(np.int64)
        first, keys = self.first[n - 1], self.words[n - 1]
        nodes = np.full(len(words), -1, np.int64)
        if not len(keys):
            return nodes
        (places,) = np.nonzero(parents >= 0)
        low = first[parents[places]].astype(np.int64)
        end = first[parents[places] + 1].astype(np.int64)
        high, wanted = end, words[places].astype(keys.dtype)
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high) >> 1
            less = (keys[np.minimum(middle, len(keys) - 1)] < wanted) & (low < high)
            low = np.where(less, middle + 1, low)
            high = np.where(less, high, middle)
        found = (low < end) & (keys[np.minimum(low, len(keys) - 1)] == wanted)
        nodes[places[found]] = low[found]
        return nodes

    def walk(self, ids: Array) -> list[Array]:
        """For each order n, the node of the n-gram that ends at each token: (T,); -1: none."""
        nodes = [ids.astype(np.int64)]
        for n in range(2, self.order + 1):
            nodes.append(self.find(n, before(nodes[-1]), ids))
        return nodes

    def suffixes(self) -> list[Array]:
        """For each n-gram the node of its last n − 1 tokens: (E_n,), for n = 1 a row of zeros."""
        links = [np.zeros(self.vocab_size, np.int64)]
        for n in range(2, self.order + 1):
            links.append(self.find(n - 1, links[-1][self.parents(n)], self.words[n - 1]))
        return links

    def beginning_with(self, token: int, n: int) -> slice:
        """The n-grams whose first token is `token`: they lie side by side."""
        low, high = token, token + 1
        for first in self.first[1:n]:
            low, high = int(first[low]), int(first[high])
        return slice(low, high)


@dataclass(frozen=True)
class Counts:
    trie: Trie
    counts: tuple[Array, ...]
    begin: int | None = None  # the token that begins each document, and is never predicted

    @property
    def bytes(self) -> int:
        trie = self.trie
        return sum(array.nbytes for array in (*trie.words, *trie.first, *self.counts))

    def shortened(self, order: int) -> "Counts":
        """Without the n-grams that are longer; nothing is copied."""
        trie = Trie(self.trie.words[:order], self.trie.first[:order])
        return Counts(trie, self.counts[:order], self.begin)


def before(nodes: Array) -> Array:
    """The row moved on by one token; -1 stands before the first."""
    return np.concatenate([np.full(1, -1, nodes.dtype), nodes[:-1]])


def count(
    documents: Iterable[Sequence[int] | Array],
    vocab_size: int,
    order: int,
    *,
    begin: int | None = None,
    chunk: int = CHUNK,
) -> Counts:
    """Count the n-grams up to `order` of documents, each a row of token ids below `vocab_size`."""
    if not 1 <= order <= LARGEST_ORDER:
        raise UsageError(f"the order of an n-gram model is 1 to {LARGEST_ORDER}, not {order}")
    if not 1 <= vocab_size <= LARGEST_VOCABULARY:
        raise UsageError(
            f"an n-gram model has 1 to {LARGEST_VOCABULARY:,} tokens, not {vocab_size:,}"
        )
    runs: list[Counts] = []
    for tokens, room, starts in _chunks(documents, vocab_size, order, chunk):
        runs.append(_run(tokens, room, starts, vocab_size, order))
        while len(runs) > 1 and runs[-2].bytes < 2 * runs[-1].bytes:
            runs.append(merge(runs.pop(), runs.pop()))
    while len(runs) > 1:
        runs.append(merge(runs.pop(), runs.pop()))
    if not runs:
        raise UsageError("there is no text to count")
    return Counts(runs[0].trie, runs[0].counts, begin)


def _chunks(
    documents: Iterable[Sequence[int] | Array], vocab_size: int, order: int, size: int
) -> Iterator[tuple[Array, Array, Array]]:
    """About `size` tokens at a time, for each how many there are from it to the end of its
    document (or of the piece), and the places at which n-grams are to begin."""
    pieces: list[tuple[Array, int]] = []
    held = 0
    for document in documents:
        ids = np.asarray(document, np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
            raise UsageError(f"a token id is outside 0 to {vocab_size - 1}")
        for start in range(0, len(ids), size):
            piece = ids[start : start + size + order - 1]  # n-grams may go on in the next piece
            pieces.append((piece, min(size, len(ids) - start)))
            held += len(piece)
            if held >= size:
                yield _joined(pieces)
                pieces, held = [], 0
    if pieces:
        yield _joined(pieces)


def _joined(pieces: Sequence[tuple[Array, int]]) -> tuple[Array, Array, Array]:
    tokens = np.concatenate([piece for piece, _ in pieces])
    room = np.concatenate([np.arange(len(piece), 0, -1) for piece, _ in pieces])
    begins = np.concatenate([np.arange(len(piece)) < starts for piece, starts in pieces])
    return tokens, room, np.flatnonzero(begins)


def _run(tokens: Array, room: Array, starts: Array, vocab_size: int, order: int) -> Counts:
    """The counts of a chunk."""
    bits = _bits(vocab_size)
    nodes = tokens[starts]
    levels = [_level_of_words(vocab_size)]
    counts = [np.bincount(nodes, minlength=vocab_size).astype(np.int64)]
    for n in range(2, order + 1):
        kept = room[starts] >= n
        starts, nodes = starts[kept], nodes[kept]
        keys, nodes, many = _unique((nodes << bits) | tokens[starts + n - 1])
        levels.append(_level(keys, bits, vocab_size, len(counts[-1])))
        counts.append(many.astype(np.uint32))
    return Counts(_trie(levels), tuple(counts))


def merge(one: Counts, other: Counts) -> Counts:
    """The counts of both corpora together."""
    vocab_size = one.trie.vocab_size
    bits = _bits(vocab_size)
    levels = [_level_of_words(vocab_size)]
    counts = [one.counts[0] + other.counts[0]]
    places = [np.arange(vocab_size)] * 2  # for each side: where the nodes of the last level went
    for n in range(2, one.trie.order + 1):
        keys = np.concatenate(
            [
                (place[side.trie.parents(n)] << bits) | side.trie.words[n - 1]
                for side, place in zip((one, other), places, strict=True)
            ]
        )
        keys, nodes, _ = _unique(keys, kind="stable")  # two sorted runs: a merge
        places = np.split(nodes, [len(one.counts[n - 1])])
        many = np.zeros(len(keys), np.uint32)
        for side, place in zip((one, other), places, strict=True):
            many[place] += side.counts[n - 1]
        levels.append(_level(keys, bits, vocab_size, len(counts[-1])))
        counts.append(many)
    return Counts(_trie(levels), tuple(counts), one.begin)


def _unique(keys: Array, kind: Any = None) -> tuple[Array, Array, Array]:
    """The different keys in order, the place of each key among them, how often each occurs."""
    order = np.argsort(keys, kind=kind)
    keys = keys[order]
    new = np.concatenate([np.ones(min(len(keys), 1), bool), keys[1:] != keys[:-1]])
    places = np.empty(len(keys), np.int64)
    places[order] = np.cumsum(new) - 1
    (borders,) = np.nonzero(new)
    return keys[new], places, np.diff(borders, append=len(keys))


def _bits(vocab_size: int) -> int:
    return max((vocab_size - 1).bit_length(), 1)


def word_type(vocab_size: int) -> Any:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _level_of_words(vocab_size: int) -> tuple[Array, Array]:
    words = np.arange(vocab_size, dtype=word_type(vocab_size))
    return words, np.array([0, vocab_size], np.uint32)


def _level(keys: Array, bits: int, vocab_size: int, parents: int) -> tuple[Array, Array]:
    """Words, and where those of each parent begin, from sorted keys (parent, word)."""
    words = (keys & ((1 << bits) - 1)).astype(word_type(vocab_size))
    many = np.bincount(keys >> bits, minlength=parents)
    return words, np.concatenate([[0], np.cumsum(many)]).astype(np.uint32)


def _trie(levels: Sequence[tuple[Array, Array]]) -> Trie:
    words, first = zip(*levels, strict=True)
    return Trie(words, first)
