"""`words`: the neighbours of words, and of sums and differences of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trivium.cli import local
from trivium.cli.console import print_json, print_table
from trivium.cli.render import printable
from trivium.errors import UsageError

if TYPE_CHECKING:
    from trivium.language.word_vectors import Section, WordVectors


@click.command()
@click.argument("vectors", type=click.Path(path_type=Path))
@click.argument("expression", metavar="[WORD [+|- WORD]...]", nargs=-1)
@click.option("-n", "--count", default=10, show_default=True, metavar="N", help="How many words.")
@click.option(
    "--questions",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Answer a file of analogies, as questions-words.txt.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def words(
    vectors: Path, expression: tuple[str, ...], count: int, questions: Path | None, as_json: bool
) -> None:
    """Find the words nearest to a word, or to a sum of words.

    \b
    trivium words runs/word2vec king
    trivium words runs/word2vec king - man + woman
    trivium words GoogleNews.bin --questions questions-words.txt

    VECTORS is the folder of a run of `trivium train word2vec`, or a file of word2vec or GloVe
    (.bin, .txt or .vec). Each line is a word and the cosine between it and the sum of the unit
    vectors.
    """
    plus, minus = parsed(expression)
    if bool(plus or minus) == (questions is not None):
        raise UsageError("give a word, or --questions FILE")
    if count < 1:
        raise UsageError(f"--count is 1 or more, not {count}")
    with local.needed():
        from trivium.language.word_vectors import WordVectors, read_questions
    if questions is not None:
        asked = list(read_questions(questions))
        _print_answers(WordVectors.load(vectors).answer(asked), as_json)
        return
    _print_neighbours(WordVectors.load(vectors), plus, minus, count, as_json)


def parsed(expression: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are added, and those that are taken away."""
    sides: dict[str, list[str]] = {"+": [], "-": []}
    sign = "+"
    expected = False  # a word, behind a sign
    for term in expression:
        if term in ("+", "-", "−"):
            sign, expected = ("+" if term == "+" else "-"), True
            continue
        sides[sign].append(term)
        sign, expected = "+", False
    if expected:
        raise UsageError(f"a word is missing behind the last sign of {' '.join(expression)!r}")
    return sides["+"], sides["-"]


def _print_neighbours(
    vectors: "WordVectors", plus: Sequence[str], minus: Sequence[str], count: int, as_json: bool
) -> None:
    found = vectors.nearest(plus, minus, count=count)
    if as_json:
        print_json([neighbour._asdict() for neighbour in found])
        return
    for neighbour in found:
        click.echo(f"{neighbour.cosine:7.4f}  {printable(neighbour.word)}")


def _print_answers(sections: Sequence["Section"], as_json: bool) -> None:
    right, asked = sum(s.right for s in sections), sum(s.asked for s in sections)
    if as_json:
        record: dict[str, Any] = {"right": right, "asked": asked}
        print_json(record | {"sections": [vars(section) for section in sections]})
        return
    if not asked:
        raise UsageError("no question can be answered: of each, a word has no vector")
    rows = [(s.name, s.right, s.asked, s.left_out) for s in sections]
    rows.append(("all", right, asked, sum(s.left_out for s in sections)))
    headers = ("kind", "right", "of", "share", "left out")
    print_table(
        headers,
        [
            (printable(name), f"{r:,}", f"{of:,}", f"{r / of:.1%}" if of else "", f"{left:,}")
            for name, r, of, left in rows
        ],
    )
