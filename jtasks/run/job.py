"""The start of every mode: the task, its prepared data, the filled config, the mesh."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jtasks import config as configs
from jtasks import ranges, storage, task
from jtasks.config import Config
from jtasks.console import warn
from jtasks.data import bucket_shapes, buckets, fingerprint, hub, mixture, pipeline, tokenizers
from jtasks.data.batch_plan import BatchPlan
from jtasks.distributed import processes, sharding
from jtasks.distributed.shares import check_shares
from jtasks.errors import ConfigError, DataError
from jtasks.interop import files, fitting, model_config
from jtasks.run import names

SPLITS = ("train", "valid", "test")


class Job(NamedTuple):
    """A task with its config on a mesh."""

    task: ModuleType
    config: Config
    mesh: Mesh

    @property
    def collate(self) -> pipeline.Collate | None:
        """The task's collate_fn as a function of the examples alone."""
        function = getattr(self.task, "collate_fn", None)
        return function and (lambda examples: function(examples, self.config))

    def examples(self, split: str) -> pipeline.Examples | None:
        """Return the task's dataset of one split, None if there is none.

        Raises:
          DataError: the dataset is empty, or its arrays have unequal lengths.
        """
        examples = self.task.dataset(split, self.config)
        if examples is not None and pipeline.size(examples) == 0:
            raise DataError(f"the {split} split is empty; a split that does not exist must be None")
        if self.config.data.skip_bad and isinstance(examples, Sequence) and not mixture.parts(examples):
            return pipeline.Tolerant(examples, self.config.data.skip_bad, warn)
        return examples

    def require(self, split: str) -> pipeline.Examples:
        """Return the task's dataset of one split; raise DataError if there is none."""
        examples = self.examples(split)
        if examples is None:
            raise DataError(f"task {self.config.task} has no {split} split")
        return examples

    def plan(self, examples: pipeline.Examples, *, shuffle: bool, full: bool = False) -> BatchPlan:
        """Return the order of the examples and the layout of each batch's rows on the devices.

        Padding completes a batch whose size is no multiple of the devices. An evaluation batch has equal shares and
        at most as many rows as there are examples, rounded up to the devices; with `full`, `config.batch_size` rows.
        A row's numbers can depend on the shape of the batch in their last bits, but not on other rows.

        Raises:
          ConfigError: the batch cannot be divided over devices and microbatches, or its loss mixes examples.
        """
        config, n, shares = self.config, pipeline.size(examples), (1,) * sharding.num_batch_shards(self.mesh)
        if shuffle:
            mixes = getattr(self.task, "MIXES_EXAMPLES", False)
            shares = check_shares(config, self.mesh.shape, mixes=mixes)
        if config.batch_tokens and (shuffle or isinstance(examples, Mapping) or hasattr(self.task, "lengths")):
            return self._by_tokens(examples, shares, shuffle=shuffle)
        if shuffle and (parts := mixture.parts(examples)):
            return dataclasses.replace(mixture.plan(parts, config, shares), partner=self._needs_partner)
        rows = config.batch_size if shuffle or full else min(config.batch_size, n)
        return BatchPlan(n, config.seed, rows, shuffle, shares=shares, partner=shuffle and self._needs_partner)

    def shardings(self, tree: Any, params: Any) -> Any:
        """Return the sharding of each leaf of `tree`: the parameters, or a state that holds trees like them."""
        return sharding.shardings(tree, params, self.mesh, self.config.sharding)

    def on_mesh(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of (params, ...) as it runs on the mesh, to be jitted."""
        return sharding.on_mesh(self.mesh, self.config.sharding, function)

    def lengths(self, examples: pipeline.Examples) -> np.ndarray | None:
        """Return the tokens of each example [n], or [n, k] of k kinds, by default its non-zero `segment_ids` [n].

        The result is None if the task has no `lengths`, and its dataset no arrays of segment ids.
        """
        if isinstance(examples, pipeline.Tolerant):
            examples = examples.examples
        if hasattr(self.task, "lengths"):
            lengths = self.task.lengths(examples, self.config)
            return None if lengths is None else np.asarray(lengths)
        if not isinstance(examples, Mapping):
            return None
        segment_ids = examples.get("segment_ids") if "segment_ids" in getattr(self.task, "SEQUENCE_KEYS", ()) else None
        return np.count_nonzero(segment_ids, axis=1) if segment_ids is not None and segment_ids.ndim == 2 else None

    def assets(self) -> dict[str, str]:
        """Return {file name: text} of the files that give the parameters meaning: tokenizer and the task's assets.

        Raises:
          ConfigError: the task's `assets` returns something else.
        """
        own = self.task.assets(self.config) if hasattr(self.task, "assets") else {}
        texts = getattr(self.task, "texts", None)
        tokenizer = tokenizers.assets(tokenizers.of(self.config, texts)) if texts else {}
        return tokenizer | task.check_texts(own, f"assets of {self.config.task}")

    @property
    def _needs_partner(self) -> bool:
        """Whether training batches have a second example for each, drawn by the seed of the first."""
        return hasattr(self.task, "needs_partner") and bool(self.task.needs_partner(self.config))

    def _by_tokens(self, examples: pipeline.Examples, shares: tuple[int, ...], *, shuffle: bool) -> BatchPlan:
        config = self.config
        if shuffle and self._needs_partner:
            raise ConfigError(
                f"config.batch_tokens={config.batch_tokens}: task {config.task} mixes each example with another one of"
                " any length, so batches go by examples: set it to 0"
            )
        lengths = self.lengths(examples)
        if lengths is None:
            raise ConfigError(
                f"config.batch_tokens={config.batch_tokens}, but task {config.task} does not give the lengths of its"
                " examples: it needs lengths(examples, config), or a dataset of arrays with 'segment_ids' among the"
                " SEQUENCE_KEYS; or set it to 0"
            )
        padded, given = task.sequence_keys(self.task), tuple(config.data.buckets)
        shapes: Sequence[int | tuple[int, ...]] = given
        if lengths.ndim > 1:
            row = pipeline.read(examples, 0)
            limits = [np.shape(row[names[0]])[-1] if names[0] in row else 0 for names in padded]
            chosen = bucket_shapes.least_padding(lengths) if shuffle else bucket_shapes.halved(limits)
            shapes = bucket_shapes.given(given, limits) if given else chosen
        return buckets.plan(
            lengths,
            config.seed,
            shuffle=shuffle,
            tokens=config.batch_tokens,
            buckets=shapes,
            padded=padded,
            shares=shares,
        )

    def batch_at(self, examples: pipeline.Examples, plan: BatchPlan, step: int) -> dict[str, jax.Array]:
        """Return the batch of one step on the devices; each process reads only the rows of its own devices."""
        batched = sharding.batch_sharding(self.mesh)
        rows = sharding.local_rows(batched, plan.rows(step))
        batch = pipeline.batch_at(examples, plan, step, self.collate, rows)
        return sharding.put(batch, batched, rows, plan.rows(step))

    def batches(
        self,
        examples: pipeline.Examples,
        plan: BatchPlan,
        steps: range,
        poll: Callable[[], None] = lambda: None,
    ) -> Iterator[dict[str, jax.Array]]:
        """Return the batches of `steps` on the devices, read ahead.

        Calls `poll`, which may raise, while waiting for a batch; not with several processes, whose waits differ.
        """
        return pipeline.batches(
            examples,
            plan,
            steps,
            sharding.batch_sharding(self.mesh),
            collate=self.collate,
            threads=self.config.data.threads,
            workers=self.config.data.workers,
            poll=poll if processes.alone() else lambda: None,
        )


def load_task(config: Config) -> ModuleType:
    """Load the task of a config; with config.data.mix its data functions cover all sources."""
    module = task.load(config.task)
    return mixture.over_sources(module) if config.data.mix else module


def prepare(config: Config, *, pretrained: bool = True, devices: Sequence[jax.Device] | None = None) -> Job:
    """Check the config, load the task, prepare its data and fill the config's placeholders.

    Args:
      config: the config; its names on the hub are pinned to commits.
      pretrained: whether config.init_from fills placeholders; a resumed run has them from its own config.json.
      devices: those of the mesh; by default JAX's own.
    """
    config = configs.freeze(config)
    module = load_task(config)
    mesh = sharding.make_mesh(config.mesh, devices)
    config = names.pin_names(config, source=pretrained)
    if sees_one_file_system(config):
        processes.on_first_process(lambda: make_files(config, module))
        try:
            return Job(module, fill(config, module, pretrained=pretrained), mesh)
        except (ConfigError, DataError) as error:
            if not processes.first():  # which has just made all files
                error.add_note("if the machines share no folder: --config.data.shared=False, each prepares its data")
            raise
    with storage.machine_lock("prepare"):  # the first process of each machine makes the files, the others find them
        make_files(config, module)
    job = Job(module, fill(config, module, pretrained=pretrained), mesh)
    _require_same_assets(job)
    return job


def sees_one_file_system(config: Config) -> bool:
    """Return whether all processes see the data that the first one prepares; if not, each machine prepares its own."""
    return bool(config.data.shared) and not storage.is_url(config.data.dir)


def require_same_data(examples: pipeline.Examples) -> None:
    """Raise DataError if this process's training examples are not those of the first process."""
    own = fingerprint.of(examples)
    first = processes.broadcast_from_first(lambda: own)
    if other := fingerprint.changes(first, own):
        raise DataError(
            f"process {jax.process_index()} has other training data than process 0: {'; '.join(other)}; give all"
            " machines the same data, or one folder that they share"
        )
    processes.barrier()


def _require_same_assets(job: Job) -> None:
    """Raise DataError if this process's data made another tokenizer or palette than that of the first process."""
    own = {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in job.assets().items()}
    first = processes.broadcast_from_first(lambda: own)
    if other := [name for name in {**first, **own} if first.get(name) != own.get(name)]:
        raise DataError(
            f"process {jax.process_index()} has made another {other[0]} than process 0 from its own data: give all"
            " machines the same data, or one folder that they share"
        )
    processes.barrier()


def make_files(config: Config, module: ModuleType) -> None:
    """Fetch data, train the tokenizer and call `prepare`, where needed; the results are stored for all processes."""
    names.fetch(config)
    if hasattr(module, "texts"):
        tokenizers.of(config, module.texts)
    if hasattr(module, "prepare"):
        module.prepare(config)


def fill(
    config: Config,
    module: ModuleType,
    *,
    pretrained: bool = True,
    model_args: Callable[[Config], Mapping[str, Any]] | None = None,
) -> Config:
    """Return the config with the fields of `config.model` that are None filled from the task's `model_args`.

    If `config.init_from` is a Hugging Face model, its config.json gives the fields that the data leaves open, unless
    `pretrained` is False; for an encoder-decoder, also fields that have their defaults. Without data, `model_args`
    replaces the task's.
    """
    fields, folder = task.fields(module), ""
    if config.data.mix and model_args is None:
        config = mixture.with_labels(config, task.load(config.task), fields)
    if pretrained and config.init_from.startswith(hub.PREFIX):
        folder = str(hub.model_folder(config.init_from, *hub.SETTINGS, *hub.WEIGHTS))
        if model_args is None:
            files.where(storage.local(folder))  # no weights: told before the data is read
    if folder and "model.encoder_depth" in fields:
        config = Config(config.to_dict() | {"model": _without_defaults(config.model, fields)})
    if folder and config.data.get("size", 0) is None and (size := model_config.image_size(folder)):
        config = Config(config.to_dict() | {"data": config.data.to_dict() | {"size": size}})
    filled = model_args or getattr(module, "model_args", None)
    values = filled(config) if filled else {}
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"model_args of {config.task} must return {{field of config.model: value}}, not"
            f" {ranges.format_value(values)}"
        )
    if hasattr(module, "texts"):
        values = {"vocab": tokenizers.size(tokenizers.of(config, module.texts, fresh=True)), **values}
    values = configs.plain(values, "config.model")
    if fields:
        ranges.check_against_data(config.model, values)
    if folder:
        values = model_config.complete(values, config.model, folder)
    model = {name: values.get(name) if value is None else value for name, value in config.model.items()}
    model = {name: configs.plain(value, f"config.model.{name}") for name, value in ({**values} | model).items()}
    for name, field in fields.items():
        group, _, last = name.partition(".")
        if group == "model":
            model[last] = field.default if model.get(last) is None else model[last]
            ranges.check(f"config.{name}", model[last], field)
    if unset := [name for name in ("width", "depth", "heads") if name in model and model[name] is None]:
        names = ", ".join(f"config.model.{name}" for name in unset)
        raise ConfigError(f"not set: {names}; give them, or --config.init_from=hf:FOLDER, which has them")
    return Config(config.to_dict() | {"model": model}) if model != config.model.to_dict() else config


def _without_defaults(model: Mapping[str, Any], fields: Mapping[str, ranges.Field]) -> dict[str, Any]:
    """Return config.model with None for the defaults of fields that the weights decide: their folder knows these."""
    kept = {*fitting.FREE, "init_std", "remat", "plain"}
    defaults = {name.removeprefix("model."): field.default for name, field in fields.items()}
    return {
        name: None if name not in kept and name in defaults and value == defaults[name] else value
        for name, value in model.items()
    }


def total_steps(config: Config, plan: BatchPlan) -> int:
    """Return the steps of the run: `config.steps`, or those of `config.epochs` over the training examples."""
    steps = config.steps or plan.steps(config.epochs)
    if steps > 2e9:
        raise ConfigError(f"config.epochs={config.epochs:g} are {steps:.3g} steps, more than 2e9")
    return steps
