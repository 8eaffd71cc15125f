"""What passes between a person, a model and the tools: frozen values whose JSON is OpenAI's.

A conversation is a list of `Message`. A chat model turns it into a stream of `TextDelta` and
`ToolCall`, closed by one `Finish`; the kernel adds `ToolResult`, and ends a turn with one `Answer`
or one `Failure`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True)
class ToolCall:
    """A request of the model to run a tool. `arguments` is a JSON object as text, as the API has
    it."""

    id: str
    name: str
    arguments: str

    def to_json(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ToolCall":
        function = record["function"]
        return cls(record["id"], function["name"], function.get("arguments") or "{}")

    def parsed(self) -> dict[str, Any]:
        """The arguments as a dict. Raises ValueError when they are not a JSON object."""
        value = json.loads(self.arguments or "{}")
        if not isinstance(value, dict):
            raise ValueError(f"expected a JSON object, got {type(value).__name__}")
        return value


@dataclass(frozen=True)
class Message:
    """One turn. `content` is text, or OpenAI content parts (text, image_url, input_audio)."""

    role: Role
    content: str | tuple[Mapping[str, Any], ...] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """The text of the message; parts that are not text are left out."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part["text"] for part in self.content if part.get("type") == "text")

    def to_json(self) -> dict[str, Any]:
        content = self.content if isinstance(self.content, str) else list(self.content)
        record: dict[str, Any] = {"role": self.role, "content": content}
        if self.tool_calls:
            record["tool_calls"] = [call.to_json() for call in self.tool_calls]
        if self.tool_call_id is not None:
            record["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            record["name"] = self.name
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Message":
        content = record.get("content") or ""
        return cls(
            role="system" if record["role"] == "developer" else record["role"],
            content=content if isinstance(content, str) else tuple(content),
            tool_calls=tuple(ToolCall.from_json(call) for call in record.get("tool_calls") or ()),
            tool_call_id=record.get("tool_call_id"),
            name=record.get("name"),
        )


@dataclass(frozen=True)
class Usage:
    """Tokens of one model call. `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True)
class TextDelta:
    """A piece of the model's text, in order."""

    text: str


@dataclass(frozen=True)
class Finish:
    """The end of one model call."""

    reason: FinishReason
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class ToolResult:
    """What a tool gave back. `error` marks a failure, which the model may read and correct.

    `files` are paths, relative to the workspace, that the call created or changed; `sources` name
    who wrote the text (see `trivium.llmos.gateway`).
    """

    call: ToolCall
    content: str
    error: bool = False
    files: tuple[str, ...] = ()
    sources: frozenset[str] = frozenset()
    seconds: float = 0.0


@dataclass(frozen=True)
class Answer:
    """The turn ended with the model's text; `reason` "length" says that it was cut short."""

    text: str
    usage: Usage = field(default_factory=Usage)
    reason: FinishReason = "stop"


@dataclass(frozen=True)
class Failure:
    """The turn ended without an answer: `kind` is a budget, the model, a cancel, or a repeat."""

    kind: Literal["steps", "tokens", "seconds", "repeat", "cancelled", "model"]
    message: str


ModelEvent = TextDelta | ToolCall | Finish
Event = TextDelta | ToolCall | ToolResult | Answer | Failure
