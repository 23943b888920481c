"""The log of a run: measurements go to metrics.jsonl, to the loggers and to the terminal."""

import contextlib
import datetime
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jtasks.console import metric, number
from jtasks.run.activity import Update, watch
from jtasks.run.display import Display, choose
from jtasks.run.loggers import Loggers, Write
from jtasks.run.meter import Meter
from jtasks.run.records import EVALUATED, OF, RESERVED, Records


class Log:
    """The log of one run, a context manager of a record store, a step timer, a display and loggers.

    The constructor cleans `workdir/metrics.jsonl` atomically: it removes lines of steps after `start`, torn lines, and
    the older of two lines for one step and split; see `records.Records`.
    No method raises if a file cannot be written or a logger fails: the first failure of metrics.jsonl and of each
    logger warns, and training goes on.

    Args:
      workdir: the run's folder.
      start: the step that the run resumes from; 0 for a fresh run.
      steps: the step at which the run ends.
      count: maps a range of 0-based steps to the contents of their batches; see `meter.Meter`.
      loggers: what opens each logger, by name; see `loggers.find`.
      writer: True on exactly one process; the others print nothing and change no file. Their `has`, `last` and
        `values` work in a shared folder, but a decision that all processes must share belongs to the writer.
      display: what shows the run; by default a bar or lines on stderr.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start: int,
        steps: int,
        count: Callable[[range], Mapping[str, float]],
        loggers: Mapping[str, Callable[[], contextlib.AbstractContextManager[Write]]] | None = None,
        writer: bool = True,
        display: Display | None = None,
    ):
        self._workdir, self._steps, self._writer = workdir, steps, writer
        self._warned = False
        self.display = display or choose(start, steps, silent=not writer)
        self.meter = Meter(count)
        self.records = Records(workdir / "metrics.jsonl")
        self.loggers = Loggers(loggers if loggers and writer else {}, self.warn)
        with self._guard():
            if writer:
                workdir.mkdir(parents=True, exist_ok=True)
                self.records.clean(start, self.warn)
            self.records.load(start)

    def __enter__(self) -> "Log":
        self.loggers.open()
        self.display.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.display.stop()
        self.loggers.close(*error)

    def message(self, text: str, style: str = "") -> None:
        """Print `text`, made `printable`; `style` is a rich style for the terminal."""
        self.display.message(text, style)

    def warn(self, text: str) -> None:
        """Print `text` as a warning."""
        self.message(f"WARNING: {text}", style="bold red")

    def watch(self, name: str, total: int | None = None) -> contextlib.AbstractContextManager[Update]:
        """Show an activity while the block runs; see `activity.watch`."""
        return watch(self.display, name, total)

    def advance(self, step: int) -> None:
        """Record that `step` was started.

        Cheap. Call once before the first step, to start the timer, and once after every step.
        """
        self.meter.start(step)
        self.display.advance(step)

    def pause(self) -> contextlib.AbstractContextManager[None]:
        """Exclude the time inside from the step time, for evaluating and saving. Do not call `train` inside."""
        return self.meter.pause()

    def preview(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print metrics of training before the next `train`, with the rate and the time left, and record nothing."""
        self._show(step, metrics, self.meter.rates(step))

    def train(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Record and print training metrics; call this only once the results of `step` are computed.

        Returns `metrics` with means since the last call: `examples_per_second` (and other counts),
        `seconds_per_step` and, after `Meter.set_flops` with a peak, `mfu`. The means are absent if no step was timed.
        """
        rates = self.meter.rates(step)
        self.meter.restart(step)
        self._show(step, metrics, rates)
        return self._record(step, "train", metrics | rates)

    def evaluation(self, step: int, split: str, metrics: dict[str, float], seconds: float) -> None:
        """Record and print the metrics of a split, evaluated in `seconds`; replaces a record of this step and split."""
        values = [metric(name, value) for name, value in metrics.items() if name not in (EVALUATED, OF)]
        of = f" (first {metrics[EVALUATED]:,.0f} of {metrics[OF]:,.0f} examples)" if EVALUATED in metrics else ""
        self.display.fields([f"{split} at {step}{of}:", *values, f"({seconds:.1f} s)"])
        self._record(step, split, metrics)

    def image(self, step: int, split: str, name: str, image: np.ndarray) -> None:
        """Give a uint8 image `[h, w]` or `[h, w, c]` to the loggers."""
        self.loggers.write(step, split, {name: image})

    def text(self, step: int, split: str, name: str, text: str) -> None:
        """Give a text to the loggers."""
        self.loggers.write(step, split, {name: text})

    def has(self, step: int, split: str, evaluated: float | None = None) -> bool:
        """Return whether there is a record of this step and split, of all or of the `evaluated` number of examples."""
        return self.records.has(step, split, evaluated)

    def last(self) -> dict[str, float]:
        """Return the newest evaluated step as `{"step": 200, "valid/loss": 1.5, ...}`; {} before the first."""
        return self.records.last()

    def values(self, metric: str) -> dict[int, float]:
        """Return `{step: value}` of an evaluation metric such as "valid/loss", over all comparable steps."""
        return self.records.values(metric)

    def _show(self, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        speed, left = [], ""
        if rates:
            speed = [f"{number(rates['examples_per_second'])} examples/s"]
            speed += [f"mfu {rates['mfu']:.1%}"] if "mfu" in rates else []
            remaining = datetime.timedelta(seconds=round((self._steps - step) * rates["seconds_per_step"]))
            left = f"{str(remaining).removeprefix('0:')} left"
        self.display.train(step, metrics, speed, left)

    def _record(self, step: int, split: str, metrics: dict[str, float]) -> dict[str, float]:
        values = {
            name: value if type(value) is int else float(value)
            for name, value in metrics.items()
            if name not in RESERVED
        }
        with self._guard():
            self.records.add(step, split, values, write=self._writer)
        self.loggers.write(step, split, values)
        return values

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._warned:
                self._warned = True
                self.warn(f"metrics are being lost: cannot write to {self._workdir} ({error}); training goes on")
