"""Search: the texts whose vectors are nearest to that of a question, by the cosine between them."""

import heapq
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from trivium.cli.console import print_json
from trivium.cli.render import coloured, printable

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, order=True)
class Hit:
    """A text near a query. Greater is nearer; of equals the first in the file."""

    cosine: float
    before: int  # minus its number among the texts, from 0
    line: int
    text: str

    @property
    def index(self) -> int:
        return -self.before

    def record(self) -> dict[str, Any]:
        return {
            "cosine": self.cosine,
            "line": self.line,
            "index": self.index,
            "text": self.text,
        }


class Nearest:
    """The `count` nearest texts to each of some queries, of all that are `add`ed. queries: (Q, C),
    of any length but 0."""

    def __init__(self, queries: "np.ndarray", count: int) -> None:
        self._queries, self._count = unit(queries), count
        self._hits: list[list[Hit]] = [[] for _ in queries]

    def add(self, lines: Sequence[tuple[int, int, str]], vectors: "np.ndarray") -> None:
        """lines: index, line and text of each vector (N, C)."""
        cosines = unit(vectors) @ self._queries.T  # (N, Q)
        for column, hits in enumerate(self._hits):
            values = cosines[:, column]
            for row in (-values).argsort(kind="stable")[: self._count]:
                index, line, text = lines[row]
                hit = Hit(float(values[row]), -index, line, text)
                if len(hits) < self._count:
                    heapq.heappush(hits, hit)
                elif not heapq.heappushpop(hits, hit) < hit:
                    break

    def hits(self) -> list[list[Hit]]:
        """For each query, the nearest first."""
        return [sorted(hits, reverse=True) for hits in self._hits]


def unit(vectors: "np.ndarray") -> "np.ndarray":
    """The rows at length 1; a row of zeros stays."""
    import numpy as np

    vectors = np.asarray(vectors, np.float32)
    rows: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return rows


def show(queries: Sequence[str], found: Iterable[Sequence[Hit]], *, as_json: bool) -> None:
    """Print the hits: a line each, with the cosine and the number of the line in the file."""
    if as_json:
        pairs = zip(queries, found, strict=True)
        print_json([{"query": q, "results": [hit.record() for hit in hits]} for q, hits in pairs])
        return
    for number, (query, hits) in enumerate(zip(queries, found, strict=True)):
        if len(queries) > 1:
            bold = f"\x1b[1m{printable(query)}\x1b[0m" if coloured(sys.stdout) else query
            click.echo(("\n" if number else "") + bold)
        for line in _lines(hits):
            click.echo(line)


def _lines(hits: Sequence[Hit]) -> Iterator[str]:
    width = max((len(f"{hit.line:,}") for hit in hits), default=0)
    for hit in hits:
        text = " ".join(hit.text.split())
        head = f"{hit.cosine:7.4f}  {hit.line:>{width},}  "
        yield head + (_fitted(text, len(head)) if sys.stdout.isatty() else text)


def _fitted(text: str, used: int) -> str:
    """As much of the text as the line of the terminal holds."""
    from rich.cells import set_cell_size

    room = max(shutil.get_terminal_size().columns - used, 10)
    cut = set_cell_size(printable(text), room).rstrip()
    return cut if cut == printable(text).rstrip() else set_cell_size(cut, room - 1) + "…"
