"""The evaluations of a run: of its splits, and of other data by `config.evals`, each when it is due."""

import pathlib
from typing import Any, NamedTuple

from jtasks import variants
from jtasks.config import Config
from jtasks.data import pipeline
from jtasks.distributed import processes
from jtasks.errors import ConfigError, DataError
from jtasks.run import identity
from jtasks.run.job import Job, make_files


class Evaluation(NamedTuple):
    """One evaluation of a run: its job, its examples and its interval.

    Attributes:
      job: the task with the config of this evaluation.
      examples: the examples to evaluate.
      every: steps from one evaluation to the next; 0: only at the end.
    """

    job: Job
    examples: pipeline.Examples
    every: int


def of_splits(job: Job, splits: dict[str, Any]) -> dict[str, Evaluation]:
    """Return the evaluations of `valid`, by config.eval_every, and of `test`, at the end, if the splits exist."""
    every = {"valid": job.config.eval_every, "test": 0}
    return {split: Evaluation(job, splits[split], every[split]) for split in every if splits.get(split) is not None}


def of_config(job: Job, workdir: pathlib.Path) -> dict[str, Evaluation]:
    """Return the evaluations of config.evals by name.

    Args:
      job: the job of the run.
      workdir: the run's folder, whose tokenizer and class names these evaluations use.

    Raises:
      DataError: the task has no such split of the data, or it is empty.
    """
    return {name: of_name(job, name, workdir) for name in job.config.evals}


def of_name(job: Job, name: str, workdir: pathlib.Path) -> Evaluation:
    """Return one of config.evals by its name.

    Raises:
      ConfigError: there is no such evaluation.
      DataError: the task has no such split of the data, or it is empty.
    """
    config = job.config
    if name not in config.evals:
        there = ", ".join(config.evals) or "none: give config.evals = dict(NAME=dict(data=dict(...)))"
        raise ConfigError(f"--eval={name} is not among config.evals, which has {there}")
    chosen = config.evals[name]
    own_job = job._replace(config=identity.with_own_assets(variants.with_data(config, chosen.data), workdir))
    processes.on_first_process(lambda: make_files(own_job.config, own_job.task))
    try:
        examples = own_job.examples(chosen.split)
    except (ConfigError, DataError) as error:
        error.add_note(f"while config.evals.{name} read its {chosen.split} split")
        raise
    if examples is None:
        raise DataError(f"config.evals.{name}: the task has no {chosen.split} split of this data")
    return Evaluation(own_job, examples, chosen.every or config.eval_every)


def due(evaluations: dict[str, Evaluation], step: int, *, last: bool) -> list[str]:
    """Return the names of the evaluations that are due after `step`, all of them after the last one."""
    return [name for name, each in evaluations.items() if last or (each.every and step % each.every == 0)]


def best_metrics(config: Config) -> dict[str, str]:
    """Return the metrics whose best checkpoint is kept, such as {"valid/loss": "min"}, with their modes."""
    own_best = {f"{name}/{each.best}": each.best_mode for name, each in config.evals.items() if each.best}
    return ({config.best: config.best_mode} if config.best else {}) | own_best


def watched_metrics(config: Config) -> set[str]:
    """Return the metrics that decide something on the way, such as "valid/loss": checkpoint, end, learning rate."""
    return {*best_metrics(config), config.stop.metric, config.plateau.metric} - {""}


def watched_of(config: Config, name: str) -> set[str]:
    """Return the watched metrics of one evaluation, such as "loss"."""
    return {metric for of, _, metric in (each.partition("/") for each in watched_metrics(config)) if of == name}
