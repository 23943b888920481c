"""An activity that takes a while: its name, how much of it is done, and since when."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

TICK = 1.0  # seconds between two looks at an activity
EVERY = 10.0  # minimum seconds between two lines about an activity


class Activity:
    """Something that takes a while, such as compiling or an evaluation of `total` batches."""

    def __init__(self, name: str, total: int | None = None):
        self.name, self.total, self.done = name, total, 0
        self.begun = time.monotonic()
        self.line_due = 0.0 if total is None else EVERY  # seconds after the beginning

    def update(self, done: int) -> None:
        """Set how much is done. Cheap."""
        self.done = done

    def text(self) -> str:
        """Describe the progress and the time it has taken: `valid 119/750  12 s`."""
        progress = f" {self.done}/{self.total}" if self.total else " ..."
        return f"{self.name}{progress}  {self.seconds():.0f} s"

    def seconds(self) -> float:
        """Return the time since the beginning."""
        return time.monotonic() - self.begun


Update = Callable[[int], None]  # takes how much of an activity is done
Watch = Callable[[str, int | None], contextlib.AbstractContextManager[Update]]  # of a name and a total, or None


class Watcher(Protocol):
    """A display of activities, the innermost last."""

    activities: list[Activity]

    def tick(self, activity: Activity) -> None:
        """Show a running activity; called about once a second, from another thread."""

    def end(self, activity: Activity) -> None:
        """Remove an activity."""


@contextlib.contextmanager
def watch(watcher: Watcher, name: str, total: int | None = None) -> Iterator[Update]:
    """Show an activity while the block runs; the block may call the yielded function with what is done of `total`."""
    activity, ended = Activity(name, total), threading.Event()

    def tick() -> None:
        while not ended.wait(TICK):
            if watcher.activities[-1] is activity:
                watcher.tick(activity)

    thread = threading.Thread(target=tick, daemon=True)
    watcher.activities.append(activity)
    thread.start()
    try:
        yield activity.update
    finally:
        ended.set()
        thread.join()
        watcher.activities.remove(activity)
        watcher.end(activity)


def watch_nothing(name: str, total: int | None) -> contextlib.AbstractContextManager[Update]:
    """Show nothing."""
    return contextlib.nullcontext(lambda done: None)
