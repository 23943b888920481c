"""The report of a run: what its folder holds, gathered without JAX, the task or its data, and written as one page."""

import base64
import bisect
import itertools
import json
import math
import pathlib
import re
import statistics
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jtasks.errors import ConfigError
from jtasks.run import records
from jtasks.run.chart import Points
from jtasks.run.records import EVALUATED, OF

MAX_PICTURE, MAX_PICTURES, MAX_TEXT = 4 << 20, 24 << 20, 20_000  # bytes of one and of all; characters
_SHOWN = re.compile(r"(?P<name>.+)-(?P<split>train|valid|test)-(?P<step>\d+)\.(?P<kind>png|txt)", re.DOTALL)
_NO_METRICS = {"step", "split", "wall", EVALUATED, OF}


class Shown(NamedTuple):
    """A picture or a text that the run has shown, the newest of its name."""

    name: str
    split: str
    step: int
    content: str  # a text, or a data URI
    size: tuple[int, int] | None = None  # of a picture: width and height in pixels


class Part(NamedTuple):
    """A start or a resumption of the run; see `provenance.record`."""

    wall: float
    step: int
    steps: int
    content: dict[str, Any]


class Run(NamedTuple):
    """All that a report shows of a run."""

    name: str
    folder: pathlib.Path
    config: dict[str, Any]  # by dotted name
    defaults: dict[str, Any]  # of the fields of the config; {} if unknown
    parts: list[Part]
    records: list[dict[str, Any]]  # by ascending step
    shown: list[Shown]
    problems: list[str]

    @property
    def step(self) -> int:
        """The newest step with a record."""
        return self.records[-1]["step"] if self.records else 0

    @property
    def steps(self) -> int:
        """The step at which the run ends; 0 if unknown."""
        steps = self.parts[-1].steps if self.parts else self.config.get("config.steps", 0)
        return steps if isinstance(steps, int) else 0

    def series(self) -> dict[str, dict[str, Points]]:
        """Return the points of each metric, by `examples_of`: `{"loss": {"train": [(10, 2.5), ...]}}`."""
        series: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for record in self.records:
            examples = examples_of(record)
            for name, value in _metrics(record).items():
                series.setdefault(name, {}).setdefault(examples, []).append((record["step"], value))
        return {name: dict(lines) for name, lines in series.items()}

    def schedule(self) -> Points:
        """Return the scheduled learning rate of the newest part of the run, at some steps."""
        given = _list(self.parts[-1].content.get("schedule")) if self.parts else []
        pairs = [pair for pair in given if isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int]
        return [(step, rate) for step, value in pairs if (rate := _number(value)) is not None]

    def points(self, metric: str, split: str) -> Points:
        """Return the steps and values of one metric of a split, if on the same examples as the newest value."""
        records = [record for record in self.records if record["split"] == split]
        records = [record for record in records if examples_of(record) == examples_of(records[-1])]
        return [(record["step"], value) for record in records if (value := _number(record.get(metric))) is not None]

    def final(self) -> dict[str, tuple[int, dict[str, float]]]:
        """Return the step and the metrics of the newest record of each `examples_of`."""
        newest = {examples_of(record): record for record in self.records}
        return {examples: (record["step"], _metrics(record)) for examples, record in newest.items()}

    def seconds(self) -> float | None:
        """Return the time from each start to the last record before the next one, added up; None without records."""
        walls = sorted(wall for record in self.records if (wall := _number(record.get("wall"))) and math.isfinite(wall))
        starts = [part.wall for part in self.parts] or walls[:1]
        passed = 0.0
        for start, following in itertools.pairwise([*starts, math.inf]):
            last = bisect.bisect_left(walls, following) - 1
            passed += max(walls[last] - start, 0.0) if last >= 0 else 0.0
        return passed if walls else None

    def rate(self, name: str) -> float | None:
        """Return the median of a metric of training, such as `seconds_per_step`; None if there is none."""
        values = [value for _, value in self.points(name, "train")]
        return statistics.median(values) if values else None


def read(folder: pathlib.Path) -> Run:
    """Read the folder of a run, which may be in progress. What is damaged is left out, and named in `problems`.

    Raises:
      ConfigError: the folder holds no run.
    """
    if not (folder / "config.json").is_file() and not (folder / "metrics.jsonl").is_file():
        what = "holds no run (no config.json)" if folder.is_dir() else "is no folder"
        raise ConfigError(f"{folder} {what}: give the --workdir of a run")
    problems: list[str] = []
    config = _read_object(folder / "config.json", problems.append)
    environment = _read_object(folder / "environment.json", problems.append)
    try:
        lines = records.read(folder / "metrics.jsonl", problems.append)
        known = {(line["step"], line["split"]) for line in lines}
        watched = records.read(folder / records.WATCHED, problems.append)
        lines += [line for line in watched if (line["step"], line["split"]) not in known]
    except OSError as error:
        lines = []
        problems.append(f"{folder / 'metrics.jsonl'} cannot be read ({error})")
    lines = sorted((record for record in lines if 0 <= record["step"] < 1e15), key=lambda record: record["step"])
    parts = [part for content in _list(environment.get("parts")) if (part := _part(content))]
    usual = environment.get("defaults")
    shown = list(_read_shown(folder / "show", problems.append))
    name = folder.resolve().name or str(folder)
    return Run(name, folder, flat(config), usual if isinstance(usual, dict) else {}, parts, lines, shown, problems)


def flat(config: dict[str, Any], prefix: str = "config") -> dict[str, Any]:
    """Return the leaves of a config by dotted names.

    >>> flat({"seed": 0, "optim": {"lr": 0.1}})
    {'config.seed': 0, 'config.optim.lr': 0.1}
    """
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        leaves |= flat(value, f"{prefix}.{name}") if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return leaves


def changes(run: Run) -> dict[str, tuple[Any, Any]]:
    """Return (default, value) of each field of the config that the run changes; the default is None if unknown."""
    usual = run.defaults
    return {name: (usual.get(name), value) for name, value in run.config.items() if usual.get(name) != value}


def differences(runs: Sequence[Run]) -> list[str]:
    """Return the fields of the config that differ between runs, or that not all runs have, in alphabetical order."""
    absent = object()
    names = sorted({name for run in runs for name in run.config})
    return [
        name for name in names if any(run.config.get(name, absent) != runs[0].config.get(name, absent) for run in runs)
    ]


def examples_of(record: dict[str, Any]) -> str:
    """Return what a record was measured on: its split, or the first examples of it by `config.eval_batches`.

    >>> examples_of({"split": "valid"}), examples_of({"split": "valid", "evaluated_examples": 1000.0})
    ('valid', 'valid, first 1,000')
    """
    evaluated = _number(record.get(EVALUATED))
    return record["split"] if evaluated is None else f"{record['split']}, first {evaluated:,.0f}"


def _metrics(record: dict[str, Any]) -> dict[str, float]:
    numbers = {name: _number(value) for name, value in record.items() if name not in _NO_METRICS}
    return {name: number for name, number in numbers.items() if number is not None}


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _part(content: Any) -> Part | None:
    if not isinstance(content, dict):
        return None
    wall, step, steps = _number(content.get("wall")), content.get("step"), content.get("steps")
    if wall is None or not 0 <= wall < 1e11 or not isinstance(step, int) or not isinstance(steps, int):
        return None
    return Part(wall, step, steps, content)


def _read_object(path: pathlib.Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Return the JSON object in a file; {} if there is no file, and after a warning if it is damaged."""
    try:
        content = json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        warn(f"{path} cannot be read ({error})")
        return {}
    if not isinstance(content, dict):
        warn(f"{path} is damaged (no JSON object)")
        return {}
    return content


def _read_shown(folder: pathlib.Path, warn: Callable[[str], None]) -> list[Shown]:
    """Return the newest picture or text of each name and split in DIR/show, by name."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    newest: dict[tuple[str, str, str], tuple[int, pathlib.Path]] = {}
    for file in files:
        if (match := _SHOWN.fullmatch(file.name)) and file.is_file():
            key, step = (match["name"], match["split"], match["kind"]), int(match["step"][:18])
            newest[key] = max(newest.get(key, (-1, file)), (step, file))
    shown, room = [], MAX_PICTURES
    for (name, split, kind), (step, file) in newest.items():
        try:
            if kind == "txt":
                text = file.read_bytes()[: 4 * MAX_TEXT].decode(errors="backslashreplace")
                text = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ..."
                shown.append(Shown(name, split, step, text))
                continue
            size = file.stat().st_size
            if size > min(MAX_PICTURE, room):
                warn(f"{file} is left out: with it the page would be too large")
                continue
            content, room = file.read_bytes(), room - size
            shown.append(Shown(name, split, step, _data_uri(content), _png_size(content)))
        except (OSError, ValueError) as error:
            warn(f"{file} is left out ({error})")
    return shown


def _data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _png_size(content: bytes) -> tuple[int, int]:
    """Return width and height of a PNG; raise ValueError if the content is not a PNG."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise ValueError("it is no PNG picture")
    width, height = struct.unpack(">II", content[16:24])
    return width, height
