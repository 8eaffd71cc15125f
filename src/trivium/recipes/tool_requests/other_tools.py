"""Tools that are not ours: what a person may bring along, and pictures and documents.

From them a model learns to read the list of tools it is given. A row of the table is (signature,
description, requests, result, answer); a row of requests is a pattern whose slots are arguments.
"""

import random
import re
from collections.abc import Callable, Mapping, Set
from typing import Any

from trivium.recipes.tool_requests.files import path_of, values
from trivium.recipes.tool_requests.patterns import careless, chosen, filled, is_chinese
from trivium.recipes.tool_requests.tables import sentences, table, words
from trivium.recipes.tool_requests.tasks import Exchange, Step

Draw = Callable[[random.Random], Any]


def _scene(rng: random.Random) -> str:
    """What is to be drawn: `an old man with big eyes, pixel art`."""
    roll = rng.random()
    if roll < 0.3:
        return rng.choice(words("scenes")) + rng.choice(("", "", *words("styles"))).rstrip()
    text = rng.choice(words("scene_subjects"))
    if rng.random() < 0.4:
        text += f" {rng.choice(words('scene_doings'))}"
    if rng.random() < 0.5:
        text += f" {rng.choice(words('scene_places'))}"
    if rng.random() < 0.2:
        text += rng.choice(words("scene_styles"))
    elif rng.random() < 0.1:
        text = f"{rng.choice(words('scene_kinds'))} {text}"
    return text


def _change(rng: random.Random, kind: str = "changes") -> str:
    """An instruction for a picture."""
    if kind == "changes" and rng.random() < 0.2:
        return rng.choice(words("changes"))
    if kind == "changes" and rng.random() < 0.25:
        kind = "changes_of_it"
    thing, other = rng.sample(words("objects"), 2)
    slots = {
        "thing": thing,
        "thing2": other,
        "colour": rng.choice(words("colours")[:7]),
        "sign": rng.choice(words("signs")),
    }
    return filled(rng.choice(sentences(kind)), rng, slots)


def _object(rng: random.Random) -> str:
    thing = rng.choice(words("objects"))
    roll = rng.random()
    if " " in thing or roll < 0.6:
        return thing
    if roll < 0.8:
        return f"{rng.choice((*words('colours')[:7], 'small', 'big', 'old'))} {thing}"
    return f"{thing} {rng.choice(('on the left', 'on the right', 'in front', 'at the back'))}"


def _picture(rng: random.Random, chinese: bool = False) -> str:
    """The path of a picture."""
    if not chinese and rng.random() < 0.3:
        return rng.choice(words("pictures"))
    stem = rng.choice(words("picture_stems_chinese" if chinese else "picture_stems"))
    name = (
        f"{stem.replace('{n}', str(rng.randint(1, 9999)))}.{rng.choice(words('picture_endings'))}"
    )
    return (
        name if chinese or rng.random() < 0.7 else f"{rng.choice(words('picture_folders'))}/{name}"
    )


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
    "scene": _scene,
    "change": _change,
    "object": _object,
    "picture": _picture,
    "path": path_of,
    "file": path_of,
    "brand": lambda r: r.choice(words("brands")),
    "mail": lambda r: (
        f"{r.choice(words('names')).lower()}@example.{r.choice(('org', 'com', 'net'))}"
    ),
    "id": lambda r: r.randint(100, 9999),
    "item": lambda r: r.choice(words("things")),
}

CHINESE: dict[str, Draw] = {
    "scene": lambda r: r.choice(words("scenes_chinese")),
    "change": lambda r: filled(r.choice(sentences("changes_chinese")), r, {}),
    "object": lambda r: r.choice(words("objects_chinese")),
    "topic": lambda r: r.choice(words("studies_chinese")),
    "picture": lambda r: _picture(r, r.random() < 0.4),
}

CHINESE_ANSWERS = {
    "draw_picture": "图片画好了：picture-{id}.png",
    "edit_picture": "改好的图片是 edited-{id}.png。",
    "cut_out": "{object}在 cutout-{id}.png 里。",
    "search_documents": "文件 {file} 里写着：{line}",
}

OURS_NEXT = frozenset({"draw_picture", "edit_picture", "cut_out", "search_documents"})


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


def other_task(rng: random.Random, only: Set[str] | None = None) -> Exchange:
    """A request for one of these tools; `only` those."""
    rows = [row for row in table("other_tools") if only is None or row[0].partition("(")[0] in only]
    signature, _, requests, result, answer = rng.choice(rows)
    drawn: dict[str, Any] = {name: draw(rng) for name, draw in DRAWS.items()}
    name, _, rest = signature.partition("(")
    if name in OURS_NEXT:
        requests = chosen(rng.choice((requests, *4 * sentences(name))), rng)
        if is_chinese(requests):
            drawn |= {slot: draw(rng) for slot, draw in CHINESE.items()}
            line = filled(
                rng.choice(sentences("document_lines_chinese")),
                rng,
                {slot: str(value) for slot, value in drawn.items()},
            )
            drawn["line"] = line
            result, answer = "{file}: {line}" if "doc" in name else result, CHINESE_ANSWERS[name]
        elif "of_it}" in requests.lower():
            drawn["change"] = _change(rng, "changes_of_it")
            drawn["of_it"] = re.sub(r"\bit\b", lambda _: drawn["picture"], drawn["change"], count=1)
    if name == "search_documents" and not is_chinese(requests):
        result, answer = _found(requests, drawn, rng)
    shown: Mapping[str, str] = {slot: str(value) for slot, value in drawn.items()}
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


def _found(request: str, drawn: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    """What the documents say, and the answer, as patterns; `drawn` gets the query."""
    if "{question}" in request:
        known = values(rng)
        if rng.random() < 0.5:
            line, question, answer = rng.choice(table("facts"))
            line, answer = filled(line, rng, known), filled(answer, rng, known)
            question = filled(question, rng, known)
            drawn["question"] = f"{question[:1].upper()}{question[1:]}?"
        else:
            place = rng.randrange(len(words("document_questions")))
            drawn["question"] = words("document_questions")[place]
            line = answer = filled(words("document_answers")[place], rng, known)
        drawn |= {"topic": drawn["question"], "line": line, "answer": answer}
        if rng.random() < 0.1:
            return "[nothing found]", "The documents do not say."
        return "{file}: {line}", "{answer} It is in {file}."
    if rng.random() < 0.4:
        return "{file}: {name} decides on {topic} by {day}.", (
            "According to {file}, {name} decides on {topic} by {day}."
        )
    slots = {name: str(drawn[name]) for name in ("name", "day", "city", "n", "k", "topic")}
    drawn["line"] = filled(rng.choice(sentences("document_lines")), rng, slots)
    return "{file}: {line}", rng.choice(
        ("According to {file}: {line}", "In {file} it says: {line}")
    )
