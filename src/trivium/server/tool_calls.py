"""Calls of the tools that a client offers, and its choice between them: auto, required or one.

A model whose template shows tools writes calls in its own form (`trivium.llmos.native_tools`); any
other is led through examples (`trivium.llmos.few_shot`). Either way a call is decoded under the
schema of its tool, so its arguments are always valid.
"""

import contextlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trivium.errors import UsageError
from trivium.language.constrain import Grammar, compile_json_schema, compile_lark
from trivium.language.engine import Engine
from trivium.language.generation import End, Request
from trivium.llmos import native_tools
from trivium.llmos.few_shot import abridged, copied, examples, fill_arguments
from trivium.llmos.native_tools import LLAMA, Form
from trivium.llmos.tools import Tool
from trivium.server.errors import ApiError
from trivium.server.generation import grammar_of
from trivium.server.plan import Argued, Called
from trivium.server.schema import ChatRequest, NamedTool
from trivium.server.served import Chooser

MOST_SCHEMAS = 1 << 17  # characters of JSON, of all tools
WHOLE_ARGUMENTS = 1024  # tokens of arguments that are written in one piece
PLAIN_TEXT = {"type", "title", "description", "default"}
# What `fill_arguments` respects; any other keyword needs the object to be written as a whole.
SIMPLE = {"type", "properties", "required", "additionalProperties", "title", "description"}


@dataclass(frozen=True)
class Offer:
    """The tools that may be called. `required`: one must be; `several`: more than one may be."""

    tools: tuple[Tool, ...] = ()
    required: bool = False
    several: bool = True


def offer(body: ChatRequest) -> Offer:
    """What a request offers. Raises ApiError for a choice that is not there or a bad schema."""
    choice = body.tool_choice or "auto"
    several = body.parallel_tool_calls is not False
    if isinstance(choice, NamedTool):
        named = choice.function.name
        given = [tool for tool in body.tools or () if tool.function.name == named]
        if not given:
            raise _wrong("tool_choice", f"tool_choice names {named[:64]!r}, which is not in tools")
        return Offer((_tool(given[0].function, 0),), required=True, several=False)
    if choice == "required" and not body.tools:
        raise _wrong("tool_choice", "tool_choice is required, but there are no tools")
    if choice == "none" or not body.tools:
        return Offer()
    size = sum(len(json.dumps(tool.function.parameters)) for tool in body.tools)
    if size > MOST_SCHEMAS:
        raise _wrong("tools", f"the schemas of the tools have more than {MOST_SCHEMAS} characters")
    tools = tuple(_tool(given.function, i) for i, given in enumerate(body.tools))
    if len({tool.name for tool in tools}) < len(tools):
        raise _wrong("tools", "two tools have the same name")
    return Offer(tools, choice == "required", several)


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")


def _tool(function: Any, place: int) -> Tool:
    """The tool as ours, its schema checked and with `properties` and `required`."""
    schema: dict[str, Any] = {"type": "object", **(function.parameters or {})}
    param = f"tools.{place}.function.parameters"
    grammar_of(schema, param, function.name)
    if schema["type"] != "object":
        raise _wrong(param, f"{function.name}: the parameters of a function must be an object")
    schema = {"properties": {}, "required": [], **schema}
    return Tool(function.name, (function.description or "").strip() or function.name, schema, _none)


def _none(**arguments: object) -> str:
    raise AssertionError("the client runs its tools, not the server")


def native_grammar(form: Form, offered: Offer, answer: Mapping[str, Any] | None) -> Grammar:
    """Calls in `form`; before or instead of them, free text, or JSON that fits `answer`."""
    if not offered.required and offered.several and answer is None:
        return native_tools.grammar(form, offered.tools)
    rules = native_tools.call_rules(form, offered.tools)
    starts = ["calls"]
    if not offered.required and answer is not None:
        starts.append("answer")
        rules.append(f"answer: %json {json.dumps(answer)}")
    elif not offered.required:
        starts = ["said | TEXT" if form is LLAMA else "said | TAIL"]
        rules.append(r"TEXT: /[^{](.|\n)*/" if form is LLAMA else r"TAIL: /(.|\n)*/")
    return compile_lark(
        "\n".join([f"start: {' | '.join(starts)}", *_blocks(form, offered), *rules])
    )


def _blocks(form: Form, offered: Offer) -> list[str]:
    """`calls`, which begin at once, and `said`, with free text before them."""
    if form is LLAMA:  # the sign is the beginning of the JSON itself, and there is but one call
        return ["calls: call", "said: call"]
    body = "call"
    if form.listed:
        body = '"[" call (", " call)* "]"' if offered.several else '"[" call "]"'
    space = '"\\n"' if form.end else '" "'
    begin = json.dumps(form.begin)
    after = f"{space} {json.dumps(form.end)}" if form.end else ""
    block = f"{begin} {space} {body} {after}"
    more = f'("\\n" {block})*' if offered.several and not form.listed else ""
    rules = [f"calls: {block} {more}"]
    if not offered.required:
        rules += [f"said: sign {space} {body} {after}", f"sign[lazy]: TAIL {begin}"]
    return rules


def led_call(
    engine: Engine, chooser: Chooser, offered: Offer, request: str
) -> tuple[tuple[Called, Argued] | None, list[End]]:
    """The call that `request` is for, by a model that knows no tools; None if it is for none.

    `chooser` is over the tools offered. Raises ApiError when the arguments have no end.
    """
    choice = chooser.choose(request)
    tool = choice.tool
    if tool is None:
        if not offered.required:
            return None, []
        tool = chooser.best_tool(choice.vector)
    shown = chooser.nearest(tool, choice.vector)
    ends: list[End] = []
    if _one_by_one(tool):
        with contextlib.suppress(UsageError):  # a property that means something only in its place
            arguments, ends = fill_arguments(engine, tool, request, shown)
            if all(end.reason == "stop" for end in ends):
                return _call(tool, json.dumps(arguments, ensure_ascii=False)), ends
    prompt = f"{tool.description.splitlines()[0]}\n\n"
    for past, given in shown:
        prompt += f"Request: {past}\nArguments: {json.dumps(given, ensure_ascii=False)}\n\n"
    prompt += f"Request: {abridged(request)}\nArguments: "
    grammar = compile_json_schema(tool.parameters)
    ids = engine.tokenizer.encode(prompt)
    pieces = list(engine.generate(Request(ids, max_tokens=WHOLE_ARGUMENTS, grammar=grammar)))
    end = pieces[-1]
    assert isinstance(end, End)
    text = "".join(piece.text for piece in pieces)
    # Cut off, the arguments are no JSON: there is no call, and the answer ends with "length".
    call = _call(tool, text) if end.reason == "stop" else None
    return call, [*ends, end] if call else [*ends, replace(end, reason="length")]


def _one_by_one(tool: Tool) -> bool:
    """Whether arguments that are right one by one are right together, so that nothing needs to be
    checked: a check would run the client's regular expressions, which may never end."""
    if not set(tool.parameters) <= SIMPLE:
        return False
    for name, schema in tool.parameters["properties"].items():
        if not isinstance(schema, dict):
            return False
        is_copy = copied(name, examples(tool), schema.get("default"))
        if is_copy and (schema.get("type") != "string" or not set(schema) <= PLAIN_TEXT):
            return False
    return True


def _call(tool: Tool, arguments: str) -> tuple[Called, Argued]:
    return Called(f"call_{uuid.uuid4().hex[:24]}", tool.name), Argued(arguments)
