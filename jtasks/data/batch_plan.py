"""Which examples form the batch of a step, and where they stand in it: a pure function of (seed, step)."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jtasks.data.shuffle import example_seeds, order
from jtasks.distributed.shares import layout


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Assignment of examples to the positions of an endless stream of rows, `batch_size` rows per step."""

    n: int
    seed: int
    batch_size: int
    shuffle: bool  # train: a permutation per epoch; else each example once, in order, then padding
    shares: tuple[int, ...] = dataclasses.field(default=(1,), kw_only=True)  # microbatches of each device
    partner: bool = dataclasses.field(default=False, kw_only=True)  # whether each example comes with a second one

    varies: ClassVar[bool] = False  # whether batches differ in their shapes

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return example indices, and the entries `mask` and `seed` that the library adds; position -1 is padding."""
        indices, entries = self._at(np.maximum(positions, 0))
        return indices, entries | {"mask": entries["mask"] * (positions >= 0).astype(np.float32)}

    def _at(self, positions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if self.shuffle:
            epochs, indices = order(self.seed, self.n, positions)
        else:
            epochs, indices = np.zeros_like(positions), np.minimum(positions, self.n - 1)
        mask = np.ones(len(positions)) if self.shuffle else positions < self.n
        return indices, {"mask": mask.astype(np.float32), "seed": example_seeds(self.seed, epochs, indices)}

    def examples(self, step: int) -> int:
        """Return the number of examples in the batch of `step`, if it is full."""
        return self.batch_size

    def layout(self, step: int) -> np.ndarray:
        """Return the index of the example in each row of the batch of `step`, -1 for padding that devices need."""
        return layout(self.examples(step), self.shares)

    def rows(self, step: int) -> int:
        """Return the number of rows in the batch of `step`, padding included."""
        return len(self.layout(step))

    def positions(self, step: int, rows: Any = slice(None)) -> np.ndarray:
        """Return the stream positions of the rows of the batch of `step`, -1 for padding."""
        layout = self.layout(step)[rows]
        return np.where(layout < 0, -1, step * self.batch_size + layout)

    def steps(self, epochs: float) -> int:
        """Return the number of steps in `epochs` passes over the data, rounded up."""
        return int(np.ceil(epochs * self.n / self.batch_size))

    @property
    def epoch_steps(self) -> float:
        """Number of steps in one pass over the data."""
        return self.n / self.batch_size

    def count(self, steps: range) -> dict[str, int]:
        """Count the examples in the batches of `steps`."""
        return {"examples": len(steps) * self.batch_size}

    def shapes(self) -> dict[int, float]:
        """Return a step of each batch shape, with the fraction of steps of that shape."""
        return {0: 1.0}

    def describe(self) -> str:
        """Describe the size of the batches."""
        return f"{self.batch_size:,} examples"

    def cut(self, batch: dict[str, Any], step: int) -> dict[str, Any]:
        """Cut the batch of `step` to its own shape."""
        return batch
