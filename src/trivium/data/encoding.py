"""Many texts to token ids at once, long ones in pieces that several cores encode.

A text is cut where no token reaches across: before a space between letters, or behind the end of a
line. Whether one would is checked at every cut: the text around it must give the same ids whole and
in two. Where it does not, as with tokenizers that put a mark before every text, the text is encoded
as a whole. So the ids are those of the whole text in any case.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

PIECE = 8192  # characters
AROUND = 64  # characters on each side of a cut
_CUT = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])|(?<=\S\n)(?=[^\W\d_])")

Ids = NDArray[np.int64]
EncodeMany = Callable[[Sequence[str]], Sequence[Sequence[int]]]


class Encoder:
    """Encodes with `encode_many`, which takes texts and gives the ids of each."""

    def __init__(self, encode_many: EncodeMany) -> None:
        self._encode_many = encode_many
        self._cuts = True

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        pieces = [cut(text) if self._cuts else [text] for text in texts]
        wanted = [piece for parts in pieces for piece in parts]
        for parts in pieces:
            wanted += [t for pair in zip(parts, parts[1:], strict=False) for t in _around(*pair)]
        given = iter(self._encode_many(wanted))
        encoded = [[next(given) for _ in parts] for parts in pieces]
        result = []
        for text, ids in zip(texts, encoded, strict=True):
            good = True
            for _ in ids[1:]:
                both, left, right = next(given), next(given), next(given)
                good = good and [*both] == [*left, *right]
            if not good:
                self._cuts = False
                ids = list(self._encode_many([text]))
            result.append(np.concatenate([np.array(part, dtype=np.int64) for part in ids]))
        return result


def cut(text: str) -> list[str]:
    """The pieces of a text, each of about PIECE characters if there is a place to cut it."""
    pieces, start = [], 0
    while len(text) - start > 2 * PIECE and (place := _CUT.search(text, start + PIECE)):
        pieces.append(text[start : place.start()])
        start = place.start()
    return [*pieces, text[start:]]


def _around(left: str, right: str) -> tuple[str, str, str]:
    left, right = left[-AROUND:], right[:AROUND]
    return left + right, left, right
