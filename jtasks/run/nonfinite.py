"""The example that makes a metric of an evaluation NaN or infinite."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks.data import pipeline
from jtasks.data.batch_plan import BatchPlan
from jtasks.faults import some
from jtasks.metrics import Mean

Sums = Mapping[str, Mean]
Measure = Callable[[dict[str, jax.Array]], Sums]


def names(sums: Sums) -> list[str]:
    """Return the names of the metrics whose sums, numbers of the host, are not finite."""
    return [name for name, mean in sums.items() if not np.isfinite([mean.total, mean.count]).all()]


def describe(sums: Sums, measure: Measure, examples: pipeline.Examples, plan: BatchPlan, at: int, batch: Any) -> str:
    """Return which metrics are not finite, and from which example on.

    Args:
      sums: of all batches.
      measure: the sums of a batch, a compiled function.
      examples: what is evaluated, by `plan`.
      plan: the layout of the batches.
      at: the first batch whose sums are not finite.
      batch: this batch.
    """
    text, row = f"not finite: {some(names(sums))}", first_row(measure, batch)
    indices, entries = plan.at(plan.positions(at))
    if row is None:
        return f"{text}; first in the batch of the examples {indices[entries['mask'] > 0].tolist()}, counted from 0"
    index = int(indices[row])
    given = pipeline.example(examples, index).get("id")
    named = "" if given is None or np.ndim(given) else f" (id {given})"
    return f"{text}; the first such example is number {index}, counted from 0{named}"


def first_row(measure: Measure, batch: dict[str, jax.Array]) -> int | None:
    """Return the first row whose own sums are not finite; None if no row alone gives such sums.

    Halves the rows, with the others masked, so that nothing new compiles.
    """
    mask = batch["mask"]
    keep = jax.jit(
        lambda mask, first, last: jnp.where((jnp.arange(len(mask)) >= first) & (jnp.arange(len(mask)) < last), mask, 0),
        out_shardings=mask.sharding,
    )

    def bad(first: int, last: int) -> bool:
        return bool(names(jax.device_get(measure(batch | {"mask": keep(mask, first, last)}))))

    if bad(0, 0):  # the task multiplies by the mask instead of leaving masked rows out
        return None
    low, high = 0, len(mask)  # the rows before `high` give what is not finite, those before `low` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bad(0, middle) else (middle, high)
    return low if bad(low, high) else None
