"""The two oldest vectors for words: one-hot, and the bag of words that sums them.

V words of the vocabulary, N texts.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from trivium.errors import UsageError

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words of a text, without regard to case: runs of letters, digits and underscores."""
    return _WORD.findall(text.casefold())


def build_vocabulary(texts: Iterable[str], *, min_count: int = 1) -> dict[str, int]:
    """Each word that occurs at least `min_count` times, to its index; the most frequent first."""
    counts = Counter(word for text in texts for word in words_of(text))
    kept = [word for word, count in counts.items() if count >= min_count]
    return {word: i for i, word in enumerate(sorted(kept, key=lambda w: (-counts[w], w)))}


def one_hot(words: Sequence[str], vocabulary: Mapping[str, int]) -> Tensor:
    """A one at each word's index: (N, V). Raises UsageError for a word outside the vocabulary."""
    unknown = next((word for word in words if word not in vocabulary), None)
    if unknown is not None:
        raise UsageError(f"the vocabulary of {len(vocabulary)} words has no {unknown!r}")
    vectors = torch.zeros(len(words), len(vocabulary))
    vectors[range(len(words)), [vocabulary[word] for word in words]] = 1
    return vectors


def bag_of_words(texts: Sequence[str], vocabulary: Mapping[str, int]) -> Tensor:
    """How often each word of the vocabulary occurs in each text: (N, V). Word order is lost, and
    so are words outside the vocabulary."""
    bags = torch.zeros(len(texts), len(vocabulary))
    for row, text in enumerate(texts):
        for word in words_of(text):
            if word in vocabulary:
                bags[row, vocabulary[word]] += 1
    return bags
