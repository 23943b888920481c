"""Batches by token budget: examples of similar lengths share a batch, which is cut to its bucket's lengths.

The batch of a step is a pure function of (seed, step) and independent of the devices. In each epoch the examples of
each bucket are permuted and cut into batches. The remainder joins the next longer bucket, so at most one batch per
epoch is not full. Then the batches are permuted. In evaluation each bucket keeps its remainder, so that the shape of
an example's batch depends on that example alone. Examples may have several lengths, such as those of a source and of a
target: each is at least as large in a bucket as in the bucket before. HetSeq and fairseq call the budget `max_tokens`
(Ott et al. 2019, "fairseq: A Fast, Extensible Toolkit for Sequence Modeling").
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jtasks.data.batch_plan import BatchPlan
from jtasks.data.shuffle import example_seeds, permutation
from jtasks.distributed.shares import layout
from jtasks.errors import ConfigError, DataError

Lengths = tuple[int, ...]  # of one bucket

MULTIPLE = 8  # rows are rounded down to multiples of 8, so that up to 8 devices share a batch evenly


class Epoch(NamedTuple):
    """One pass over the data: batch k holds `order[starts[k] : starts[k + 1]]` and belongs to bucket `kinds[k]`."""

    order: np.ndarray  # [n] example indices
    starts: np.ndarray  # [batches + 1]
    kinds: np.ndarray  # [batches]


@dataclasses.dataclass(frozen=True, eq=False)
class BucketPlan(BatchPlan):
    """A `BatchPlan` with batches of several shapes; `batch_size` is the number of examples in the largest.

    Attributes:
      lengths: [n, k] tokens of each example, of k kinds.
      buckets: k lengths that batches are cut to, ascending.
      full: number of examples in a full batch of each bucket.
      padded: for each of the k lengths, the entries of a batch whose last axis is cut to it.
    """

    lengths: np.ndarray
    buckets: tuple[Lengths, ...]
    full: tuple[int, ...]
    padded: tuple[tuple[str, ...], ...]

    varies: ClassVar[bool] = True
    epochs: dict[int, Epoch] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def _at(self, positions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return indices, `mask` and `seed` at positions `step * batch_size + row`; padding repeats an example."""
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
        """Return the number of examples in the batch of `step`, if it is full."""
        return self.full[self._kind(step)]

    def steps(self, epochs: float) -> int:
        """Return the number of batches in `epochs` passes over the data, rounded up."""
        return math.ceil(epochs * self.epoch_steps)

    def count(self, steps: range) -> dict[str, int]:
        """Count the examples and the tokens, without padding, in the batches of `steps`."""
        counts = {"examples": 0, "tokens": 0}
        for step in steps:
            number, batch = divmod(step, self.steps(1))
            epoch = self.epoch(number)
            indices = epoch.order[epoch.starts[batch] : epoch.starts[batch + 1]]
            counts["examples"] += len(indices)
            counts["tokens"] += int(self.lengths[indices].sum())
        return counts

    def cut(self, batch: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Cut the padded entries [..., t] of the batch of `step` to its bucket's lengths."""
        return cut(batch, self.padded, self.buckets[self._kind(step)])

    @functools.cached_property
    def batches(self) -> list[int]:
        """Number of batches of each bucket in an epoch."""
        counts, left = list[int](), 0
        for kind, members in enumerate(np.bincount(self.kinds, minlength=len(self.buckets)).tolist()):
            count, left = divmod(members + left, self.full[kind])
            if left and (not self.shuffle or kind == len(self.buckets) - 1):
                count, left = count + 1, 0
            counts.append(count)
        return counts

    @property
    def epoch_steps(self) -> float:
        """Number of batches in one pass over the data."""
        return float(sum(self.batches))

    def shapes(self) -> dict[int, float]:
        """Return a step of each shape that occurs, with the fraction of steps of that shape."""
        kinds, steps = np.unique(self.epoch(0).kinds, return_index=True)
        return {int(step): self.batches[kind] / sum(self.batches) for kind, step in zip(kinds, steps, strict=True)}

    def describe(self) -> str:
        """Describe the shapes of the batches."""
        kinds = zip(self.full, self.buckets, self.batches, strict=True)
        return f"{' or '.join(f'{full} x {describe(lengths)}' for full, lengths, count in kinds if count)} tokens"

    def epoch(self, number: int) -> Epoch:
        """Return the batches of one epoch; the last two epochs are cached."""
        if number not in self.epochs:
            new = self._epoch(number)
            for old in list(self.epochs)[:-1]:
                self.epochs.pop(old, None)
            self.epochs[number] = new
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
            whole = len(members) if last or not self.shuffle else len(members) // size * size
            batches += [members[i : i + size] for i in range(0, whole, size)]
            kinds += [kind] * (len(batches) - len(kinds))
            left = members[whole:]
        order = permutation(len(batches), *key, len(self.full)) if self.shuffle else np.arange(len(batches))
        starts = np.cumsum([0, *(len(batches[k]) for k in order)])
        return Epoch(np.concatenate([batches[k] for k in order]), starts, np.array(kinds)[order])

    @functools.cached_property
    def kinds(self) -> np.ndarray:
        """Bucket of each example: the shortest that holds it."""
        kinds = np.zeros(self.n, np.int64)
        for lengths in self.buckets[:-1]:
            kinds += (self.lengths > lengths).any(axis=1)
        return kinds

    def _kind(self, step: int) -> int:
        number, batch = divmod(step, self.steps(1))
        return int(self.epoch(number).kinds[batch])


def plan(
    lengths: np.ndarray,
    seed: int,
    *,
    shuffle: bool,
    tokens: int,
    buckets: Sequence[int | Lengths],
    padded: Sequence[str] | Sequence[Sequence[str]],
    shares: tuple[int, ...] = (1,),
) -> BucketPlan:
    """Plan batches of at most `tokens` tokens, including padding to the bucket's length.

    Args:
      lengths: [n] or [n, k] tokens of each example, of k kinds.
      seed: seed of the run.
      shuffle: for training; otherwise batches and examples keep the order of the data.
      tokens: the budget. A bucket's batches have as many examples as fit, rounded down to a multiple of 8, or below 8
        to a power of two, on any devices.
      buckets: lengths, or k lengths each, ascending.
      padded: names of the entries to cut, or of those to cut to each of the k lengths.
      shares: microbatches of each device. A batch that they do not divide is filled up with empty rows beyond the
        budget.

    Raises:
      ConfigError: the buckets are not ascending lengths, or the budget is too small for a row in each microbatch.
      DataError: an example is longer than the longest bucket.
    """
    lengths = lengths.reshape(len(lengths), -1)
    shapes = tuple(bucket if isinstance(bucket, tuple) else (bucket,) for bucket in buckets)
    groups = ((*padded,),) if isinstance(padded[0], str) else tuple(map(tuple, padded))
    if not shapes or sum(shapes[0]) < 1 or min(shapes[0]) < 0 or not all(map(_ascends, shapes, shapes[1:])):
        raise ConfigError(f"config.data.buckets={buckets} must be lengths in ascending order, such as (32, 64, 128)")
    longest = np.argmax(lengths, axis=0)
    for index, length, most in zip(longest, np.max(lengths, axis=0), shapes[-1], strict=True):
        if length > most:
            raise DataError(
                f"example {index} has {length} tokens, more than the longest of config.data.buckets={buckets}: add a"
                " longer bucket, or cut the texts shorter"
            )
    sizes, parts = [sum(shape) for shape in shapes], sum(shares)
    if tokens // sizes[-1] < parts:
        raise ConfigError(
            f"config.batch_tokens={tokens} holds {tokens // sizes[-1]} rows of {describe(shapes[-1])} tokens, fewer"
            f" than {parts} microbatches on all devices; give at least {parts * sizes[-1]}"
        )
    full = tuple(_examples(tokens // size) for size in sizes)
    return BucketPlan(len(lengths), seed, full[0], shuffle, lengths, shapes, full, groups, shares=shares)


def cut(batch: Mapping[str, Any], padded: Sequence[Sequence[str]], lengths: Sequence[int]) -> dict[str, Any]:
    """Cut the last axis of the entries of each group in `padded` to the length of that group."""
    own = {name: length for names, length in zip(padded, lengths, strict=True) for name in names}
    return {name: x[..., : own[name]] if name in own else x for name, x in batch.items()}


def describe(lengths: Sequence[int]) -> str:
    """Format the lengths of a bucket.

    >>> describe((16, 24))
    '16+24'
    """
    return "+".join(map(str, lengths))


def waste(plan: BucketPlan) -> tuple[float, float]:
    """Return the fraction of padding in an epoch, and what it would be if every batch used the longest bucket."""
    real = float(plan.lengths.sum())
    rows = [len(layout(full, plan.shares)) for full in plan.full]
    batched = sum(r * sum(shape) * count for r, shape, count in zip(rows, plan.buckets, plan.batches, strict=True))
    return 1 - real / batched, 1 - real / (plan.n * sum(plan.buckets[-1]))


def _ascends(shorter: Lengths, longer: Lengths) -> bool:
    """Return whether no length of the second bucket is less, and one is larger."""
    return shorter != longer and all(a <= b for a, b in zip(shorter, longer, strict=True))


def _examples(rows: int) -> int:
    """Round `rows` down: to a multiple of 8, or below 8 to a power of two."""
    return rows - rows % MULTIPLE if rows >= MULTIPLE else 2 ** int(math.log2(rows))
