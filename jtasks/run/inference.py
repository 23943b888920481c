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

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jtasks import config as configs
from jtasks.config import Config
from jtasks.data import hub, pipeline
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import did_you_mean
from jtasks.run import checkpoint_files, evaluate, predict, workdir
from jtasks.run.activity import Watch, watch_nothing
from jtasks.run.job import SPLITS, Job
from jtasks.run.portions import Portion, Portions
from jtasks.run.pretrained import Pretrained, open_pretrained
from jtasks.run.restore import SavedRun, open_alone

GROUPS = ("sample", "beam")  # groups of a config that say how a task decodes

Skip = Callable[[int, DataError], None]


class Run:
    """A checkpoint of a run with its task, ready for new inputs.

    Attributes:
      config: the frozen config of the run; the tokenizer and the class names are those stored in the run's folder.
      task: the module of the task.
      step: the step of the checkpoint.
      folder: the run's folder.
      watch: shows that a function compiles, such as `display.watcher()`; nothing by default.
    """

    def __init__(self, saved: SavedRun | Pretrained):
        self._saved, self._job = saved, saved.job
        self._programs: dict[Any, Any] = {}
        self.config: Config = saved.job.config
        self.task: ModuleType = saved.job.task
        self.step: int = saved.step
        self.folder: pathlib.Path = saved.workdir
        self.watch: Watch = watch_nothing

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

        The features of an input that becomes several examples are the mean over these.

        Raises:
          ConfigError: the task has no embed_fn.
          DataError: an input is not what the task expects; the message has its index.
        """
        rows = self._of(inputs, "embed")
        if isinstance(rows, dict):
            return rows
        return {name: np.stack([row[name] for row in rows]) for name in (rows[0] if rows else {})}

    def generate(self, inputs: Any, **options: Any) -> Any:
        """Predict with other decoding options, such as `run.generate("Once", length=50, temperature=0.8)`.

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
          DataError: the run has no examples of this split.
          ConfigError: no split has this name, or the data changed since the run.
        """
        if isinstance(self._saved, Pretrained):
            raise ConfigError(f"{self.folder} is a model without data: train a run of it by config.init_from")
        if split not in SPLITS:
            raise ConfigError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
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
        portions = Portions(job, self._entries, named=many, skipping=skip is not None)
        for portion in pipeline.prefetch(portions.read(inputs)):
            for index, error in portion.bad:
                if skip is not None:
                    skip(index, error)
            yield from self._results(portion, function, job, program)

    def _results(self, portion: Portion, function: str, job: Job, program: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        outputs: list[Any] = [None] * len(portion.owners)
        for batch in portion.batches:
            values = jax.device_get(self._computed(program, batch.arrays))
            for index, row in zip(batch.indices.tolist(), batch.rows.tolist(), strict=True):
                outputs[index] = jax.tree.map(lambda x, row=row: np.asarray(x)[row], values)
        answers = predict.answers(job, portion.examples, outputs) if function == "predict" else []
        for place, index in enumerate(portion.inputs):
            own = np.flatnonzero(portion.owners == place).tolist()
            parts = [outputs[i] for i in own]
            if portion.several and function == "embed":
                result = jax.tree.map(lambda *xs: np.mean(np.stack(xs), axis=0, dtype=np.float32), *parts)
            else:
                result = jax.tree.map(lambda *xs: np.stack(xs), *parts) if portion.several else parts[0]
            result = jax.tree.map(lambda x: x if np.ndim(x) else x.item(), result)
            yield index, predict.name_output(result) | (answers[own[0]] if answers else {})

    def _computed(self, program: Any, batch: dict[str, jax.Array]) -> Any:
        try:
            return program(self.params, batch)
        except KeyError as error:
            if error.args[0] not in self._entries or hasattr(self.task, "examples"):
                raise
            raise DataError(f"the task reads the entry {error.args[0]!r}, which the inputs lack") from error

    def _program(self, function: str, job: Job) -> Any:
        key = function, job.config
        if key not in self._programs:
            self._programs[key] = predict.program(job, f"{function}_fn", self.watch)
        return self._programs[key]

    @functools.cached_property
    def _entries(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self._saved.entries(1)

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


def load(
    run: str | os.PathLike[str],
    *,
    checkpoint: str | int = "newest",
    config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Run:
    """Load a run, or a Hugging Face model, for new inputs; the data of the run need not be there.

    Args:
      run: folder of the run, or one checkpoint of it, DIR/checkpoints/STEP; or `hf:FOLDER` or `hf:NAME` of a model in
        Hugging Face's format, for the task of its architecture, such as `bert` for an encoder.
      checkpoint: "newest" (undamaged one), "best" by config.best, or a step.
      config: only for `hf:`, fields of a config, such as `{"task": "jtasks.tasks.classify", "data": {"length": 256}}`.
      overrides: other values of fields that do not identify a run, such as `{"mesh.data": 1, "batch_size": 8}`; or a
        list of "--config.mesh.data=1".

    Raises:
      ConfigError: the folder is not that of a run, its files have changed, or an override is wrong.
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    if not os.fspath(run):
        raise ConfigError("the run's folder is empty: give the folder of a run, or its checkpoints/STEP")
    if isinstance(overrides, Mapping):
        overrides = [_override(name, value) for name, value in configs.fields(overrides)]
    if str(run).startswith(hub.PREFIX):
        return Run(open_pretrained(str(run), config, overrides))
    if config is not None:
        raise ConfigError(f"{os.fspath(run)} is a run, which has its own config: use overrides for its other fields")
    checkpoints, step = checkpoint_files.locate(os.fspath(run))
    folder = checkpoints.parent if checkpoints.name == "checkpoints" else checkpoints
    if step and str(checkpoint) not in ("newest", step):
        raise ConfigError(
            f"{os.fspath(run)} is one checkpoint, and checkpoint={checkpoint!r} another: give one of them"
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{os.fspath(run)} holds no config.json of a run: give the folder of a run, or its checkpoints/STEP"
        )
    workdir.require_files(folder)
    own = configs.load(str(folder / "config.json"), overrides)
    return Run(open_alone(own, folder, step or str(checkpoint), tell=lambda text: None))


def _override(name: str, value: Any) -> str:
    value = configs.plain(value, name)
    return f"--{name}={value if isinstance(value, str) else repr(value)}"
