"""A picture of a sweep: the metric of each run against each swept field, as one SVG file."""

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jtasks.console import number

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 370, 260, 78, 16, 34, 44  # of a panel, in pixels
COLUMNS = 3
WIDE = 30  # from this ratio of largest to smallest value on, an axis is logarithmic
STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-weight: 600 } .end { text-anchor: end }
.middle { text-anchor: middle } .back { fill: #fff } .axis { stroke: #ccc } .run { fill: #4c78a8; fill-opacity: .75 }
.line { fill: none; stroke: #4c78a8; stroke-opacity: .5 } .best { fill: #d9541e }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .back { fill: #16181c } .axis { stroke: #444 } }
"""


class Axis(NamedTuple):
    """An axis: the place of a value, from 0 to 1, and the values that get a label."""

    place: Callable[[Any], float]
    ticks: list[tuple[Any, str]]


def draw(records: Sequence[Mapping[str, Any]], fields: Sequence[str], metric: str, mode: str, best: str) -> str:
    """Return an SVG with one panel for each field: a dot is a run, the line connects the best run of each value.

    Args:
      records: the runs, each with a finite metric.
      fields: the swept fields.
      metric: name of the metric.
      mode: "min" or "max": which metrics are good.
      best: name of the run to highlight.
    """
    columns = min(COLUMNS, len(fields))
    width, height = columns * WIDTH, math.ceil(len(fields) / columns) * HEIGHT
    panels = [
        f'<g transform="translate({i % columns * WIDTH},{i // columns * HEIGHT})">\n{panel}</g>\n'
        for i, panel in enumerate(_panel(records, field, metric, mode, best) for field in fields)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f"<title>{html.escape(metric)} of {len(records)} runs</title>\n<style>{STYLE}</style>\n"
        f'<rect class="back" width="{width}" height="{height}"/>\n{"".join(panels)}</svg>\n'
    )


def _panel(records: Sequence[Mapping[str, Any]], field: str, metric: str, mode: str, best: str) -> str:
    points = [(r["values"][field], r["metrics"][metric], r["run"]) for r in records if field in r["values"]]
    x, y = _axis([value for value, _, _ in points]), _axis([height for _, height, _ in points], few=True)

    def across(value: Any) -> float:
        return LEFT + x.place(value) * (WIDTH - LEFT - RIGHT)

    def down(value: Any) -> float:
        return HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text class="title" x="{LEFT}" y="18">{html.escape(metric)}</text>']
    parts += [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(value):.1f}" y2="{down(value):.1f}"/>'
        f'<text class="end" x="{LEFT - 6}" y="{down(value) + 4:.1f}">{label}</text>'
        for value, label in y.ticks
    ]
    parts += [
        f'<text class="middle" x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 18}">{html.escape(label)}</text>'
        for value, label in x.ticks
    ]
    parts += [
        f'<text class="middle title" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">{html.escape(field)}</text>'
    ]
    good = max if mode == "max" else min
    line = {across(value): good(h for v, h, _ in points if v == value) for value, _, _ in points}
    path = " ".join(f"{place:.1f},{down(height):.1f}" for place, height in sorted(line.items()))
    parts += [f'<polyline class="line" points="{path}"/>']
    parts += [
        f'<circle class="{"best" if run == best else "run"}" cx="{across(value):.1f}" cy="{down(height):.1f}"'
        f' r="{5 if run == best else 4}"><title>{html.escape(run)}: {number(height)}</title></circle>'
        for value, height, run in sorted(points, key=lambda point: point[2] == best)  # the best one on top
    ]
    return "".join(f"{part}\n" for part in parts)


def _axis(values: Sequence[Any], *, few: bool = False) -> Axis:
    """Return an axis for values: logarithmic if they are far apart, one place each if they are not numbers.

    `few` labels only the ends and the middle; otherwise up to five values are labeled.
    """
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        texts = sorted({_text(value) for value in values})
        places = {text: (i + 0.5) / len(texts) for i, text in enumerate(texts)}
        return Axis(lambda value: places[_text(value)], _thin([(value, _text(value)) for value in _unique(values)]))
    low, high = min(values), max(values)
    if low > 0 and high / low >= WIDE:
        start, size = math.log(low), math.log(high) - math.log(low)
        place: Callable[[Any], float] = lambda value: 0.04 + 0.92 * (math.log(value) - start) / size  # noqa: E731
        middle = math.sqrt(low) * math.sqrt(high)
    else:
        place = lambda value: 0.04 + 0.92 * (value - low) / (high - low) if high > low else 0.5  # noqa: E731
        middle = low + (high - low) / 2
    labels = sorted({low, middle, high}) if few else sorted(set(values))
    return Axis(place, _thin([(value, number(value)) for value in labels]))


def _thin(ticks: list[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """Return at most five of the labels, evenly spaced."""
    return ticks[:: math.ceil(len(ticks) / 5)]


def _unique(values: Sequence[Any]) -> list[Any]:
    return list({_text(value): value for value in values}.values())


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 14 else text[:13] + "…"
