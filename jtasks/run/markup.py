"""Parts of an HTML page: document, section, table, charts with their legend, and values as text."""

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jtasks.console import number
from jtasks.run.chart import Line, chart, escape, style
from jtasks.run.stylesheet import STYLE

_UNITS = {"seconds_per_step": "s", "mfu": "of the peak", "peak_memory_bytes": "B, of the fullest device"}


def document(title: str, subtitle: str, sections: Iterable[str], now: float) -> str:
    """Return a page; `title` is a text, `subtitle` and `sections` are HTML, and empty sections are left out."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
        " style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><header><h1>{escape(title)}</h1><p>{subtitle}</p></header>\n"
        + "\n".join(filter(None, sections))
        + f"\n<footer>Written by jtasks at {date(now)}.</footer></body></html>\n"
    )


def section(title: str, content: str, kind: str = "") -> str:
    """Return a section with the HTML `content`, in an element of class `kind` if one is given; "" without content."""
    body = f'<div class="{kind}">{content}</div>' if kind else content
    return f"<section><h2>{title}</h2>{body}</section>" if content else ""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], figures: bool = False) -> str:
    """Return a table that scrolls by itself; the cells of `figures` are aligned to the right."""

    def row(cells: Sequence[Any], tag: str) -> str:
        first, *rest = (escape(cell) for cell in cells)
        return f"<tr><th>{first}</th>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in rest) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    kind = ' class="figures"' if figures else ""
    content = f"<table{kind}><thead>{row(head, 'th')}</thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{content}</div>'


def warnings(problems: Sequence[str]) -> str:
    """Return a paragraph for each text about what is left out of a page."""
    return "".join(f'<p class="problem">{escape(problem)}</p>' for problem in problems)


def legend(groups: Iterable[Sequence[Line]]) -> str:
    """Return a list of the lines' names and colors, each once."""
    keys = {line.name: style(line) for group in groups for line in group}
    swatches = [
        f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="{kind}" d="M1 4H23"/></svg>{escape(name)}</li>'
        for name, kind in keys.items()
    ]
    return f'<ul class="legend">{"".join(swatches)}</ul>' if swatches else ""


def charts(names: Sequence[str], lines: Mapping[str, Sequence[Line]]) -> str:
    """Return a grid of the charts of metrics: `names` in their order, each with its lines."""
    figures = [
        f"<figure><figcaption>{escape(name)}<small>{escape(_unit(name))}</small></figcaption>{drawing}</figure>"
        for name in names
        if (drawing := chart(name, lines[name]))
    ]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _unit(name: str) -> str:
    return _UNITS.get(name) or re.sub("(.*)_per_second", r"\1/s", name) * name.endswith("_per_second")


def figure(value: float | None) -> str:
    """Format a metric for a table; "" for None."""
    return "" if value is None else number(value)


def literal(value: Any) -> str:
    """Format the value of a field as in Python, a long one shortened."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def date(seconds: float) -> str:
    """Format seconds since the epoch as a date and a time in UTC."""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def duration(seconds: float) -> str:
    """Format a time by its two largest units.

    >>> duration(5000), duration(42.4)
    ('1 h 23 min', '42 s')
    """
    for size, name, smaller, of in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {name} {int(seconds % size // smaller)} {of}"
    return f"{seconds:.0f} s"
