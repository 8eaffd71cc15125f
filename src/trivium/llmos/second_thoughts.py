"""A second look at the call of a small model, before it is made.

A small model miscopies and forgets: a path that nobody named, a sum without one of the numbers of
the request. Such *doubts* are counted by rules, without a model. Where there are any, beam search
finds other arguments of the same tool, and those are taken for which

    log P(arguments) − COST · doubts

is largest. It is the best of n by a verifier (Cobbe et al. 2021), which here is a rule.
"""

import ast
import json
import re
from collections.abc import Sequence
from fractions import Fraction

from trivium.errors import TriviumError
from trivium.language.beam import beam_search
from trivium.language.engine import Engine
from trivium.llmos.calculator import calculate
from trivium.llmos.messages import Message, ToolCall
from trivium.llmos.native_tools import Form, call_head
from trivium.llmos.tools import ToolError

BEAMS = 8
COST = 3.0  # nats of a doubt
SPARE = 24  # tokens that other arguments may be longer
DOUBTFUL = 3  # doubts of code that cannot be run
DAYS_OF_A_MONTH = 31
COPIED = {"path", "pattern", "text", "what", "instruction", "prompt", "query"}
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")
_COPY = re.compile(r"^[^%{}\\]*\w{2}[^%{}\\]*$")  # a text of the request, no format
_ORDINAL = re.compile(r"\d+(?=st|nd|rd|th)")
_USUAL = {60, 100, 365, 1000, 2024, 3600}  # in code about times
_KNOWN = {*map(Fraction, (*range(1, 21), *range(30, 101, 10), 24, 25, 52, 365, 1000))}


def reconsidered(
    engine: Engine, prompt: Sequence[int], form: Form, call: ToolCall, messages: Sequence[Message]
) -> ToolCall:
    """The call, or a better one of the same tool. `prompt` is what the model was asked."""
    if not doubts(call, messages):
        return call
    head = engine.tokenizer.encode(call_head(form, call.name), special=True)
    longest = len(engine.tokenizer.encode(call.arguments)) + SPARE
    try:
        found = beam_search(
            engine,
            [*prompt, *head],
            beams=BEAMS,
            count=BEAMS,
            max_tokens=min(longest, engine.room([*prompt, *head], None)),
            length_penalty=0.0,
        )
    except TriviumError:  # no room for it
        return call
    best, highest = call, -float("inf")
    for hypothesis in found:
        other = _read(call, hypothesis.text)
        if other is not None:
            worth = hypothesis.score - COST * doubts(other, messages)
            if worth > highest:
                best, highest = other, worth
    return best


def _read(call: ToolCall, text: str) -> ToolCall | None:
    """The call with the arguments that `text` begins with; None if there are none."""
    try:
        arguments, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError:
        return None
    if not isinstance(arguments, dict):
        return None
    return ToolCall(call.id, call.name, json.dumps(arguments, ensure_ascii=False))


def doubts(call: ToolCall, messages: Sequence[Message]) -> int:
    """How much in the arguments nobody said, or was said and left out."""
    try:
        arguments = call.parsed()
    except ValueError:
        return 1
    said = "\n".join(m.text + "".join(c.arguments for c in m.tool_calls) for m in messages)
    asked = next((m.text for m in reversed(messages) if m.role == "user"), "")
    if call.name == calculate.name:
        return _of_sum(str(arguments.get("expression", "")), asked, said)
    if call.name == "python":
        return _of_code(str(arguments.get("code", "")), asked, said)
    return sum(
        _of_copy(value, said, parts="/" if name == "path" else "\n")
        for name, value in arguments.items()
        if name in COPIED and isinstance(value, str)
    )


def _of_copy(value: str, said: str, parts: str) -> int:
    """Parts that do not stand in what was said, and their words that do not."""
    lower, count = said.lower(), 0
    for part in filter(None, (part.strip() for part in value.split(parts))):
        if part.lower() not in lower and part != ".":
            count += 1 + sum(word.lower() not in lower for word in re.findall(r"\w+", part))
    return count


def _of_sum(expression: str, asked: str, said: str) -> int:
    """Numbers that come from nowhere (but for those that a sum may bring along: days of a week,
    numbers that were said as words), numbers of the request that are left out, and a result that is
    none or below zero."""
    used = _numbers(expression)
    count = len(used - _numbers(said) - _KNOWN) + len(_numbers(asked) - used)
    try:
        result = calculate.function(expression)
    except ToolError:
        return count + 1
    return count + str(result).startswith("-")


def _of_code(code: str, asked: str, said: str) -> int:
    """Code that is none, texts and larger numbers in it that come from nowhere, and numbers of the
    request that are left out (those of `range` and of afternoons may be larger)."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return DOUBTFUL
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    known = " ".join(said.casefold().split())
    texts = [value for value in constants if isinstance(value, str) and _COPY.search(value)]
    invented = [text for text in texts if " ".join(text.casefold().split()) not in known]
    used, heard = _whole_numbers(code), _whole_numbers(said)
    near = used | {n - 1 for n in used} | {n - 12 for n in used}
    strange = {n for n in used - heard if n > DAYS_OF_A_MONTH and n - 1 not in heard} - _USUAL
    return len(invented) + len(strange) + len(_whole_numbers(_ORDINAL.sub("", asked)) - near)


def _whole_numbers(text: str) -> set[int]:
    return {int(found) for found in re.findall(r"\d+", re.sub(r"(?<=\d),(?=\d{3})", "", text))}


def _numbers(text: str) -> set[Fraction]:
    return {Fraction(found.replace(",", "").rstrip(".")) for found in _NUMBER.findall(text)}
