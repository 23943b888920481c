"""What a person watches on stderr: messages, progress and activities; lines in a file, a bar on a terminal.

A notebook has the messages on stderr and one output with a bar.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from jtasks.run.activity import Activity
from jtasks.run.bar import Bar
from jtasks.run.lines import Lines
from jtasks.run.notebook import Notebook, in_notebook

TICK = 1.0  # seconds between two looks at an activity

Update = Callable[[int], None]  # takes how much of an activity is done


class Display(Protocol):
    """What shows one run to a person. No method raises an error if the reader is gone."""

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

    def tick(self, activity: Activity) -> None:
        """Show an activity that goes on; called about once a second, from another thread."""

    def end(self, activity: Activity) -> None:
        """Remove an activity."""


def choose(start: int, steps: int, *, silent: bool = False) -> Display:
    """Return a bar if stderr is a terminal or a notebook, else lines; the bar goes from step `start` to `steps`."""
    if not silent and in_notebook():
        return Notebook(start, steps)
    stream = None if silent else sys.stderr
    if stream and not stream.closed and stream.isatty() and os.environ.get("TERM") != "dumb":
        return Bar(start, steps)
    return Lines(steps, silent=silent)


@contextlib.contextmanager
def watch(display: Display, name: str, total: int | None = None) -> Iterator[Update]:
    """Show an activity while the block runs; the block may call the yielded function with what is done of `total`."""
    activity, ended = Activity(name, total), threading.Event()

    def tick() -> None:
        while not ended.wait(TICK):
            display.tick(activity)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield activity.update
    finally:
        ended.set()
        thread.join()
        display.end(activity)
