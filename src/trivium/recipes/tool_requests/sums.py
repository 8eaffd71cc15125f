"""Requests that name the sum themselves, in English and Chinese, and word problems in Chinese."""

import random
import re

from trivium.llmos.calculator import calculate
from trivium.llmos.tools import ToolError
from trivium.recipes.tool_requests.patterns import careless, filled, polite
from trivium.recipes.tool_requests.tables import table
from trivium.recipes.tool_requests.tasks import Exchange, Step, spoken_number

ANSWERS = (
    "That is {r}.",
    "{r}.",
    "It is {r}.",
    "The result is {r}.",
    "The answer is {r}.",
    "{e} = {r}",
)
ANSWERS_CHINESE = ("等于{r}。", "结果是{r}。", "是{r}。", "答案是{r}。")


def _numbers(rng: random.Random) -> dict[str, str]:
    def decimal() -> str:
        return f"{rng.randint(0, rng.choice((9, 99, 900)))}.{rng.randint(1, rng.choice((9, 99)))}"

    return {
        "a": str(rng.randint(11, rng.choice((99, 999, 9999, 99999)))),
        "b": str(rng.randint(11, rng.choice((99, 999, 4000)))),
        "c": str(rng.randint(2, rng.choice((9, 9, 30)))),
        "d": str(rng.randint(2, 12)),
        "e": str(rng.randint(2, 9)),
        "k": rng.choice(("50", "100", "200", "500")),
        "p": str(rng.choice((5, 10, 12, 15, 20, 25, 30, 40, 75, rng.randint(1, 99)))),
        "s": str(rng.choice((rng.randint(2, 150) ** 2, rng.randint(2, 2000)))),
        "v": str(rng.randint(3, 40) * 50),
        "w": str(rng.randint(25, 300) * 100),
        "x": decimal(),
        "y": decimal(),
    }


def _spelled(digits: str, rng: random.Random) -> str:
    grouped = digits.isdigit() and len(digits) > 3 and rng.random() < 0.3
    return f"{int(digits):,}" if grouped else digits


def plain_sum(rng: random.Random, chinese: bool = False) -> Exchange:
    """A request that spells the sum out."""
    rows = [
        row
        for row in table("sums")
        if chinese == any(char >= "一" for char in row[0] if char < "！")
    ]
    while True:
        pattern, form = rng.choice(rows)
        digits = _numbers(rng)
        shown = {name: _spelled(value, rng) for name, value in digits.items()}
        expression, result = _computed(form, digits)
        if result is None or len(result) > 40:
            continue
        request = filled(
            pattern.replace("(greatest common divisor|gcd)", "[greatest common divisor|gcd]"),
            rng,
            shown,
        )
        request = (
            polite(careless(request[:1].upper() + request[1:], rng), rng)
            if not chinese
            else request
        )
        answer = rng.choice(ANSWERS_CHINESE if chinese else ANSWERS)
        said = {"r": spoken_number(result), "e": expression}
        return Exchange(
            request,
            (Step("calculate", {"expression": expression}, result),),
            filled(answer, rng, said),
        )


def chinese_story(rng: random.Random) -> Exchange:
    while True:
        pattern, form, answer = rng.choice(table("stories_chinese"))
        digits = _numbers(rng)
        expression, result = _computed(form, digits)
        if result is None or result.startswith("-") or ("…" in result and rng.random() < 0.7):
            continue
        said = spoken_number(result).replace("about ", "约")
        request = filled(pattern, rng, digits)
        step = Step("calculate", {"expression": expression}, result)
        return Exchange(request, (step,), filled(answer, rng, {"r": said}))


def _computed(form: str, digits: dict[str, str]) -> tuple[str, str | None]:
    expression = re.sub(r"\b[a-z]\b|\b[a-z](?=[!%°])", lambda m: digits.get(m[0], m[0]), form)
    try:
        return expression, str(calculate.function(expression))
    except ToolError:
        return expression, None
