"""The page, the charts and the card of a run."""

import json
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trivium.recipes import card, metrics, report
from trivium.recipes.chart import Axis, Chart, number, save_png, smooth, svg, thin

EVIL = "<script>alert(1)</script> & \"'` \x1b[2J \u202e |x| $a$ 中文🙂"
RECORD: dict[str, Any] = {
    "recipe": "gpt",
    "started": "2030-01-02T03:04:05Z",
    "config": {"out": "x", "depth": 4, "data": EVIL, "betas": [0.9, 0.95], "quick": True},
    "versions": {"trivium": "1", "python": "3", "torch": "2"},
    "platform": EVIL,
    "device": "cpu",
    "processes": 2,
    "data": {"training": {"description": EVIL, "hash": "sha256:ab", "licence": None}},
}
DONE: dict[str, Any] = {
    "results": {"loss": 1.23456, "note": EVIL, "best": None, "memory_bytes": 1.5e9},
    "facts": {
        "about": f"What it is.\n\nMore {EVIL}",
        "parameters": 1000,
        "steps": 100,
        "tokens": 8000,
        "flops": 1.5e12,
        "seconds": 90,
        "peak_memory": 2e9,
    },
}
TABLES = [(f"Table {EVIL}", ("a", "b|c"), [(1, EVIL), (0.5, "x\ny")])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "a <b> run"
    (place / "samples").mkdir(parents=True)
    (place / "recipe.json").write_text(json.dumps(RECORD))
    for step in range(1, 101):
        row = {"step": step, "loss": 5 / step, "learning_rate": 1e-3, "grad_norm": 1.0}
        metrics.append(place / "metrics.jsonl", row | {"tokens": 80, "seconds": 0.1, EVIL: step})
    metrics.append(place / "metrics.jsonl", {"step": 100, "validation_loss": 0.2})
    metrics.append(place / "metrics.jsonl", {"step": 100, "loss": float("nan")})
    (place / "samples/00000100.txt").write_text(EVIL + "long " * 2000)
    (place / "samples/00000050.txt").write_bytes(b"\xff\xfe broken")
    return place


class Page(HTMLParser):
    """The tags of a page, with a check that what opens also closes."""

    EMPTY = {"meta", "br", "rect", "line", "polyline"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_everything_and_runs_nothing(folder: Path) -> None:
    chart = Chart(EVIL, EVIL, EVIL, {EVIL: [(1, 2), (2, 3)], "b": [(1, 1)]}, points=(EVIL,))
    list(report.write_all(folder, DONE, [chart], TABLES))
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert set(page.tags) & {"script", "iframe", "img", "link", "object", "form"} == set()
    named = dict(page.attributes)
    assert "src" not in named and "href" not in named
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert any((value or "").startswith("default-src 'none'") for _, value in page.attributes)
    for shown in (
        "<script>alert(1)</script>",
        "中文🙂",
        "sha256:ab",
        "1.235",
        "1.5 GB",
        "0.9,0.95",
    ):
        assert shown in page.text, shown
    assert "\x1b" not in text and "\u202e" not in text
    assert 'http-equiv="refresh"' not in text and page.text.count("long ") < 1000


def test_a_run_under_way_has_a_page_too(folder: Path) -> None:
    report.refresh(folder)
    text = (folder / "report.html").read_text()
    assert 'http-equiv="refresh"' in text and "under way" in Page(text).text


def test_the_curves_of_a_run(folder: Path) -> None:
    charts = {chart.title: chart for chart in report.curves(folder)}
    assert set(charts["Loss"].series) == {"loss (smoothed)", "validation loss"}
    assert charts["Speed"].series["tokens/s"][-1] == pytest.approx((100, 800))
    assert {"Learning rate", "Grad norm"} < set(charts)


def test_an_empty_run_has_no_curves(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    assert report.curves(tmp_path) == []
    report.refresh(tmp_path)
    Page((tmp_path / "report.html").read_text())


# -- charts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "points",
    [
        [(1, 2)],
        [(1, 2), (1, 2)],
        [(0, 0), (0, 0)],
        [(1, float("nan")), (2, 3)],
        [(1, 1e-300), (2, 1e300)],
        [(-5, -1e-9), (5, 1e-9)],
        [(i, i % 7) for i in range(10_000)],
    ],
)
@pytest.mark.parametrize("log", [False, True])
def test_a_drawing_is_well_formed_and_inside(points: list[tuple[float, float]], log: bool) -> None:
    text = svg(Chart("t", "x", "y", {"a": points, EVIL: points}, log_x=log, log_y=log))
    if text.startswith("<p>"):  # a logarithm of nothing
        assert log and all(x <= 0 or y <= 0 for x, y in points)
        return
    root = ET.fromstring(text[: text.index("</svg>") + 6])
    for circle in root.iter("circle"):
        assert 60 <= float(circle.attrib["cx"]) <= 640
        assert 30 <= float(circle.attrib["cy"]) <= 320
    assert len(text) < 60_000


def test_places_on_the_paper() -> None:
    linear, log = Axis.over([0, 10], 100, 200, False), Axis.over([1, 100], 100, 200, True)
    for axis, values in ((linear, (0, 5, 10)), (log, (1, 10, 100))):
        low, middle, high = (axis.place(v) for v in values)
        assert 100 < low < 110 and middle == pytest.approx(150) and 190 < high < 200
    assert linear.ticks() == [0, 2, 4, 6, 8, 10] and log.ticks() == [1, 10, 100]


def test_thinning_keeps_what_stands_out() -> None:
    points = [(float(i), 0.0) for i in range(10_000)]
    points[1234], points[8765] = (1234.0, 9.0), (8765.0, -9.0)
    kept = thin(points)
    assert len(kept) <= 800 and {(1234.0, 9.0), (8765.0, -9.0)} <= set(kept)
    assert kept == sorted(kept)


def test_smoothing_keeps_a_constant_and_follows() -> None:
    assert [y for _, y in smooth([(0, 2.0), (1, 2.0), (2, 2.0)])] == pytest.approx([2, 2, 2])
    assert smooth([(0, 0.0), (1, 1.0)], keep=0.5)[1][1] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "value, words",
    [(0.0003, "0.0003"), (5000, "5000"), (12_000, "12k"), (1.2e6, "1.2M"), (-3e9, "-3G"), (0, "0")],
)
def test_numbers_at_an_axis(value: float, words: str) -> None:
    assert number(value) == words


def test_a_picture(tmp_path: Path) -> None:
    chart = Chart("$t$", "$x", "y", {"$a_$": [(1, 2), (2, 3)], "b": [(1, 4)]}, log_x=True)
    save_png([chart, Chart("none", "x", "y", {})], tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    save_png([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_without_matplotlib_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (line,) = report.write_all(folder, DONE, [], [])
    assert line.startswith("curves.png is left out: it needs matplotlib")
    assert (folder / "report.html").exists() and not (folder / "curves.png").exists()


# -- the card -------------------------------------------------------------------------------------


def test_the_card(folder: Path) -> None:
    text = card.card(RECORD, DONE, "a run", TABLES)
    front, body = text.split("---\n", 2)[1:]
    assert front.splitlines() == ["library_name: trivium", 'tags: [trivium, "gpt"]']
    for line in (
        "# a run",
        "- parameters: 1,000",
        "- tokens read: 8,000",
        "- floating-point operations: 1.5e+12",
        "- time: 2 min",
        "- on: cpu, 2 processes",
        "- loss: 1.235",
        "- best: not a number",
        "- memory: 1.5 GB",
        "| a | b\\|c |",
        "| 0.5 | x y |",
    ):
        assert line in body.splitlines(), line
    assert "8 tokens for each parameter (about 20 make best use of a budget)" in body
    assert "hash `sha256:ab`, licence: not known" in body
    assert "trivium train gpt depth=4 " in body and "betas=0.9,0.95 quick=yes" in body
    assert "out=x" not in body


def test_the_licence_of_the_data_is_the_front_matter_s() -> None:
    data = {"training": {"description": "d", "hash": "h", "licence": 'PSF-2.0: "x"'}}
    front = card.card({**RECORD, "data": data}, DONE, "x").split("---\n")[1]
    assert front.splitlines()[2:] == ["license: other", 'license_name: "PSF-2.0: \\"x\\""']


def test_a_run_of_ones_own_recipe_is_called_by_its_file() -> None:
    own = {**RECORD, "recipe": "mine", "source": "/somewhere/my recipe.py"}
    assert "trivium train './my recipe.py' depth=4" in card.card(own, DONE, "x")


def test_what_show_prints(folder: Path) -> None:
    said = card.printed(folder)
    assert "a <b> run: not done" in said and "step: 100" in said and "validation loss: 0.2" in said
    assert f"`trivium train {folder}` goes on." in said
    list(report.write_all(folder, DONE, [], []))
    (folder / "results.json").write_text(json.dumps(DONE))
    assert card.printed(folder).startswith("# a &lt;b> run\n")
    assert card.describe(folder)["results"]["loss"] == 1.23456
