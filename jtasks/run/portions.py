"""New inputs in portions of one batch: read, made into examples and batches, bad ones named or skipped."""

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jtasks import faults
from jtasks.data import pipeline
from jtasks.data.shuffle import example_seeds
from jtasks.distributed import sharding
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import format_value
from jtasks.run.job import Job
from jtasks.task import sequence_keys

ARRIVAL_SECONDS = 0.02  # wait this long for another input before a batch that is not full starts


class Batch(NamedTuple):
    """A batch on the devices, and where its examples are."""

    indices: np.ndarray  # [n] the examples of a portion that this batch holds
    rows: np.ndarray  # [n] their rows
    arrays: dict[str, jax.Array]


class Portion(NamedTuple):
    """Inputs that are read together, as batches on the devices."""

    inputs: list[int]  # the index of each input
    owners: np.ndarray  # [n] place in `inputs` of each example
    several: bool  # whether one input can have several examples
    examples: pipeline.Examples
    batches: list[Batch]
    bad: list[tuple[int, DataError]]


class Portions:
    """Reads inputs in portions of one batch, and turns each portion into batches on the devices."""

    def __init__(self, job: Job, entries: Mapping[str, jax.ShapeDtypeStruct], *, named: bool, skipping: bool):
        self.job, self.entries, self.named, self.skipping = job, entries, named, skipping
        self.count = 0  # examples before this portion

    def read(self, inputs: Iterable[Any]) -> Iterator[Portion]:
        """Yield the portions of the inputs; raises the DataError of a bad input unless it is to be skipped."""
        start = 0
        for items in arriving(inputs, self.job.config.batch_size):
            portion = self._portion(items, start)
            yield portion
            start, self.count = start + len(items), self.count + len(portion.owners)

    def _portion(self, items: list[Any], start: int) -> Portion:
        numbers = range(start, start + len(items))
        try:
            return self._whole(items, [*numbers])
        except Exception:
            errors = {number: self._error(item, number) for number, item in zip(numbers, items, strict=True)}
            bad = [(number, error) for number, error in errors.items() if error is not None]
            if not bad:
                raise
        if not self.skipping:
            raise bad[0][1]
        good = [number for number in numbers if errors[number] is None]
        if not good:
            return Portion([], np.empty(0, np.int64), False, [], [], bad)
        return self._whole([items[number - start] for number in good], good)._replace(bad=bad)

    def _error(self, item: Any, number: int) -> DataError | None:
        """Return the error of one input; None if it is valid."""
        try:
            self._whole([item], [number])
            return None
        except ConfigError:
            raise
        except Exception as error:
            known = isinstance(error, DataError)  # else the task may be wrong, not the input
            text = str(error) if known else faults.explain(error, self.job.task).replace("\n", " ")
            named = DataError(f"input {number}: {text}" if self.named else text)
            named.__cause__ = error
            return named

    def _whole(self, items: list[Any], numbers: list[int]) -> Portion:
        task, config = self.job.task, self.job.config
        for item in items:
            if isinstance(item, DataError):  # what a source gives instead of an input that it cannot read
                raise item
        examples = task.examples(items, config) if hasattr(task, "examples") else self._given(items)
        if not isinstance(examples, Mapping):
            examples = [pipeline.read(examples, i) for i in range(pipeline.size(examples))]
        self._check_shapes(examples)
        count = pipeline.size(examples)
        several = count > 0 and "input" in pipeline.example(examples, 0)
        owners = np.arange(count)
        if several:
            own = examples["input"] if isinstance(examples, Mapping) else [row["input"] for row in examples]
            owners = np.asarray(own, np.int64)
        if sorted({*owners.tolist()}) != [*range(len(items))]:
            raise DataError(f"examples of {config.task} returned {count} examples of {len(items)} inputs")
        seeded = self.count + np.arange(count) if several else np.array(numbers)
        return Portion(numbers, owners, several, examples, self._batches(examples, seeded), [])

    def _check_shapes(self, examples: pipeline.Examples) -> None:
        """Raise DataError unless the entries have the shapes of the run's batches, where these are stacked examples."""
        cut = {name for names in sequence_keys(self.job.task) for name in names}
        for name, want in self.entries.items() if self.job.collate is None else ():
            if isinstance(examples, Mapping):
                shapes = [np.shape(examples[name])[1:]] if name in examples else []
            else:
                shapes = [np.shape(row[name]) for row in examples if name in row]
            if other := [shape for shape in shapes if name not in cut and shape != want.shape[1:]]:
                raise DataError(
                    f"{name} of the example has the shape {list(other[0])}, in training {list(want.shape[1:])}"
                )

    def _batches(self, examples: pipeline.Examples, seeded: np.ndarray) -> list[Batch]:
        """Return the batches that `--mode=predict` makes of these examples, except that padding is not read."""
        job, result = self.job, []
        plan = job.plan(examples, shuffle=False, full=True)
        for step in range(plan.steps(1)):
            indices, entries = plan.at(plan.positions(step))
            real = np.flatnonzero(entries["mask"])
            arrays = pipeline.fetch(examples, indices[real], job.collate)
            source = np.full(len(indices), len(real) - 1)
            source[real] = np.arange(len(real))
            seeds = example_seeds(job.config.seed, np.zeros_like(indices), seeded[indices])
            batch = {name: x[source] for name, x in arrays.items()} | {"mask": entries["mask"], "seed": seeds}
            shards, everyone = sharding.batch_sharding(job.mesh), np.arange(len(indices))
            result.append(
                Batch(indices[real], real, sharding.put(plan.cut(batch, step), shards, everyone, len(indices)))
            )
        return result

    def _given(self, items: list[Any]) -> pipeline.Examples:
        """Return inputs that are examples already, in the dtypes of the run."""
        rows = [self._checked(item) for item in items]
        if other := [row for row in rows if row.keys() != rows[0].keys()]:
            raise DataError(f"an example has the entries {sorted(other[0])}, the first one {sorted(rows[0])}")
        if not self.job.config.batch_tokens or self.job.collate:
            return rows
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}  # batches by length need arrays

    def _checked(self, item: Any) -> dict[str, Any]:
        task, form = self.job.config.task, {name: f"{x.dtype}{list(x.shape[1:])}" for name, x in self.entries.items()}
        form = {name: kind for name, kind in form.items() if name not in ("mask", "seed")}
        if not isinstance(item, Mapping):
            raise DataError(
                f"expected an example, a dict with the entries {form}, not {format_value(item)}: task {task} has no"
                " examples(inputs, config), which makes examples of other inputs"
            )
        row = dict(item)
        keys = sequence_keys(self.job.task)
        for name, want in self.entries.items() if self.job.collate is None else ():
            if name not in row:
                continue
            array, cut = np.asarray(row[name]), any(name in names for names in keys)
            fits = array.dtype.kind in "biuf" and (cut or array.shape == want.shape[1:])
            row[name] = array.astype(want.dtype) if fits else array
            if not fits or not (jax.numpy.issubdtype(want.dtype, np.inexact) or np.array_equal(row[name], array)):
                raise DataError(f"{name} is {array.dtype}{list(array.shape)}, expected {form[name]}")
        return row


def arriving(inputs: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Yield inputs in lists of up to `most`: those that have arrived, and at least one."""
    if isinstance(inputs, Sequence):
        yield from (list(inputs[start : start + most]) for start in range(0, len(inputs), most))
        return
    arrived: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(2 * most)
    closed = threading.Event()

    def work() -> None:
        try:
            for item in inputs:
                put((item, None))
                if closed.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    def put(item: tuple[Any, BaseException | None]) -> None:
        while not closed.is_set():
            try:
                arrived.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    threading.Thread(target=work, name="inputs", daemon=True).start()
    try:
        error: BaseException | None = None
        while error is None:
            items: list[Any] = []
            with contextlib.suppress(queue.Empty):
                while len(items) < most and error is None:
                    item, error = arrived.get(timeout=ARRIVAL_SECONDS if items else None)
                    items += [item] if error is None else []
            if items:
                yield items
        if not isinstance(error, StopIteration):
            raise error
    finally:
        closed.set()
