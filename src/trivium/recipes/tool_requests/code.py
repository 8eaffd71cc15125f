"""Requests for the tools `python` and `terminal`. The code is run while the data are made."""

import contextlib
import io
import random
import re
from datetime import date, timedelta

from trivium.recipes.tool_requests.patterns import careless, filled, polite
from trivium.recipes.tool_requests.tables import sentences, table, words
from trivium.recipes.tool_requests.tasks import Exchange, Step


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
        "word": rng.choice(("error", "hello", "test", "TODO", "import", "2024", "Anna")),
    }
    values["code"] = rng.choice(sentences("snippets")).format(**values)
    values["cmd"] = rng.choice(sentences("commands")).format(**values)
    return values


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
    if request.isascii() and "{t}" not in pattern:
        request = polite(request, rng)
    said = result.replace("\n", " ").strip()
    answer = filled(answer, rng, {"r": {"True": "Yes", "False": "No"}.get(said, said)})
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
    if request.isascii() and pattern != "{cmd}":
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
    with contextlib.redirect_stdout(out):
        exec(code, {})
    return out.getvalue().rstrip()
