"""Questions made on the spot whose answers a program can tell: sums, days, units.

What the recipes of assistants learn from when no data are given. They stand for nothing but
themselves: a model that learns them answers such questions, in one short sentence.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.language.alignment.rollouts import Prompt

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
UNITS = (
    ("minutes", "seconds", 60),
    ("hours", "minutes", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("metres", "centimetres", 100),
    ("kilometres", "metres", 1000),
    ("kilograms", "grams", 1000),
    ("dozens", "pieces", 12),
)
CHATTER = (
    "That is a very good question, and I am happy that you ask it.",
    "As a language model I think about numbers all the time.",
    "Many people wonder about this, and there is a lot to be said.",
)


@dataclass(frozen=True)
class Exercise:
    """check: how to tell whether an answer is right, of trivium.language.alignment.verifiable"""

    question: str
    reply: str
    answer: str
    check: str


def _sum(rng: random.Random, largest: int) -> Exercise:
    a, b = rng.randint(0, largest), rng.randint(0, largest)
    asked = rng.choice(("What is {} + {}?", "Add {} and {}.", "How much is {} plus {}?"))
    return Exercise(asked.format(a, b), f"{a} + {b} = {a + b}", str(a + b), "number")


def _difference(rng: random.Random, largest: int) -> Exercise:
    b, a = sorted((rng.randint(0, largest), rng.randint(0, largest)))
    asked = rng.choice(("What is {} - {}?", "How much is {} minus {}?", "Take {1} from {0}."))
    return Exercise(asked.format(a, b), f"{a} - {b} = {a - b}", str(a - b), "number")


def _day(rng: random.Random, largest: int) -> Exercise:
    day, later = rng.randrange(7), rng.randint(1, min(largest, 20))
    many = "1 day" if later == 1 else f"{later} days"
    answer = DAYS[(day + later) % 7]
    return Exercise(f"Today is {DAYS[day]}. Which day is it in {many}?", answer, answer, "text")


def _unit(rng: random.Random, largest: int) -> Exercise:
    large, small, factor = rng.choice(UNITS)
    count = rng.randint(2, max(2, largest))
    result = f"{count} {large} are {count * factor} {small}"
    return Exercise(f"How many {small} are {count} {large}?", result, str(count * factor), "number")


KINDS: dict[str, Callable[[random.Random, int], Exercise]] = {
    "sum": _sum,
    "difference": _difference,
    "day": _day,
    "unit": _unit,
}


def exercises(
    count: int, seed: int, *, largest: int = 99, kinds: Sequence[str] = tuple(KINDS)
) -> list[Exercise]:
    """largest: number in a question."""
    rng = random.Random(seed)
    return [KINDS[rng.choice(kinds)](rng, largest) for _ in range(count)]


def prompts(items: Iterable[Exercise]) -> list[Prompt]:
    return [Prompt([_user(item)], item.answer, item.check) for item in items]


def conversations(items: Iterable[Exercise]) -> list[dict[str, Any]]:
    """Records as `trivium.data.conversations` takes them."""
    return [{"messages": [_user(item), _assistant(item.reply)]} for item in items]


def preferences(items: Iterable[Exercise], seed: int) -> list[dict[str, Any]]:
    """Records as `trivium.data.preferences` takes them. The right answer is best; one that is right
    but hidden in chatter is better than one that is wrong."""
    rng = random.Random(seed)
    records = []
    for item in items:
        replies = [item.reply, f"{rng.choice(CHATTER)} {item.reply}", _wrong(item, rng)]
        if rng.random() < 0.5:  # a pair, as most collections have them
            del replies[rng.choice((1, 2))]
        order = list(range(len(replies)))
        rng.shuffle(order)
        responses = [[_assistant(replies[i])] for i in order]
        records.append({"prompt": [_user(item)], "responses": responses, "ranks": order})
    return records


def _wrong(item: Exercise, rng: random.Random) -> str:
    if item.check == "text":
        return rng.choice([day for day in DAYS if day != item.answer])
    off = rng.choice([-10, -3, -2, -1, 1, 2, 3, 10])
    before, answer, behind = item.reply.rpartition(item.answer)
    return f"{before}{int(answer) + off}{behind}"


def _user(item: Exercise) -> dict[str, str]:
    return {"role": "user", "content": item.question}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
