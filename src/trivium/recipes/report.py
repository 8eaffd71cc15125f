"""report.html: a whole run on one page, which needs nothing beside it, and what goes with it.

Everything on the page is escaped, and its content policy allows neither scripts nor the network: a
sample is a model's text, which is not to be trusted.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trivium.files import read_json, write_atomic
from trivium.recipes import metrics
from trivium.recipes.card import CARD, Table, card, costs, show, shown
from trivium.recipes.chart import Chart, markup, save_png, smooth, svg
from trivium.recipes.loading import RECORD, word

REPORT = "report.html"
CURVES = "curves.png"
SAMPLES = 20  # the newest that are shown
SAMPLE_CHARACTERS = 4000
OF_STEPS = ("learning_rate", "grad_norm", "tokens", "seconds")  # of a row of training

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem 1rem .15rem 0; text-align: left; }
td, th { border-bottom: 1px solid #8884; vertical-align: top; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: currentColor; }
svg .title { font-weight: 600; } svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .grid { stroke: #8883; } svg .axis { stroke: #888; } svg .line { stroke-width: 1.6; }
.legend { margin: 0 0 0 3rem; font-size: .8rem; } .legend span { margin-right: 1rem; }
.legend b { display: inline-block; width: .7em; height: .7em; margin-right: .3em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .6rem; }
"""


def write_all(
    folder: Path, done: Mapping[str, Any], charts: Sequence[Chart], tables: Sequence[Table]
) -> Iterator[str]:
    """Write the report, the card and the curves of a run that is done. Yields what to tell."""
    record = read_json(folder / RECORD)
    write_atomic(folder / CARD, card(record, done, folder.resolve().name, tables))
    drawn = [*curves(folder), *charts]
    write_atomic(folder / REPORT, page(folder, record, done, drawn, tables))
    try:
        save_png(drawn, folder / CURVES)
    except ModuleNotFoundError:
        yield (
            f"{CURVES} is left out: it needs matplotlib (pip install 'trivium[plot]'); {REPORT} "
            "has the curves"
        )


def refresh(folder: Path) -> None:
    """Write the report of a run that is under way."""
    record = read_json(folder / RECORD)
    write_atomic(folder / REPORT, page(folder, record, {}, curves(folder), ()))


def curves(folder: Path) -> list[Chart]:
    """A chart of the losses, and one of each other number that was measured."""
    rows = metrics.read(folder / "metrics.jsonl")
    found = metrics.series(rows)
    speed = [
        (row["step"], row["tokens"] / row["seconds"])
        for row in rows
        if row.get("tokens") and row.get("seconds")
    ]
    charts = []
    losses = {name: found.pop(name) for name in list(found) if "loss" in name}
    if "loss" in losses and len(losses["loss"]) > 50:
        each = losses.pop("loss")
        losses = {"loss (smoothed)": smooth(each), **losses}
    if losses:
        charts.append(Chart("Loss", "step", "loss", _named(losses)))
    rest = [name for name in found if name not in OF_STEPS]
    for name in (*rest, "learning_rate", "grad_norm"):
        if name in found and len(found[name]) > 1:
            title = name.replace("_", " ")
            charts.append(Chart(title.capitalize(), "step", title, {title: found[name]}))
    if len(speed) > 1:
        charts.append(Chart("Speed", "step", "tokens/s", {"tokens/s": smooth(speed, 0.8)}))
    return charts


def _named(series: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", " "): points for name, points in series.items()}


def page(
    folder: Path,
    record: Mapping[str, Any],
    done: Mapping[str, Any],
    charts: Sequence[Chart],
    tables: Sequence[Table],
) -> str:
    """The page. While the run is under way, a browser loads it again every 30 seconds."""
    title = markup(f"{folder.resolve().name}: a run of {record.get('recipe')}")
    facts = done.get("facts", {})
    reload = "" if done else '<meta http-equiv="refresh" content="30">'
    drawn = "\n".join(f"<div>{svg(chart)}</div>" for chart in charts)
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{reload}',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p>{markup(facts.get('about') or '')}</p>" if done else "<p>This run is under way.</p>",
        _section("Results", _pairs(done.get("results", {}))),
        *(_section(name, _grid(headers, rows)) for name, headers, rows in tables),
        _section("Curves", f'<div class="charts">{drawn}</div>' if charts else ""),
        _section("Samples", _samples(folder / "samples")),
        _section("Settings", _pairs(_settings(record))),
        _section("Data", _grid(("", "what", "hash", "licence"), _data_rows(record))),
        _section("Cost", _pairs(costs(record, facts) if done else {})),
        _section("Made with", _pairs({**record.get("versions", {}), **_where(record)})),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part)


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{markup(title)}</h2>\n{inside}</section>" if inside else ""


def _pairs(values: Mapping[str, Any]) -> str:
    words = (
        (key.replace("_", " "), value) if isinstance(value, str) else shown(key, value)
        for key, value in values.items()
    )
    rows = (f"<tr><th>{markup(key)}</th><td>{markup(value)}</td></tr>" for key, value in words)
    return f"<table>{''.join(rows)}</table>" if values else ""


def _settings(record: Mapping[str, Any]) -> dict[str, str]:
    return {name: word(value) for name, value in record.get("config", {}).items()}


def _shown(value: Any) -> str:
    return word(value) if isinstance(value, str | bool) else show(value)


def _grid(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{markup(header)}</th>" for header in headers)
    body = "".join(
        "<tr>" + "".join(f"<td>{markup(_shown(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _data_rows(record: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    return [
        (name, entry.get("description", ""), entry.get("hash", ""), entry.get("licence") or "?")
        for name, entry in record.get("data", {}).items()
    ]


def _where(record: Mapping[str, Any]) -> dict[str, Any]:
    names = ("platform", "device", "processes", "threads", "started")
    return {name: record[name] for name in names if name in record}


def _samples(place: Path) -> str:
    """The newest samples, the last one open."""
    paths = sorted(place.glob("*.txt"), reverse=True)[:SAMPLES]
    parts = []
    for index, path in enumerate(paths):
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(SAMPLE_CHARACTERS + 1)
        text = text[:SAMPLE_CHARACTERS] + ("…" if len(text) > SAMPLE_CHARACTERS else "")
        step = path.stem.split("-")[0].lstrip("0") or "0"
        parts.append(
            f"<details{' open' if index == 0 else ''}><summary>step {markup(step)}</summary>"
            f"<pre>{markup(text)}</pre></details>"
        )
    return "\n".join(parts)
