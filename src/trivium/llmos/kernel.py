"""The kernel: a model decides, the gateway acts, and what came back is read again, until it
answers.

One turn is a generator of typed events. Whoever consumes them (terminal, server, tree search,
journal) sees every piece of text, every tool call before it runs and every result after it. A turn
always ends: with an `Answer`, with a `Failure` that names the spent budget, or by closing the
generator.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event as Flag

from trivium.llmos.chat_model import ChatModel
from trivium.llmos.gateway import Gateway
from trivium.llmos.messages import (
    Answer,
    Event,
    Failure,
    Finish,
    FinishReason,
    Message,
    TextDelta,
    ToolCall,
    ToolResult,
    Usage,
)


@dataclass(frozen=True)
class Budget:
    """What one turn may cost: model calls, generated tokens, seconds of wall time."""

    steps: int = 8
    tokens: int = 4096
    seconds: float = 300.0


def run(
    model: ChatModel,
    messages: Sequence[Message],
    gateway: Gateway,
    budget: Budget | None = None,
    cancelled: Flag | None = None,
) -> Iterator[Event]:
    """Answer the last message of `messages`, calling tools through `gateway` on the way.

    The same call twice in a turn is not run again unless something was written or executed since;
    the model is told so once, and the turn ends if it insists.
    """
    budget = budget or Budget()
    meter = _Meter(budget, cancelled or Flag())
    history = list(messages)
    repeats = _Repeats(gateway)
    for _ in range(budget.steps):
        text, calls = "", []
        reason: FinishReason = "stop"
        stream = model.stream(history, gateway.tools)
        try:
            for event in stream:
                if isinstance(event, Finish):
                    meter.close(event.usage)
                    reason = event.reason
                    continue
                meter.count()
                if isinstance(event, TextDelta):
                    text += event.text
                    yield event
                else:
                    calls.append(event)
                if failure := meter.failure():
                    yield failure
                    return
        finally:
            _close(stream)
        if failure := meter.failure():
            yield failure
            return
        if not calls:
            if text.strip():
                yield Answer(text, meter.usage, reason)
            else:
                yield Failure("model", f"{model.name} returned neither text nor a tool call")
            return
        for call in calls:
            yield call
            result = repeats.refusal(call) or gateway.call(call)
            yield result
            history += (Message("assistant", text, (call,)), tool_message(result))
            text = ""
            if repeats.insists(call, result):
                yield Failure(
                    "repeat", f"the model keeps calling {call.name} with {call.arguments}"
                )
                return
            if failure := meter.failure():
                yield failure
                return
    yield Failure("steps", f"no answer after {budget.steps} steps; raise --max-steps to go on")


class _Meter:
    """Counts tokens and seconds. While a call streams, every event counts as one token; its
    `Finish` then puts the exact number in their place."""

    def __init__(self, budget: Budget, cancelled: Flag) -> None:
        self.usage = Usage()
        self._budget, self._cancelled = budget, cancelled
        self._deadline = time.monotonic() + budget.seconds
        self._streamed = 0

    def count(self) -> None:
        self._streamed += 1

    def close(self, usage: Usage) -> None:
        self.usage += usage
        self._streamed = 0

    def failure(self) -> Failure | None:
        if self._cancelled.is_set():
            return Failure("cancelled", "cancelled")
        if self.usage.completion_tokens + self._streamed > self._budget.tokens:
            return Failure(
                "tokens", f"over {self._budget.tokens} tokens; raise --max-tokens to go on"
            )
        if time.monotonic() > self._deadline:
            return Failure("seconds", f"no answer within {self._budget.seconds:g} seconds")
        return None


class _Repeats:
    """Spots a model that goes round in circles."""

    def __init__(self, gateway: Gateway) -> None:
        self._effects = {tool.name: tool.effect for tool in gateway.tools}
        self._seen: dict[str, int] = {}

    @staticmethod
    def _key(call: ToolCall) -> str:
        try:
            return f"{call.name} {json.dumps(call.parsed(), sort_keys=True)}"
        except ValueError:
            return f"{call.name} {call.arguments}"

    def refusal(self, call: ToolCall) -> ToolResult | None:
        key = self._key(call)
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] == 1:
            return None
        return ToolResult(
            call,
            f"{call.name} was already called with exactly these arguments; use the result above, "
            "or answer",
            error=True,
        )

    def insists(self, call: ToolCall, result: ToolResult) -> bool:
        key = self._key(call)
        if not result.error and self._effects.get(call.name) in ("write", "execute"):
            # The world changed, so that other calls may give something new; this one would not.
            self._seen = {key: self._seen[key]}
        return self._seen[key] > 2


def _close(stream: Iterator[object]) -> None:
    close = getattr(stream, "close", None)
    if close is not None:
        close()


def tool_message(result: ToolResult) -> Message:
    return Message("tool", result.content, tool_call_id=result.call.id, name=result.call.name)


INTERRUPTED = "interrupted: no result came, and it may have run"


def extend(messages: Iterable[Message], events: Iterable[Event]) -> list[Message]:
    """The conversation after a turn: `messages` and what `events` said, as the kernel shows it.

    A call whose result never came (the process was killed) is followed by a note that says so.
    """
    history = list(messages)
    text, pending = "", None
    for event in events:
        match event:
            case TextDelta():
                text += event.text
            case ToolCall():
                pending = event
            case ToolResult():
                history += (Message("assistant", text, (event.call,)), tool_message(event))
                text, pending = "", None
            case Answer():
                text = event.text
    if pending is not None:
        lost = ToolResult(pending, INTERRUPTED, error=True)
        history += (Message("assistant", text, (pending,)), tool_message(lost))
    elif text.strip():
        history.append(Message("assistant", text))
    return history
