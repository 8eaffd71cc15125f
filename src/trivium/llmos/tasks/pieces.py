"""Long texts in pieces that fit, and which piece a question is about.

Pieces joined are the text: nothing is left out. They end between paragraphs where that is possible,
else between lines, sentences, words, characters.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

# Where a text may be cut: behind a match, the better places first.
_PLACES = (
    re.compile(r"\n[^\S\n]*\n\s*"),
    re.compile(r"\n\s*"),
    re.compile(r"[.!?…]['\")\]]*\s+|[。！？；]+[」』”’）]*"),
    re.compile(r"[,;:]\s+|[，、：]"),
    re.compile(r"\s+"),
)
_WORD = re.compile(r"[^\W_]+")
_CHARACTER = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")  # a word by itself, nearly
K, B = 1.5, 0.75  # of BM25


def pieces(text: str, limit: int, size: Callable[[str], int]) -> list[str]:
    """`text` in pieces of at most `limit` by `size`, as few as the places to cut allow.

    A single character that is larger than the limit is a piece all the same.
    """
    return _split(text, limit, size, 0) if text else []


def _split(text: str, limit: int, size: Callable[[str], int], level: int) -> list[str]:
    if len(text) <= 1 or size(text) <= limit:
        return [text]
    if level == len(_PLACES):
        half = len(text) // 2
        return [p for part in (text[:half], text[half:]) for p in _split(part, limit, size, level)]
    ends = [match.end() for match in _PLACES[level].finditer(text)]
    bounds = [0, *(end for end in ends if end < len(text)), len(text)]
    parts = [text[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    return _merged([p for part in parts for p in _split(part, limit, size, level + 1)], limit, size)


def _merged(parts: Sequence[str], limit: int, size: Callable[[str], int]) -> list[str]:
    """Neighbours joined as long as they fit."""
    merged: list[str] = []
    total = 0
    for part in parts:
        own = size(part)
        # The sum is an upper bound of what tokenizers make of two texts joined, or very near it.
        if merged and total + own <= limit:
            merged[-1] += part
            total += own
        else:
            merged.append(part)
            total = own
    return merged


def by_relevance(question: str, texts: Sequence[str]) -> list[int]:
    """The indices of `texts`, those that share most with the question first.

    Okapi BM25 (Robertson & Zaragoza, "The Probabilistic Relevance Framework", 2009, eq. 3.15).
    """
    bags = [Counter(_words(text)) for text in texts]
    length = sum(bag.total() for bag in bags) / max(len(bags), 1) or 1.0
    scores = []
    for bag in bags:
        score = 0.0
        for word in set(_words(question)):
            holding = sum(word in other for other in bags)
            rarity = math.log(1 + (len(bags) - holding + 0.5) / (holding + 0.5))
            times = bag[word]
            score += rarity * times / (times + K * (1 - B + B * bag.total() / length))
        scores.append(score)
    return sorted(range(len(texts)), key=lambda i: -scores[i])


def _words(text: str) -> list[str]:
    lower = text.lower()
    return [*_CHARACTER.findall(lower), *_WORD.findall(_CHARACTER.sub(" ", lower))]
