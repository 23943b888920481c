"""A trained run as an object, for notebooks, scripts and files of new inputs.

    run = jtasks.load("runs/sst2")
    run.predict("a fine film")  # one input, one answer; a list of inputs, a list of answers

An input is what people hold: a text, a dict of columns, a path, a picture, an array; a tuple is a pair, one input. The
task's `examples` makes examples of the inputs. A task without that function takes examples as its `dataset` has them.

Loading reads the run's folder alone, never its data. The results equal those of `--mode=predict` for the same rows, to
the bit, in whatever portions the inputs come: each batch is padded to the shape that `--mode=predict` gives it, because
XLA's rounding can depend on the shape. `load(folder, overrides={"batch_size": 1})` answers single inputs faster; its
results may differ from those of another batch size in the last bits. Input i gets the random numbers of row i.

`Run.stream` gives answers in order while inputs still arrive, for readers of files and of stdin.
"""

import contextlib
import functools
import os
import pathlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from jtasks import config as configs
from jtasks.config import Config
from jtasks.data import pipeline
from jtasks.data.shuffle import example_seeds
from jtasks.distributed import sharding
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import did_you_mean, shown
from jtasks.run import checkpoint as checkpoints_
from jtasks.run import evaluate, predict, workdir
from jtasks.run.job import Job
from jtasks.run.restore import SavedRun, open_alone

ARRIVAL_SECONDS = 0.02  # wait this long for another input before a batch that is not full starts
GROUPS = ("sample", "beam")  # groups of a config that say how a task decodes

Skip = Callable[[int, DataError], None]


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


class Run:
    """A checkpoint of a run with its task, ready for new inputs.

    Attributes:
      config: the frozen config of the run; the tokenizer and the class names are those stored in the run's folder.
      task: the module of the task.
      step: the step of the checkpoint.
      folder: the run's folder.
    """

    def __init__(self, saved: SavedRun):
        self._saved, self._job = saved, saved.job
        self._programs: dict[Any, Any] = {}
        self.config: Config = saved.job.config
        self.task: ModuleType = saved.job.task
        self.step: int = saved.step
        self.folder: pathlib.Path = saved.workdir

    def __repr__(self) -> str:
        return f"<Run {self.folder} at step {self.step}: {self.config.task}>"

    @functools.cached_property
    def params(self) -> Any:
        """The parameters, on the devices; their moving average if config.ema is set."""
        return self._saved.params()

    def predict(self, inputs: Any) -> Any:
        """Return the outputs of the task's predict_fn with its readable answers, as `{name: array, number or text}`.

        Args:
          inputs: one input, or a list of inputs; a tuple is one input, a pair.

        Returns:
          A dict for one input, a list of dicts for a list. If an input becomes several examples, such as windows of a
          long text, the outputs are stacked along a first axis.

        Raises:
          ConfigError: the task has no predict_fn.
          DataError: an input is not what the task expects; the message has its index.
        """
        return self._of(inputs, "predict")

    def embed(self, inputs: Any) -> dict[str, np.ndarray]:
        """Return the features of each input by the task's embed_fn, `{name: [n, d]}`; [d] for one input.

        The features of an input that becomes several examples are the mean of theirs.

        Raises:
          ConfigError: the task has no embed_fn.
          DataError: an input is not what the task expects; the message has its index.
        """
        rows = self._of(inputs, "embed")
        if isinstance(rows, dict):
            return rows
        return {name: np.stack([row[name] for row in rows]) for name in (rows[0] if rows else {})}

    def generate(self, inputs: Any, **options: Any) -> Any:
        """Predict with other options of decoding, such as `run.generate("Once", length=50, temperature=0.8)`.

        Args:
          inputs: as for `predict`.
          **options: fields of config.sample or config.beam, by their last name.

        Returns:
          As `predict`. Each set of options is compiled once.

        Raises:
          ConfigError: the task does not decode, or there is no such option.
        """
        return self._of(inputs, "predict", self._with_options(options))

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Return the metrics of `--mode=eval` on one split of the run's data, `{"step": 30, "test/loss": ...}`.

        Raises:
          DataError: there is no such split.
          ConfigError: the data changed since the run.
        """
        return evaluate.of_run(self._saved, split, lambda: self.params)

    def stream(
        self, inputs: Iterable[Any], function: str = "predict", skip: Skip | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the index and the result of each input, in order, as soon as it is computed.

        Inputs are read in a thread. A batch starts once it is full, or when no further input arrives.

        Args:
          inputs: any iterable, also one that waits for its next item.
          function: "predict" or "embed".
          skip: called with the index and the error of a bad input, which has no result; None raises the error.

        Raises:
          DataError: an input is bad; the results of the inputs before its batch have been given.
        """
        yield from self._stream(inputs, function, self._job, skip)

    def _of(self, inputs: Any, function: str, job: Job | None = None) -> Any:
        many = isinstance(inputs, list)
        results = [row for _, row in self._stream(inputs if many else [inputs], function, job or self._job, None, many)]
        return results if many else results[0]

    def _stream(
        self, inputs: Iterable[Any], function: str, job: Job, skip: Skip | None, many: bool = True
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        program = self._program(function, job)
        portions = _Portions(job, self._entries, named=many, skipping=skip is not None)
        for portion in pipeline.prefetch(portions.read(inputs)):
            for index, error in portion.bad:
                if skip is not None:
                    skip(index, error)
            yield from self._results(portion, function, job, program)

    def _results(self, portion: Portion, function: str, job: Job, program: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        outputs: list[Any] = [None] * len(portion.owners)
        for batch in portion.batches:
            values = jax.device_get(program(self.params, batch.arrays))
            for index, row in zip(batch.indices.tolist(), batch.rows.tolist(), strict=True):
                outputs[index] = jax.tree.map(lambda x, row=row: np.asarray(x)[row], values)
        answers = _answers(job, predict.rows(portion.examples), outputs) if function == "predict" else []
        for place, index in enumerate(portion.inputs):
            own = np.flatnonzero(portion.owners == place).tolist()
            parts = [outputs[i] for i in own]
            if portion.several and function == "embed":
                result = jax.tree.map(lambda *xs: np.mean(np.stack(xs), axis=0, dtype=np.float32), *parts)
            else:
                result = jax.tree.map(lambda *xs: np.stack(xs), *parts) if portion.several else parts[0]
            result = jax.tree.map(lambda x: x if np.ndim(x) else x.item(), result)
            result = result if isinstance(result, dict) else {"output": result}
            yield index, result | (answers[own[0]] if answers else {})

    def _program(self, function: str, job: Job) -> Any:
        key = function, job.config
        if key not in self._programs:
            self._programs[key] = predict.program(job, f"{function}_fn")
        return self._programs[key]

    @functools.cached_property
    def _entries(self) -> dict[str, jax.ShapeDtypeStruct]:
        return workdir.stored_batch(self.folder, 1)

    def _with_options(self, options: Mapping[str, Any]) -> Job:
        config = self.config
        fields = {name: group for group in GROUPS if group in config for name in config[group]}
        if not fields:
            raise ConfigError(f"task {config.task} does not decode: its config has no sample and no beam; use predict")
        for name in options:
            if name not in fields:
                near = did_you_mean(name, fields)
                raise ConfigError(f"no option {name!r} of decoding{near}; there are {', '.join(fields)}")
        overrides = [_override(f"config.{fields[name]}.{name}", value) for name, value in options.items()]
        return self._job._replace(config=configs.freeze(config, overrides))


def _answers(job: Job, examples: Sequence[Any], outputs: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the readable answers of the task to its examples; [] without `answers`."""
    answers = getattr(job.task, "answers", None)
    return [dict(answer) for answer in answers(examples, outputs, job.config)] if answers else []


class _Portions:
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
        """Return what is wrong with one input; None if nothing is."""
        try:
            self._whole([item], [number])
            return None
        except ConfigError:
            raise
        except Exception as error:
            text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            named = DataError(f"input {number}: {text}" if self.named else text)
            named.__cause__ = error
            return named

    def _whole(self, items: list[Any], numbers: list[int]) -> Portion:
        task, config = self.job.task, self.job.config
        examples = task.examples(items, config) if hasattr(task, "examples") else self._given(items)
        if not isinstance(examples, Mapping):
            examples = [pipeline.read(examples, i) for i in range(pipeline.size(examples))]
        count = pipeline.size(examples)
        several = count > 0 and "input" in pipeline.example(examples, 0)
        owners = np.arange(count)
        if several:
            owners = np.array([int(row["input"]) for row in predict.rows(examples)])
        if sorted({*owners.tolist()}) != [*range(len(items))]:
            raise DataError(f"examples of {config.task} returned {count} examples of {len(items)} inputs")
        seeded = self.count + np.arange(count) if several else np.array(numbers)
        return Portion(numbers, owners, several, examples, self._batches(examples, seeded), [])

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
        if not self.job.config.batch_tokens or self.job.collate:
            return rows
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}  # batches by length need arrays

    def _checked(self, item: Any) -> dict[str, Any]:
        task, form = self.job.config.task, {name: f"{x.dtype}{list(x.shape[1:])}" for name, x in self.entries.items()}
        form = {name: kind for name, kind in form.items() if name not in ("mask", "seed")}
        if not isinstance(item, Mapping):
            raise DataError(
                f"expected an example, a dict with the entries {form}, not {shown(item)}: task {task} has no"
                " examples(inputs, config), which makes examples of other inputs"
            )
        row = dict(item)
        for name, want in self.entries.items() if self.job.collate is None else ():
            if name not in row:
                continue
            array, cut = np.asarray(row[name]), name in getattr(self.job.task, "SEQUENCE_KEYS", ())
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


def load(
    run: str | os.PathLike[str],
    *,
    checkpoint: str | int = "newest",
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Run:
    """Load a run for new inputs; the data that it was trained on need not be there.

    Args:
      run: folder of the run, or one checkpoint of it, DIR/checkpoints/STEP.
      checkpoint: "newest" (undamaged one), "best" by config.best, or a step.
      overrides: other values of fields that do not identify a run, such as `{"mesh.data": 1, "batch_size": 8}`; or a
        list of "--config.mesh.data=1".

    Raises:
      ConfigError: the folder is not that of a run, its files have changed, or an override is wrong.
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    checkpoints, step = checkpoints_.locate(os.fspath(run))
    folder = checkpoints.parent if checkpoints.name == "checkpoints" else checkpoints
    if step and str(checkpoint) not in ("newest", step):
        raise ConfigError(
            f"{os.fspath(run)} is one checkpoint, and checkpoint={checkpoint!r} another: give one of them"
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds no config.json of a run: give the folder of a run, or its checkpoints/STEP")
    workdir.require_files(folder)
    if isinstance(overrides, Mapping):
        overrides = [_override(name, value) for name, value in configs.fields(overrides)]
    config = configs.load(str(folder / "config.json"), overrides)
    return Run(open_alone(config, folder, step or str(checkpoint), tell=lambda text: None))


def _override(name: str, value: Any) -> str:
    value = configs.plain(value, name)
    return f"--{name}={value if isinstance(value, str) else repr(value)}"
