"""The line on stderr that shows how a run gets on: a bar on a terminal, else a line now and then.

gpt  step 120 of 1,000  loss 3.2145, 12,345 tokens/s, MFU 41 %, 3 min left
"""

import math
import sys
import time
from types import TracebackType
from typing import Any, Self

EVERY = 10.0  # seconds between lines where stderr is no terminal


def plain(text: str) -> str:
    """`text` without what acts on a terminal or reorders a line (tabs and newlines too)."""
    return "".join(c if c.isprintable() else " " for c in text)


def duration(seconds: float) -> str:
    """3.2 s, 4 min, 2 h 05 min, 3 d 04 h."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24:02} h"


class Progress:
    """Shows `done` of `total`, words, and the time that is left.

    `total` may be None, if nobody knows. A quiet one shows nothing.
    """

    def __init__(
        self, label: str, total: int | None, *, unit: str = "step", quiet: bool = False
    ) -> None:
        self._label, self._total, self._unit, self._quiet = label, total, unit, quiet
        self._bar: Any = None
        self._task: Any = None
        self._start: tuple[float, int] | None = None  # when, and how much was done then
        self._shown = -math.inf  # when
        if not quiet and sys.stderr.isatty():
            self._open_bar()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bar

        known = (BarColumn(bar_width=20), TaskProgressColumn())
        columns = (
            TextColumn("{task.description}", markup=False),
            *(known if self._total is not None else (SpinnerColumn(),)),
            TextColumn("{task.fields[words]}", markup=False),
        )
        bar = Bar(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4)
        self._bar, self._task = bar, bar.add_task(self._label, total=self._total, words="")
        bar.start()

    def show(self, done: int, words: str = "") -> None:
        now = time.monotonic()
        if self._start is None:
            self._start = (now, done)
        if self._quiet:
            return
        left = self._left(now, done)
        if self._bar is not None:
            self._bar.update(
                self._task, completed=done, words=", ".join(filter(None, (words, left)))
            )
            return
        last = self._total is not None and done >= self._total
        if last or now - self._shown >= EVERY:
            self._shown = now
            of = f" of {self._total:,}" if self._total is not None else ""
            counted = f"{self._unit} {done:,}{of}"
            told = ", ".join(filter(None, (words, left)))
            print(f"{self._label}  {counted}  {told}".rstrip(), file=sys.stderr, flush=True)

    def _left(self, now: float, done: int) -> str:
        """By the clock, so that what happens between the steps counts too."""
        assert self._start is not None
        start, first = self._start
        if self._total is None or done <= first or done >= self._total:
            return ""
        return f"{duration((now - start) / (done - first) * (self._total - done))} left"

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(plain(text), markup=False, highlight=False, soft_wrap=True)
        else:
            print(plain(text), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Speed:
    """Tokens a second, of the last steps more than of older ones."""

    def __init__(self, keep: float = 0.9) -> None:
        self._keep, self._tokens, self._seconds = keep, 0.0, 0.0

    def add(self, tokens: float, seconds: float) -> None:
        self._tokens = self._keep * self._tokens + tokens
        self._seconds = self._keep * self._seconds + seconds

    def words(self, flops_per_token: float | None = None, peak: float | None = None) -> str:
        """With the share of the `peak` (FLOP/s of all devices) that is used, where it is known."""
        speed = self._tokens / self._seconds if self._seconds else 0.0
        share = f", MFU {flops_per_token * speed / peak:.0%}" if flops_per_token and peak else ""
        return f"{speed:,.0f} tokens/s{share}"
