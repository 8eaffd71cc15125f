"""What a task is: a request, the calls of tools that serve it, and the answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any


@dataclass(frozen=True)
class Step:
    """A call of a tool and what the tool gave back."""

    tool: str
    arguments: Mapping[str, Any]
    result: str = ""


@dataclass(frozen=True)
class Exchange:
    """A request, its steps (none: it is just answered), and the answer.

    Not `learnt` is what only came before something else. What is `called` ends with its last call.
    """

    request: str
    steps: Sequence[Step] = ()
    answer: str = ""
    learnt: bool = True
    called: bool = False

    @property
    def tools(self) -> list[str]:
        return [*dict.fromkeys(step.tool for step in self.steps)]

    def messages(self) -> list[dict[str, Any]]:
        """In OpenAI's form; without an answer, up to where it would stand."""
        said: list[dict[str, Any]] = [{"role": "user", "content": self.request}]
        for step in self.steps:
            text = json.dumps(step.arguments, ensure_ascii=False)
            call = {"type": "function", "function": {"name": step.tool, "arguments": text}}
            said.append({"role": "assistant", "content": "", "tool_calls": [call]})
            said.append({"role": "tool", "content": step.result, "name": step.tool})
        if self.called:
            said.pop()
        elif self.answer:
            said.append({"role": "assistant", "content": self.answer})
        if not self.learnt:
            said = [{**message, "weight": 0} for message in said]
        return said


NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]


def number_word(value: int) -> str:
    """A small number as a word."""
    return NUMBERS[value]


def spoken_number(result: str) -> str:
    """The calculator's result as it is said: `6.781045751633986… (2075/306)` is about 6.78."""
    number, _, _ = result.partition(" (")
    if not number.endswith("…"):
        return number
    value = Decimal(number.rstrip("…"))
    places = 2 if abs(value) >= 1 else 4
    rounded = value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    return f"about {rounded.normalize():f}"
