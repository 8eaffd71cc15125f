"""/v1/chat/completions: a conversation and its next message, whole or as a stream of deltas."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from trivium.language.generation import Token
from trivium.llmos import native_tools
from trivium.llmos.local import told
from trivium.llmos.messages import Finish, Message, Usage
from trivium.server import tool_calls
from trivium.server.call_reader import CallReader
from trivium.server.errors import ApiError
from trivium.server.generation import (
    chat_logprobs,
    check_room,
    grammar_of,
    request,
    started,
    text_reader,
    usage,
)
from trivium.server.plan import Argued, Called, Choice, Pieces, Plan, Said, Total, answering
from trivium.server.schema import ChatRequest
from trivium.server.served import Language, SharedEngine
from trivium.server.streams import Events
from trivium.server.tool_calls import Offer
from trivium.server.workers import Job, Place


def plan(model: Language, body: ChatRequest) -> Plan:
    """Everything that can be refused is refused here, before anything waits or is computed."""
    caller = model.caller
    if caller is None or not body.tools or body.tool_choice == "none":
        return _planned(model, body)
    plain = None
    if body.tool_choice in (None, "auto") and body.messages[-1].role != "tool":
        plain = _planned(model, body.model_copy(update={"tools": None, "tool_choice": None}))
    return replace(_planned(caller, body, plain), model=model)


def _planned(model: Language, body: ChatRequest, plain: Plan | None = None) -> Plan:
    """By one model; what needs no tool is answered by `plain`, if it is given."""
    messages = _messages(body)
    offered = tool_calls.offer(body)
    answer = _answer_schema(body)
    led = bool(offered.tools) and not model.template.supports_tools
    form, grammar, param = None, None, "response_format"
    if answer is not None:
        grammar = grammar_of(answer, "response_format.json_schema.schema")
    if offered.tools and not led:
        form = native_tools.form_of("\n".join(model.template.sources))
        grammar, param = tool_calls.native_grammar(form, offered, answer), "tools"
    constraint = None if grammar is None else started(model.engine, grammar, param)
    prompt = _prompt(model, messages, offered, led)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(
            400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value"
        )
    wanted = body.max_completion_tokens or body.max_tokens
    check_room(model.engine, prompt, wanted, "messages")
    top = (body.top_logprobs or 0) if body.logprobs else None
    choices = []
    for i in range(body.n or 1):
        asked = request(
            body, model.engine, prompt, i, max_tokens=wanted, top_logprobs=top, grammar=grammar
        )
        run = model.batcher.run(asked, None if constraint is None else constraint.fork())
        job = answering(model, run)
        if led:
            job = partial(_led, model, offered, messages, wanted, job)
        if plain is not None:
            job = partial(_routed, model, prompt, job, plain.choices[i].job)
        logprobs = bool(body.logprobs)
        read = text_reader(logprobs=logprobs)
        if form is not None:
            at_once, tokenizer = answer is not None, model.engine.tokenizer
            read = CallReader(form, tokenizer, at_once=at_once, logprobs=logprobs)
        choices.append(Choice(job, read))
    return Plan("chat.completion", "chatcmpl", body, model, choices)


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


def _routed(
    caller: Language,
    prompt: Sequence[int],
    call: Job[Any],
    answer: Job[Any],
    place: Place[Any],
) -> None:
    """One choice of a model whose calls another one writes: `call`, if that one's likeliest reply
    begins with the sign of a call, or else `answer`."""

    def work() -> None:
        engine = SharedEngine(caller.batcher, place.left)
        form = native_tools.form_of("\n".join(caller.template.sources))
        calls = native_tools.calls_at_once(engine, prompt, form)
        (call if calls else answer)(place)

    place.thread(work)


def _led(
    model: Language,
    offered: Offer,
    messages: Sequence[Message],
    wanted: int | None,
    answer: Job[Any],
    place: Place[Any],
) -> None:
    """One choice of a model that knows no tools: a call, or else the pieces of `answer`."""
    start = _last_request(messages)
    assert start is not None
    answered = any(message.role == "tool" for message in messages[start:])
    if answered and not offered.required:
        answer(place)
        return

    def work() -> None:
        engine = SharedEngine(model.batcher, place.left)
        chooser = model.chooser(offered.tools)
        call, ends = tool_calls.led_call(engine, chooser, offered, messages[start].text)
        spent = sum((usage(end) for end in ends), Usage())
        if call is not None and (wanted is None or spent.completion_tokens <= wanted):
            place.post([*call, Finish("tool_calls", spent)])
        elif ends:
            place.post([Finish("length", spent)])
        else:
            answer(place)
            return
        place.end()

    place.thread(work)


class _Message:
    """What the pieces of one choice add up to."""

    def __init__(self) -> None:
        self.text, self.reason = "", ""
        self.tokens: list[Token] = []
        self.calls: list[dict[str, Any]] = []

    def add(self, piece: Said | Called | Argued) -> None:
        if isinstance(piece, Said):
            self.text += piece.text
            self.tokens += piece.tokens
        elif isinstance(piece, Called):
            function = {"name": piece.name, "arguments": ""}
            self.calls.append({"id": piece.id, "type": "function", "function": function})
        else:
            self.calls[-1]["function"]["arguments"] += piece.text

    def to_json(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if self.calls:
            message |= {"content": self.text or None, "tool_calls": self.calls}
        return message


async def whole(plan: Plan, pieces: Pieces) -> dict[str, Any]:
    """The answer in one piece."""
    messages = [_Message() for _ in plan.choices]
    total = Total(plan)
    async with contextlib.aclosing(pieces):
        async for batch in pieces:
            for i, piece in batch:
                if isinstance(piece, Finish):
                    messages[i].reason = piece.reason
                    total.add(i, piece.usage)
                else:
                    messages[i].add(piece)
    choices = [
        {
            "index": i,
            "message": message.to_json(),
            "logprobs": _logprobs(plan, message.tokens),
            "finish_reason": message.reason,
        }
        for i, message in enumerate(messages)
    ]
    return plan.envelope(plan.object) | {"choices": choices, "usage": total.to_json()}


def _logprobs(plan: Plan, tokens: Sequence[Token]) -> dict[str, Any] | None:
    assert isinstance(plan.body, ChatRequest)
    if not plan.body.logprobs:
        return None
    return {"content": chat_logprobs(plan.model.engine.tokenizer, tokens), "refusal": None}


async def chunks(plan: Plan, pieces: Pieces) -> Events:
    """The answer as deltas: the role, then text and calls, then why it ended; last, the usage."""
    total = Total(plan)
    begun: set[int] = set()
    calls = [0] * len(plan.choices)

    def chunk(
        i: int, delta: Mapping[str, Any], *, tokens: Sequence[Token] = (), reason: str | None = None
    ) -> dict[str, Any]:
        logprobs = _logprobs(plan, tokens) if "content" in delta else None
        choice = {"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return plan.chunk("chat.completion.chunk", [choice])

    async with contextlib.aclosing(pieces):
        async for batch in pieces:
            made = []
            for i, piece in batch:
                if i not in begun:
                    begun.add(i)
                    made.append(chunk(i, {"role": "assistant", "content": ""}))
                if isinstance(piece, Said):
                    made.append(chunk(i, {"content": piece.text}, tokens=piece.tokens))
                elif isinstance(piece, Finish):
                    total.add(i, piece.usage)
                    made.append(chunk(i, {}, reason=piece.reason))
                else:
                    calls[i] += isinstance(piece, Called)
                    made.append(chunk(i, {"tool_calls": [_part(piece, calls[i] - 1)]}))
            yield made
    if plan.counted:
        yield [plan.chunk("chat.completion.chunk", []) | {"usage": total.to_json()}]


def _part(piece: Called | Argued, index: int) -> dict[str, Any]:
    """A part of a call as clients join it: id and name once, then the arguments."""
    if isinstance(piece, Argued):
        return {"index": index, "function": {"arguments": piece.text}}
    head = {"name": piece.name, "arguments": ""}
    return {"index": index, "id": piece.id, "type": "function", "function": head}
