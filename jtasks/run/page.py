"""The page of a run, and of several runs side by side: one HTML file without scripts that needs no network."""

import datetime
import math
import os
import pathlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jtasks.console import number
from jtasks.errors import ConfigError
from jtasks.run import report
from jtasks.run.chart import Line, chart, escape, style
from jtasks.run.report import Part, Run, Shown
from jtasks.run.stylesheet import STYLE
from jtasks.writing import write_file

SPLITS = ("train", "valid", "test")
_UNITS = {"seconds_per_step": "s", "mfu": "of the peak"}


def write(folder: pathlib.Path, output: pathlib.Path | None = None) -> pathlib.Path:
    """Write the page of the run in a folder to a file, by default report.html in the folder; return its path.

    Raises:
      ConfigError: the folder holds no run, or the path is that of something other than a file.
      OSError: the file cannot be written.
    """
    return _write(output or folder / "report.html", of_run(report.read(folder), time.time()))


def write_comparison(folders: Sequence[pathlib.Path], output: pathlib.Path | None = None) -> pathlib.Path:
    """Write a page of several runs side by side to a file, by default ./comparison.html; return its path.

    Raises:
      ConfigError: a folder holds no run, or the path is that of something other than a file.
      OSError: the file cannot be written.
    """
    page = of_runs([report.read(folder) for folder in folders], time.time())
    return _write(output or pathlib.Path("comparison.html"), page)


def of_run(run: Run, now: float) -> str:
    """Return the page of a run; `now` is the time of writing, in seconds since the epoch."""
    series = run.series()
    evaluated = [name for name in series if set(series[name]) - {"train"}]
    names = sorted(evaluated or [n for n in series if n == "loss"], key=lambda name: name != "loss")
    rest = [name for name in series if name not in names]
    lines = {
        name: [Line(split, points, _split_color(split), dots=split != "train") for split, points in splits.items()]
        for name, splits in series.items()
    }
    task = str(run.config.get("config.task", ""))
    return _document(
        run.name,
        f"{escape(task)} · {_status(run)}",
        [
            _problems(run.problems),
            _section("Results", _results(run)),
            _section("Curves", _legend(lines[name] for name in names) + _charts(names, lines)),
            _section("Pictures", "".join(_picture(shown) for shown in run.shown if shown.size), "pictures"),
            _section("Samples", "".join(_text(shown) for shown in run.shown if not shown.size)),
            _section("Training", _charts(rest, lines)),
            _section("What the config changes" if run.defaults else "Config", _changes(run)),
            _section("Environment", _environment(run)),
        ],
        now,
    )


def of_runs(runs: Sequence[Run], now: float) -> str:
    """Return a page that lays runs side by side; `now` is the time of writing, in seconds since the epoch."""
    names = labels([run.folder for run in runs])
    all_series = [run.series() for run in runs]
    metrics = sorted({metric: None for series in all_series for metric in series}, key=lambda name: name != "loss")
    lines: dict[str, list[Line]] = {metric: [] for metric in metrics}
    for i, (name, series) in enumerate(zip(names, all_series, strict=True)):
        for metric, splits in series.items():
            faint = len(splits) > 1
            lines[metric] += [
                Line(f"{name} {split}", points, i, faint and split == "train", split != "train")
                for split, points in splits.items()
            ]
    evaluated = [name for name in metrics if any(set(series.get(name, ())) - {"train"} for series in all_series)]
    keys = [Line(name, ((0, 0.0),), i) for i, name in enumerate(names)]
    fields = report.differences(runs)
    rows = [[field.removeprefix("config."), *map(_value, values)] for field, values in fields.items()]
    problems = [problem for run in runs for problem in run.problems]
    return _document(
        f"{len(runs)} runs",
        escape(", ".join(names)),
        [
            _problems(problems),
            _section("Results", _table(*_side_by_side(runs, names), figures=True)),
            _section(
                "Curves",
                _legend([keys])
                + "<p class=note>Pale: train. Strong, with dots: valid and test.</p>"
                + _charts(evaluated or [m for m in metrics if m == "loss"], lines),
            ),
            _section("Training", _charts([m for m in metrics if m not in (evaluated or ["loss"])], lines)),
            _section("What differs in the configs", _table(["field", *names], rows) if rows else "<p>Nothing.</p>"),
        ],
        now,
    )


def labels(folders: Sequence[pathlib.Path]) -> list[str]:
    """Return a name of each folder: the ends of their paths, as long as it takes to tell them apart.

    >>> labels([pathlib.Path("/a/x/run"), pathlib.Path("/a/y/run")])
    ['x/run', 'y/run']
    """
    paths = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, paths), default=0)):
        ends = [os.sep.join(path[-length:]) for path in paths]
        if len(set(ends)) == len(set(paths)):
            return ends
    return [str(folder) for folder in folders]


def _write(path: pathlib.Path, page: str) -> pathlib.Path:
    if path.is_symlink() or (path.exists() and not path.is_file()):  # which a file would replace, such as a device
        raise ConfigError(f"{path} is not a file: give the name of the page, --output=FILE.html")
    write_file(path, page)
    return path


def _document(title: str, subtitle: str, sections: Iterable[str], now: float) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
        " style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><header><h1>{escape(title)}</h1><p>{subtitle}</p></header>\n"
        + "\n".join(filter(None, sections))
        + f"\n<footer>Written by jtasks at {_date(now)}.</footer></body></html>\n"
    )


def _section(title: str, content: str, kind: str = "") -> str:
    body = f'<div class="{kind}">{content}</div>' if kind else content
    return f"<section><h2>{title}</h2>{body}</section>" if content else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], figures: bool = False) -> str:
    """Return a table that scrolls by itself; the cells of `figures` are aligned to the right."""

    def row(cells: Sequence[Any], tag: str) -> str:
        first, *rest = (escape(cell) for cell in cells)
        return f"<tr><th>{first}</th>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in rest) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    kind = ' class="figures"' if figures else ""
    table = f"<table{kind}><thead>{row(head, 'th')}</thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _problems(problems: Sequence[str]) -> str:
    return "".join(f'<p class="problem">{escape(problem)}</p>' for problem in problems)


def _status(run: Run) -> str:
    facts = [_progress(run)]
    if (seconds := run.seconds()) is not None:
        facts.append(f"{_duration(seconds)}" + (f" in {len(run.parts)} parts" if len(run.parts) > 1 else ""))
    if seconds := run.rate("seconds_per_step"):
        facts.append(f"{number(1 / seconds)} steps/s")
    if rate := run.rate("examples_per_second"):
        facts.append(f"{number(rate)} examples/s")
    return " · ".join(facts)


def _progress(run: Run) -> str:
    step, steps = run.step, run.steps
    return f"step {step:,} of {steps:,}" if steps else f"step {step:,}"


def _results(run: Run) -> str:
    final = run.final()
    if not final:
        return "<p>No metrics yet.</p>"
    splits = sorted(final, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
    at = {record["split"]: record["step"] for record in run.records}
    known = dict.fromkeys(name for split in [*splits[1:], splits[0]] for name in final[split])
    names = sorted(known, key=lambda name: name != "loss")
    rows = [[name, *(_figure(final[split].get(name)) for split in splits)] for name in names]
    same = len(set(at.values())) == 1
    heads = [split if same else f"{split}, step {at[split]:,}" for split in splits]
    return _table(["metric", *heads], rows, figures=True) + _best(run)


def _best(run: Run) -> str:
    """Say the best value of config.best, and its step."""
    split, _, metric = str(run.config.get("config.best", "")).partition("/")
    points = [(s, v) for s, v in run.points(metric, split) if math.isfinite(v)]
    if not points:
        return ""
    choose = max if run.config.get("config.best_mode") == "max" else min
    step, value = choose(points, key=lambda point: point[1])
    return f"<p>Best {escape(split)}/{escape(metric)}: {number(value)} at step {step:,}.</p>"


def _side_by_side(runs: Sequence[Run], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a table with a row for each run."""
    finals = [run.final() for run in runs]
    columns = dict.fromkeys(
        (split, metric)
        for split in ("valid", "test")
        for final in finals
        for metric in sorted(final.get(split, {}), key=lambda name: name != "loss")
    )
    columns |= {("train", "loss"): None}
    head = ["run", "step", "time", "examples/s", *(f"{split}/{metric}" for split, metric in columns)]
    rows = []
    for run, name, final in zip(runs, names, finals, strict=True):
        seconds = run.seconds()
        own = [_progress(run).removeprefix("step "), "" if seconds is None else _duration(seconds)]
        values = [_figure(final.get(split, {}).get(metric)) for split, metric in columns]
        rows.append([name, *own, _figure(run.rate("examples_per_second")), *values])
    return head, rows


def _split_color(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def _legend(groups: Iterable[Sequence[Line]]) -> str:
    keys = {line.name: style(line) for group in groups for line in group}
    swatches = [
        f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="{kind}" d="M1 4H23"/></svg>{escape(name)}</li>'
        for name, kind in keys.items()
    ]
    return f'<ul class="legend">{"".join(swatches)}</ul>' if swatches else ""


def _charts(names: Sequence[str], lines: Mapping[str, Sequence[Line]]) -> str:
    figures = [
        f"<figure><figcaption>{escape(name)}<small>{escape(_unit(name))}</small></figcaption>{drawing}</figure>"
        for name in names
        if (drawing := chart(name, lines[name]))
    ]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _unit(name: str) -> str:
    return _UNITS.get(name) or re.sub("(.*)_per_second", r"\1/s", name) * name.endswith("_per_second")


def _picture(shown: Shown) -> str:
    width, height = shown.size or (1, 1)
    scale = max(1, 320 // max(width, 1))  # small pictures are enlarged, pixel by pixel
    kind = ' class="pixels"' if scale > 1 else ""
    title = f"{shown.name}, {shown.split}, step {shown.step:,}"
    return (
        f'<figure><img{kind} src="{shown.content}" width="{width * scale}" height="{height * scale}"'
        f' alt="{escape(title)}"><figcaption>{escape(title)}</figcaption></figure>'
    )


def _text(shown: Shown) -> str:
    title = f"{shown.name}, {shown.split}, step {shown.step:,}"
    return f"<h3>{escape(title)}</h3><pre>{escape(shown.content)}</pre>"


def _changes(run: Run) -> str:
    rows = [(field.removeprefix("config."), default, value) for field, (default, value) in report.changes(run).items()]
    if not rows:
        return ""
    if not run.defaults:
        return _table(["field", "value"], [[field, _value(value)] for field, _, value in rows])
    known = [[f, _value(default) if f"config.{f}" in run.defaults else "", _value(value)] for f, default, value in rows]
    return _table(["field", "default", "this run"], known)


def _environment(run: Run) -> str:
    if not run.parts:
        return ""
    facts = dict.fromkeys(name for part in run.parts for name in _facts(part))
    head = ["part", *(f"from step {part.step:,}" for part in run.parts)]
    return _table(head, [[name, *(_facts(part).get(name, "") for part in run.parts)] for name in facts])


def _facts(part: Part) -> dict[str, str]:
    """Return names and values of what is known about a part of a run."""
    content = part.content
    facts = {"started": _date(part.wall), **{name: str(content.get(name, "")) for name in ("host", "system")}}
    for name, value in _dict(content.get("facts")).items():
        if name not in ("task", "config", "files"):
            facts[name] = str(value)
    facts |= {name: str(value) for name, value in _dict(content.get("versions")).items()}
    states = content.get("git")
    for i, state in enumerate(states if isinstance(states, list) else ()):
        changed = ", with uncommitted changes" if _dict(state).get("dirty") else ""
        facts["Git" + " again" * i] = f"{str(_dict(state).get('commit'))[:12]}{changed}, {_dict(state).get('folder')}"
    return facts


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _figure(value: float | None) -> str:
    return "" if value is None else number(value)


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _date(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _duration(seconds: float) -> str:
    """Format a time by its two largest units.

    >>> _duration(5000), _duration(42.4)
    ('1 h 23 min', '42 s')
    """
    for size, name, smaller, of in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {name} {int(seconds % size // smaller)} {of}"
    return f"{seconds:.0f} s"
