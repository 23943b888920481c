"""Batches as a pure function of (seed, step), so the state of the data is only the step number."""

import functools
import os
import pathlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jtasks.data.batch_plan import BatchPlan
from jtasks.data.shuffle import example_seeds, partners
from jtasks.distributed import sharding as shardings
from jtasks.errors import ConfigError, DataError

Arrays = Mapping[str, np.ndarray]
Examples = Arrays | Sequence[Mapping[str, Any]]
KINDS = "return a dict of arrays [n, ...], a sequence of dicts, or None where the split does not exist"
Collate = Callable[[list[Mapping[str, Any]]], Mapping[str, Any]]
PARTNER = "partner_"  # prefix of the entries of the second example that a batch has for each, if its plan says so


def size(examples: Examples) -> int:
    """Return the number of examples; DataError unless `examples` is a sequence or arrays of equal length."""
    if not isinstance(examples, Mapping):
        try:
            return len(examples)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"dataset returned a {type(examples).__name__} without a length ({error}): {KINDS}"
            ) from None
    if wrong := [name for name, array in examples.items() if not getattr(array, "shape", ())]:
        raise DataError(f"dataset returned {wrong[0]!r}, which is not an array [n, ...]: {KINDS}")
    lengths = {name: len(array) for name, array in examples.items()}
    if not lengths or len(set(lengths.values())) > 1:
        raise DataError(f"dataset() returned arrays of unequal lengths: {lengths}; all need the same [n, ...]")
    return next(iter(lengths.values()))


def example(examples: Examples, index: int) -> Mapping[str, Any]:
    """Return one example as a dict, from either kind of dataset."""
    if isinstance(examples, Mapping):
        return {name: array[index] for name, array in examples.items()}
    return examples[index]


def fetch(examples: Examples, indices: np.ndarray, collate: Collate | None) -> dict[str, np.ndarray]:
    """Return the examples at `indices` as one batch of arrays that a device can hold."""
    if isinstance(examples, Mapping) and collate is None:
        return _numeric({name: array[indices] for name, array in examples.items()})
    return stack([read(examples, int(i)) for i in indices], collate)


def read(examples: Examples, index: int, *, whole: bool = True) -> Mapping[str, Any]:
    """Read one example; an error names its index. `whole`: with the entries that it reads only when they are asked for.

    Such an example is a mapping but not a dict, such as `picture_rows.Row`.
    """
    try:
        row = example(examples, index)
        if isinstance(row, Mapping) and all(isinstance(name, str) for name in row):
            return dict(row) if whole else row
        raise DataError(f"example {index} of the dataset is a {type(row).__name__}: give a dict of arrays by name")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"example {index} of the dataset cannot be read: {type(error).__name__}: {error}") from error


class Tolerant(Sequence[Mapping[str, Any]]):
    """Examples that tolerate up to `limit` unreadable ones: each is replaced by another, always the same."""

    def __init__(self, examples: Sequence[Mapping[str, Any]], limit: int, report: Callable[[str], None]):
        self.examples, self.limit, self.report = examples, limit, report
        self.bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> Any:
        tried, attempt = index, 0
        while True:
            try:
                return read(self.examples, tried)
            except DataError as error:
                self._note(tried, error)
            attempt += 1  # hashed with the index, so that two bad examples cannot replace each other in circles
            tried = int(example_seeds(0, np.array([attempt]), np.array([index]))[0]) % len(self)

    def _note(self, index: int, error: DataError) -> None:
        if index in self.bad:
            return
        self.bad.add(index)
        if len(self.bad) > self.limit:
            raise DataError(f"{error}\nmore than config.data.skip_bad={self.limit} are bad") from error
        self.report(f"{error}; replaced by another ({len(self.bad)} of at most {self.limit})")


def stack(rows: list[Mapping[str, Any]], collate: Collate | None) -> dict[str, np.ndarray]:
    """Make one batch from example dicts, by `collate` or by stacking each entry."""
    if collate is not None:
        return _collate(collate(rows), len(rows))
    names = rows[0].keys()
    if other := next((row.keys() ^ names for row in rows if row.keys() != names), None):
        raise DataError(
            f"examples cannot be stacked into a batch: not all have an entry {min(other)!r}; give the task a collate_fn"
        )
    return _numeric({name: _stack(name, [np.asarray(row[name]) for row in rows]) for name in names})


def _stack(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    try:
        return np.stack(arrays)
    except ValueError as error:
        shapes = sorted({array.shape for array in arrays})
        raise DataError(
            f"examples cannot be stacked into a batch: their entry {name!r} has the shapes {list(shapes[0])} and"
            f" {list(shapes[-1])}; give the task a collate_fn"
        ) from error


def _collate(batch: Any, rows: int) -> dict[str, np.ndarray]:
    if not isinstance(batch, Mapping) or not all(isinstance(name, str) for name in batch):
        raise ConfigError(f"collate_fn must return a dict of arrays by name, not a {type(batch).__name__}")
    arrays = _numeric(batch)
    for name, array in arrays.items():
        if array.shape[:1] != (rows,):
            raise ConfigError(
                f"collate_fn returned {name!r} of shape {list(array.shape)} for {rows} examples:"
                " give each example one row, in their order"
            )
    return arrays


def batch_at(
    examples: Examples, plan: BatchPlan, step: int, collate: Collate | None = None, rows: Any = slice(None)
) -> dict[str, np.ndarray]:
    """Return the batch of one step, or its `rows` only: arrays [plan.rows(step), ...] with `mask` and `seed`."""
    return plan.cut(_rows(examples, plan, plan.positions(step, rows), collate), step)


def batches(
    examples: Examples,
    plan: BatchPlan,
    steps: range,
    sharding: NamedSharding,
    *,
    collate: Collate | None = None,
    threads: int = 16,
    workers: int = 0,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, jax.Array]]:
    """Yield the batches of `steps` on the devices; each process reads the rows of its devices.

    The next batches are read and transferred while one is in use. Arrays in memory are indexed once per batch. A
    sequence is read by `threads`, or by `workers` processes. While waiting for a batch, `poll` is called a few times
    per second; it may raise.
    """
    local = functools.cache(lambda size: shardings.local_rows(sharding, size))  # rows of this process
    if plan.varies or (isinstance(examples, Mapping) and collate is None):
        positions = (plan.positions(step, local(plan.rows(step))) for step in steps)
        arrays: Iterator[dict[str, np.ndarray]] = (_rows(examples, plan, p, collate) for p in positions)
    else:
        rows = local(plan.rows(0))
        held = np.flatnonzero(plan.layout(0)[rows] >= 0) if (plan.layout(0)[rows] >= 0).any() else np.array([0])
        stream = _Stream(examples, plan, steps, rows[held])
        arrays = (_spread(b, held, len(rows)) for b in _read_ahead(stream, len(held), collate, threads, workers))

    def put(batch: dict[str, np.ndarray], step: int) -> dict[str, jax.Array]:
        return shardings.put(plan.cut(batch, step), sharding, local(plan.rows(step)), plan.rows(step))

    return prefetch((put(batch, step) for batch, step in zip(arrays, steps, strict=True)), poll=poll)


def prefetch(batches: Iterator[Any], depth: int = 2, poll: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """Draw from `batches` in a thread, up to `depth` ahead; an error is raised at the batch that failed."""
    filled: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def offer(item: tuple[Any, BaseException | None]) -> bool:
        while not closed.is_set():
            try:
                filled.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not offer((batch, None)):
                    return
            offer((None, StopIteration()))
        except BaseException as error:
            offer((None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    exiting = sys.is_finalizing  # the end of a program clears the names of its modules before it closes generators
    try:
        while True:
            try:
                batch, error = filled.get(timeout=0.2)
            except queue.Empty:
                poll()
                continue
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch
    finally:
        closed.set()
        if not exiting():
            thread.join(timeout=1)  # a read that hangs must not delay the end of the run


class _Stream(Sequence[tuple[dict[str, Mapping[str, Any]], dict[str, Any]]]):
    """Rows that one process reads over some steps, one by one; picklable for grain's workers."""

    def __init__(self, examples: Examples, plan: BatchPlan, steps: range, rows: np.ndarray):
        self.examples, self.plan, self.steps, self.rows = examples, plan, steps, rows
        self.planned: tuple[int, np.ndarray, dict[str, np.ndarray]] = (-1, np.array([]), {})

    def __len__(self) -> int:
        return len(self.steps) * len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        step, row = divmod(int(i), len(self.rows))
        planned = self.planned  # read once: other threads replace it
        if planned[0] != step:
            self.planned = planned = (step, *self.plan.at(self.plan.positions(self.steps[step], self.rows)))
        _, indices, entries = planned
        added = {name: value[row] for name, value in entries.items()}
        chosen = _with_partners(self.plan, indices[row : row + 1], entries["seed"][row : row + 1])
        return {prefix: read(self.examples, int(index)) for prefix, (index,) in chosen.items()}, added


def _read_ahead(
    stream: _Stream, batch_size: int, collate: Collate | None, threads: int, workers: int
) -> Iterator[dict[str, np.ndarray]]:
    import cloudpickle
    import grain

    def batch(rows: Sequence[tuple[dict[str, Mapping[str, Any]], dict[str, Any]]]) -> dict[str, np.ndarray]:
        entries = {name: np.stack([added[name] for _, added in rows]) for name in rows[0][1]}
        parts = {prefix: stack([read[prefix] for read, _ in rows], collate) for prefix in rows[0][0]}
        return _merge(_flatten(parts), entries)

    source = grain.MapDataset.source(stream)
    if not workers:
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * batch_size, threads))
        dataset = source.to_iter_dataset(options).batch(batch_size, batch_fn=batch)
    else:
        # Batches come before grain deals their numbers to the workers, which would else mix the rows of several steps.
        dataset = source.batch(batch_size, batch_fn=batch).to_iter_dataset(grain.ReadOptions(1, 2))
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl's flags; a program without flags has none to parse
        # Modules loaded by path travel with the data; a worker needs their folders to import their neighbors.
        files = [sys.modules[name].__file__ for name in cloudpickle.list_registry_pickle_by_value()]
        beside = [str(pathlib.Path(file).parent.parent) for file in files if file]
        init = functools.partial(_begin_worker, os.getpid(), beside)
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), init)
    yield from dataset


def _begin_worker(parent: int, folders: list[str], worker: int, workers: int) -> None:
    """Let a worker process import from `folders`, and end it when its run ends, even by SIGKILL."""
    sys.path[:0] = folders

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _spread(batch: dict[str, np.ndarray], rows: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Return a batch of `size` rows with this batch at `rows` and padding elsewhere, which is not read."""
    if len(rows) == size:
        return batch
    source = np.zeros(size, np.int64)
    source[rows] = np.arange(len(rows))
    full = {name: x[source] for name, x in batch.items()}
    full["mask"][np.setdiff1d(np.arange(size), rows)] = 0
    return full


def _rows(examples: Examples, plan: BatchPlan, positions: np.ndarray, collate: Collate | None) -> dict[str, np.ndarray]:
    indices, entries = plan.at(positions)
    chosen = _with_partners(plan, indices, entries["seed"])
    return _merge(_flatten({prefix: fetch(examples, i, collate) for prefix, i in chosen.items()}), entries)


def _with_partners(plan: BatchPlan, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
    """Return the indices of the examples to read, by the prefix of their entries."""
    return {"": indices} | ({PARTNER: partners(seeds, plan.n)} if plan.partner else {})


def _flatten(parts: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {prefix + name: x for prefix, part in parts.items() for name, x in part.items()}


def _merge(batch: dict[str, np.ndarray], entries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if taken := set(entries) & set(batch):
        raise ConfigError(f"the dataset's entries {sorted(taken)} have names that the library adds; rename them")
    return batch | entries


def _numeric(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the entries that a device can hold, in JAX's types; text stays on the host, for score_fn and show_fn."""
    arrays = {name: np.asarray(value) for name, value in batch.items()}
    return {
        name: _canonical(name, array)
        for name, array in arrays.items()
        if array.dtype.kind in "biufc" or array.dtype == jax.numpy.bfloat16
    }


def _canonical(name: str, array: np.ndarray) -> np.ndarray:
    """Return the array in JAX's type; raise DataError if that has 32 bits and whole numbers need more."""
    narrow = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
    if array.dtype.kind in "iu" and narrow.dtype != array.dtype and not np.array_equal(narrow, array):
        raise DataError(
            f"the entry {name!r} of a batch holds {array[narrow != array].flat[0]}, which {narrow.dtype} cannot: give"
            " numbers that only score_fn and show_fn read as text"
        )
    return narrow
