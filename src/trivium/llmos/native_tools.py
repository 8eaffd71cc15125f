"""Tool calls as published models write them, and how they are found in the text.

A call is JSON behind a sign that the model was trained on. Constrained decoding starts with the
sign:
the text before it is free, the call can only be that of a tool that is there, with arguments that
fit its schema.
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.language.constrain import Grammar, compile_lark
from trivium.language.engine import Engine
from trivium.language.generation import End, Request, Token
from trivium.language.tokenizer import Tokenizer
from trivium.llmos.messages import TextDelta, ToolCall
from trivium.llmos.tools import Tool


@dataclass(frozen=True)
class Form:
    """`begin` and `end` enclose the JSON of a call, whose arguments stand under `key`.

    With `listed`, the JSON is a list of calls. An empty `end` is the end of the reply.
    """

    begin: str
    end: str
    key: str = "arguments"
    listed: bool = False


HERMES = Form("<tool_call>", "</tool_call>")  # Hermes, Qwen, SmolLM
MISTRAL = Form("[TOOL_CALLS]", "", listed=True)
LLAMA = Form('{"name":', "", key="parameters")  # Llama 3: the reply is the call

# What a template contains that gives its form away; the first that fits.
SIGNS = (("<tool_call>", HERMES), ("[TOOL_CALLS]", MISTRAL), ('"parameters":', LLAMA))


def form_of(template: str) -> Form:
    """The form that a chat template teaches; Hermes' if it says nothing we know."""
    return next((form for sign, form in SIGNS if sign in template), HERMES)


def call_rules(form: Form, tools: Sequence[Tool]) -> list[str]:
    """Rules of a grammar in which `call` is the JSON of one call of one of `tools`."""
    rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
    for i, tool in enumerate(tools):
        head = json.dumps(_opening(form, tool.name) + " ")
        rules.append(f'call_{i}: {head} arguments_{i} "}}"')
        rules.append(f"arguments_{i}: %json {json.dumps(dict(tool.parameters))}")
    return rules


def call_head(form: Form, name: str) -> str:
    """How a reply begins that is a call of a tool, up to its arguments."""
    opening = _opening(form, name)
    if form is LLAMA:  # the sign is the beginning of the JSON itself
        return opening
    space, bracket = "\n" if form.end else " ", "[" if form.listed else ""
    return f"{form.begin}{space}{bracket}{opening}"


def _opening(form: Form, name: str) -> str:
    return f'{{"name": {json.dumps(name)}, "{form.key}":'


def grammar(form: Form, tools: Sequence[Tool]) -> Grammar:
    """Free text, then any number of calls of `tools`, each well-formed."""
    rules = call_rules(form, tools)
    begin, end = json.dumps(form.begin), json.dumps(form.end)
    if form is LLAMA:
        # The sign is the beginning of the JSON itself: a reply is a call or it is text.
        return compile_lark("\n".join(["start: call | TEXT", r"TEXT: /[^{](.|\n)*/", *rules]))
    body = "call" if not form.listed else '"[" call (", " call)* "]"'
    space = '"\\n"' if form.end else '" "?'
    after = f"{space} {end}" if form.end else ""
    return compile_lark(
        "\n".join(
            [
                "start: block* TAIL",
                f"block: sign {space} {body} {after}",
                f"sign[lazy]: TAIL {begin}",
                r"TAIL: /(.|\n)*/",
                *rules,
            ]
        )
    )


def calls_at_once(engine: Engine, prompt: Sequence[int], form: Form) -> bool:
    """Whether the likeliest reply to the prompt begins with the sign of a call."""
    sign = engine.tokenizer.encode(form.begin, special=True)
    first = next(iter(engine.generate(Request(prompt, max_tokens=1))))
    return isinstance(first, Token) and first.id == sign[0]


class Parser:
    """Parts a stream of tokens into text and calls; text that may begin a sign is held back."""

    def __init__(self, form: Form, tokenizer: Tokenizer) -> None:
        self._form = form
        # A sign that is a control token of its own is not in the text: put it back.
        self._signs = {
            id: text
            for text, id in tokenizer.control_tokens.items()
            if text in (form.begin, form.end) and id in tokenizer.special_ids
        }
        self._held = ""
        self._inside = False

    def push(self, event: Token | End) -> Iterator[TextDelta | ToolCall]:
        """What has become certain with the next token, or with the end of the reply."""
        sign = self._signs.get(event.id, "") if isinstance(event, Token) else ""
        self._held += sign + event.text
        while self._inside or self._form.begin in self._held:
            if not self._inside:
                before, _, self._held = self._held.partition(self._form.begin)
                if self._form is LLAMA:
                    self._held = self._form.begin + self._held
                if before:
                    yield TextDelta(before)
                self._inside = True
            whole, found, rest = (
                self._held.partition(self._form.end) if self._form.end else (self._held, "", "")
            )
            if not found and not isinstance(event, End):
                return
            self._inside, self._held = False, rest
            yield from _calls(whole, self._form)
        if isinstance(event, End):
            keep = 0
        else:
            keep = _overlap(self._held, self._form.begin)
        cut = len(self._held) - keep
        if cut:
            yield TextDelta(self._held[:cut])
            self._held = self._held[cut:]


def _overlap(text: str, sign: str) -> int:
    """How many characters at the end of `text` may become `sign`."""
    return next((n for n in range(len(sign) - 1, 0, -1) if text.endswith(sign[:n])), 0)


def _calls(text: str, form: Form) -> list[TextDelta | ToolCall]:
    """The calls in `text`; a text that is no call after all is shown as it is."""
    try:
        value = json.loads(text)
        records: list[dict[str, Any]] = value if isinstance(value, list) else [value]
        return [
            ToolCall(
                f"call_{uuid.uuid4().hex[:12]}",
                str(record["name"]),
                json.dumps(record.get(form.key, {}), ensure_ascii=False),
            )
            for record in records
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [TextDelta(form.begin + text + form.end)]
