"""A chat completion off the wire: bytes → server-sent events → model events.

Events are read as the WHATWG standard defines them (HTML, section 9.2), and with what servers make
of OpenAI's chunks: whole tool calls instead of fragments, arguments as an object, ids or indices
that are missing or used twice, no usage, no `[DONE]`, or one plain answer instead of a stream.
"""

import codecs
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trivium.errors import TriviumError
from trivium.llmos.messages import Finish, FinishReason, TextDelta, ToolCall, Usage

LONGEST_LINE = 16 << 20  # characters

REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


def server_sent_events(chunks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """The (event, data) pairs of a byte stream, however it is cut into chunks.

    A last event that no blank line closes is kept: servers forget it. A bare `error:` field, which
    the standard does not know, is given as the event "error".
    """
    event, data = "", list[str]()
    for line in _lines(chunks):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield event, "\n".join(data)
            event, data = "", []
        elif field == "data":
            data.append(value)
        elif field == "event":
            event = value
        elif field == "error":
            event, data = "error", [value]
    if data:
        yield event, "\n".join(data)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines end with CR LF, LF or CR; a character or a line end may lie across two chunks."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    pieces: list[str] = []  # of the unfinished line
    size = 0
    for chunk in chunks:
        piece = decoder.decode(chunk)
        waiting_cr = bool(pieces) and pieces[-1].endswith("\r")
        pieces.append(piece)
        size += len(piece)
        if size > LONGEST_LINE:
            raise TriviumError(f"the endpoint sent a line of over {LONGEST_LINE >> 20} MB")
        if waiting_cr or "\n" in piece or "\r" in piece:
            # A CR at the very end may be half of a CR LF: it waits for what follows.
            *lines, rest = re.split(r"\r\n|\n|\r(?!\Z)", "".join(pieces))
            yield from lines
            pieces, size = [rest], len(rest)
    if rest := "".join(pieces) + decoder.decode(b"", final=True):
        yield from re.split(r"\r\n|\n|\r", rest)


@dataclass
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


class Completion:
    """Assembles the first choice of a completion; thoughts (`reasoning_content`) are left out.

    Feed it `chunk`s or one `whole` body and pass on the text they give; `end` gives the tool calls
    and the `Finish`.
    """

    def __init__(self) -> None:
        self.complete = False  # has the server said that this is the end?
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._held = ""  # half of a character
        self._reason = ""
        self._usage: Mapping[str, Any] = {}
        self._pieces = 0

    def chunk(self, chunk: Mapping[str, Any]) -> Iterator[TextDelta]:
        if chunk.get("usage"):
            self._usage = _object(chunk["usage"])
        choice = next((c for c in _objects(chunk.get("choices")) if not c.get("index")), {})
        delta = _object(choice.get("delta")) or _object(choice.get("message"))
        if reason := choice.get("finish_reason"):
            self._reason, self.complete = str(reason), True
        for call in _objects(delta.get("tool_calls")):
            self._fragment(call)
        if text := self._joined(_text(delta.get("content")) or _text(delta.get("refusal"))):
            self._pieces += 1
            yield TextDelta(text)

    def whole(self, body: Mapping[str, Any]) -> Iterator[TextDelta]:
        """An answer in one piece. Raises TriviumError when it holds none."""
        if not _objects(body.get("choices")):
            raise TriviumError("the endpoint answered without a choice")
        for choice in _objects(body["choices"]):
            calls = _objects(_object(choice.get("message")).get("tool_calls"))
            for index, call in enumerate(calls):
                call["index"] = index
        yield from self.chunk(body)
        self.complete = True

    def end(self) -> Iterator[TextDelta | ToolCall | Finish]:
        if self._held:
            yield TextDelta("\N{REPLACEMENT CHARACTER}")
        reason = REASONS.get(self._reason, "stop")
        calls = [ToolCall(call.id, call.name, call.arguments or "{}") for call in self._calls]
        if reason == "length":
            calls = [call for call in calls if _is_object(call.arguments)]  # the last one was cut
        elif calls and reason == "stop":
            reason = "tool_calls"
        taken: set[str] = set()
        for call in calls:
            own = call.id if call.id and call.id not in taken else f"call_{secrets.token_hex(8)}"
            taken.add(own)
            yield ToolCall(own, call.name, whole_characters(call.arguments))
        yield Finish(reason, self._count())

    def _fragment(self, delta: Mapping[str, Any]) -> None:
        self._pieces += 1
        function = _object(delta.get("function"))
        own, name = _text(delta.get("id")), _text(function.get("name"))
        call = self._slot(delta.get("index"), own, name)
        call.id = call.id or own
        if name != call.name:  # some servers repeat the name, some send it in fragments
            call.name += name
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            call.arguments += arguments
        elif arguments is not None:
            call.arguments += json.dumps(arguments, ensure_ascii=False)

    def _slot(self, index: Any, own: str, name: str) -> _Call:
        """The call that a fragment belongs to: by index, unless the id says that it is another."""
        if isinstance(index, int):
            call = self._by_index.get(index)
            if call is None or (own and call.id and own != call.id):
                call = self._by_index[index] = self._new()
            return call
        if own:
            return next((call for call in self._calls if call.id == own), None) or self._new()
        return self._new() if name or not self._calls else self._calls[-1]

    def _new(self) -> _Call:
        self._calls.append(_Call())
        return self._calls[-1]

    def _joined(self, text: str) -> str:
        """`text` with surrogate pairs made whole, also where a pair lies across two chunks."""
        text = self._held + text
        self._held = text[-1] if text and "\ud800" <= text[-1] <= "\udbff" else ""
        return whole_characters(text[:-1] if self._held else text)

    def _count(self) -> Usage:
        """The usage; a server that counts nothing has made at least a token for every piece."""
        details = _object(self._usage.get("prompt_tokens_details"))
        return Usage(
            _number(self._usage.get("prompt_tokens")),
            _number(self._usage.get("completion_tokens")) if self._usage else self._pieces,
            _number(details.get("cached_tokens")),
        )


def whole_characters(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates, which no file or terminal can hold."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    """Text, or the text of content parts."""
    if isinstance(value, str):
        return value
    return "".join(_text(part.get("text")) for part in _objects(value))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except ValueError:
        return False
