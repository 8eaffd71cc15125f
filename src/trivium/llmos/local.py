"""A language model of this machine as a `ChatModel`.

A model whose chat template knows tools is shown them by it and writes its calls as it was trained
to (`trivium.llmos.native_tools`); so does the default model, with the adapter that we ship for it
(`trivium.llmos.shipped`). Any other one is led through examples (`trivium.llmos.few_shot`). Answers
stream; the conversation so far stays in the engine's cache.
"""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from trivium.errors import UsageError
from trivium.language.engine import ContextOverflow, Engine
from trivium.language.generation import End, Request
from trivium.language.pretrained import Precision
from trivium.language.sampling import Sampling
from trivium.llmos import native_tools
from trivium.llmos.faithful import failure, unadmitted, uncounted, unsaid
from trivium.llmos.few_shot import ToolChooser, fill_arguments
from trivium.llmos.messages import Finish, Message, ModelEvent, TextDelta, ToolCall, Usage
from trivium.llmos.second_thoughts import reconsidered
from trivium.llmos.shipped import load_assistant
from trivium.llmos.tools import Tool

# The likeliest words, but none for ever: without a penalty a small model repeats itself.
CALM = Sampling(frequency_penalty=0.3)


@dataclass
class LocalModel:
    """Chats with an engine. `max_tokens` bounds one reply, which also ends where the context does.

    Raises UsageError for a model without a chat template, and `ContextOverflow` for a conversation
    that no longer fits.
    """

    engine: Engine
    sampling: Sampling = CALM
    max_tokens: int = 1024
    plain: Engine | None = None  # that answers what needs no tool, in the place of `engine`
    _chooser: ToolChooser | None = None

    def __post_init__(self) -> None:
        if self.engine.language_model.template is None:
            raise UsageError(
                f"{self.name} has no chat template, so it cannot hold a conversation: continue a "
                "text with `trivium complete`"
            )
        self._template = self.engine.language_model.template

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        threads: int | None = None,
        sampling: Sampling | None = None,
        max_tokens: int = 1024,
    ) -> "LocalModel":
        """Load a model by its name in `trivium models`, or by its path."""
        if threads is not None:
            torch.set_num_threads(threads)
        plain, adapted = load_assistant(name, device=device, precision=precision)
        if adapted is None:
            return cls(Engine(plain), sampling or CALM, max_tokens)
        return cls(Engine(adapted), sampling or CALM, max_tokens, Engine(plain))

    @property
    def name(self) -> str:
        return self.engine.language_model.name

    @property
    def context(self) -> int:
        """Tokens that a conversation and its answer may have together."""
        return self.engine.context

    def stream(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> Iterator[ModelEvent]:
        if any(isinstance(m.content, tuple) and not _is_text(m) for m in messages):
            raise UsageError(f"{self.name} reads text only, not images or sound")
        if self._template.supports_tools:
            return self._native(messages, tools)
        return self._led(messages, tools)

    # -- a model that knows tools ---------------------------------------------------------------

    def _native(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[ModelEvent]:
        shown = [tool.to_json() for tool in tools] or None
        prompt = self._encode(messages, shown)
        effects = {tool.name: tool.effect for tool in tools}
        form = native_tools.form_of("\n".join(self._template.sources))
        grammar = native_tools.grammar(form, tools) if tools else None
        request = self._request(prompt, grammar)
        acts = bool(tools) and (
            messages[-1].role == "tool" or native_tools.calls_at_once(self.engine, prompt, form)
        )
        if self.plain is not None and not acts:
            yield from self._plainly(self.plain, messages, effects)
            return
        if acts:
            # A call, and what is said of its result, copy: a penalty on words that came before
            # would be one on the right digit.
            request = replace(request, sampling=Sampling())
        parser = native_tools.Parser(form, self.engine.tokenizer)
        calls: list[ToolCall] = []
        said = ""
        for event in self.engine.generate(request):
            for piece in parser.push(event):
                if isinstance(piece, ToolCall):
                    calls.append(piece)
                else:
                    said += piece.text
                    yield piece
            if isinstance(event, End):
                if calls and self.plain is not None and not said.strip():
                    calls[0] = reconsidered(self.engine, prompt, form, calls[0], messages)
                yield from calls
                if not calls and (results := _results(messages)):
                    missing = unadmitted(results, said) or uncounted(results, effects, said)
                    if missing:
                        yield TextDelta(missing)
                reason = "tool_calls" if calls and event.reason == "stop" else event.reason
                yield Finish(reason, _usage(event))

    def _plainly(
        self, plain: Engine, messages: Sequence[Message], effects: Mapping[str, str]
    ) -> Iterator[ModelEvent]:
        """The answer of the published weights, which know no tools."""
        start = max((i for i, m in enumerate(messages) if m.role == "user"), default=None)
        if start is None:
            raise UsageError("the conversation holds no message of a user")
        template = plain.language_model.template
        assert template is not None
        records = [{"role": m.role, "content": m.text} for m in told(messages, start, effects)]
        prompt = template.encode(plain.tokenizer, records)
        free = min(self.max_tokens, plain.room(prompt, None))
        for event in plain.generate(Request(prompt, self.sampling, max_tokens=free)):
            if event.text:
                yield TextDelta(event.text)
            if isinstance(event, End):
                yield Finish(event.reason, _usage(event))

    # -- a model that does not ------------------------------------------------------------------

    def _led(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[ModelEvent]:
        start = max((i for i, m in enumerate(messages) if m.role == "user"), default=None)
        if start is None:
            raise UsageError("the conversation holds no message of a user")
        effects = {tool.name: tool.effect for tool in tools}
        # First of all, so that a conversation which does not fit calls no tool.
        answer = self._request(self._encode(told(messages, start, effects)))
        results = _results(messages)
        if tools and not results:
            call, usage = self._call(messages[start].text, tools)
            if call is not None:
                yield call
                yield Finish("tool_calls", usage)
                return
        if results and (failed := failure(results)):
            # A model of this size would claim success; what happened is said for it.
            yield TextDelta(failed)
            yield Finish("stop")
            return
        said = ""
        for event in self.engine.generate(answer):
            if event.text:
                said += event.text
                yield TextDelta(event.text)
            if isinstance(event, End):
                if missing := unsaid(results, said):
                    yield TextDelta(missing)
                yield Finish(event.reason, _usage(event))

    def _call(self, request: str, tools: Sequence[Tool]) -> tuple[ToolCall | None, Usage]:
        """The call that `request` asks for, if it asks for one."""
        try:
            if self._chooser is None or self._chooser.tools[1:] != tuple(tools):
                self._chooser = ToolChooser(self.engine, tools)
            choice = self._chooser.choose(request)
            if choice.tool is None:
                return None, Usage()
            shown = self._chooser.nearest(choice.tool, choice.vector)
            arguments, ends = fill_arguments(self.engine, choice.tool, request, shown)
        except ContextOverflow:
            raise UsageError(
                f"the context of {self.context} tokens of {self.name} is too small for tools: go "
                "without them (--no-tools), or take another model"
            ) from None
        text = json.dumps(arguments, ensure_ascii=False)
        call = ToolCall(f"call_{uuid.uuid4().hex[:12]}", choice.tool.name, text)
        return call, sum((_usage(end) for end in ends), Usage())

    def _encode(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None
    ) -> list[int]:
        records = [message.to_json() for message in messages]
        for record, message in zip(records, messages, strict=True):
            record["content"] = message.text
        return self._template.encode(self.engine.tokenizer, records, tools)

    def _request(self, prompt: list[int], grammar: str | None = None) -> Request:
        free = self.engine.room(prompt, None)
        return Request(
            prompt, self.sampling, max_tokens=min(self.max_tokens, free), grammar=grammar
        )


def told(messages: Sequence[Message], start: int, effects: Mapping[str, str]) -> list[Message]:
    """The conversation for a model that knows no tool messages: earlier turns as they were asked
    and answered, and the last request, which stands at `start`, together with what the tools
    gave."""
    past = [
        replace(message, tool_calls=())
        for message in messages[:start]
        if message.role != "tool" and (message.role != "assistant" or not message.tool_calls)
    ]
    request = messages[start]
    results = [message for message in messages[start:] if message.role == "tool"]
    if not results:
        return [*past, request]
    texts = [m for m in results if effects.get(m.name or "") == "read"]
    values = [m for m in results if m not in texts]
    parts = [f"Text:\n{m.text}" for m in texts]
    if values:
        parts += [request.text, *(f"(The tool {m.name} gave: {m.text})" for m in values)]
        parts += ["Answer in one short sentence, with what the tool gave."]
    else:
        parts += [f"Question: {request.text}\nAnswer from the text."]
    return [*past, Message("user", "\n\n".join(parts))]


def _results(messages: Sequence[Message]) -> list[Message]:
    """What tools gave since the last message of the user."""
    start = max((i for i, m in enumerate(messages) if m.role == "user"), default=0)
    return [message for message in messages[start:] if message.role == "tool"]


def _is_text(message: Message) -> bool:
    return all(part.get("type") == "text" for part in message.content)  # type: ignore[union-attr]


def _usage(end: End) -> Usage:
    return Usage(end.prompt_tokens, end.completion_tokens, end.cached_tokens)
