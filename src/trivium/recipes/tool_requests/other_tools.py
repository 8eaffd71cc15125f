"""Tools that are not ours: what a person may bring along, and pictures and documents.

From them a model learns to read the list of tools it is given. A row of the table is (signature,
description, requests, result, answer); a row of requests is a pattern whose slots are arguments.
"""

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from trivium.recipes.tool_requests.files import path_of
from trivium.recipes.tool_requests.patterns import careless, filled
from trivium.recipes.tool_requests.tables import table, words
from trivium.recipes.tool_requests.tasks import Exchange, Step

Draw = Callable[[random.Random], Any]
DRAWS: dict[str, Draw] = {
    "city": lambda r: r.choice(words("cities")),
    "city2": lambda r: r.choice(words("cities")),
    "day": lambda r: r.choice(words("days")),
    "language": lambda r: r.choice(words("languages")),
    "song": lambda r: r.choice(words("songs")),
    "symbol": lambda r: r.choice(words("symbols")),
    "word": lambda r: r.choice(words("rare_words")),
    "film": lambda r: r.choice(words("films")),
    "colour": lambda r: r.choice(words("colours")),
    "dish": lambda r: r.choice(words("dishes")),
    "name": lambda r: r.choice(words("names")),
    "text": lambda r: r.choice(words("notes")).replace(";", ","),
    "room": lambda r: r.choice(words("rooms")),
    "n": lambda r: r.randint(2, 60),
    "m": lambda r: r.randint(61, 900),
    "k": lambda r: r.randint(2, 12),
    "x": lambda r: round(r.uniform(1, 99), r.choice((1, 2))),
    "hour": lambda r: f"{r.randint(6, 22)}:{r.choice(('00', '15', '30', '45'))}",
    "order": lambda r: f"{r.choice('ABKX')}{r.randint(1000, 99999)}",
    "topic": lambda r: r.choice(words("studies")),
    "currency": lambda r: r.choice(("EUR", "USD", "GBP", "JPY")),
    "currency2": lambda r: r.choice(("CHF", "SEK", "INR", "CNY")),
    "scene": lambda r: r.choice(words("scenes")) + r.choice(("", "", *words("styles"))).rstrip(),
    "change": lambda r: r.choice(words("changes")),
    "object": lambda r: r.choice(words("objects")),
    "picture": lambda r: r.choice(words("pictures")),
    "path": path_of,
    "file": path_of,
    "brand": lambda r: r.choice(words("brands")),
    "mail": lambda r: (
        f"{r.choice(words('names')).lower()}@example.{r.choice(('org', 'com', 'net'))}"
    ),
    "id": lambda r: r.randint(100, 9999),
    "item": lambda r: r.choice(words("things")),
}

OURS_NEXT = {"draw_picture", "edit_picture", "cut_out", "search_documents"}


def _argument(part: str) -> tuple[str, str, Any]:
    """`name=draw` or `name: type=default` → name, draw, default."""
    name, _, rest = part.partition("=")
    name, _, kind = name.partition(":")
    return (
        (name.strip(), "", kind.strip() and rest == "true") if kind else (name.strip(), rest, None)
    )


def schemas() -> dict[str, dict[str, Any]]:
    """The tools in OpenAI's form, by name."""
    made = {}
    for signature, description, *_ in table("other_tools"):
        name, _, rest = signature.partition("(")
        properties: dict[str, Any] = {}
        required = []
        for part in rest.rstrip(")").split(", "):
            argument, draw, default = _argument(part)
            kind = {"n": "integer", "m": "integer", "k": "integer", "id": "integer", "x": "number"}
            properties[argument] = {"type": kind.get(draw, "string" if draw else "boolean")}
            if draw:
                required.append(argument)
            else:
                properties[argument]["default"] = default
        parameters = {"type": "object", "properties": properties, "required": required}
        function = {"name": name, "description": description, "parameters": parameters}
        made[name] = {"type": "function", "function": function}
    return made


def other_task(rng: random.Random, only: set[str] | None = None) -> Exchange:
    """A request for one of these tools; `only` those."""
    rows = [row for row in table("other_tools") if only is None or row[0].partition("(")[0] in only]
    signature, _, requests, result, answer = rng.choice(rows)
    drawn: dict[str, Any] = {name: draw(rng) for name, draw in DRAWS.items()}
    shown: Mapping[str, str] = {name: str(value) for name, value in drawn.items()}
    name, _, rest = signature.partition("(")
    arguments = {}
    for part in rest.rstrip(")").split(", "):
        argument, draw, _ = _argument(part)
        if draw:
            arguments[argument] = drawn[draw]
    request = filled(careless(requests, rng), rng, shown)
    result = re.sub(r"\{(\w+)\}", lambda m: shown[m[1]], result)
    said = filled(answer, rng, shown)
    if rng.random() < 0.05:
        result, said = (
            "error: the service does not answer",
            "That did not work: the service does not answer.",
        )
    return Exchange(request, (Step(name, arguments, result),), said[:1].upper() + said[1:])
