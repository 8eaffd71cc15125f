"""A task for every text of a file, as a person sees it: progress, what failed, how to go on."""

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import TYPE_CHECKING, cast

import click

from trivium.cli.render import printable
from trivium.errors import UsageError
from trivium.llmos.tasks import asking, batch, outputs
from trivium.llmos.tasks.asking import Asker, ItemError
from trivium.llmos.tasks.inputs import Positioned, read_texts, texts_of
from trivium.llmos.tasks.task import Task

if TYPE_CHECKING:
    from trivium.cli.task import TaskSettings

TOLD = 5  # inputs that failed, one line each; of the rest, how many


def run_file(
    context: click.Context,
    task: Task,
    work: "TaskSettings",
    model: str,
    open_asker: Callable[[], Asker],
) -> None:
    """Answer the texts of `work.input` into `work.output`, or onto stdout.

    Leaves with 1 when there are inputs without an answer, with 130 after Ctrl-C.
    """
    texts, size = _texts(work)
    own = {"model": asking.name_of(model), "task": task.fingerprint}
    with contextlib.ExitStack() as opened:
        output: outputs.OutputFile | None = None
        if work.output is not None:
            output = outputs.OutputFile(work.output, **own, overwrite=work.overwrite)
            opened.enter_context(output)
        questions = batch.unanswered(texts, output) if output else batch.numbered(texts)
        first = next(questions, None)
        if first is None:
            click.echo("nothing to do" + (", all is answered" if output else ""), err=True)
            return
        tally = Tally(work, first.index, size)
        asker = opened.enter_context(open_asker())
        done = batch.answers(task, asker, chain([first], questions))
        try:
            with contextlib.closing(cast(Generator[batch.Done, None, None], done)), tally.shown():
                for one in done:
                    if output is not None:
                        output.append(one.index, one.item, one.outcome)
                    else:
                        line = outputs.line_of(one.index, one.item, one.outcome, own)
                        click.echo(line.decode(), nl=False)
                    tally.add(one)
        except KeyboardInterrupt:
            tally.tell(f"stopped; {tally.way_on}")
            context.exit(130)
        except Exception:
            tally.tell(tally.way_on)
            raise
    tally.tell("")
    if tally.failed:
        context.exit(1)


def _texts(work: "TaskSettings") -> tuple[Iterator[Positioned], int]:
    """The texts, and how many bytes hold them; 0 if that is not known."""
    assert work.input is not None
    if str(work.input) == "-":
        return texts_of(sys.stdin.buffer, "", "stdin", work.field), 0
    both = [path for path in (work.input, work.output) if path is not None and path.exists()]
    if len(both) == 2 and both[0].samefile(both[1]):
        raise UsageError(f"--input and --output are the same file, {work.input}")
    texts = read_texts(work.input, work.field)
    return texts, work.input.stat().st_size if work.input.is_file() else 0


class Tally:
    """Counts what is done, and shows it."""

    def __init__(self, work: "TaskSettings", before: int, size: int) -> None:
        self._work, self._before, self._size = work, before, size
        self.done = self.failed = self.cut = 0
        self._start = time.monotonic()
        self._update: Callable[[batch.Done], None] | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """A bar on stderr, if that is a terminal: how many, how fast, how long yet."""
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            label = self._work.task or "schema"
            shown = bar.add_task(label, total=self._size or None, count="")

            def update(one: batch.Done) -> None:
                bar.update(shown, completed=one.position, count=self._count())

            self._update = update
            yield
            self._update = None

    def add(self, one: batch.Done) -> None:
        self.done += 1
        if isinstance(one.outcome, ItemError):
            self.failed += 1
            if self.failed <= TOLD:
                click.echo(printable(f"input {one.index}: {one.outcome}"), err=True)
        else:
            self.cut += one.outcome.cut
        if self._update is not None:
            self._update(one)

    def tell(self, ending: str) -> None:
        """One line about the whole run."""
        parts = [self._count()]
        if self._before:
            parts.append(f"{self._before} before")
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.cut:
            parts.append(f"{self.cut} cut (--max-tokens)")
        where = f" → {self._work.output}" if self._work.output else ""
        line = f"{', '.join(parts)}{where}" + (f"; {ending}" if ending else "")
        with contextlib.suppress(OSError):  # the disk, or the pipe, may be what failed
            click.echo(printable(line), err=True)

    @property
    def way_on(self) -> str:
        """How to continue."""
        if self._work.output is None or str(self._work.input) == "-":
            return "without --output and a file as --input, there is nothing to continue"
        again = [word for word in sys.argv[1:] if word != "--overwrite"]
        return f"to go on: trivium {shlex.join(again)}"

    def _count(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return f"{self.done} answered, {self.done / seconds:.2g}/s"
