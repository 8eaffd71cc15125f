"""The tables of sentences and words: files of tab-separated lines beside this one.

In a field, `\\n` is a line's end and `\\\\` a backslash. The first line says what the columns are.
"""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "tables"


@cache
def table(name: str) -> tuple[tuple[str, ...], ...]:
    """The rows of `tables/NAME.tsv`."""
    return tuple(tuple(map(unescaped, fields)) for fields in lines(name))


def lines(name: str) -> list[list[str]]:
    """The rows of `tables/NAME.tsv`, their fields as they stand there."""
    text = (FOLDER / f"{name}.tsv").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.split("\n")[1:] if line]


def unescaped(field: str) -> str:
    return "\\".join(part.replace("\\n", "\n") for part in field.split("\\\\"))


@cache
def sentences(kind: str) -> tuple[str, ...]:
    """The patterns of a kind (see `patterns`)."""
    return tuple(text for of, text in table("sentences") if of == kind)


@cache
def words(name: str) -> tuple[str, ...]:
    return next(tuple(given.split("|")) for of, given in table("words") if of == name)
