"""How tokens with their log-probabilities are shown: rows on a terminal, exact numbers as JSON."""

import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from trivium.cli.render import coloured, printable

if TYPE_CHECKING:
    from trivium.language.tokenizer import Tokenizer

TOKEN = 18  # columns of a terminal
LIKELY, POSSIBLE = 0.5, 0.1
GREEN, YELLOW, RED, DIM = 32, 33, 31, 2


@dataclass(frozen=True)
class Row:
    """A token of a text; `logprob` None where nothing stands before it. `top`: what was likeliest
    in its place, as pairs of id and log-probability."""

    id: int
    logprob: float | None
    top: Sequence[tuple[int, float]] = ()

    def record(self, tokenizer: "Tokenizer") -> dict[str, Any]:
        return {
            **_names(tokenizer, self.id),
            "bytes": list(tokenizer.token_bytes(self.id)),
            "logprob": self.logprob,
            "top": [{**_names(tokenizer, id), "logprob": value} for id, value in self.top],
        }


class Rows:
    """Prints a row for each token, as it comes: the token, log P, P, and what else was likely. On a
    terminal likely tokens are green, unlikely ones red, and rows are cut to its width."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        terminal = sys.stdout.isatty()
        self._width = shutil.get_terminal_size().columns if terminal else None
        self._coloured = coloured(sys.stdout)
        click.echo(self._paint(f"{'token':<{TOKEN}}  {'log P':>8}  {'P':>6}  likeliest", DIM))

    def show(self, row: Row) -> None:
        token, width = self._quoted(row.id)
        cell = token + " " * max(0, TOKEN - width)
        if row.logprob is None:
            click.echo(f"{self._paint(cell, DIM)}  {'-':>8}  {'-':>6}")
            return
        probability = math.exp(row.logprob)
        colour = GREEN if probability >= LIKELY else YELLOW if probability >= POSSIBLE else RED
        numbers = f"  {row.logprob:8.3f}  {_percent(probability)}"
        used = max(width, TOKEN) + len(numbers)
        click.echo(self._paint(cell, colour) + numbers + self._others(row, used))

    def _others(self, row: Row, used: int) -> str:
        shown = ""
        for id, logprob in row.top:
            token, width = self._quoted(id)
            words = f"  {token} {_percent(math.exp(logprob)).strip()}"
            used += width + len(words) - len(token)
            if self._width is not None and used >= self._width:
                break
            shown += self._paint(words, DIM) if id != row.id else words
        return shown

    def _quoted(self, id: int) -> tuple[str, int]:
        """The token in quotes, and how many columns it takes."""
        from rich.cells import cell_len

        data = self._tokenizer.token_bytes(id)
        try:
            text = json.dumps(data.decode(), ensure_ascii=False)
        except UnicodeDecodeError:  # a part of a character
            text = "<" + data.hex(" ") + ">"
        if self._width is not None:
            text = printable(text)
        return text, cell_len(text)

    def _paint(self, text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text


def _percent(probability: float) -> str:
    return f"{probability:6.1%}" if probability >= 0.001 else f"{probability:6.0e}"


def _names(tokenizer: "Tokenizer", id: int) -> dict[str, Any]:
    return {"id": id, "token": tokenizer.token_bytes(id).decode(errors="replace")}
