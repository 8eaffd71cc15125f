"""Where the messages of a chat come from: a terminal with a line editor, or a pipe."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from trivium import files
from trivium.errors import UsageError

QUOTE = '"""'


def unquoted(text: str) -> str:
    """The text between the quotes of a message of several lines; other text as it is."""
    inner = text.strip()
    if not inner.startswith(QUOTE):
        return text
    return inner.removeprefix(QUOTE).removesuffix(QUOTE).strip("\n")


def is_open(text: str) -> bool:
    """Whether a message has begun with a quote that it has not closed yet."""
    inner = text.strip()
    return inner.startswith(QUOTE) and (len(inner) < 6 or not inner.endswith(QUOTE))


class PipedLines:
    """Each line of stdin, or all lines from one that opens a quote to the one that closes it."""

    def __iter__(self) -> Iterator[str]:
        text = ""
        for number, raw in enumerate(sys.stdin.buffer, start=1):
            if b"\0" in raw:
                raise UsageError(f"stdin, line {number}, is binary, not text")
            try:
                text += raw.decode()
            except UnicodeDecodeError as error:
                raise UsageError(f"stdin, line {number}, is not UTF-8 text") from error
            if not is_open(text):
                yield unquoted(text.rstrip("\r\n"))
                text = ""
        if text:
            raise UsageError(f"stdin ends within a message that began with {QUOTE}")


class TerminalLines:
    """A line editor with history (kept between chats) and completion of `commands`."""

    def __init__(self, commands: Sequence[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.output import create_output

        class History(FileHistory):
            def store_string(self, string: str) -> None:
                with contextlib.suppress(OSError):  # a full disk must not end a conversation
                    super().store_string(string.encode(errors="replace").decode())

        path = files.state_home() / "chat_history"
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
        keys = KeyBindings()

        @keys.add("enter")
        def send(event: KeyPressEvent) -> None:
            if is_open(event.current_buffer.text):
                event.current_buffer.insert_text("\n")
            else:
                event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def break_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            "> ",
            history=History(str(path)),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            multiline=True,
            prompt_continuation="  ",
            key_bindings=keys,
            output=create_output(always_prefer_tty=True),  # stdout may be a file
        )

    def read(self) -> str | None:
        """The next message, None at Ctrl-D. Raises KeyboardInterrupt at Ctrl-C."""
        try:
            return unquoted(self._session.prompt())
        except EOFError:
            return None
