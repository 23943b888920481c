"""Batches by token budget: examples of like length together, each batch cut to the length of its bucket.

The batch of a step stays a pure function of (seed, step), and the same on any devices. In an epoch each
bucket's examples are permuted and cut into batches; what is left over joins the next longer bucket, so at
most one batch an epoch is not full. Then the batches are permuted. HetSeq and fairseq call the budget
`max_tokens` (Ott et al. 2019, "fairseq: A Fast, Extensible Toolkit for Sequence Modeling").
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jtasks.data.pipeline import BatchPlan
from jtasks.data.shuffle import example_seeds, permutation
from jtasks.distributed.shares import layout
from jtasks.errors import ConfigError, DataError

MULTIPLE = 8  # rows are rounded down to multiples of it, so that up to 8 devices share a batch evenly


class Epoch(NamedTuple):
    """One pass over the data: batch k holds `order[starts[k] : starts[k + 1]]` and is of bucket `kinds[k]`."""

    order: np.ndarray  # [n] example indices
    starts: np.ndarray  # [batches + 1]
    kinds: np.ndarray  # [batches]


@dataclasses.dataclass(frozen=True, eq=False)
class BucketPlan(BatchPlan):
    """As `Plan`, with batches of several shapes; `batch_size` is the examples of the largest.

    Attributes:
      lengths: [n] tokens of each example.
      buckets: lengths that batches are cut to, ascending.
      full: examples in a full batch of each bucket.
      padded: entries of a batch whose last axis is cut.
    """

    lengths: np.ndarray
    buckets: tuple[int, ...]
    full: tuple[int, ...]
    padded: tuple[str, ...]

    varies: ClassVar[bool] = True
    epochs: dict[int, Epoch] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def _at(self, positions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Example indices, `mask` and `seed` at positions `step * batch_size + row`; padding repeats an example."""
        steps, rows = np.divmod(positions, self.batch_size)
        epochs, batches = np.divmod(steps, self.steps(1))
        indices, mask = np.empty_like(positions), np.empty(positions.shape, np.float32)
        for number in np.unique(epochs):
            here, epoch = epochs == number, self.epoch(int(number))
            starts, stops = epoch.starts[batches[here]], epoch.starts[batches[here] + 1]
            mask[here] = rows[here] < stops - starts
            indices[here] = epoch.order[np.minimum(starts + rows[here], stops - 1)]
        return indices, {"mask": mask, "seed": example_seeds(self.seed, epochs, indices)}

    def examples(self, step: int) -> int:
        """Examples in the batch of `step`, if it is full."""
        return self.full[self._kind(step)]

    def steps(self, epochs: float) -> int:
        """Batches in so many passes over the data, rounded up; each pass has as many."""
        return math.ceil(epochs * self.epoch_steps)

    def amounts(self, steps: range) -> dict[str, int]:
        """Examples and tokens, without padding, in the batches of `steps`."""
        found = {"examples": 0, "tokens": 0}
        for step in steps:
            number, batch = divmod(step, self.steps(1))
            epoch = self.epoch(number)
            indices = epoch.order[epoch.starts[batch] : epoch.starts[batch + 1]]
            found["examples"] += len(indices)
            found["tokens"] += int(self.lengths[indices].sum())
        return found

    def cut(self, batch: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The batch of `step` with its padded entries [..., t] cut to its bucket's length."""
        length = self.buckets[self._kind(step)]
        return {name: x[..., :length] if name in self.padded else x for name, x in batch.items()}

    @functools.cached_property
    def batches(self) -> list[int]:
        """Batches of each bucket in an epoch."""
        counts, left = list[int](), 0
        for kind, members in enumerate(np.bincount(self.kinds, minlength=len(self.buckets)).tolist()):
            count, left = divmod(members + left, self.full[kind])
            counts.append(count)
        return [*counts[:-1], counts[-1] + (left > 0)]

    @property
    def epoch_steps(self) -> float:
        """Batches in one pass over the data."""
        return float(sum(self.batches))

    def shapes(self) -> dict[int, float]:
        """A step of each shape that occurs, and the share of the steps that have it."""
        kinds, steps = np.unique(self.epoch(0).kinds, return_index=True)
        return {int(step): self.batches[kind] / sum(self.batches) for kind, step in zip(kinds, steps, strict=True)}

    def describe(self) -> str:
        """The shapes of the batches, for people."""
        used = [f"{full} x {t}" for full, t, count in zip(self.full, self.buckets, self.batches, strict=True) if count]
        return f"{' or '.join(used)} tokens"

    def epoch(self, number: int) -> Epoch:
        """The batches of one epoch; the last two are remembered."""
        if number not in self.epochs:
            made = self._epoch(number)
            for old in list(self.epochs)[:-1]:
                self.epochs.pop(old, None)
            self.epochs[number] = made
        return self.epochs[number]

    def _epoch(self, number: int) -> Epoch:
        key, kinds_of = (self.seed, number), self.kinds
        batches: list[np.ndarray] = []
        kinds: list[int] = []
        left = np.empty(0, np.int64)
        for kind, size in enumerate(self.full):
            members = np.concatenate([left, np.flatnonzero(kinds_of == kind)])
            members = members[permutation(len(members), *key, kind)] if self.shuffle else members
            last = kind == len(self.full) - 1
            whole = len(members) if last else len(members) // size * size
            batches += [members[i : i + size] for i in range(0, whole, size)]
            kinds += [kind] * (len(batches) - len(kinds))
            left = members[whole:]
        order = permutation(len(batches), *key, len(self.full)) if self.shuffle else np.arange(len(batches))
        starts = np.cumsum([0, *(len(batches[k]) for k in order)])
        return Epoch(np.concatenate([batches[k] for k in order]), starts, np.array(kinds)[order])

    @functools.cached_property
    def kinds(self) -> np.ndarray:
        """The bucket of each example: the shortest that holds it."""
        return np.searchsorted(self.buckets, self.lengths)

    def _kind(self, step: int) -> int:
        number, batch = divmod(step, self.steps(1))
        return int(self.epoch(number).kinds[batch])


def plan(
    lengths: np.ndarray,
    seed: int,
    *,
    shuffle: bool,
    tokens: int,
    buckets: tuple[int, ...],
    padded: tuple[str, ...],
    shares: tuple[int, ...] = (1,),
) -> BucketPlan:
    """Batches of at most `tokens` tokens, padding to the bucket's length included.

    Args:
      lengths: [n] tokens of each example.
      seed: of the run.
      shuffle: for training; else the order of the batches and in them is that of the data.
      tokens: the budget. A bucket's batches have `tokens // bucket` examples, rounded down to a multiple of 8,
        or below 8 to a power of two, whatever the devices.
      buckets: lengths, ascending.
      padded: names of the entries to cut.
      shares: microbatches of each device. Where they do not divide a batch, empty rows beyond the budget fill it up.

    Raises:
      ConfigError: the buckets are no ascending lengths, or the budget is too small for a row in each microbatch.
      DataError: an example is longer than the longest bucket.
    """
    if not buckets or buckets[0] < 1 or any(a >= b for a, b in itertools.pairwise(buckets)):
        raise ConfigError(f"config.data.buckets={buckets} must be lengths in ascending order, such as (32, 64, 128)")
    longest = int(np.argmax(lengths))
    if lengths[longest] > buckets[-1]:
        raise DataError(
            f"example {longest} has {lengths[longest]} tokens, more than the longest of config.data.buckets={buckets}:"
            " add a longer bucket, or cut the texts shorter"
        )
    parts = sum(shares)
    if tokens // buckets[-1] < parts:
        raise ConfigError(
            f"config.batch_tokens={tokens} holds {tokens // buckets[-1]} rows of {buckets[-1]} tokens, fewer than"
            f" {parts} microbatches on all devices; give at least {parts * buckets[-1]}"
        )
    full = tuple(_examples(tokens // bucket) for bucket in buckets)
    return BucketPlan(len(lengths), seed, full[0], shuffle, lengths, buckets, full, padded, shares=shares)


def waste(plan: BucketPlan) -> tuple[float, float]:
    """The share of padding among the tokens of an epoch's batches, and what it were at the longest bucket's length."""
    real = float(plan.lengths.sum())
    rows = [len(layout(full, plan.shares)) for full in plan.full]
    batched = sum(r * length * count for r, length, count in zip(rows, plan.buckets, plan.batches, strict=True))
    return 1 - real / batched, 1 - real / (plan.n * plan.buckets[-1])


def _examples(rows: int) -> int:
    """`rows` rounded down: to a multiple of 8, or below 8 to a power of two."""
    return rows - rows % MULTIPLE if rows >= MULTIPLE else 2 ** int(math.log2(rows))
