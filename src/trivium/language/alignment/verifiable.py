"""Rewards that a program can tell: whether an answer is right.

right_number("… so it is **1,234**.", "1234")     the last number of the answer
right_text("  Monday. ", "monday")                letters and digits, in any case
right_choice("B) because …", "b")                 the first letter that stands alone
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

_NUMBER = re.compile(r"(?<![\w.])[-−–]?\d[\d,\u00a0\u202f']*(?:\.\d+)?(?:/\d+)?(?!\w)")
_LETTER = re.compile(r"(?<!\w)([A-Za-z])(?!\w)")
_NOT_WORDS = re.compile(r"[\W_]+")

Check = Callable[[str, str], bool]


def last_number(text: str) -> Fraction | None:
    """The value of the last number in a text; thousands may be set apart."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    plain = re.sub("[−–]", "-", found[-1])
    try:
        return Fraction(re.sub(r"[,\u00a0\u202f']", "", plain))
    except (ValueError, ZeroDivisionError):
        return None


def right_number(answer: str, expected: str) -> bool:
    value = last_number(answer)
    return value is not None and value == last_number(expected)


def right_text(answer: str, expected: str) -> bool:
    return _plain(answer) == _plain(expected) != ""


def right_choice(answer: str, expected: str) -> bool:
    found = _LETTER.search(answer)
    return found is not None and found[1].lower() == expected.strip().lower()


CHECKS: dict[str, Check] = {
    "number": right_number,
    "text": right_text,
    "choice": right_choice,
}


def _plain(text: str) -> str:
    return _NOT_WORDS.sub(" ", unicodedata.normalize("NFKC", text)).strip().casefold()
