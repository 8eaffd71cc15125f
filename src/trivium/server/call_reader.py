"""Calls of tools, told while the model writes them.

The grammar that the answer is decoded under (`tool_calls.native_grammar`) makes it certain what
each character is: after the sign a call begins, its head names the tool, and then come the
arguments, character by character until their last bracket closes. So they can be passed on as they
are made, and what a client joins is what it would have been given in one piece.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator

from trivium.language.generation import End, Token
from trivium.language.tokenizer import Tokenizer
from trivium.llmos.messages import Finish
from trivium.llmos.native_tools import LLAMA, Form
from trivium.server.generation import usage
from trivium.server.plan import Argued, Called, Piece, Said


class CallReader:
    """Parts what one choice of the model writes into text, calls and their arguments.

    With `at_once`, calls stand at the beginning or not at all. Text that may begin a sign is held
    back. Of an answer that was cut within a call, the call is given as far as it came; white space
    around calls is not.
    """

    def __init__(
        self, form: Form, tokenizer: Tokenizer, *, at_once: bool = False, logprobs: bool = False
    ) -> None:
        self._form, self._logprobs = form, logprobs
        self._at_once = at_once or form is LLAMA
        key = re.escape(json.dumps(form.key))
        self._call = re.compile(rf'[\s,\[]*{{"name": ("(?:[^"\\]|\\.)*"), {key}: ')
        # A sign that is a control token of its own is not in the text: put it back.
        self._signs = {
            id: text
            for text, id in tokenizer.control_tokens.items()
            if text in (form.begin, form.end) and id in tokenizer.special_ids
        }
        self._read: Callable[[bool], Iterator[Piece] | None] = self._text
        self._held = ""
        self._tokens: list[Token] = []  # since the last text
        self._arguments = _Json()
        self._said = self._called = False

    def __call__(self, event: Token | End) -> Iterator[Piece]:
        """What has become certain with the next token, or with the end of the reply."""
        if isinstance(event, Token):
            self._tokens.append(event)
            self._held += self._signs.get(event.id, "")
        self._held += event.text
        ended = isinstance(event, End)
        while (pieces := self._read(ended)) is not None:
            yield from pieces
        if isinstance(event, End):
            # "length" wins: the last call may be cut.
            called = self._called and event.reason == "stop"
            yield Finish("tool_calls" if called else event.reason, usage(event))

    # Each of these reads what it can of `_held` and says who reads on; None when it needs more.

    def _text(self, ended: bool) -> Iterator[Piece] | None:
        begin, held = self._form.begin, self._held
        at = held.find(begin)
        if at >= 0 and not (self._at_once and (self._said or held[:at].strip())):
            # In Llama's form the sign is the beginning of the call itself.
            self._held = held[at:] if self._form is LLAMA else held[at + len(begin) :]
            self._read = self._head
            return self._say(held[:at].rstrip())
        text = held if ended else held[: len(held) - self._unsure()]
        if not text or (self._called and not text.strip()):
            return None
        self._held = held[len(text) :]
        return self._say(text)

    def _unsure(self) -> int:
        """How many characters at the end may become a sign, or be the space before one."""
        begin, held = self._form.begin, self._held
        if self._at_once and (self._said or not begin.startswith(held.lstrip()[: len(begin)])):
            return 0
        part = next((n for n in range(len(begin) - 1, 0, -1) if held.endswith(begin[:n])), 0)
        before = held[: len(held) - part]
        return part + len(before) - len(before.rstrip())

    def _say(self, text: str) -> Iterator[Piece]:
        if text:
            self._said = True
            yield Said(text, tuple(self._tokens) if self._logprobs else ())
            self._tokens.clear()

    def _head(self, ended: bool) -> Iterator[Piece] | None:
        found = self._call.match(self._held)
        if found is None:
            return None
        self._held = self._held[found.end() :]
        self._read, self._called, self._arguments = self._body, True, _Json()
        return iter([Called(f"call_{uuid.uuid4().hex[:24]}", json.loads(found[1]))])

    def _body(self, ended: bool) -> Iterator[Piece] | None:
        if not self._held:
            return None
        length = self._arguments.push(self._held)
        text, self._held = self._held[:length], self._held[length:]
        if self._arguments.ended:
            self._read = self._tail
        return iter([Argued(text)])

    def _tail(self, ended: bool) -> Iterator[Piece] | None:
        """Behind the arguments: the bracket of the call, then its end or, in a list, the next."""
        self._tokens.clear()
        held = self._held.removeprefix("}").lstrip()
        end = "]" if self._form.listed else self._form.end
        if held.startswith(","):
            self._held, self._read = held, self._head
        elif end and held.startswith(end):
            self._held = held.removeprefix(end)
            self._read = self._text
        else:
            return None
        return iter(())


class _Json:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = self.ended = False

    def push(self, text: str) -> int:
        """How many characters of `text` belong to it; all, unless it `ended`."""
        for i, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = char == "\\", char != '"'
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    return i + 1
        return len(text)
