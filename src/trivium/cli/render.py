"""How a turn looks: the answer on stdout as it is made, tool calls and results on stderr.

On a terminal, text of a model or a tool loses every control and escape sequence (ECMA-48) and every
character that reorders text: it can neither hide what it says nor act on the terminal. Into a file
or a pipe it goes as it is: there, stdout is data.
"""

import contextlib
import json
import os
import re
import sys
from typing import TextIO

from trivium.llmos.messages import Answer, Event, Failure, TextDelta, ToolCall, ToolResult

LINES, WIDTH = 8, 160  # of a tool's text that is shown

_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, erase
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS, …: titles, links, clipboard
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"  # two characters: character sets, resets
)
_BEGUN = re.compile(  # the beginning of one, which the next piece may end
    r"(?:(?:\x1b\[|\x9b)[0-?]*[ -/]*|\x1b[\]PX^_][^\x07\x1b\x9c]{0,400}\x1b?|\x1b[ -/]*)\Z"
)
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but tab and newline
    "\u2028\u2029\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]"  # order of text, invisible tags
)


def printable(text: str) -> str:
    """`text` without anything that acts on a terminal."""
    return _UNSAFE.sub("", _SEQUENCE.sub("", text))


class Screen:
    """Shows the events of a turn. `text` tells when the answer is printed: as it is made, whole at
    the end, or not at all (the caller prints it)."""

    def __init__(self, text: str = "stream") -> None:
        self._out, self._err = sys.stdout, sys.stderr
        self._text = text
        self._held = ""  # the beginning of an escape sequence
        self._last = "\n"  # the last character on stdout
        self._colour = coloured(self._err)

    def show(self, event: Event) -> None:
        match event:
            case TextDelta() if self._text == "stream":
                self._write(event.text)
            case ToolCall():
                self.end_line()
                self._tell(self._call(event))
            case ToolResult():
                self._tell(self._result(event))
            case Answer():
                if self._text == "whole":
                    self._write(event.text)
                self.end_line()
                if event.reason == "length":
                    self.note("the answer is cut: it reached the limit of tokens (--max-tokens)")
                elif event.reason == "content_filter":
                    self.note("the answer is cut: the endpoint filtered it")
            case Failure():
                if event.kind == "cancelled" and self._last == "\n" and self._err.isatty():
                    self._tell("")  # the cursor stands behind ^C
                self.end_line()

    def note(self, text: str) -> None:
        """Say something beside the answer."""
        self._tell(printable(text))

    def _tell(self, text: str) -> None:
        self._out.flush()
        with contextlib.suppress(OSError):  # that nobody hears the talk is no reason to stop
            self._err.write(text + "\n")
            self._err.flush()

    def end_line(self) -> None:
        """Close a line that the answer left open."""
        held, self._held = self._held, ""
        self._put(printable(held))
        if self._last != "\n":
            self._put("\n")

    def _write(self, text: str) -> None:
        if self._out.isatty():  # a sequence may lie across two pieces: its beginning waits
            text = _SEQUENCE.sub("", self._held + text)
            begun = _BEGUN.search(text)
            self._held = begun.group() if begun else ""
            text = printable(text.removesuffix(self._held))
        self._put(text)

    def _put(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()
            self._last = text[-1]

    def _call(self, call: ToolCall) -> str:
        """The call on one line; arguments of several lines follow it, each line behind a bar."""
        try:
            arguments = call.parsed()
        except ValueError:
            arguments = {"": call.arguments}
        short, long = [], []
        for name, value in arguments.items():
            if isinstance(value, str) and "\n" in value.strip():
                long += value.strip("\n").split("\n")
            else:
                shown = _cut(json.dumps(value, ensure_ascii=False))
                short.append(shown if len(arguments) == 1 else f"{name}={shown}")
        line = self._dim("→ ") + self._bold(printable(call.name)) + _clean(f"({', '.join(short)})")
        return "\n".join([line, *(self._dim("  │ ") + row for row in _abridged(long))])

    def _result(self, result: ToolResult) -> str:
        mark = self._red("✗ ") if result.error else self._dim("← ")
        rows = _abridged(result.content.strip("\n").split("\n"))
        if result.files:
            rows.append(_clean(f"files: {', '.join(result.files)}"))
        rows[0] += self._dim(f"  ({result.seconds:.1f} s)") if result.seconds >= 0.1 else ""
        return "\n".join((mark if i == 0 else "  ") + row for i, row in enumerate(rows))

    def _dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._colour else text

    def _bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self._colour else text

    def _red(self, text: str) -> str:
        return f"\x1b[31m{text}\x1b[0m" if self._colour else text


def coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _clean(text: str) -> str:
    return printable(text).replace("\n", " ")


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _abridged(lines: list[str]) -> list[str]:
    shown = [_cut(_clean(line)) for line in lines[:LINES]]
    return shown + ([f"… {len(lines) - LINES} more lines"] if len(lines) > LINES else [])
