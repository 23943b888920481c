"""The progress of a run in a notebook: one output that changes, below the messages."""

import html
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jtasks.console import metric
from jtasks.run.activity import Activity
from jtasks.run.lines import Lines

REDRAW = 0.5  # minimum seconds between two drawings: each is a message to the browser


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, which can change an output."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class Notebook(Lines):
    """A bar, the step, the loss, the speed and the time left in one output; messages are lines on stderr."""

    live = True

    def __init__(self, start: int, steps: int):
        super().__init__(steps)
        self._step, self._total = start, steps
        self._texts: list[str] = []
        self._handle: Any = None
        self._drawn = 0.0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Show the bar."""
        from IPython.display import display

        self._handle = display(self._content(), raw=True, display_id=True)

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._draw()
        self._handle = None

    def advance(self, step: int) -> None:
        """Draw the bar if the last drawing is half a second ago."""
        self._step = step
        if (now := time.perf_counter()) - self._drawn >= REDRAW:
            self._drawn = now
            self._draw()

    def train(self, step: int, metrics: Mapping[str, float], speed: Sequence[str], left: str) -> None:
        """Draw the bar with all metrics, the speed and the time left."""
        values = [metric(name, value) for name, value in metrics.items()]
        self._step, self._texts = step, [*values, *speed, *([left] if left else [])]
        if self._drawn < time.perf_counter() - REDRAW or step == self._total:
            self.advance(step)

    def tick(self, activity: Activity) -> None:
        """Draw the bar with the activity; before the bar starts, print lines."""
        if self._handle is None:
            super().tick(activity)
        self._draw(activity)

    def end(self, activity: Activity) -> None:
        """Draw the bar without the activity."""
        self._draw()

    def _draw(self, activity: Activity | None = None) -> None:
        with self._lock:
            if self._handle is not None:
                self._handle.update(self._content(activity), raw=True)

    def _content(self, activity: Activity | None = None) -> dict[str, str]:
        """Return the bar as text and as HTML."""
        done, total = (activity.done, activity.total) if activity and activity.total else (self._step, self._total)
        texts = [activity.text()] if activity else self._texts
        text = "  ".join([f"step {self._step}/{self._total}", *texts])
        bar = f'<progress value="{done}" max="{max(total, 1)}"></progress>'
        return {"text/plain": text, "text/html": f"{bar} <code>{html.escape(text)}</code>"}
