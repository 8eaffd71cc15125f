"""Asking a person before a tool acts: y or N, on the terminal itself, never on a pipe.

stdin may be the user's data and stdout the answer, so the question goes to the terminal that
controls this process. What was typed before the question was shown does not answer it.
"""

import contextlib
import os
import sys
import termios
from collections.abc import Iterator

from trivium.cli.render import Screen, printable
from trivium.llmos.confirmation import Request


class Approver:
    """The gateway's `approve`. `unasked` counts the requests for which there was nobody to ask."""

    def __init__(self, screen: Screen) -> None:
        self.unasked = 0
        self._screen = screen

    def __call__(self, request: Request) -> bool:
        self._screen.end_line()
        with _terminal() as terminal:
            if terminal is None:
                self.unasked += 1
                self._screen.note(
                    f"not run: {request.tool} needs a yes, because {printable(request.reason)}, "
                    "and nobody can be asked here; --yes allows it"
                )
                return False
            os.write(terminal, _question(request).encode(errors="backslashreplace"))
            termios.tcflush(terminal, termios.TCIFLUSH)
            answer = os.read(terminal, 1024).decode(errors="replace").strip().casefold()
            if not answer:  # Ctrl-D leaves the cursor behind the question
                os.write(terminal, b"\n")
            return answer in ("y", "yes")


def _question(request: Request) -> str:
    """The effective call, in which nothing is hidden: see `trivium.llmos.confirmation`."""
    return f"\n{request.text}\n\nAsked because {printable(request.reason)}.\nRun it? [y/N] "


@contextlib.contextmanager
def _terminal() -> Iterator[int | None]:
    """The controlling terminal, None when a person does not see what this process says."""
    handle = None
    if sys.stderr.isatty():
        with contextlib.suppress(OSError):
            handle = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)
