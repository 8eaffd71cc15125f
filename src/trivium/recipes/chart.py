"""Charts of lines and points: as SVG for a page, drawn here, and as PNG by matplotlib."""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from trivium.files import write_atomic

Point = tuple[float, float]

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 30, 44  # margins
EDGE = 0.03  # of an axis stays free at its ends
MOST = 800  # points of a line; more are thinned out
MARKED = 60  # points of a line at most that are dots too
COLOURS = (
    *("#2a6fbb", "#c8553d", "#3a8f5c", "#8a5fb0", "#b8860b"),
    *("#5a6b7b", "#d16ba5", "#1aa0a0", "#7a5230", "#8fae1b"),
)

# What HTML does not allow, and what reorders a text.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def markup(text: str) -> str:
    """`text` as it stands in a page: escaped, and with what is hidden made visible."""
    return escape(HIDDEN.sub("�", str(text)))


@dataclass(frozen=True)
class Chart:
    """Series of points over one pair of axes. `points`: the series that are dots, not lines."""

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[Point]]
    log_x: bool = False
    log_y: bool = False
    points: tuple[str, ...] = ()

    def shown(self) -> dict[str, list[Point]]:
        """The series without what cannot be drawn, and thinned out."""
        fits = {
            name: [
                (float(x), float(y))
                for x, y in points
                if math.isfinite(x)
                and math.isfinite(y)
                and (x > 0 or not self.log_x)
                and (y > 0 or not self.log_y)
            ]
            for name, points in self.series.items()
        }
        return {name: thin(points) for name, points in fits.items() if points}


def thin(points: list[Point], most: int = MOST) -> list[Point]:
    """About `most` points, of which none that stands out is missing: the lowest and the highest of
    every stretch."""
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def smooth(points: Sequence[Point], keep: float = 0.95) -> list[Point]:
    """An average of each value and those before it, with weights that fall by `keep`."""
    smoothed, total, weight = [], 0.0, 0.0
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        smoothed.append((x, total / weight))
    return smoothed


@dataclass(frozen=True)
class Axis:
    """Maps values to places on the paper."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, log: bool) -> "Axis":
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-12 * max(1, abs(high)):
            low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        edge = EDGE * (high - low)
        return cls(low - edge, high + edge, start, end, log)

    def place(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Some five round values."""
        if self.log and self.high - self.low > 1:
            first, last = math.ceil(self.low), math.floor(self.high)
            return [10.0**n for n in range(first, last + 1, 1 + (last - first) // 8)]
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        rough = (high - low) / 6
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= rough)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


def number(value: float) -> str:
    """1200000 → 1.2M, 0.0003 → 0.0003."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (10 if unit == "k" else 1):
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def svg(chart: Chart) -> str:
    """The chart as an <svg> element, and its legend. The page's style tells their colours."""
    shown = chart.shown()
    everything = [point for points in shown.values() for point in points]
    title = markup(chart.title)
    if not everything:
        return f"<p>{title}: nothing to draw.</p>"
    x = Axis.over([p[0] for p in everything], LEFT, WIDTH - RIGHT, chart.log_x)
    y = Axis.over([p[1] for p in everything], HEIGHT - BOTTOM, TOP, chart.log_y)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">',
        f'<text x="{LEFT}" y="16" class="title">{title}</text>',
        *_axes(chart, x, y),
    ]
    for index, (name, points) in enumerate(shown.items()):
        colour = COLOURS[index % len(COLOURS)]
        dots = name in chart.points or len(points) == 1
        dotted = dots or (not chart.points and len(points) <= MARKED)
        parts += _marks(name, points, x, y, colour, line=not dots, dots=dotted)
    return "\n".join([*parts, "</svg>", _legend(list(shown)) if len(shown) > 1 else ""])


def _axes(chart: Chart, x: Axis, y: Axis) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in y.ticks():
        at = f"{y.place(value):.1f}"
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{at}" y2="{at}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at}" dy="4" class="end">{number(value)}</text>')
    for value in x.ticks():
        at = f"{x.place(value):.1f}"
        parts.append(f'<line x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 4}" class="axis"/>')
        parts.append(f'<text x="{at}" y="{bottom + 18}" class="middle">{number(value)}</text>')
    parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" class="axis"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" class="middle">{markup(chart.x)}</text>')
    parts.append(
        f'<text x="14" y="{(TOP + bottom) / 2}" class="middle" '
        f'transform="rotate(-90 14 {(TOP + bottom) / 2})">{markup(chart.y)}</text>'
    )
    return parts


def _marks(
    name: str, points: Sequence[Point], x: Axis, y: Axis, colour: str, *, line: bool, dots: bool
) -> list[str]:
    places = [(x.place(a), y.place(b), a, b) for a, b in points]
    parts = []
    if line:
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top, _, _ in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" class="line"/>')
    if dots:
        for left, top, a, b in places:
            said = f"{markup(name)}: {number(a)}, {number(b)}"
            parts.append(
                f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3" fill="{colour}">'
                f"<title>{said}</title></circle>"
            )
    return parts


def _legend(names: Sequence[str]) -> str:
    spans = (
        f'<span><b style="background:{COLOURS[index % len(COLOURS)]}"></b>{markup(name)}</span>'
        for index, name in enumerate(names)
    )
    return f'<p class="legend">{" ".join(spans)}</p>'


def _label(text: str) -> str:
    """For matplotlib, to which a $ begins a formula."""
    return HIDDEN.sub("�", text).replace("$", r"\$")


def save_png(charts: Sequence[Chart], path: Path) -> None:
    """All charts in one picture. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    charts = [chart for chart in charts if chart.shown()]
    if not charts:
        return
    figure = Figure(figsize=(7, 3.2 * len(charts)), layout="constrained")
    FigureCanvasAgg(figure)
    for position, chart in enumerate(charts, start=1):
        axes = figure.add_subplot(len(charts), 1, position)
        for index, (name, points) in enumerate(chart.shown().items()):
            style = "o" if name in chart.points or len(points) == 1 else "-"
            xs, ys = [p[0] for p in points], [p[1] for p in points]
            label, colour = _label(name), COLOURS[index % len(COLOURS)]
            axes.plot(xs, ys, style, label=label, color=colour, markersize=4, linewidth=1.2)
        axes.set(title=_label(chart.title), xlabel=_label(chart.x), ylabel=_label(chart.y))
        if chart.log_x:
            axes.set_xscale("log")
        if chart.log_y:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        if len(chart.shown()) > 1:
            axes.legend()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks: they become boxes
        figure.savefig(buffer, format="png", dpi=110)
    write_atomic(path, buffer.getvalue())
