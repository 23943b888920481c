"""Line charts as inline SVG: axes, thinned lines, a title for each place; pure functions."""

import bisect
import html
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from jtasks.console import number
from jtasks.errors import printable

Points = Sequence[tuple[int, float]]  # (step, value) in ascending order of steps

WIDTH, HEIGHT = 400, 220  # of a drawing, in units of its own
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 34  # margins around the axes
BUCKETS = 200  # places along x at which a line has points
STRIPS = 50  # places along x that have a title
COLORS = 8  # a style sheet has .c0 to .c7
_LOGARITHMIC = re.compile("loss|perplexity|norm|error")  # metrics that people compare by ratio
_SEVERALFOLD = 20.0  # largest by smallest value from which a logarithmic axis helps


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
      name: what the titles call it.
      points: steps and values; values may be nan or inf.
      color: index of the color; further ones than `COLORS` are dashed.
      faint: thin and pale, for a line that another one matters more than.
      dots: mark the points, where they are few.
    """

    name: str
    points: Points
    color: int = 0
    faint: bool = False
    dots: bool = False


def escape(value: object) -> str:
    """Return a value as HTML, with nothing in it that is markup or controls a terminal.

    >>> escape('<b> & "c"')
    '&lt;b&gt; &amp; &quot;c&quot;'
    """
    return html.escape(printable(str(value)))


def chart(title: str, lines: Sequence[Line]) -> str:
    """Return an SVG of lines over steps; a place where a line is not finite is a gap and a cross at the top.

    The value axis is logarithmic if `title` is a metric that people compare by ratio and its values span a lot.
    """
    lines = [line._replace(points=thin(line.points, BUCKETS)) for line in lines if line.points]
    finite = [value for line in lines for _, value in line.points if math.isfinite(value)]
    steps = [step for line in lines for step, _ in line.points]
    if not steps:
        return ""
    x = Axis.linear(min(0, *steps), max(steps), LEFT, WIDTH - RIGHT)
    x = x._replace(ticks=[tick for tick in x.ticks if tick == int(tick)])
    y = _value_axis(title, finite)
    strips = _strips(lines, x)
    return "".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} by step">',
            _frame(x, y),
            *(_draw(line, x, y) for line in lines),
            *strips,
            "</svg>",
        ]
    )


def thin(points: Points, buckets: int) -> list[tuple[int, float]]:
    """Return at most `3 * buckets + 2` of the points: in each of `buckets` parts the extremes, and one not finite.

    >>> thin([(step, abs(step - 50)) for step in range(100)], 2)
    [(0, 50), (49, 1), (50, 0), (99, 49)]
    """
    size = math.ceil(len(points) / buckets)
    if size <= 3:
        return list(points)
    kept = {0, len(points) - 1}
    for begin in range(0, len(points), size):
        part = range(begin, min(begin + size, len(points)))
        finite = [i for i in part if math.isfinite(points[i][1])]
        kept.update(next(([i] for i in part if not math.isfinite(points[i][1])), []))
        if finite:
            kept.add(min(finite, key=lambda i: points[i][1]))
            kept.add(max(finite, key=lambda i: points[i][1]))
    return [points[i] for i in sorted(kept)]


class Axis(NamedTuple):
    """A scale from values to places between `begin` and `end`, with its ticks."""

    low: float
    high: float
    begin: float
    end: float
    ticks: list[float]
    logarithmic: bool = False

    @classmethod
    def linear(cls, low: float, high: float, begin: float, end: float) -> "Axis":
        """Return a linear scale over the values from `low` to `high`."""
        return cls(low, high, begin, end, _ticks(low, high))

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        # Halves, because the difference of two large numbers may not be finite.
        fraction = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.5
        return self.begin + fraction * (self.end - self.begin)


def _value_axis(title: str, values: Sequence[float]) -> Axis:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 1e-300 and high < 1e300 and high / low >= _SEVERALFOLD and _LOGARITHMIC.search(title):
        return Axis(low / 1.1, high * 1.1, HEIGHT - BOTTOM, TOP, _powers(low, high), logarithmic=True)
    margin = (high / 2 - low / 2) / 15 or (abs(low) or 1) / 10
    low, high = low - margin if low else 0.0, high + margin
    return Axis.linear(low, high, HEIGHT - BOTTOM, TOP)


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between two numbers."""
    span = high / 5 - low / 5
    if not span > 1e-300:
        return [low]
    power = 10.0 ** math.floor(math.log10(span))
    size = power * next((factor for below, factor in ((1.5, 1), (3.5, 2), (7.5, 5)) if span < below * power), 10)
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [float(f"{i * size:.12g}") for i in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between two positive numbers, or only powers if these are enough."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 6))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    powers = [float(f"{factor}e{power}") for power in range(first, last + 1, stride) for factor in factors]
    return [power for power in powers if low <= power <= high]


def tick_label(value: float) -> str:
    """Format a tick shortly.

    >>> [tick_label(value) for value in (0, 0.25, 1500, 2e6, 3e-5)]
    ['0', '0.25', '1.5k', '2M', '3e-5']
    """
    for power, prefix in ((9, "G"), (6, "M"), (3, "k")):
        if 10**power <= abs(value) < 1e12:
            return f"{value / 10**power:.6g}{prefix}"
    return (
        f"{value:.6g}"
        if not value or 1e-4 <= abs(value) < 1e12
        else f"{value:.3g}".replace("e-0", "e-").replace("e+", "e")
    )


def _frame(x: Axis, y: Axis) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in y.ticks:
        at = y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{tick_label(tick)}</text>')
    for tick in x.ticks:
        at = x(tick)
        anchor = "end" if at > right - 12 else "middle"
        parts.append(f'<path class="grid" d="M{at:.1f} {bottom}v4"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="{anchor}">{tick_label(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    parts.append(f'<text class="label" x="{(LEFT + right) / 2}" y="{HEIGHT - 5}" text-anchor="middle">step</text>')
    if y.logarithmic:
        parts.append(f'<text class="label" x="0" y="{HEIGHT - 5}">log scale</text>')
    return "".join(parts)


def style(line: Line) -> str:
    """Return the classes of a line."""
    dash = line.color // COLORS % 4
    return f"line c{line.color % COLORS}" + (f" d{dash}" if dash else "") + (" faint" if line.faint else "")


def _draw(line: Line, x: Axis, y: Axis) -> str:
    path, pen, marks = [], "M", []
    finite = [(step, value) for step, value in line.points if math.isfinite(value)]
    alone = len(finite) == 1
    for step, value in line.points:
        if not math.isfinite(value):
            pen = "M"
            marks.append(f'<path class="{style(line)} cross" d="M{x(step) - 3:.1f} {TOP}l6 6m0 -6l-6 6"/>')
        else:
            path.append(f"{pen}{x(step):.1f} {y(value):.1f}")
            pen = "L"
    if alone or (line.dots and len(finite) <= STRIPS):
        marks += [f'<circle class="{style(line)}" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.5"/>' for s, v in finite]
    drawn = f'<path class="{style(line)}" d="{"".join(path)}"/>' if len(finite) > 1 else ""
    return drawn + "".join(marks)


def _strips(lines: Sequence[Line], x: Axis) -> list[str]:
    """Return transparent columns over the chart; the title of each has the newest value of each line up to there."""
    steps = sorted({step for line in lines for step, _ in line.points})
    size = math.ceil(len(steps) / STRIPS)
    ends = sorted({*steps[size - 1 :: size], steps[-1]})
    places = [x(step) for step in ends]
    strips = []
    for i, (step, place) in enumerate(zip(ends, places, strict=True)):
        left = (places[i - 1] + place) / 2 if i else LEFT
        right = (place + places[i + 1]) / 2 if i + 1 < len(places) else WIDTH - RIGHT
        after = ends[i - 1] if i else -math.inf
        rows = [row for line in lines if (row := _value_at(line, after, step))]
        title = escape("\n".join([f"step {step:,}", *rows]))
        strips.append(
            f'<rect class="strip" x="{left:.1f}" y="{TOP}" width="{max(right - left, 0.5):.1f}"'
            f' height="{HEIGHT - TOP - BOTTOM}"><title>{title}</title></rect>'
        )
    return strips


def _value_at(line: Line, after: float, step: int) -> str:
    """Describe the newest point of a line after one step and up to another; "" if there is none."""
    i = bisect.bisect_right(line.points, step, key=lambda point: point[0]) - 1
    if i < 0 or line.points[i][0] <= after:
        return ""
    at, value = line.points[i]
    return f"{line.name} {number(value)}" + (f" (step {at:,})" if at != step else "")
