"""`rank`: shows two answers side by side, and keeps which one a person prefers."""

import contextlib
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from trivium.cli import options
from trivium.cli.comparisons import Comparison, Journal, comparisons, questions
from trivium.cli.render import printable
from trivium.errors import UsageError

KEYS = {"1": "left", "2": "right", "=": "tie", "s": "skip", "q": "quit"}
HINT = "1 left is better · 2 right is better · = equal · s skip · q leave"
TEMPERATURE = 0.8


@click.command()
@click.argument("prompts", metavar="PROMPTS.jsonl")
@options.model
@click.option("--against", metavar="NAME", help="A second model (default: the same one, twice).")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="ranked.jsonl",
    show_default=True,
    metavar="FILE",
    help="Where the choices are kept; the recipes reward and dpo read it.",
)
@click.option("--max-tokens", type=click.IntRange(1), default=256, help="Of an answer.")
@options.device
@options.threads
@click.pass_context
def rank(
    context: click.Context,
    prompts: str,
    model: str,
    against: str | None,
    output: Path,
    max_tokens: int,
    device: str | None,
    threads: int | None,
) -> None:
    """Compare two answers at a time, and keep what you choose.

    \b
    trivium rank prompts.jsonl                        two answers of one model
    trivium rank prompts.jsonl -m runs/sft --against runs/dpo
    trivium rank answers.jsonl                        with "responses" in the file
    trivium train reward data=ranked.jsonl

    Which model an answer is from is not shown, and sides are drawn. Every choice is on the disk at
    once; the same command goes on where you left.
    """
    found = questions(prompts)
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        raise UsageError("rank shows answers to a person: it needs a terminal")
    journal = Journal(output)
    given = {"max_tokens": max_tokens, "device": device, "threads": threads}
    answerers = _Answerers([model, against or model], given)
    before, seen = journal.count, False
    try:
        for comparison in comparisons(found, answerers, journal.__contains__):
            seen = True
            chosen = _ask(comparison, journal.count)
            if chosen == "quit":
                break
            journal.add(comparison, chosen)
    except KeyboardInterrupt:
        click.echo(err=True)
        _tell(journal, before)
        context.exit(130)
    if not seen:
        click.echo("nothing is left to compare", err=True)
    _tell(journal, before)


def _tell(journal: Journal, before: int) -> None:
    more = journal.count - before
    click.echo(f"{more} choices more, {journal.count} in all: {journal.path}", err=True)


class _Answerers(Sequence[Any]):
    """The two who answer; models are opened when the first question needs them."""

    def __init__(self, names: Sequence[str], given: dict[str, Any]) -> None:
        self._names, self._given = names, given
        self._models: dict[str, Any] = {}

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        name = self._names[index]
        twice = self._names[0] == self._names[1]
        return (f"{name} #{index + 1}" if twice else name, self._answerer(name, index))

    def _answerer(self, name: str, index: int) -> Callable[[Sequence[Any]], str]:
        def answer(messages: Sequence[Any]) -> str:
            from trivium.llmos.messages import Message, TextDelta

            given = [Message.from_json(message) for message in messages]
            with _waiting():
                events = self._opened(name, index).stream(given)
                return "".join(e.text for e in events if isinstance(e, TextDelta))

        return answer

    def _opened(self, name: str, seed: int) -> Any:
        """One for each seed: an endpoint, and a model that is the same twice, draws by it."""
        key = f"{name} {seed}"
        if key not in self._models:
            from trivium.cli.session import open_model
            from trivium.cli.settings import Settings

            same = next((m for k, m in self._models.items() if k.startswith(f"{name} ")), None)
            if same is not None and hasattr(same, "sampling"):
                import dataclasses

                sampling = dataclasses.replace(same.sampling, seed=seed)
                self._models[key] = dataclasses.replace(same, sampling=sampling)
            else:
                settings = Settings(
                    name, Path(), temperature=TEMPERATURE, seed=seed, tools=False, **self._given
                )
                self._models[key] = open_model(name, settings)
        return self._models[key]


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    click.echo("…", nl=False, err=True)
    try:
        yield
    finally:
        click.echo("\r \r", nl=False, err=True)


def _ask(comparison: Comparison, count: int) -> str:
    _show(comparison, count)
    with _single_keys() as read:
        while True:
            if (chosen := KEYS.get(read().lower())) is not None:
                click.echo(f"  {chosen}", err=True)
                return chosen


def _show(comparison: Comparison, count: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True)
    console.print(Rule(f"{count + 1}"))
    for message in comparison.messages:
        console.print(Text(f"{message['role']}: ", style="dim"), end="")
        console.print(Text(_plain(str(message["content"]))))
    table = Table(box=SIMPLE_HEAD, expand=True)
    for name in ("1", "2"):
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(Text(_plain(answer)) for answer in comparison.shown))
    console.print(table)
    console.print(Text(HINT, style="dim"))


def _plain(text: str) -> str:
    """A model's text, of which nothing acts on the terminal."""
    return "\n".join(printable(line) for line in text.splitlines())


@contextlib.contextmanager
def _single_keys() -> Iterator[Callable[[], str]]:
    """Keys as they are pressed, but none that was pressed before the answers were there to see."""
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    try:
        tty.setcbreak(handle)
        termios.tcflush(handle, termios.TCIFLUSH)

        def read() -> str:
            pressed = os.read(handle, 1)
            if pressed in (b"", b"\x04"):  # the terminal is gone, or Ctrl-D
                return "q"
            return pressed.decode(errors="replace")

        yield read
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
