"""Requests for the tools `python` and `terminal`. The code is run while the data are made.

Today and the random numbers are drawn from the code itself, so that it always prints the same.
"""

import contextlib
import datetime
import io
import random
import re
from datetime import date, timedelta

from trivium.recipes.tool_requests.patterns import careless, filled, is_chinese, polite
from trivium.recipes.tool_requests.tables import sentences, table, words
from trivium.recipes.tool_requests.tasks import Exchange, Step

ANAGRAMS = (
    *("listen silent", "earth heart", "night thing", "dusty study", "below elbow", "word sword"),
    *("stone notes", "cat act", "garden danger", "apple paper", "lemon melon", "tea ate"),
    *("state taste", "bread beard", "table bleat", "river drive", "march charm", "pots stop"),
)
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "pink")
FRUIT = ("apple", "pear", "plum", "kiwi", "fig", "lemon", "grape", "mango")


def _values(rng: random.Random) -> dict[str, str]:
    day = date(rng.randint(1700, 2030), 1, 1) + timedelta(days=rng.randint(0, 364))
    later = day + timedelta(days=rng.randint(5, 700))
    names = rng.sample(words("names"), rng.randint(3, 5))
    numbers = [str(rng.randint(1, rng.choice((99, 500)))) for _ in range(rng.randint(4, 9))]
    style = rng.choice(("{d} {m} {y}", "{m} {d}, {y}", "{d}. {m} {y}", "{m} {d} {y}"))
    values = {
        "w": rng.choice(words("spelled")),
        "w4": "",
        "t": rng.choice(words("sayings")),
        "l": rng.choice("aeiorstnlp"),
        "ns": ", ".join(numbers),
        "names": ", ".join(names),
        "names_q": ", ".join(map(repr, names)),
        "n": str(rng.randint(20, rng.choice((99, 200, 1000)))),
        "m": str(rng.randint(10, 60)),
        "k": str(rng.randint(3, 30)),
        "s": str(rng.randint(2, 9)),
        "y": str(rng.randint(1600, 2100)),
        "big": str(rng.randint(1000, 10**8)),
        "date": style.format(d=day.day, m=f"{day:%B}", y=day.year),
        "date2": style.format(d=later.day, m=f"{later:%B}", y=later.year),
        "ymd": f"{day.year}, {day.month}, {day.day}",
        "ymd2": f"{later.year}, {later.month}, {later.day}",
        "date_c": f"{day.year}年{day.month}月{day.day}日",
        "file": rng.choice(words("data_files")),
        "file2": rng.choice(words("data_files")).replace(".", "_2."),
        "folder": rng.choice(words("code_folders")),
        **_more_values(rng, numbers, style),
        "word": rng.choice(("error", "hello", "test", "TODO", "import", "2024", "Anna")),
    }
    values["lw"] = rng.choice(values["w"])
    values["lt"] = rng.choice(values["t"].replace(" ", "").lower())
    values["code"] = rng.choice(sentences("snippets")).format(**values)
    values["cmd"] = rng.choice(sentences("commands")).format(**values)
    return values


def _more_values(rng: random.Random, numbers: list[str], style: str) -> dict[str, str]:
    """A birthday, a day to come, a day as digits; words and numbers of other kinds."""
    birthday = date(rng.randint(1930, 2020), 1, 1) + timedelta(days=rng.randint(0, 364))
    coming = date(2028, 1, 1) + timedelta(days=rng.randint(0, 1800))
    iso = date(rng.randint(1900, 2050), 1, 1) + timedelta(days=rng.randint(0, 364))
    iso2 = iso + timedelta(days=rng.randint(3, rng.choice((90, 3000))))
    anagram = rng.choice(ANAGRAMS).split()
    some = rng.choices(rng.choice((COLOURS, FRUIT)), k=rng.randint(4, 8))
    few = [str(rng.randint(1, 20)) for _ in range(rng.randint(4, 8))]
    decimals = [f"{rng.randint(1, 30)}.{rng.randint(1, 9)}" for _ in range(rng.randint(3, 6))]
    factor = rng.randint(2, 30)
    return {
        "bday": style.format(d=birthday.day, m=f"{birthday:%B}", y=birthday.year),
        "bymd": f"{birthday.year}, {birthday.month}, {birthday.day}",
        "coming": style.format(d=coming.day, m=f"{coming:%B}", y=coming.year),
        "cymd": f"{coming.year}, {coming.month}, {coming.day}",
        "coming_c": f"{coming.year}年{coming.month}月{coming.day}日",
        "iso": f"{iso}",
        "iymd": f"{iso.year}, {iso.month}, {iso.day}",
        "iso2": f"{iso2}",
        "iymd2": f"{iso2.year}, {iso2.month}, {iso2.day}",
        "wa": anagram[0],
        "wb": anagram[1],
        "l2": rng.choice("aeioubxz"),
        "ws": ", ".join(some),
        "ws_q": ", ".join(map(repr, some)),
        "few": ", ".join(few),
        "few_sp": " ".join(few),
        "ns_and": ", ".join(numbers[:-1]) + f" and {numbers[-1]}",
        "decs": ", ".join(decimals),
        "g1": str(factor * rng.randint(2, 40)),
        "g2": str(factor * rng.randint(2, 40)),
        "bits": f"{rng.randint(5, 300):b}",
        "hexa": f"{rng.randint(10, 5000):X}",
    }


def python_task(rng: random.Random) -> Exchange:
    rows = table("python")
    if rng.random() < 0.2:
        rows = tuple(row for row in rows if "datetime" in row[1])
    pattern, code, answer = rng.choice(rows)
    while True:
        values = _values(rng)
        if "w4" in code:
            values["w"] = values["w"][:6]
            values["w4"] = values["w"]
        written = values["code"] if code == "{code}" else code.format(**values)
        result = _run(written)
        if result and len(result) < 160:
            break
    request = filled(careless(_alternatives(pattern), rng), rng, values)
    if not is_chinese(request) and "{t}" not in pattern:
        request = polite(request, rng)
    said = result.replace("\n", " ").strip()
    yes, no = ("是", "不是") if "。" in answer else ("Yes", "No")
    answer = filled(answer, rng, {"r": {"True": yes, "False": no}.get(said, said)})
    return Exchange(request, (Step("python", {"code": written}, result),), answer)


def terminal_task(rng: random.Random) -> Exchange:
    pattern, command, result, answer = rng.choice(table("terminal")[:2] * 4 + table("terminal"))
    values = _values(rng)
    values["n"] = str(rng.randint(31, 900))
    if not result:
        shown = rng.choice((values["word"], values["n"], values["t"], values["file"]))
        result, answer = f"{shown}\n[exit code 0]", f"It prints: {shown}"
        if values["cmd"].startswith(("mkdir", "touch", "cp", "echo " + values["n"])):
            result, answer = "[exit code 0]", "Done, it ran without an error."
        elif rng.random() < 0.12:
            tool = values["cmd"].split()[0]
            result, answer = (
                f"bash: {tool}: command not found\n[exit code 127]",
                f"That did not work: {tool} was not found.",
            )
    request = filled(_alternatives(pattern), rng, values)
    if not is_chinese(request) and pattern != "{cmd}":
        request = polite(request, rng)
    said = filled(answer, rng, values)
    return Exchange(
        request,
        (
            Step(
                "terminal", {"command": filled(command, rng, values)}, filled_result(result, values)
            ),
        ),
        said,
    )


def filled_result(text: str, values: dict[str, str]) -> str:
    """The result of a tool, whose brackets are no choices."""
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def _alternatives(pattern: str) -> str:
    """(a|b) in a pattern that also holds code is a choice too; ` ?` an optional space."""
    pattern = pattern.replace(" ?P", "[ |]P").replace(" ?{", "[ |]{")
    return re.sub(r"\(([^()]*\|[^()]*)\)", r"[\1]", pattern)


def _run(code: str) -> str:
    """What the code, which is made from the table above, prints."""
    out = io.StringIO()
    real, state = datetime.date, random.getstate()
    start = date(2024, 1, 1) + timedelta(days=random.Random(code).randint(0, 1300))

    class Date(date):
        @classmethod
        def today(cls) -> "Date":
            return cls(start.year, start.month, start.day)

    try:
        random.seed(code)
        datetime.date = Date  # type: ignore[misc]
        with contextlib.redirect_stdout(out):
            exec(code, {})
    finally:
        datetime.date = real  # type: ignore[misc]
        random.setstate(state)
    return out.getvalue().rstrip()
