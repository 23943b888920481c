"""Something that takes a while: what it is, how much is done, and for how long it has gone on."""

import time

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
