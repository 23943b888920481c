"""The one door to a run: every mode that reads the folder of a run opens it here."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jtasks import console
from jtasks.config import Config, freeze
from jtasks.data import fingerprint, pipeline
from jtasks.distributed import processes, sharding
from jtasks.errors import CheckpointError, ConfigError
from jtasks.run import adapter, checkpoint, checkpoint_files, identity, records, workdir
from jtasks.run.job import Job, load_task, prepare

# Evaluation is exact for any batch size, so a smaller machine may evaluate a run of a larger one.
BATCHES = ("config.batch_size", "config.batch_tokens")
BEST_OF = "best:"  # before the name of one of config.evals


class SavedRun(NamedTuple):
    """One checkpoint of a run, with the job that made it."""

    job: Job
    workdir: pathlib.Path
    step: int

    def examples(self, split: str) -> pipeline.Examples | None:
        """Return the examples of a split, None if there are none; raise ConfigError if they changed since the run."""
        examples = self.job.examples(split)
        if examples is not None:
            self.compare(split, examples)
        return examples

    def compare(self, split: str, examples: pipeline.Examples) -> None:
        """Raise ConfigError if the examples of a split, or of one of config.evals, changed since the run."""
        allow = self.job.config.data.allow_changes
        processes.on_first_process(
            lambda: identity.compare_data({split: fingerprint.of(examples)}, self.workdir, allow=allow)
        )

    def require(self, split: str) -> pipeline.Examples:
        """Return the examples of a split; raise DataError if there are none."""
        return self.job.require(split) if (examples := self.examples(split)) is None else examples

    def params(self) -> Any:
        """Restore the parameters, or their moving average if config.ema is set.

        Raises:
          CheckpointError: the parameters do not fit the config.
        """
        return adapter.full(self.job.config, *self.trained())

    def trained(self) -> tuple[Any, Any]:
        """Restore what the run trains, and read the base below its adapter, None without config.adapter.

        Raises:
          CheckpointError, ConfigError: see `params`, and `adapter.load_base`.
        """
        job = self.job
        batch = self.entries(sharding.num_batch_shards(job.mesh))
        shapes, heads = adapter.shapes_of(lambda b: job.task.init(jax.random.key(0), b, job.config), batch)
        like, base = sharding.with_shardings(shapes, job.shardings(shapes, shapes)), None
        if job.config.adapter.kind:
            like, base = adapter.restored(job, shapes, heads, self.workdir)
        name = "ema_params" if job.config.ema else "params"
        folder = self.workdir / "checkpoints" / str(self.step)
        return checkpoint.restore(folder, {name: like}, only=f"{name}/")[name], base

    def entries(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the entries of a batch with this number of rows."""
        return identity.stored_batch(self.workdir, rows)


def open_run(config: Config, folder: pathlib.Path, which: str = "newest") -> SavedRun:
    """Open one checkpoint of the run in `folder` for reading.

    Args:
      config: the run's own, except for fields that do not identify a run.
      folder: the run's workdir.
      which: "newest" (undamaged one), "best" by config.best, "best:NAME" by config.evals.NAME.best, or a step.

    Raises:
      ConfigError: config or assets are not the run's, or `which` is none of these.
      CheckpointError: the checkpoint does not exist or is damaged.
    """
    _check_choice(which)
    config = freeze(config)
    job = prepare_and_compare(config, folder, free=BATCHES)
    step = processes.broadcast_from_first(lambda: _choose(config, folder, which))
    return SavedRun(job, folder, step)


def open_alone(
    config: Config, folder: pathlib.Path, which: str = "newest", tell: Callable[[str], None] = console.say
) -> SavedRun:
    """Open one checkpoint of a run without any of its data: the folder holds all that the parameters need.

    Args:
      config: equal to the run's config.json, except for fields that do not identify a run.
      folder, which: see `open_run`.
      tell: prints what differs from config.json.

    Raises:
      ConfigError, CheckpointError: see `open_run`.
    """
    _check_choice(which)
    config = freeze(config)

    def compare() -> int:
        workdir.require_files(folder)
        identity.compare_config(config, folder, free=BATCHES, tell=tell)
        return _choose(config, folder, which)

    step = processes.broadcast_from_first(compare)
    job = Job(load_task(config), identity.with_own_assets(config, folder), sharding.make_mesh(config.mesh))
    return SavedRun(job, folder, step)


def prepare_and_compare(config: Config, folder: pathlib.Path, free: tuple[str, ...] = ()) -> Job:
    """Return the job of a config, compared with the run in `folder`, if there is one; `free` fields may differ."""
    processes.on_first_process(lambda: workdir.require_files(folder))
    job = prepare(identity.own_names(config, folder), pretrained=not (folder / "config.json").exists())

    def compare() -> None:
        missing = [name for name in ("config.json", workdir.FILES) if not (folder / name).exists()]
        if missing and checkpoint_files.saved_steps(folder / "checkpoints"):
            console.warn(f"{folder} has no {' and no '.join(missing)}: whether this is the run's config is unknown")
        identity.compare_config(job.config, folder, free=(*free, "config.check.step"))
        identity.compare_assets(job.assets(), folder)

    processes.on_first_process(compare)
    return job


def _check_choice(which: str) -> None:
    if which not in ("newest", "best") and not which.startswith(BEST_OF) and not (which.isascii() and which.isdigit()):
        raise ConfigError(f"--checkpoint={which}: expected newest, best, best:NAME, or the step of a checkpoint")


def _choose(config: Config, folder: pathlib.Path, which: str) -> int:
    """Return the step of the requested checkpoint, after reading it once to verify its checksums."""
    checkpoints = folder / "checkpoints"
    if which.isdigit():
        return checkpoint_files.require(checkpoints, int(which))
    if which == "best" or which.startswith(BEST_OF):
        return checkpoint_files.require(checkpoints, _best_step(config, folder, which.removeprefix(BEST_OF)))
    step = checkpoint_files.newest(checkpoints, console.warn)
    if step is None:
        raise CheckpointError(f"no checkpoint in {checkpoints}: train first, with the same --config and --workdir")
    return step


def _best_step(config: Config, folder: pathlib.Path, of: str) -> int:
    """Return the step of the best checkpoint by config.best, or `of` one of config.evals by its own."""
    metric, mode = config.best, config.best_mode
    if of != "best":
        each = config.evals.get(of, {})
        if not each.get("best"):
            raise ConfigError(f"--checkpoint=best:{of} needs config.evals.{of}.best, such as loss")
        metric, mode = f"{of}/{each.best}", each.best_mode
    if not metric:
        raise ConfigError("--checkpoint=best needs config.best, such as --config.best=valid/loss")
    steps = checkpoint_files.saved_steps(folder / "checkpoints")
    measured = records.Records(folder / "metrics.jsonl")
    measured.load(warn=console.warn)
    values = records.watched(folder, metric) | measured.values(metric)
    step = checkpoint_files.best({step: values[step] for step in steps if step in values}, mode)
    if step is None:
        raise CheckpointError(
            f"{folder / 'metrics.jsonl'} has no finite {metric} of a checkpoint that is kept"
            f" ({', '.join(map(str, steps)) or 'none'}): give --checkpoint=STEP"
        )
    return step
