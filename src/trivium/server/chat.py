"""/v1/chat/completions: a conversation and its next message, whole or as a stream of deltas."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from trivium.errors import UsageError
from trivium.language.constrain import compile_json_schema
from trivium.language.engine import End, Request, Token
from trivium.llmos import native_tools
from trivium.llmos.local import told
from trivium.llmos.messages import Finish, Message, ToolCall, Usage
from trivium.llmos.native_tools import Form
from trivium.server import tool_calls
from trivium.server.errors import ApiError
from trivium.server.generation import (
    Piece,
    Pieces,
    Said,
    Total,
    chat_logprobs,
    check_grammar,
    check_room,
    new_id,
    request,
    text_pieces,
    usage,
)
from trivium.server.schema import ChatRequest
from trivium.server.served import Language
from trivium.server.streams import Events
from trivium.server.tool_calls import Offer
from trivium.server.workers import Job

FRAGMENT = 64  # characters of arguments in one delta


@dataclass(frozen=True)
class Plan:
    """A chat request, read and found to be possible."""

    body: ChatRequest
    model: Language
    jobs: Sequence[Job[Piece]]
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    def envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.id,
            "system_fingerprint": self.model.fingerprint,
        }


def plan(model: Language, body: ChatRequest) -> Plan:
    """Everything that can be refused is refused here, before anything waits or is computed."""
    messages = _messages(body)
    offered = tool_calls.offer(body)
    answer = _answer_schema(body)
    form = None
    grammar = compile_json_schema(answer) if answer is not None else None
    led = bool(offered.tools) and not model.template.supports_tools
    if offered.tools and not led:
        form = native_tools.form_of("\n".join(model.template.sources))
        grammar = tool_calls.native_grammar(form, offered, answer)
    if grammar is not None:
        check_grammar(model.engine, grammar, "tools" if form else "response_format")
    prompt = _prompt(model, messages, offered, led)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(
            400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value"
        )
    wanted = body.max_completion_tokens or body.max_tokens
    check_room(model.engine, prompt, wanted, "messages")
    ask = partial(
        request,
        body,
        model.engine,
        prompt,
        max_tokens=wanted,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=grammar,
    )
    jobs: list[Job[Piece]] = []
    for choice in range(body.n or 1):
        job = partial(_pieces, model, ask(choice), form)
        if led:
            job = partial(_led, model, offered, messages, wanted, job)
        jobs.append(job)
    return Plan(body, model, jobs)


def _messages(body: ChatRequest) -> list[Message]:
    """The conversation. Results of tools get the names of the calls that they answer."""
    messages: list[Message] = []
    names: dict[str, str] = {}
    for place, given in enumerate(body.messages):
        if not isinstance(given.content, str):
            for part in given.content or ():
                if part.type != "text" or part.text is None:
                    raise ApiError(
                        400,
                        f"this model reads text only, not a part of type {part.type[:40]!r}",
                        param=f"messages.{place}.content",
                        code="unsupported_content",
                    )
        message = Message.from_json(given.model_dump(exclude_none=True))
        names |= {call.id: call.name for call in message.tool_calls}
        if message.role == "tool" and message.name is None:
            message = replace(message, name=names.get(message.tool_call_id or ""))
        messages.append(message)
    return messages


def _answer_schema(body: ChatRequest) -> Mapping[str, Any] | None:
    """The schema that the answer must fit; None when it is free text."""
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise ApiError(
            400,
            "response_format.json_schema is missing",
            param="response_format.json_schema",
            code="invalid_value",
        )
    try:
        compile_json_schema(wanted.json_schema.shape)
    except UsageError as error:
        param = "response_format.json_schema.schema"
        raise ApiError(400, str(error), param=param, code="invalid_value") from error
    return wanted.json_schema.shape


def _prompt(model: Language, messages: Sequence[Message], offered: Offer, led: bool) -> list[int]:
    start = _last_request(messages)
    if led and start is None:
        raise ApiError(400, "a call needs a message of a user", param="messages")
    knows = model.template.supports_tools
    used = any(message.role == "tool" or message.tool_calls for message in messages)
    if used and not knows and start is not None:
        messages = told(messages, start, {})
    records = [message.to_json() for message in messages]
    for record, message in zip(records, messages, strict=True):
        record["content"] = message.text
    shown = [tool.to_json() for tool in offered.tools] if knows else None
    return model.template.encode(model.engine.tokenizer, records, shown or None)


def _last_request(messages: Sequence[Message]) -> int | None:
    return max((i for i, m in enumerate(messages) if m.role == "user"), default=None)


def _pieces(model: Language, asked: Request, form: Form | None) -> Iterator[Piece]:
    """One choice. With `form`, what the model writes is parted into text and calls."""
    with contextlib.closing(model.engine.generate(asked)) as events:  # type: ignore[type-var]
        if form is None:
            yield from text_pieces(events, logprobs=asked.top_logprobs is not None)
            return
        parser = native_tools.Parser(form, model.engine.tokenizer)
        held: list[Token] = []  # whose text the parser still holds back
        called = False
        for event in events:
            if isinstance(event, Token) and asked.top_logprobs is not None:
                held.append(event)
            for piece in parser.push(event):
                if isinstance(piece, ToolCall):
                    called = True
                    yield piece
                else:
                    yield Said(piece.text, tuple(held))
                held.clear()
            if isinstance(event, End):
                # "length" wins: the last call may be cut.
                reason = "tool_calls" if called and event.reason == "stop" else event.reason
                yield Finish(reason, usage(event))


def _led(
    model: Language,
    offered: Offer,
    messages: Sequence[Message],
    wanted: int | None,
    answer: Job[Piece],
) -> Iterator[Piece]:
    """One choice of a model that knows no tools: a call, or else the pieces of `answer`."""
    start = _last_request(messages)
    assert start is not None
    answered = any(message.role == "tool" for message in messages[start:])
    ends: list[End] = []
    if offered.required or not answered:
        chooser = model.chooser(offered.tools)
        call, ends = tool_calls.led_call(model.engine, chooser, offered, messages[start].text)
        spent = sum((usage(end) for end in ends), Usage())
        cut = wanted is not None and spent.completion_tokens > wanted
        if call is not None and not cut:
            yield call
            yield Finish("tool_calls", spent)
            return
        if ends:
            yield Finish("length", spent)
            return
    yield from answer()


async def whole(plan: Plan, pieces: Pieces) -> dict[str, Any]:
    """The answer in one piece."""
    count = len(plan.jobs)
    texts, tokens = [""] * count, [list[Token]() for _ in range(count)]
    calls, reasons = [list[ToolCall]() for _ in range(count)], [""] * count
    total = Total(count)
    async with contextlib.aclosing(pieces):
        async for i, piece in pieces:
            if isinstance(piece, Said):
                texts[i] += piece.text
                tokens[i] += piece.tokens
            elif isinstance(piece, ToolCall):
                calls[i].append(piece)
            else:
                reasons[i] = piece.reason
                total.add(i, piece.usage)
    tokenizer = plan.model.engine.tokenizer
    choices = []
    for i in range(count):
        message: dict[str, Any] = {"role": "assistant", "content": texts[i], "refusal": None}
        if calls[i]:
            message["content"] = texts[i] or None
            message["tool_calls"] = [call.to_json() for call in calls[i]]
        logprobs = {"content": chat_logprobs(tokenizer, tokens[i]), "refusal": None}
        choices.append(
            {
                "index": i,
                "message": message,
                "logprobs": logprobs if plan.body.logprobs else None,
                "finish_reason": reasons[i],
            }
        )
    return plan.envelope("chat.completion") | {"choices": choices, "usage": total.to_json()}


async def chunks(plan: Plan, pieces: Pieces) -> Events:
    """The answer as deltas: the role, then text and calls, then why it ended; last, the usage."""
    options = plan.body.stream_options
    counted = bool(options and options.include_usage)
    total, envelope = Total(len(plan.jobs)), plan.envelope("chat.completion.chunk")
    begun: set[int] = set()
    calls = [0] * len(plan.jobs)

    def chunk(i: int, delta: Mapping[str, Any], *, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": reason}
        return envelope | {"choices": [choice]} | ({"usage": None} if counted else {})

    async with contextlib.aclosing(pieces):
        async for i, piece in pieces:
            if i not in begun:
                begun.add(i)
                yield chunk(i, {"role": "assistant", "content": ""})
            if isinstance(piece, Said):
                made = chunk(i, {"content": piece.text})
                if plan.body.logprobs:
                    entries = chat_logprobs(plan.model.engine.tokenizer, piece.tokens)
                    made["choices"][0]["logprobs"] = {"content": entries, "refusal": None}
                yield made
            elif isinstance(piece, ToolCall):
                for fragment in _fragments(piece, calls[i]):
                    yield chunk(i, {"tool_calls": [fragment]})
                calls[i] += 1
            else:
                total.add(i, piece.usage)
                yield chunk(i, {}, reason=piece.reason)
    if counted:
        yield envelope | {"choices": [], "usage": total.to_json()}


def _fragments(call: ToolCall, index: int) -> Iterator[dict[str, Any]]:
    """A call as clients join it: id and name once, then the arguments."""
    head = {"name": call.name, "arguments": ""}
    yield {"index": index, "id": call.id, "type": "function", "function": head}
    for at in range(0, len(call.arguments), FRAGMENT):
        yield {"index": index, "function": {"arguments": call.arguments[at : at + FRAGMENT]}}
