"""Whether an answer says what a tool gave: small models miscopy numbers, and claim success.

A number counts as said when it stands in the answer with its value, or rounded to two decimals or
more.
"""

import math
import re
from collections.abc import Mapping, Sequence

from trivium.llmos.messages import Message

SHORT = 80  # characters of a result that belongs into the answer
_ADMITS = re.compile(
    r"\bno\b|not\b|n't\b|\bnone\b|nobody|nothing|error|fail|unable|wrong|没|不|无", re.I
)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def states(text: str, value: str) -> bool:
    """Whether a text says a value: word for word, or the same number."""
    if value in text:
        return True
    try:
        wanted = float(value.replace(",", "").rstrip("…"))
    except ValueError:
        return False
    for word in _NUMBER.findall(text):
        found = float(word.replace(",", ""))
        places = len(word.partition(".")[2])
        rounded = places >= 2 and abs(found - wanted) <= 0.51 * 10**-places
        if rounded or math.isclose(found, wanted, rel_tol=1e-6):
            return True
    return False


def unsaid(results: Sequence[Message], answer: str) -> str:
    """A short result that the answer should have named, and does not."""
    for message in results:
        value = message.text.strip()
        if value and "\n" not in value and len(value) <= SHORT and value not in answer:
            return f"\n\n{message.name}: {value}"
    return ""


def failure(results: Sequence[Message]) -> str:
    """What to say when no tool gave anything but errors; empty otherwise."""
    reasons = [m.text.removeprefix("error: ") for m in results if m.text.startswith("error: ")]
    return f"That did not work: {reasons[-1]}" if reasons and len(reasons) == len(results) else ""


def unadmitted(results: Sequence[Message], answer: str) -> str:
    """That nothing worked, if the answer does not say so."""
    failed = failure(results)
    return f"\n\n{failed}" if failed and not _ADMITS.search(answer) else ""


def uncounted(results: Sequence[Message], effects: Mapping[str, str], answer: str) -> str:
    """The last value that was computed, if the answer does not say it."""
    computed = [m for m in results if effects.get(m.name or "") == "none"]
    value = computed[-1].text.strip() if computed else ""
    number, _, _ = value.partition(" ")  # then a unit, or a note of the calculator
    short = 0 < len(value) <= SHORT and "\n" not in value and not value.startswith("error: ")
    if not short or not _NUMBER.match(number) or states(answer, number):
        return ""
    return f"\n\n{computed[-1].name}: {value}"
