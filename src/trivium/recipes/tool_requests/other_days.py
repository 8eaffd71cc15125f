"""Other days, times and numbers in a request for `python`, and in the code that serves it.

A request is written once and asked often: all of its days move by as many days, its clock times by
as many minutes; lengths of time, lists and other numbers are drawn anew. What does not stand in
both stays.
"""

import calendar
import random
import re
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from fractions import Fraction
from functools import partial

from trivium.recipes.tool_requests.problems import drawn

AS_WRITTEN = 0.15  # of requests keep what they have
FURTHEST = 1500  # days
SMALLEST = 11  # number of which it is plain that request and code mean the same
_NAME = "|".join([*calendar.month_name[1:], "Sept", *calendar.month_abbr[1:]])
_SPELLINGS = tuple(
    re.compile(spelling, re.IGNORECASE)
    for spelling in (
        rf"\b(?P<d>\d{{1,2}})(?P<th>st|nd|rd|th)?(?: of)? (?P<m>{_NAME}),? (?P<y>\d{{4}})\b",
        rf"\b(?P<m>{_NAME}) (?P<d>\d{{1,2}})(?P<th>st|nd|rd|th)?,? (?P<y>\d{{4}})\b",
        r"\b(?P<y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)\b",
        r"\b(?P<d>\d{1,2})\.(?P<m>\d{1,2})\.(?P<y>\d{4})\b",
        r"(?P<y>\d{4})年(?P<m>\d{1,2})月(?P<d>\d{1,2})[日号]",
    )
)
_BOUND = re.compile(rf"\b({_NAME}|base)\b|[月进]", re.IGNORECASE)  # to few numbers
_WEEKDAY = re.compile(rf"\b({'|'.join(calendar.day_name)})\b", re.IGNORECASE)
_DAY = re.compile(r"(?<=datetime\.date\()(\d+), (\d+), (\d+)(?=\))")
_CLOCK = re.compile(r"(?<![\d:.])(\d{1,2}):(\d\d)(?![\d:])")
_TIME = re.compile(r"(datetime\.datetime\(2024, 1, 1, )(\d+), (\d+)\)")
_LENGTH = re.compile(r"\b(days|weeks|hours|minutes)=(\d+)\b")
_LIST = re.compile(r"\[(\d+(?:, \d+){2,})\]")
_NUMBER = re.compile(r"(?<![\w.,:/-])\d+(?![A-Za-z\d_:/%]|[.,-]\d)", re.ASCII)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_HALF_DAYS = re.compile(r"\b[ap]\.?m\b|上午|下午|晚上|中午|凌晨|早上", re.IGNORECASE)


def moved(text: str, code: str, rng: random.Random) -> tuple[str, str]:
    """A request and its code with other days, times, lengths of time, lists and numbers."""
    if rng.random() < AS_WRITTEN:
        return text, code
    changes: tuple[Callable[[str, str, random.Random], tuple[str, str]], ...] = (
        _other_days,
        _other_times,
        _other_lengths,
        _other_list,
        _other_numbers,
    )
    for change in changes:
        text, code = change(text, code, rng)
    return text, code


def _other_days(text: str, code: str, rng: random.Random) -> tuple[str, str]:
    said = {
        day for spelling in _SPELLINGS for found in spelling.finditer(text) if (day := _day(found))
    }
    used = {date(*map(int, found.groups())) for found in _DAY.finditer(code)}
    if not said or said != used or "today" in code:
        return text, code
    by = rng.randint(-FURTHEST, FURTHEST)
    if _WEEKDAY.search(text):
        by -= by % 7
    if not 1 < min(said).year + by // 365 < 9000:
        return text, code
    later = timedelta(days=by)

    def respelled(found: re.Match[str]) -> str:
        day = _day(found)
        return _respelled(found, day + later) if day else found[0]

    for spelling in _SPELLINGS:
        text = spelling.sub(respelled, text)
    return text, _DAY.sub(lambda found: _literal(date(*map(int, found.groups())) + later), code)


def _day(found: re.Match[str]) -> date | None:
    name = found["m"][:3].title()
    month = int(name) if name.isdecimal() else list(calendar.month_abbr).index(name)
    try:
        return date(int(found["y"]), month, int(found["d"]))
    except ValueError:
        return None


def _literal(day: date) -> str:
    return f"{day.year}, {day.month}, {day.day}"


def _respelled(found: re.Match[str], day: date) -> str:
    """The day as the old one is spelled."""
    padded = "-" in found[0] or any(found[part].startswith("0") for part in "dm")
    width = 2 if padded else 1
    month = f"{day.month:0{width}}" if found["m"].isdecimal() else _named(found["m"], day)
    new = {"y": f"{day.year}", "d": f"{day.day:0{width}}", "m": month}
    if found.groupdict().get("th"):
        new["th"] = _ordinal_end(day.day)
    text = found[0]
    for part in sorted(new, key=found.start, reverse=True):
        start, end = (place - found.start() for place in found.span(part))
        text = text[:start] + new[part] + text[end:]
    return text


def _named(before: str, day: date) -> str:
    whole = before.title() in calendar.month_name
    name = calendar.month_name[day.month] if whole else calendar.month_abbr[day.month]
    return name.lower() if before.islower() else name.upper() if before.isupper() else name


def _ordinal_end(number: int) -> str:
    ends = {1: "st", 2: "nd", 3: "rd"}
    return "th" if number // 10 == 1 else ends.get(number % 10, "th")


def _other_times(text: str, code: str, rng: random.Random) -> tuple[str, str]:
    said = {60 * int(hour) + int(minute) for hour, minute in _CLOCK.findall(text)}
    used = {60 * int(hour) + int(minute) for _, hour, minute in _TIME.findall(code)}
    if not said or said != used or _HALF_DAYS.search(text) or max(said) >= 24 * 60:
        return text, code
    by = rng.randint(-min(said), 24 * 60 - 1 - max(said))

    def spelled(found: re.Match[str]) -> str:
        hour, minute = divmod(60 * int(found[1]) + int(found[2]) + by, 60)
        return f"{hour:02}:{minute:02}" if found[1].startswith("0") else f"{hour}:{minute:02}"

    def literal(found: re.Match[str]) -> str:
        hour, minute = divmod(60 * int(found[2]) + int(found[3]) + by, 60)
        return f"{found[1]}{hour}, {minute})"

    return _CLOCK.sub(spelled, text), _TIME.sub(literal, code)


def _other_lengths(text: str, code: str, rng: random.Random) -> tuple[str, str]:
    longest = {"days": 400, "weeks": 40, "hours": 11, "minutes": 59}
    for unit, number in _LENGTH.findall(code):
        whole = _whole(number)
        if int(number) > 1 and len(whole.findall(text)) == len(whole.findall(code)) == 1:
            new = str(rng.randint(2, min(longest[unit], 4 * int(number))))
            if not _whole(new).search(text):
                text, code = (whole.sub(new, part) for part in (text, code))
    return text, code


def _other_list(text: str, code: str, rng: random.Random) -> tuple[str, str]:
    listed = _LIST.search(code)
    if not listed:
        return text, code
    before = listed[1].split(", ")
    *most, last = before
    for said in (listed[1], f"{', '.join(most)} and {last}", " ".join(before)):
        rest = text.replace(said, "", 1) + " " + code.replace(listed[0], "", 1)
        if said in text and not any(_whole(number).search(rest) for number in before):
            numbers = sorted(set(before))
            highest = 2 * max(4, len(before), *map(int, before))
            others = map(str, rng.sample(range(1, highest + 1), len(numbers)))
            new = dict(zip(numbers, others, strict=True))
            return _renumbered(text, said, new), _renumbered(code, listed[0], new)
    return text, code


def _other_numbers(text: str, code: str, rng: random.Random) -> tuple[str, str]:
    """Numbers that the request says once. Each stays between the same other numbers of both."""
    if "datetime" in code or _LIST.search(code) or _BOUND.search(text):
        return text, code
    quoted = "".join(_QUOTED.findall(code))
    for number in _NUMBER.findall(text):
        others = {int(n) for n in re.findall(r"\d+", text + " " + code)} - {int(number)}
        used = _NUMBER.findall(_QUOTED.sub("", code))
        derived = not others.isdisjoint({int(number) - 1, int(number) + 1})
        once = len(re.findall(rf"(?<!\d){number}(?!\d)", text)) == 1
        if int(number) < SMALLEST or number not in used or number in quoted or not once or derived:
            continue
        new = int(drawn(Fraction(number), rng))
        between = sorted((int(number), new))
        if new >= SMALLEST and not any(between[0] <= n <= between[1] for n in others):
            text, code = (
                _NUMBER.sub(partial(_put, number, str(new)), part) for part in (text, code)
            )
    return text, code


def _put(old: str, new: str, found: re.Match[str]) -> str:
    return new if found[0] == old else found[0]


def _renumbered(text: str, part: str, new: Mapping[str, str]) -> str:
    """The text with other numbers in a part of it."""
    return text.replace(part, re.sub(r"\d+", lambda number: new[number[0]], part), 1)


def _whole(number: str) -> re.Pattern[str]:
    """The number where it is no part of another one, of a clock time or of a day."""
    return re.compile(rf"(?<![\d.,:/-]){number}(?![\d:/]|[.,-]\d)")
