"""Plain lines on stderr about a run, for a file or a pipe."""

import contextlib
import sys
from collections.abc import Mapping, Sequence

from jtasks.console import metric
from jtasks.errors import printable
from jtasks.run.activity import EVERY, Activity


class Lines:
    """Plain lines on stderr; none at all if silent, as in all processes but the first."""

    live = False

    def __init__(self, steps: int, *, silent: bool = False):
        self._steps, self._silent = steps, silent
        self.activities: list[Activity] = []

    def start(self) -> None:
        """Do nothing: lines need no beginning."""

    def stop(self) -> None:
        """Do nothing: lines need no end."""

    def message(self, text: str, style: str = "") -> None:
        """Print a text."""
        if not self._silent and sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):  # the reader went away
                sys.stderr.write(printable(text) + "\n")  # one call: `tick` prints from another thread
                sys.stderr.flush()

    def fields(self, fields: Sequence[str], separator: str = " ") -> None:
        """Print fields on a line of any length, for grep."""
        self.message(separator.join(fields))

    def advance(self, step: int) -> None:
        """Do nothing: a line for each step would be too many."""

    def train(self, step: int, metrics: Mapping[str, float], speed: Sequence[str], left: str) -> None:
        """Print a line of all metrics."""
        values = [metric(name, value) for name, value in metrics.items()]
        self.fields([f"step {step}/{self._steps}", *values, *speed, *([left] if left else [])], "  ")

    def tick(self, activity: Activity) -> None:
        """Print a line about the activity every ten seconds."""
        if activity.seconds() >= activity.line_due:
            activity.line_due = activity.seconds() // EVERY * EVERY + EVERY
            self.message(activity.text())

    def end(self, activity: Activity) -> None:
        """Do nothing: the last line stays."""
