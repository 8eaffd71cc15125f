"""A chat model is one function from messages to events; its fake is first-class.

    stream(messages, tools) -> TextDelta* ToolCall* … Finish

`RemoteModel` (trivium.llmos.remote) speaks to any OpenAI-compatible endpoint, `LocalModel`
(trivium.llmos.local) wraps an engine of this package, `ScriptedModel` below plays a fixed script
for tests and demonstrations.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from trivium.llmos.messages import Finish, Message, ModelEvent, TextDelta, ToolCall, Usage
from trivium.llmos.tools import Tool


class ChatModel(Protocol):
    @property
    def name(self) -> str: ...

    def stream(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> Iterator[ModelEvent]:
        """Yield text and tool calls as they are made, then exactly one `Finish`."""
        ...


Reply = str | ToolCall | Iterable[ModelEvent]


class ScriptedModel:
    """Plays `replies` in order, one a call; a callable reply is given the messages.

    Every call's messages are kept in `calls`, so that a test can see what the model was shown.
    """

    name = "scripted"

    def __init__(self, *replies: Reply | Callable[[Sequence[Message]], Reply]) -> None:
        self._replies = iter(replies)
        self.calls: list[tuple[Message, ...]] = []

    def stream(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> Iterator[ModelEvent]:
        self.calls.append(tuple(messages))
        try:
            reply = next(self._replies)
        except StopIteration:
            raise AssertionError(f"the script has no reply for call {len(self.calls)}") from None
        if callable(reply):
            reply = reply(messages)
        if isinstance(reply, str):
            words = reply.split(" ")
            for i, word in enumerate(words):
                yield TextDelta(word if i == len(words) - 1 else word + " ")
            yield Finish("stop", Usage(0, len(words)))
        elif isinstance(reply, ToolCall):
            yield reply
            yield Finish("tool_calls", Usage(0, 1))
        else:
            yield from reply
