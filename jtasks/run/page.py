"""The page of a run, and of several runs side by side: one HTML file without scripts that needs no network."""

import math
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jtasks.console import number
from jtasks.errors import ConfigError
from jtasks.run import markup, report
from jtasks.run.chart import Line, Points, escape
from jtasks.run.report import Part, Run, Shown
from jtasks.writing import write_file

SPLITS = ("train", "valid", "test")


def write(folder: pathlib.Path, output: pathlib.Path | None = None) -> pathlib.Path:
    """Write the page of the run in a folder to a file, by default report.html in the folder; return its path.

    Raises:
      ConfigError: the folder holds no run, or the path exists and is no file.
      OSError: the file cannot be written.
    """
    return _write(output or folder / "report.html", of_run(report.read(folder), time.time()))


def write_comparison(folders: Sequence[pathlib.Path], output: pathlib.Path | None = None) -> pathlib.Path:
    """Write a page of several runs side by side to a file, by default ./comparison.html; return its path.

    Raises:
      ConfigError: a folder holds no run, or the path exists and is no file.
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
        name: [Line(split, points, _order(split)[0], dots=split != "train") for split, points in splits.items()]
        for name, splits in series.items()
    }
    if "lr" in lines and (schedule := run.schedule()):
        lines["lr"].insert(0, Line("schedule", schedule, len(SPLITS), faint=True))
    task = str(run.config.get("config.task", ""))
    return markup.document(
        run.name,
        f"{escape(task)} · {_status(run)}",
        [
            markup.warnings(run.problems),
            markup.section("Results", _results(run)),
            markup.section("Curves", markup.legend(lines[name] for name in names) + markup.charts(names, lines)),
            markup.section("Pictures", "".join(_picture(shown) for shown in run.shown if shown.size), "pictures"),
            markup.section("Samples", "".join(_text(shown) for shown in run.shown if not shown.size)),
            markup.section("Training", markup.charts(rest, lines)),
            markup.section("What the config changes" if run.defaults else "Config", _changes(run)),
            markup.section("Environment", _environment(run)),
        ],
        now,
    )


def of_runs(runs: Sequence[Run], now: float) -> str:
    """Return a page that lays runs side by side; `now` is the time of writing, in seconds since the epoch."""
    names = labels([run.folder for run in runs])
    lines = _lines(names, [run.series() for run in runs])
    evaluated = [metric for metric in lines if any(line.dots for line in lines[metric])] or ["loss"]
    main, rest = ([m for m in lines if (m in evaluated) is chosen] for chosen in (True, False))
    keys = [Line(name, (), i) for i, name in enumerate(names)]
    note = '<p class="note">Pale: train. Strong, with dots: valid and test.</p>'
    differences = [
        [field.removeprefix("config."), *(markup.literal(r.config[field]) if field in r.config else "" for r in runs)]
        for field in report.differences(runs)
    ]
    fields = markup.table(["field", *names], differences) if differences else "<p>Nothing.</p>"
    return markup.document(
        f"{len(runs)} runs",
        escape(", ".join(names)),
        [
            markup.warnings([problem for run in runs for problem in run.problems]),
            markup.section("Results", markup.table(*_side_by_side(runs, names), figures=True)),
            markup.section("Curves", markup.legend([keys]) + note + markup.charts(main, lines)),
            markup.section("Training", markup.charts(rest, lines)),
            markup.section("What differs in the configs", fields),
        ],
        now,
    )


def _lines(names: Sequence[str], runs: Sequence[Mapping[str, Mapping[str, Points]]]) -> dict[str, list[Line]]:
    """Return the lines of each metric, "loss" first: one color a run, pale for train if there are other splits."""
    lines: dict[str, list[Line]] = {}
    for i, (name, series) in enumerate(zip(names, runs, strict=True)):
        for metric, splits in series.items():
            lines.setdefault(metric, []).extend(
                Line(f"{name} {split}", points, i, len(splits) > 1 and split == "train", split != "train")
                for split, points in splits.items()
            )
    return {metric: lines[metric] for metric in sorted(lines, key=lambda name: name != "loss")}


def labels(folders: Sequence[pathlib.Path]) -> list[str]:
    """Return a name for each folder: the shortest end of its path that tells it from the others.

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


def _status(run: Run) -> str:
    facts = [_progress(run)]
    if (seconds := run.seconds()) is not None:
        facts.append(f"{markup.duration(seconds)}" + (f" in {len(run.parts)} parts" if len(run.parts) > 1 else ""))
    if pace := run.rate("seconds_per_step"):
        facts.append(f"{number(1 / pace)} steps/s")
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
    columns = sorted(final, key=_order)
    named = _names(final[column][1] for column in [*columns[1:], columns[0]])
    rows = [
        [name, *(markup.figure(final[column][1].get(name)) for column in columns)]
        for name in sorted(named, key=lambda name: name != "loss")
    ]
    same = len({step for step, _ in final.values()}) == 1
    heads = [column if same else f"{column}, step {final[column][0]:,}" for column in columns]
    return markup.table(["metric", *heads], rows, figures=True) + _best(run)


def _best(run: Run) -> str:
    """Format the best value of config.best, and its step."""
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
    measured = sorted({examples for final in finals for examples in final}, key=_order)
    columns = [
        (examples, metric)
        for examples in measured
        if examples != "train"
        for metric in sorted(_names(final.get(examples, (0, {}))[1] for final in finals), key=lambda m: m != "loss")
    ]
    columns.append(("train", "loss"))
    head = ["run", "step", "time", "examples/s", *(f"{examples}: {metric}" for examples, metric in columns)]
    rows = []
    for run, name, final in zip(runs, names, finals, strict=True):
        seconds = run.seconds()
        own = [_progress(run).removeprefix("step "), "" if seconds is None else markup.duration(seconds)]
        values = [markup.figure(final.get(examples, (0, {}))[1].get(metric)) for examples, metric in columns]
        rows.append([name, *own, markup.figure(run.rate("examples_per_second")), *values])
    return head, rows


def _names(mappings: Iterable[Mapping[str, Any]]) -> dict[str, None]:
    """Return the keys of all mappings, each once, in their order."""
    return dict.fromkeys(name for mapping in mappings for name in mapping)


def _order(examples: str) -> tuple[int, str]:
    """Return the place of a split, or of the first examples of a split, among others."""
    split = examples.partition(",")[0]
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS)), examples


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
        return markup.table(["field", "value"], [[field, markup.literal(value)] for field, _, value in rows])
    known = [
        [f, markup.literal(default) if f"config.{f}" in run.defaults else "", markup.literal(value)]
        for f, default, value in rows
    ]
    return markup.table(["field", "default", "this run"], known)


def _environment(run: Run) -> str:
    if not run.parts:
        return ""
    facts = dict.fromkeys(name for part in run.parts for name in _facts(part))
    head = ["part", *(f"from step {part.step:,}" for part in run.parts)]
    return markup.table(head, [[name, *(_facts(part).get(name, "") for part in run.parts)] for name in facts])


def _facts(part: Part) -> dict[str, str]:
    """Return the names and values of the facts about a part of a run."""
    content = part.content
    facts = {"started": markup.date(part.wall), **{name: str(content.get(name, "")) for name in ("host", "system")}}
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
