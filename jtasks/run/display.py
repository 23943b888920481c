"""What a person watches on stderr: messages, progress and activities; lines in a file, a bar on a terminal.

A notebook has the messages on stderr and one output with a bar.
"""

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from jtasks.distributed import processes
from jtasks.run.activity import Watch, Watcher, watch
from jtasks.run.bar import Bar
from jtasks.run.lines import Lines
from jtasks.run.notebook import Notebook, in_notebook


class Display(Watcher, Protocol):
    """A display of one run. No method raises an error if the reader is gone."""

    live: bool  # whether it replaces what it showed, so that `train` may be called often

    def start(self) -> None:
        """Begin to show the progress of training."""

    def stop(self) -> None:
        """End the progress."""

    def message(self, text: str, style: str = "") -> None:
        """Print a text; `style` is a rich style."""

    def fields(self, fields: Sequence[str], separator: str = " ") -> None:
        """Print fields on a line; a narrow terminal breaks the line between fields."""

    def advance(self, step: int) -> None:
        """Show that the training reached `step`. Cheap."""

    def train(self, step: int, metrics: Mapping[str, float], speed: Sequence[str], left: str) -> None:
        """Show the metrics of training, such as `loss`, texts about the speed, and the time left."""


def watcher() -> Watch:
    """Return a function that shows activities of a mode that only reads a run; see `activity.watch`."""
    return functools.partial(watch, choose(0, 0, silent=not processes.first()))


def choose(start: int, steps: int, *, silent: bool = False) -> Display:
    """Return a bar if stderr is a terminal or a notebook, else lines; the bar goes from step `start` to `steps`."""
    if not silent and in_notebook():
        return Notebook(start, steps)
    stream = None if silent else sys.stderr
    if stream and not stream.closed and stream.isatty() and os.environ.get("TERM") != "dumb":
        return Bar(start, steps)
    return Lines(steps, silent=silent)
