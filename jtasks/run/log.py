"""The output of a run: messages, the progress bar, metrics.jsonl and TensorBoard.

Human-readable output goes to stderr; stdout belongs to the result.
"""

import contextlib
import datetime
import json
import math
import os
import pathlib
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jtasks.console import number
from jtasks.errors import printable
from jtasks.writing import no_link, write_file

CHECKSUM = "crc32"
_TIMED = re.compile("wall|mfu|seconds_per_step|.*_per_second")  # differs from run to run
_RESERVED = ("step", "split", "wall", CHECKSUM)
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # strings, because JSON has no such numbers


def to_json(value: Any) -> str:
    """Return one line of JSON; nan, inf and -inf, which JSON does not have, become strings.

    >>> to_json({"loss": float("nan"), "outputs": [1.0, float("inf")]})
    '{"loss": "nan", "outputs": [1.0, "inf"]}'
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_name_non_finite(value))


def read(path: pathlib.Path, warn: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Return the complete records of a metrics.jsonl, the newest of each (step, split); [] if there is no file.

    Skips a torn last line, and other damaged lines with a call of `warn`. The strings "nan", "inf" and "-inf" become
    floats again.
    """
    records: dict[Any, dict[str, Any]] = {}
    damaged = 0
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:  # after the last newline: torn
        record = _parse(line)
        if record is not None:
            records.pop((record["step"], record["split"]), None)
            records[record["step"], record["split"]] = record
        damaged += record is None
    if damaged:
        warn(f"{path}: {damaged} damaged line{'s' * (damaged > 1)} left out; their metrics are lost")
    return list(records.values())


class Log:
    """The logger of one run, a context manager: console, progress bar, metrics.jsonl and TensorBoard.

    The constructor cleans `workdir/metrics.jsonl` atomically: it removes lines of steps after `start`, torn lines, and
    the older of two lines for one step and split. A line is `{"step", "split", "wall", ...metrics, "crc32"}`: wall is
    in seconds since the epoch, non-finite values are "nan", "inf" and "-inf", metrics of those four names are left
    out, and "crc32" is the checksum of the line without its times. A line without a checksum is valid too.
    No method raises if a file cannot be written: the first failure warns, and training goes on.

    Args:
      workdir: the run's folder.
      start: the step that the run resumes from; 0 for a fresh run.
      steps: the step at which the run ends.
      amounts: maps a range of 0-based steps to the contents of their batches over all devices: `examples`, and
        `tokens` if batches are sized in tokens.
      writer: True on exactly one process; the others print nothing and change no file. Their `has`, `last` and
        `values` work in a shared folder, but a decision that all processes must share belongs to the writer.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start: int,
        steps: int,
        amounts: Callable[[range], Mapping[str, float]],
        writer: bool = True,
    ):
        self._workdir, self._path = workdir, workdir / "metrics.jsonl"
        self._start, self._steps, self._amounts, self._writer = start, steps, amounts, writer
        self._flops: float | None = None
        self._peak: float | None = None
        self._begin: tuple[float, int] | None = None  # time and step at which the timed interval began
        self._drawn = self._flushed = 0.0
        self._bar: Any = None
        self._board: Any = None
        self._warned = False
        self._seen: set[tuple[int, str]] = set()
        self._evaluations: dict[int, dict[str, float]] = {}
        with self._guard():
            if writer:
                workdir.mkdir(parents=True, exist_ok=True)
                _rewrite(self._path, lambda record: record["step"] <= start, self.warn)
            for record in read(self._path):
                if record["step"] <= start:
                    self._remember(record)

    def set_rates(self, flops: float, peak: float | None) -> None:
        """Set operations per step and peak operations per second, over all devices, from which `train` gives `mfu`."""
        self._flops, self._peak = flops, peak

    def __enter__(self) -> "Log":
        stream = sys.stderr if self._writer else None
        if stream and not stream.closed and stream.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = _bar(self._start, self._steps)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        bar, board, self._bar, self._board = self._bar, self._board, None, None
        for finish in (bar and bar.stop, board and board.close):
            with self._guard():
                if finish:
                    finish()

    def message(self, text: str, style: str = "") -> None:
        """Print `text`, made `printable`; `style` is a rich style for the terminal."""
        if not self._writer or sys.stderr is None:  # print(file=None) would go to stdout
            return
        with contextlib.suppress(OSError, ValueError):  # the reader went away
            if self._bar is None:
                print(printable(text), file=sys.stderr, flush=True)
            else:
                from rich.text import Text

                self._bar.console.print(Text(printable(text), style), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print `text` as a warning."""
        self.message(f"WARNING: {text}", style="bold red")

    def advance(self, step: int) -> None:
        """Record that `step` finished; redraws the bar at most ten times a second.

        Cheap. Call once before the first step, to start the timer, and once after every step.
        """
        now = time.perf_counter()
        self._begin = self._begin or (now, step)
        if self._bar is not None and now - self._drawn >= 0.1:
            self._drawn = now
            self._draw(step)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time inside from the step time, for evaluating and saving. Do not call `train` inside."""
        entered, begin = time.perf_counter(), self._begin
        try:
            yield
        finally:
            self._begin = begin and (begin[0] + time.perf_counter() - entered, begin[1])

    def train(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Record and print training metrics; call this only once the results of `step` are computed.

        Returns `metrics` with means since the last call: `examples_per_second` (and other `amounts`),
        `seconds_per_step` and, after `set_rates` with a peak, `mfu`. The means are absent if no step was timed.
        """
        rates, speed, left = self._rates(step), "", ""
        if rates:
            speed = f"{number(rates['examples_per_second'])} examples/s"
            speed += f"  mfu {rates['mfu']:.1%}" if "mfu" in rates else ""
            remaining = datetime.timedelta(seconds=round((self._steps - step) * rates["seconds_per_step"]))
            left = f"{str(remaining).removeprefix('0:')} left"
        if self._bar is None:
            values = [f"{name} {number(value)}" for name, value in metrics.items()]
            self.message("  ".join(part for part in (f"step {step}/{self._steps}", *values, speed, left) if part))
        else:
            self._draw(step, loss=f"loss {number(metrics.get('loss', math.nan))}", speed=speed, left=left)
        return self._record(step, "train", metrics | rates)

    def evaluation(self, step: int, split: str, metrics: dict[str, float], seconds: float) -> None:
        """Record and print the metrics of a split, evaluated in `seconds`; replaces a record of this step and split."""
        values = " ".join(f"{name} {number(value)}" for name, value in metrics.items())
        self.message(f"{split} at {step}: {values} ({seconds:.1f} s)")
        self._record(step, split, metrics)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Show a uint8 image `[h, w]` or `[h, w, c]` in TensorBoard."""
        from tensorboardX import summary

        self._event(step, summary.image(name, image, dataformats="HW" if image.ndim == 2 else "HWC"))

    def text(self, step: int, name: str, text: str) -> None:
        """Show a text in TensorBoard."""
        from tensorboardX import summary

        self._event(step, summary.text(name, text))

    def has(self, step: int, split: str) -> bool:
        """Return whether there is a record of this step and split."""
        return (step, split) in self._seen

    def last(self) -> dict[str, float]:
        """Return the newest evaluated step as `{"step": 200, "valid/loss": 1.5, ...}`; {} before the first."""
        step = max(self._evaluations, default=0)
        return {"step": step, **self._evaluations[step]} if self._evaluations else {}

    def values(self, metric: str) -> dict[int, float]:
        """Return `{step: value}` of an evaluation metric such as "valid/loss", over all steps that have it."""
        return {step: metrics[metric] for step, metrics in sorted(self._evaluations.items()) if metric in metrics}

    def _remember(self, record: dict[str, Any]) -> None:
        step, split = record["step"], record["split"]
        self._seen.add((step, split))
        if split != "train":
            others = {k: v for k, v in self._evaluations.get(step, {}).items() if not k.startswith(f"{split}/")}
            values = {k: v for k, v in record.items() if k not in _RESERVED and isinstance(v, int | float)}
            self._evaluations[step] = others | {f"{split}/{name}": value for name, value in values.items()}

    def _rates(self, step: int) -> dict[str, float]:
        begin, self._begin = self._begin, (time.perf_counter(), step)
        if begin is None or step <= begin[1]:
            return {}
        passed = max(self._begin[0] - begin[0], 1e-9)
        seconds = passed / (step - begin[1])
        amounts = self._amounts(range(begin[1], step))
        rates = {f"{name}_per_second": amount / passed for name, amount in amounts.items()}
        rates["seconds_per_step"] = seconds
        return rates | ({"mfu": self._flops / seconds / self._peak} if self._flops and self._peak else {})

    def _record(self, step: int, split: str, metrics: dict[str, float]) -> dict[str, float]:
        known = self.has(step, split)
        metrics = {name: float(value) for name, value in metrics.items() if name not in _RESERVED}
        record = {"step": step, "split": split, "wall": round(time.time(), 3), **metrics}
        self._remember(record)
        if self._writer:
            from tensorboardX.proto.summary_pb2 import Summary

            with self._guard():
                if known:
                    _rewrite(self._path, lambda old: (old["step"], old["split"]) != (step, split))
                _append(self._path, _line(record))
            values = [Summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in metrics.items()]
            self._event(step, Summary(value=values))
        return metrics

    def _event(self, step: int, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if not self._writer or self._warned:  # after an error the file may end in half a record
            return
        with self._guard():
            self._board = self._board or _board(self._workdir / "tensorboard", self._start)
            self._board.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            if time.perf_counter() - self._flushed > 10:
                self._flushed = time.perf_counter()
                self._board.flush()

    def _draw(self, step: int, **fields: str) -> None:
        with contextlib.suppress(OSError):  # the terminal was closed
            self._bar.update(self._bar.task_ids[0], completed=step, refresh=True, **fields)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._warned:
                self._warned = True
                self.warn(f"metrics are being lost: cannot write to {self._workdir} ({error}); training goes on")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if isinstance(record, dict) and record.pop(CHECKSUM, None) not in (None, _checksum(record)):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or not isinstance(record.get("split"), str):
        return None
    return {k: _NON_FINITE.get(v, v) if k != "split" and isinstance(v, str) else v for k, v in record.items()}


def _name_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _name_non_finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_name_non_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _line(record: dict[str, Any]) -> bytes:
    return to_json(record | {CHECKSUM: _checksum(record)}).encode() + b"\n"


def _checksum(record: dict[str, Any]) -> str:
    """Return the CRC-32 of a record without its times, so that equal metrics of two runs have equal lines."""
    metrics = {name: value for name, value in record.items() if not _TIMED.fullmatch(name)}
    return f"{zlib.crc32(to_json(metrics).encode()):08x}"


def _rewrite(
    path: pathlib.Path, keep: Callable[[dict[str, Any]], bool], warn: Callable[[str], None] = lambda text: None
) -> None:
    """Keep only the complete records that `keep` accepts, in one atomic replacement if anything changes."""
    kept = b"".join(_line(record) for record in read(path, warn) if keep(record))
    if path.exists() and kept != path.read_bytes():
        write_file(path, kept)


def _append(path: pathlib.Path, line: bytes) -> None:
    """Append the whole line or, on a full disk, nothing: half a line would damage the next one too."""
    with open(path, "ab", buffering=0, opener=no_link) as file:
        size = file.tell()
        if file.write(line) != len(line):
            file.truncate(size)
            raise OSError(f"no room for a line in {path}")


def _board(folder: pathlib.Path, start: int) -> Any:
    """Return a writer of a TensorBoard file that hides the events of older files after step `start`.

    tensorboardX's SummaryWriter writes on a thread that an OSError ends; its full queue then blocks the caller
    forever. The errors of the EventsWriter used here reach the caller.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    folder.mkdir(exist_ok=True)
    board = EventsWriter(str(folder / "events"), f".{time.time_ns()}")  # unique: a run may restart within a second
    board.write_event(Event(wall_time=time.time(), step=start + 1, session_log=SessionLog(status=SessionLog.START)))
    return board


def _bar(start: int, steps: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    fields = ("completed}/{task.total", "fields[loss]", "fields[speed]", "fields[left]")
    columns = (BarColumn(bar_width=None), *(TextColumn(f"{{task.{field}}}", markup=False) for field in fields))
    stdout = sys.stdout is not None and sys.stdout.isatty()  # output to a file or pipe must stay on stdout
    # The loop draws: a thread could hold a lock at a fork or die unnoticed.
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, redirect_stdout=stdout)
    bar.add_task("train", total=steps, completed=start, loss="", speed="", left="")
    return bar
