"""Requests that were written one by one, by a large language model, each with the call that serves
it.

    problems   a question, and the named steps that solve it, which become one expression
    requests   a request, a tool and its arguments
    followups  a turn, what came of it, and a second turn that leans on it
    plain      requests that need no tool

One row in HELD of each table is never trained on: a model is measured on it.

The numbers of sums are drawn anew each time, where a number stands once in the request and once in
the sum; a sum stays sensible if whatever was whole, positive, or of two places on the way still is.
What of code is drawn anew: `other_days`.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from typing import TypeVar

from trivium.llmos.calculator import calculate
from trivium.llmos.tools import ToolError
from trivium.recipes.tool_requests.other_days import moved
from trivium.recipes.tool_requests.patterns import careless, is_chinese, polite
from trivium.recipes.tool_requests.problems import (
    ANSWERS,
    PERCENT,
    TRIES,
    alike,
    digits,
    drawn,
    in_pieces,
)
from trivium.recipes.tool_requests.tables import lines, unescaped
from trivium.recipes.tool_requests.tasks import Exchange, Step, spoken_number

T = TypeVar("T")
HELD = 20
ANSWERED = 0.25  # of sums; the other conversations end with the call
NONE = "-"  # in a table, where there is no tool
AS_WRITTEN = 0.15  # of sums keep their numbers
PERCENTAGES = (2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 20, 22, 25, 30, 35, 40, 45, 50, 60, 70, 75, 80, 90)
ANSWERS_CHINESE = ("答案是{}。", "一共是{}。", "是{}。", "{}。")
_LITERAL = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")


@dataclass(frozen=True)
class Sum:
    """A request in pieces, and the sum, as named steps and as one expression; `slots` are the
    pieces that are numbers of the sum."""

    pieces: tuple[str, ...]
    slots: Mapping[int, Fraction]
    steps: str
    expression: str
    results: tuple[Fraction | None, ...]  # of its steps; None: digits without end, or a unit


def problem(rng: random.Random, held: bool = False) -> Exchange:
    """A word problem; one of those that are `held` back, or any other."""
    return _asked(rng.choice(problems(held)), rng)


def named_steps(rng: random.Random) -> Exchange:
    """A word problem, answered by the named steps of its sum."""
    found = rng.choice(problems(held=False))
    asked, values = _renewed(found, rng)
    return Exchange(asked, (), _with_numbers(found.steps, found, values).replace("; ", "\n"))


def request(rng: random.Random, tools: frozenset[str], held: bool = False) -> Exchange:
    """A request for one of the tools."""
    text, tool, arguments = rng.choice(_for(tools, held))
    if tool == "calculate":
        return _asked(_sum(text, arguments["expression"]), rng)
    if tool == "python":
        text, code = moved(text, arguments["code"], rng)
        arguments = {"code": code}
    return Exchange(text, (Step(tool, arguments),), called=True)


def follow_up(rng: random.Random, replies: Mapping[str, str], held: bool = False) -> list[Exchange]:
    """Two turns, of which the second is learnt. `replies` answers those that need no tool."""
    first, tool, given, result, answer, second, next_tool, next_given = rng.choice(
        _follow_ups(held)
    )
    steps = (Step(tool, json.loads(given), result),) if tool != NONE else ()
    before = Exchange(first, steps, answer, learnt=False)
    if next_tool != NONE:
        step = Step(next_tool, json.loads(next_given))
        return [before, Exchange(second, (step,), called=True)]
    if second in replies:
        return [before, Exchange(second, (), replies[second])]
    return follow_up(rng, replies, held)


@cache
def plain(held: bool = False) -> tuple[tuple[tuple[tuple[str, str], ...], str], ...]:
    """What needs no tool: earlier turns, if there are any, and the request."""
    alone = [((), unescaped(text)) for (text,) in _rows("plain", held)]
    later = [(((row[0], row[4]),), row[5]) for row in _follow_ups(held) if row[6] == NONE]
    return (*alone, *later)


@cache
def problems(held: bool) -> tuple[Sum, ...]:
    """Word problems."""
    return tuple(_sum(unescaped(text), program) for text, program in _rows("problems", held))


@cache
def requests(held: bool) -> tuple[tuple[str, str, dict[str, str]], ...]:
    """Requests, each with its tool and arguments."""
    return tuple(
        (unescaped(text), tool, json.loads(given)) for text, tool, given in _rows("requests", held)
    )


@cache
def _for(tools: frozenset[str], held: bool) -> list[tuple[str, str, dict[str, str]]]:
    return [row for row in requests(held) if row[1] in tools]


@cache
def _follow_ups(held: bool) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (unescaped(first), tool, given, *map(unescaped, (result, answer, second)), *call)
        for first, tool, given, result, answer, second, *call in _rows("followups", held)
    )


def _rows(name: str, held: bool) -> Sequence[list[str]]:
    return part(lines(name), held)


def part(items: Sequence[T], held: bool) -> Sequence[T]:
    """One in HELD, which are `held` back, or the others. Fewer than HELD serve for both."""
    if held:
        return items[HELD - 1 :: HELD] or items
    return [item for i, item in enumerate(items) if i % HELD != HELD - 1]


@cache
def _sum(text: str, steps: str) -> Sum:
    pieces, where = in_pieces(text)
    shown = list(where.values())
    literals = Counter(Fraction(literal) for literal in _LITERAL.findall(steps))
    slots = {
        place: value
        for place, value in where.items()
        if shown.count(value) == 1 and literals[value] == 1
    }
    return Sum(pieces, slots, steps, _in_one(steps), _results(steps))


def _in_one(steps: str) -> str:
    """The last step, with those before it in the places of their names."""
    known: dict[str, str] = {}
    for step in steps.split("; "):
        name, _, text = step.rpartition(" = ")
        for earlier, inner in known.items():
            text = re.sub(rf"\b{earlier}\b(?!\()", partial(_put, inner), text)
        known[name] = text
    return text


def _put(inner: str, place: re.Match[str]) -> str:
    """In brackets, if what stands around would take it apart."""
    before = place.string[: place.start()].rstrip()[-1:]
    behind = place.string[place.end() :].lstrip()[:1]
    outside = re.sub(r"\([^()]*\)", "", inner)
    if re.search(r" [+-] ", outside):
        # A percentage is of all that stands before it.
        firsts = ("", "(", ",") if "%" in outside else ("", "+", "(", ",")
        whole = before in firsts and behind in ("", "+", "-", ")", ",")
    else:
        whole = " " not in outside or (before not in ("/", "^", "f", "%") and behind != "^")
    return inner if whole else f"({inner})"


# -- other numbers --------------------------------------------------------------------------------


def _asked(found: Sum, rng: random.Random) -> Exchange:
    asked, values = _renewed(found, rng)
    expression = _with_numbers(found.expression, found, values)
    if rng.random() > ANSWERED:
        return Exchange(asked, (Step("calculate", {"expression": expression}),), called=True)
    result = str(calculate.function(expression))
    step = Step("calculate", {"expression": expression}, result)
    answer = rng.choice(ANSWERS_CHINESE if is_chinese(asked) else ANSWERS).format(_spoken(result))
    return Exchange(asked, (step,), answer[:1].upper() + answer[1:])


def _renewed(found: Sum, rng: random.Random) -> tuple[str, Mapping[int, Fraction]]:
    """The request as somebody might ask it, with other numbers, and those."""
    values = dict(found.slots)
    for _ in range(TRIES if rng.random() > AS_WRITTEN else 0):
        tried = {place: _drawn(found, place, rng) for place in found.slots}
        if _sensible(found, tried):
            values = tried
            break
    pieces = list(found.pieces)
    for place, value in values.items():
        pieces[place] = alike(pieces[place], value)
    text = "".join(pieces)
    return (text if is_chinese(text) else polite(careless(text, rng), rng)), values


def _drawn(found: Sum, place: int, rng: random.Random) -> Fraction:
    if PERCENT.match(found.pieces[place + 1]):
        return Fraction(rng.choice(PERCENTAGES))
    return drawn(found.slots[place], rng)


def _with_numbers(text: str, found: Sum, values: Mapping[int, Fraction]) -> str:
    """A sum with the new values, written as the literals that they stand for were."""
    new = {found.slots[place]: value for place, value in values.items()}

    def replaced(literal: re.Match[str]) -> str:
        before = Fraction(literal[0])
        return alike(literal[0], new[before]) if before in new else literal[0]

    return _LITERAL.sub(replaced, text)


def _sensible(found: Sum, values: Mapping[int, Fraction]) -> bool:
    """Whether all that was whole, positive or of two places on the way still is."""
    try:
        after = _results(_with_numbers(found.steps, found, values))
    except ToolError:
        return False
    for old, new in zip(found.results, after, strict=True):
        if old is None:
            continue
        if new is None or new <= 0 < old or _places(new) > max(_places(old), 2 * (old % 1 > 0)):
            return False
        if new > 100 * abs(old) + 1000:
            return False
    return True


def _results(steps: str) -> tuple[Fraction | None, ...]:
    """What each step gives."""
    several = steps.split("; ")
    texts = [str(calculate.function("; ".join(several[: i + 1]))) for i in range(len(several))]
    return tuple(Fraction(t) if re.fullmatch(r"-?\d+(\.\d+)?", t) else None for t in texts)


def _places(value: Fraction) -> int:
    return len(digits(value).partition(".")[2])


def _spoken(result: str) -> str:
    """A result as it is said, with its unit."""
    number, _, unit = result.partition(" ")
    return spoken_number(number) + (f" {unit}" if unit and not unit.startswith("(") else "")
