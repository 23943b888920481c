"""The progress bar of a run on a terminal, with messages above it."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jtasks.console import metric, wrap, wrap_words
from jtasks.errors import printable
from jtasks.run.activity import Activity

REDRAW = 0.1  # minimum seconds between two drawings
LEAST = 8  # columns of the shortest bar


class Bar:
    """One line at the bottom of a terminal: a bar, the step, the loss, the speed and the time left.

    The loop draws the line, and a thread only during an activity: a thread could hold a lock while a process forks.
    """

    live = True

    def __init__(self, start: int, steps: int):
        from rich.console import Console

        self._console = Console(stderr=True)
        self._step, self._steps = start, steps
        self._texts: list[tuple[int, str]] = []  # rank and text; a narrow terminal leaves out the highest ranks
        self.activities: list[Activity] = []
        self._live: Any = None
        self._started = False
        self._drawn = 0.0
        self._lock = threading.RLock()

    def start(self) -> None:
        """Show the bar."""
        self._started = True
        self._show()

    def stop(self) -> None:
        """Leave the bar as it is, and give the terminal back."""
        self._started = False
        self._hide(transient=False)

    def message(self, text: str, style: str = "") -> None:
        """Print a text above the bar, broken between words."""
        self._print(wrap_words(printable(text), self._console.width), style)

    def fields(self, fields: Sequence[str], separator: str = " ") -> None:
        """Print fields on a line above the bar, broken between fields."""
        self._print(wrap([printable(field) for field in fields], self._console.width, separator))

    def advance(self, step: int) -> None:
        """Draw the bar if the last drawing is a tenth of a second ago."""
        self._step = step
        if (now := time.perf_counter()) - self._drawn >= REDRAW:
            self._drawn = now
            self._draw()

    def train(self, step: int, metrics: Mapping[str, float], speed: Sequence[str], left: str) -> None:
        """Draw the bar with the loss, the speed and the time left."""
        name = "loss" if "loss" in metrics else next(iter(metrics), "")
        loss = (1, metric(name, metrics[name]) if name else "")
        self._step, self._texts = step, [loss, *((3 + i, text) for i, text in enumerate(speed)), (2, left)]
        self._draw()

    def tick(self, activity: Activity) -> None:
        """Draw the activity in the place of the loss and the speed."""
        with self._lock:
            if activity in self.activities:
                self._show()
                self._draw()

    def end(self, activity: Activity) -> None:
        """Draw the bar without the activity."""
        with self._lock:
            self._draw()
            if not self._started and not self.activities:
                self._hide(transient=True)

    def __rich__(self) -> Any:
        """Return the line in the terminal's width."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        activity = self.activities[-1] if self.activities else None
        done, total, texts = self._step, self._steps, [(0, f"{self._step}/{self._steps}"), *self._texts]
        if activity:
            done, total = activity.done, activity.total or 0
            texts = [(0, activity.text()), *([(1, f"step {self._step}/{self._steps}")] if self._started else [])]
        width = self._console.width
        text = "  ".join(fitting(texts, width))[:width]
        line, space = Table.grid(padding=(0, 1, 0, 0)), width - len(text) - 1
        if total and space >= LEAST:
            line.add_row(ProgressBar(total=total, completed=done, width=space), Text(text, no_wrap=True))
        else:
            line.add_row(Text(text, no_wrap=True))
        return line

    def _print(self, text: str, style: str = "") -> None:
        from rich.text import Text

        with contextlib.suppress(OSError, ValueError):  # the terminal was closed
            self._console.print(Text(text, style), soft_wrap=True)

    def _show(self) -> None:
        if self._live is None:
            from rich.live import Live

            stdout = sys.stdout is not None and sys.stdout.isatty()  # output to a file or pipe must stay on stdout
            live = Live(self, console=self._console, auto_refresh=False, redirect_stdout=stdout)
            with contextlib.suppress(OSError, ValueError):
                live.start()
                self._live = live
                self._console.show_cursor(True)  # Live hides it, and a signal may end the process at once

    def _hide(self, *, transient: bool) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.transient = transient
            with contextlib.suppress(OSError, ValueError):
                live.stop()

    def _draw(self) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError, ValueError):  # the terminal was closed
                self._live.refresh()


def fitting(texts: Iterable[tuple[int, str]], width: int) -> list[str]:
    """Return the texts that fit on a line, in order, with two spaces between them; the lowest ranks come first.

    >>> fitting([(0, "200/1000"), (2, "1,000 examples/s"), (1, "00:10 left")], 24)
    ['200/1000', '00:10 left']
    """
    texts, chosen, used = [pair for pair in texts if pair[1]], set[int](), 0
    for i in sorted(range(len(texts)), key=lambda i: texts[i][0]):
        length = len(texts[i][1]) + 2 * bool(chosen)
        if chosen and used + length > width:
            break
        chosen.add(i)
        used += length
    return [text for i, (_, text) in enumerate(texts) if i in chosen]
