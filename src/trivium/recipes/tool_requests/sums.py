"""Requests that name the sum themselves, in English and Chinese, and word problems in Chinese.

A slot such as {a} is a number of `_numbers`, {a_w} that number in English words (forty-two),
{a_z} in Chinese ones (四十二); decimal numbers have no words. The first rows of the table, the most
ordinary ones, are drawn more often.
"""

import random
import re

from trivium.llmos.calculator import calculate
from trivium.llmos.tools import ToolError
from trivium.recipes.tool_requests.patterns import careless, filled, is_chinese, polite
from trivium.recipes.tool_requests.tables import table
from trivium.recipes.tool_requests.tasks import NUMBERS, Exchange, Step, spoken_number

ANSWERS = (
    "That is {r}.",
    "{r}.",
    "It is {r}.",
    "The result is {r}.",
    "The answer is {r}.",
    "{e} = {r}",
)
ANSWERS_CHINESE = ("等于{r}。", "结果是{r}。", "是{r}。", "答案是{r}。")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def _numbers(rng: random.Random) -> dict[str, str]:
    def decimal() -> str:
        return f"{rng.randint(0, rng.choice((9, 99, 900)))}.{rng.randint(1, rng.choice((9, 99)))}"

    def price() -> str:
        return (
            f"{rng.randint(1, rng.choice((9, 60)))}.{rng.choice((50, 99, 95, rng.randint(10, 99)))}"
        )

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
        # two digits; hours and minutes; small numbers; prices; marks; a small decimal, a percentage
        "f": str(rng.randint(10, 99)),
        "g": str(rng.randint(10, 99)),
        "h": str(rng.randint(1, rng.choice((5, 12)))),
        "m": str(rng.choice((rng.randint(1, 11) * 5, rng.randint(5, 59)))),
        "n": str(rng.choice((rng.randint(1, 11) * 5, rng.randint(5, 59)))),
        "i": str(rng.randint(2, 20)),
        "j": str(rng.randint(2, 20)),
        "o": price(),
        "q": price(),
        "t": str(rng.randint(40, 100)),
        "u": str(rng.randint(40, 100)),
        "l": f"{rng.randint(0, rng.choice((4, 20)))}.{rng.choice((5, 5, 25, rng.randint(1, 9)))}",
        "z": str(rng.choice((5, 10, 15, 20, 30, rng.randint(2, 45)))),
    }


def in_words(value: int) -> str:
    """A whole number below a million in English: three hundred and five."""
    if value >= 1000:
        rest = value % 1000
        joint = "" if not rest else " and " if rest < 100 else " "
        return f"{in_words(value // 1000)} thousand" + joint + (in_words(rest) if rest else "")
    if value >= 100:
        rest = value % 100
        return f"{NUMBERS[value // 100]} hundred" + (f" and {in_words(rest)}" if rest else "")
    if value <= 20:
        return NUMBERS[value]
    return TENS[value // 10 - 2] + (f"-{NUMBERS[value % 10]}" if value % 10 else "")


def in_chinese(value: int) -> str:
    """A whole number below a hundred million in Chinese: 三百零五."""
    if value >= 10_000:
        rest = value % 10_000
        zero = "零" if 0 < rest < 1000 else ""
        return (
            in_chinese(value // 10_000) + "万" + zero + (_under_ten_thousand(rest) if rest else "")
        )
    text = _under_ten_thousand(value) or "零"
    return text.removeprefix("一") if 10 <= value < 20 else text


def _under_ten_thousand(value: int) -> str:
    text = "".join(
        "零" if digit == "0" else "零一二三四五六七八九"[int(digit)] + unit
        for digit, unit in zip(f"{value:04}", ("千", "百", "十", ""), strict=True)
    )
    return re.sub("零+", "零", text).strip("零")


def _spelled(digits: str, rng: random.Random) -> str:
    grouped = digits.isdigit() and len(digits) > 3 and rng.random() < 0.3
    return f"{int(digits):,}" if grouped else digits


def _in_words(digits: dict[str, str]) -> dict[str, str]:
    whole = {name: int(value) for name, value in digits.items() if value.isdigit()}
    return {f"{name}_w": in_words(value) for name, value in whole.items()} | {
        f"{name}_z": in_chinese(value) for name, value in whole.items()
    }


def plain_sum(rng: random.Random, chinese: bool = False) -> Exchange:
    """A request that spells the sum out."""
    rows = [row for row in table("sums") if is_chinese(row[0]) == chinese]
    rows += rows[: len(rows) // 10] * 3
    while True:
        pattern, form = rng.choice(rows)
        digits = _numbers(rng)
        shown = _in_words(digits) | {name: _spelled(value, rng) for name, value in digits.items()}
        expression, result = _computed(form, digits)
        if result is None or len(result.partition(" (")[0]) > 40:
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
        spoken = spoken_number(result)
        said = {"r": spoken.replace("about ", "约") if chinese else spoken, "e": expression}
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
        request = filled(pattern, rng, _in_words(digits) | digits)
        step = Step("calculate", {"expression": expression}, result)
        return Exchange(request, (step,), filled(answer, rng, {"r": said}))


def _computed(form: str, digits: dict[str, str]) -> tuple[str, str | None]:
    expression = re.sub(r"\b[a-z]\b|\b[a-z](?=[!%°])", lambda m: digits.get(m[0], m[0]), form)
    try:
        return expression, str(calculate.function(expression))
    except ToolError:
        return expression, None
