"""A line on stderr that tells how far long work has come."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[int, str], None]


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Tell]:
    """A function (done, words) that moves a bar and shows the words beside it.

    `total` is in the unit of `done`; None, if nobody knows. Where stderr is no terminal, nothing is
    drawn.
    """
    if not sys.stderr.isatty():
        yield lambda done, words: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    known = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    columns = (
        TextColumn("{task.description}", markup=False),
        *(known if total is not None else (SpinnerColumn(),)),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, words="")
        yield lambda done, words: bar.update(task, completed=done, words=words)
