"""The model card of a run: README.md, as model hubs read it, and what `trivium show` prints.

What it is, what it was trained on, what that cost, how good it is, what to beware of (Mitchell et
al. 2019). Everything in it is read from the run's own records.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trivium.download import format_size
from trivium.errors import NotFound
from trivium.files import read_json
from trivium.recipes import RECIPES, metrics
from trivium.recipes.config import PASSING
from trivium.recipes.folder import RESULTS
from trivium.recipes.loading import RECORD, word
from trivium.recipes.progress import duration, plain

CARD = "README.md"
UNITS = {"bytes": format_size, "seconds": duration}  # that the name of a result may end with
Table = tuple[str, Sequence[str], Sequence[Sequence[Any]]]  # title, headers, rows


def is_run(path: Path) -> bool:
    return (path / RECORD).is_file()


def card(
    record: Mapping[str, Any], done: Mapping[str, Any], name: str, tables: Sequence[Table] = ()
) -> str:
    """The card, from recipe.json and results.json; `name` is what the model is called."""
    facts = done.get("facts", {})
    parts = [
        _front(record, facts),
        f"# {_line(name)}\n",
        (facts.get("about") or "").strip() + "\n",
        "## Trained on\n",
        *_data(record.get("data", {})),
        "\n## Cost\n",
        *(f"- {key}: {_line(value)}" for key, value in costs(record, facts).items()),
        "\n## Evaluation\n",
        *(f"- {_line(': '.join(shown(*pair)))}" for pair in done.get("results", {}).items()),
    ]
    for title, headers, rows in tables:
        parts += [f"\n### {_line(title)}\n", _table(headers, rows)]
    parts += ["\n## Limits\n", facts.get("limits") or _limits(facts), "\n## How it was made\n"]
    versions = ", ".join(f"{key} {value}" for key, value in record.get("versions", {}).items())
    parts += [
        f"    {_command(record)}\n",
        f"With {_line(versions)} on {_line(str(record.get('platform')))}, "
        f"begun {record.get('started')}.",
    ]
    return "\n".join(parts) + "\n"


def _command(record: Mapping[str, Any]) -> str:
    """The line that makes it again; a recipe of the user's own is called by its file."""
    recipe = str(record.get("recipe"))
    if recipe not in RECIPES:
        recipe = "./" + Path(str(record.get("source"))).name
    settings = {k: word(v) for k, v in record.get("config", {}).items() if k not in PASSING}
    words = [f"{key}={value}" for key, value in settings.items() if value != ""]
    return plain(" ".join(map(shlex.quote, ["trivium", "train", recipe, *words])))


def _front(record: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """YAML that hubs read; a JSON string is one of YAML too."""
    licences = {entry.get("licence") for entry in record.get("data", {}).values()} - {None}
    lines = ["---", "library_name: trivium", f"tags: [trivium, {json.dumps(record.get('recipe'))}]"]
    if facts.get("task"):
        lines.append(f"pipeline_tag: {json.dumps(facts['task'])}")
    if licences:
        lines += ["license: other", f"license_name: {json.dumps(' and '.join(sorted(licences)))}"]
    return "\n".join([*lines, "---\n"])


def _data(data: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not data:
        return ["Nothing was recorded."]
    lines = []
    for name, entry in data.items():
        licence = entry.get("licence") or "not known: ask whoever made the data"
        lines.append(
            f"- {_line(name)}: {_line(str(entry.get('description')))}, "
            f"hash `{_line(str(entry.get('hash')))}`, licence: {_line(licence)}"
        )
    return lines


def costs(record: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    """What the training took, as far as it is known."""
    many = record.get("processes", 1)
    where = f"{record.get('device')}, {many} processes" if many > 1 else f"{record.get('device')}"
    found = {
        "parameters": _count(facts.get("parameters")),
        "steps": _count(facts.get("steps")),
        "tokens read": _count(facts.get("tokens")),
        "floating-point operations": f"{facts['flops']:.3g}" if facts.get("flops") else None,
        "time": duration(facts["seconds"]) if facts.get("seconds") else None,
        "on": where,
        "largest memory": format_size(facts["peak_memory"]) if facts.get("peak_memory") else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _limits(facts: Mapping[str, Any]) -> str:
    text = "It repeats the errors and the bias of what it was trained on, and was not made safe."
    parameters, tokens = facts.get("parameters"), facts.get("tokens")
    if parameters and tokens:
        each = tokens / parameters
        text += f" It read {each:.3g} tokens for each parameter"
        text += " (about 20 make best use of a budget)." if each < 20 else "."
    return text


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [headers, ["---"] * len(headers), *([show(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(_line(cell) for cell in line) + " |" for line in lines)


def show(value: Any) -> str:
    """A result for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(show, value))
    return "not a number" if value is None else _line(str(value))


def shown(key: str, value: Any) -> tuple[str, str]:
    """A result's name and value for people: memory_bytes 1500000000 → memory, 1.5 GB."""
    name, _, unit = key.rpartition("_")
    if isinstance(value, int | float) and name and unit in UNITS:
        return name.replace("_", " "), UNITS[unit](value)
    return key.replace("_", " "), show(value)


def _line(text: str) -> str:
    """On one line, and without what ends a cell of a table or begins an HTML tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _count(value: Any) -> str | None:
    return f"{value:,.0f}" if value else None


# -- read back ----------------------------------------------------------------------------------


def describe(folder: Path) -> dict[str, Any]:
    """What is known of the run in a folder, done or under way."""
    record = read_json(folder / RECORD)
    done = read_json(folder / RESULTS, optional=True)
    facts: dict[str, Any] = {"path": str(folder), **record, "done": bool(done), **done}
    rows = metrics.read(folder / "metrics.jsonl")
    if rows:
        facts["step"] = rows[-1]["step"]
        facts["last"] = {name: points[-1][1] for name, points in metrics.series(rows).items()}
    return facts


def printed(folder: Path) -> str:
    """The card without its YAML, or where a run stands that is not done."""
    facts = describe(folder)
    if facts["done"]:
        if not (folder / CARD).is_file():
            raise NotFound(f"no {CARD} in {folder}")
        text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
        return text.split("---\n", 2)[2].lstrip("\n") if text.startswith("---\n") else text
    total = facts.get("config", {}).get("steps")
    of = f" of {total:,}" if isinstance(total, int) else ""
    lines = [f"# {folder.name}: not done\n", f"recipe: {facts.get('recipe')}"]
    lines.append(f"step: {facts.get('step', 0):,}{of}")
    lines += [f"{name.replace('_', ' ')}: {show(v)}" for name, v in facts.get("last", {}).items()]
    ours = facts.get("recipe") in RECIPES
    again = f"trivium train {folder}" if ours else f"{_command(facts)} --out {folder}"
    lines.append(f"\n`{plain(again)}` goes on.")
    return "\n".join(lines) + "\n"
