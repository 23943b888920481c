"""Exact evaluation: sums and counts over every example once, padding masked out."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jtasks import metrics
from jtasks.config import Config
from jtasks.data import pipeline
from jtasks.distributed import processes, sharding
from jtasks.errors import ConfigError
from jtasks.ranges import shown
from jtasks.run import predict
from jtasks.run.compile import Compiled
from jtasks.run.job import Job
from jtasks.run.restore import SavedRun, open_run
from jtasks.task import eval_fn

Evaluate = Callable[[Any, pipeline.Examples], dict[str, float]]

# Maximum number of batches whose sums wait on the device; bounds the work dispatched ahead.
AHEAD = 16


def make(job: Job, poll: Callable[[], None] = lambda: None) -> Evaluate:
    """Return a function (params, examples) -> metrics that compiles once; between batches it calls `poll`."""
    replicated = sharding.replicated(job.mesh)

    step = Compiled(jax.jit(job.on_mesh(functools.partial(sums_of, job)), out_shardings=replicated))

    def evaluate(params: Any, examples: pipeline.Examples) -> dict[str, float]:
        plan = job.plan(examples, shuffle=False)
        steps = range(plan.steps(1))
        sums: dict[str, metrics.Mean] = {}
        pending: list[Any] = []
        for batch in job.batches(examples, plan, steps, poll):
            poll()
            pending.append(step(params, batch))
            if len(pending) == AHEAD:
                sums = metrics.summed([sums, *jax.device_get(pending)])
                pending.clear()
        sums = metrics.summed([sums, *jax.device_get(pending)])
        return metrics.values(sums)

    return evaluate


def sums_of(job: Job, params: Any, batch: dict[str, jax.Array]) -> dict[str, metrics.Mean]:
    """Return the metrics of one batch, as sums and counts."""
    return metrics.checked(eval_fn(job.task)(params, batch, job.config), "eval_fn")


def wants_scores(job: Job) -> bool:
    """Return whether to evaluate predictions too, which may take much longer than eval_fn."""
    return hasattr(job.task, "score_fn") and job.config.report_metric


def scores(job: Job, predictor: predict.Predict, params: Any, examples: pipeline.Examples) -> dict[str, float]:
    """Return the scores of the task's predictions over a whole split; {} without score_fn or report_metric.

    The first process computes the scores and sends them to all.
    """
    if not wants_scores(job):
        return {}
    outputs = predictor(params, examples)
    return processes.broadcast_from_first(lambda: scored(job, predict.rows(examples), outputs))


def scored(job: Job, examples: Sequence[Any], outputs: Sequence[Any]) -> dict[str, float]:
    """Return the result of score_fn; raise ConfigError if it is not {name: number}."""
    scores = job.task.score_fn(examples, outputs, job.config)
    if not isinstance(scores, Mapping) or not all(isinstance(name, str) and name.isprintable() for name in scores):
        raise ConfigError(f"score_fn must return {{name: number}}, not {shown(scores)}")
    for name, value in scores.items():
        if np.ndim(value) or np.asarray(value).dtype.kind not in "biuf":
            raise ConfigError(f"score_fn must return a number as {name!r}, not {shown(value)}")
    return {name: float(value) for name, value in scores.items()}


def run(config: Config, workdir: pathlib.Path, split: str, which: str = "newest") -> dict[str, float]:
    """Evaluate a checkpoint (see `open_run`) of a workdir on one split; keys are `split/metric`."""
    run = open_run(config, workdir, which)
    return of_run(run, split, run.params)


def of_run(run: SavedRun, split: str, restore: Callable[[], Any]) -> dict[str, float]:
    """Evaluate an open checkpoint, whose parameters `restore` returns, on one split; keys are `split/metric`."""
    job, examples, params = run.job, run.required(split), restore()
    values = make(job)(params, examples)
    if wants_scores(job):
        values |= scores(job, predict.make(job), params, examples)
    return {"step": run.step, **{f"{split}/{name}": value for name, value in values.items()}}
