"""Exact evaluation: sums and counts over every example once, padding masked out."""

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jtasks import metrics
from jtasks.config import Config
from jtasks.console import warn
from jtasks.data import mixture, pipeline
from jtasks.data.lazy import Lazy
from jtasks.distributed import processes, sharding
from jtasks.errors import ConfigError
from jtasks.ranges import format_value
from jtasks.run import display, evaluations, nonfinite, predict, records
from jtasks.run.activity import Watch, watch_nothing
from jtasks.run.compile import Compiled
from jtasks.run.job import Job
from jtasks.run.restore import SavedRun, open_run
from jtasks.task import eval_fn

Evaluate = Callable[[Any, pipeline.Examples, str], dict[str, float]]  # parameters, examples and their name

# Maximum number of batches whose sums wait on the device; bounds the work dispatched ahead.
AHEAD = 16


def program(job: Job, watch: Watch = watch_nothing) -> Compiled:
    """Return the metrics of one batch as a function (params, batch) -> sums, compiled for each shape.

    `watch` shows that it compiles.
    """
    function = jax.jit(
        job.on_mesh(functools.partial(sums_of, job)), out_shardings=sharding.replicated_sharding(job.mesh)
    )
    return Compiled(function, lambda: watch("compiling the evaluation", None))


def make(
    job: Job,
    poll: Callable[[], None] = lambda: None,
    watch: Watch = watch_nothing,
    step: Compiled | None = None,
    report: Callable[[str], None] = warn,
) -> Evaluate:
    """Return a function (params, examples, name) -> metrics that compiles once.

    For a mixture, these are the metrics of all examples and, as `SOURCE/METRIC`, of each source.

    Between batches the function calls `poll`; `watch` shows its progress under the name. `step` is the job's
    `program`, by default a new one. `report` gets a text that names the metrics that are not finite, and the first
    example with such a value.
    """
    step = program(job, watch) if step is None else step

    def evaluate(params: Any, examples: pipeline.Examples, name: str = "evaluation") -> dict[str, float]:
        parts = mixture.parts(examples)
        if not parts:
            return metrics.values(add_up(params, examples, name))
        own = {source: add_up(params, part, f"{name} {source}") for source, part in parts.items()}
        split = {f"{source}/{metric}": v for source in own for metric, v in metrics.values(own[source]).items()}
        return metrics.values(metrics.merge(own.values())) | split

    def add_up(params: Any, examples: pipeline.Examples, name: str) -> dict[str, metrics.Mean]:
        plan = job.plan(examples, shuffle=False)
        steps = range(plan.steps(1))

        def measured() -> Iterator[dict[str, metrics.Mean]]:
            pending: list[Any] = []
            with watch(name, len(steps)) as update:
                for at, batch in enumerate(job.batches(examples, plan, steps, poll)):
                    poll()
                    update(at)
                    pending.append(step(params, batch))
                    if len(pending) == AHEAD:
                        yield from jax.device_get(pending)
                        pending.clear()
                yield from jax.device_get(pending)

        sums: dict[str, metrics.Mean] = {}
        bad: int | None = None
        for at, batch_sums in enumerate(measured()):
            bad = at if bad is None and nonfinite.names(batch_sums) else bad
            sums = metrics.merge([sums, batch_sums])
        if not any(term.count for term in metrics.terms(sums).values()):
            report(f"{name}: no example has a value of the loss: all of its counts are 0, so it is nan")
        if bad is not None:
            measure, batch = functools.partial(step, params), job.batch_at(examples, plan, bad)
            report(f"{name}: {nonfinite.describe(sums, measure, examples, plan, bad, batch)}")
        return sums

    return evaluate


def sums_of(job: Job, params: Any, batch: dict[str, jax.Array]) -> dict[str, metrics.Mean]:
    """Return the metrics of one batch, as sums and counts."""
    return metrics.check(eval_fn(job.task)(params, batch, job.config), "eval_fn")


class Programs(NamedTuple):
    """The programs of a run's evaluations, one of each kind for a job, whoever asks: traced once for a shape."""

    metrics: Callable[[Job], Compiled]
    predictions: Callable[[Job], Compiled]


def programs(watch: Watch = watch_nothing) -> Programs:
    """Return the programs of evaluations, each made when it is first asked for."""
    return Programs(
        functools.cache(lambda job: program(job, watch)), functools.cache(lambda job: predict.program(job, watch=watch))
    )


class Predictors(NamedTuple):
    """The programs behind the scores of a task; each compiles when it first runs."""

    predict: predict.Predict
    pairs: predict.Predict  # of pair_fn, the same as `predict` for a task without rescore_fn


def predictors(
    job: Job, poll: Callable[[], None] = lambda: None, watch: Watch = watch_nothing, step: Compiled | None = None
) -> Predictors:
    """Return the programs of a task that has a predict_fn; see `predict.make`."""
    first = predict.make(job, poll, watch, step=step)
    again = predict.make(job, poll, watch, function="pair_fn") if hasattr(job.task, "rescore_fn") else first
    return Predictors(first, again)


def wants_scores(job: Job) -> bool:
    """Return whether to evaluate predictions too, which may take much longer than eval_fn."""
    return hasattr(job.task, "score_fn") and job.config.report_metric


def limit_examples(job: Job, examples: pipeline.Examples) -> tuple[pipeline.Examples, dict[str, float]]:
    """Return the examples of the first `config.eval_batches` batches, and their number as a metric.

    For a mixture, these are the first batches of each source. With batches by length, these are the first examples too,
    the same fraction of the examples as of the batches.

    Returns:
      The examples, and {"evaluated_examples": number of them, "split_examples": number of all}; {} if these are all.
    """
    limit, n = job.config.eval_batches, pipeline.size(examples)
    if limit and (parts := mixture.parts(examples)):
        some: Any = mixture.join({source: limit_examples(job, part)[0] for source, part in parts.items()})
        first = pipeline.size(some)
        return (some, {records.EVALUATED: first, records.OF: n}) if first < n else (examples, {})
    plan = job.plan(examples, shuffle=False) if limit else None
    if plan is None or limit >= plan.steps(1):
        return examples, {}
    first = -(-n * limit // plan.steps(1)) if plan.varies else limit * plan.batch_size
    marks: dict[str, float] = {records.EVALUATED: first, records.OF: n}
    if isinstance(examples, Mapping):
        return {name: array[:first] for name, array in examples.items()}, marks
    return Lazy(range(first), functools.partial(pipeline.example, examples)), marks


def scores(
    job: Job,
    predictors: Predictors,
    params: Any,
    examples: pipeline.Examples,
    name: str = "predictions",
    watch: Watch = watch_nothing,
) -> dict[str, float]:
    """Return the scores of the task's predictions over a whole split; {} without score_fn or report_metric.

    The first process calls score_fn and sends the scores to all. All processes call rescore_fn, which runs a program on
    all devices.
    """
    if not wants_scores(job):
        return {}
    outputs = predictors.predict(params, examples, name)
    with watch(f"scoring {name}", None):
        of_first = processes.broadcast_from_first(
            lambda: _with_sources(functools.partial(compute_scores, job), examples, outputs)
        )
    if not hasattr(job.task, "rescore_fn"):
        return of_first

    def again(rows: Sequence[Any], outputs: Sequence[Any]) -> dict[str, float]:
        return compute_rescores(job, rows, outputs, lambda pairs: predictors.pairs(params, pairs, f"pairs of {name}"))

    more = _with_sources(again, examples, outputs)
    return of_first | processes.broadcast_from_first(lambda: more)


def _with_sources(
    score: Callable[[Sequence[Any], Sequence[Any]], dict[str, float]],
    examples: pipeline.Examples,
    outputs: Sequence[Any],
) -> dict[str, float]:
    """Return the scores of all examples, and of those of each source of a mixture."""
    rows, start = predict.rows(examples), 0
    values = score(rows, outputs)
    for source, part in mixture.parts(examples).items():
        own = slice(start, start + pipeline.size(part))
        values |= {f"{source}/{name}": x for name, x in score(rows[own], outputs[own]).items()}
        start = own.stop
    return values


def compute_scores(job: Job, examples: Sequence[Any], outputs: Sequence[Any]) -> dict[str, float]:
    """Return the result of score_fn; raise ConfigError if it is not {name: number}."""
    return _require_numbers(job.task.score_fn(examples, outputs, job.config), "score_fn")


def compute_rescores(
    job: Job, examples: Sequence[Any], outputs: Sequence[Any], pairs: Callable[[Sequence[Any]], Sequence[Any]]
) -> dict[str, float]:
    """Return the result of rescore_fn, whose argument `predict` is `pairs`; raise ConfigError as `compute_scores`."""
    return _require_numbers(job.task.rescore_fn(examples, outputs, pairs, job.config), "rescore_fn")


def _require_numbers(scores: Any, function: str) -> dict[str, float]:
    if not isinstance(scores, Mapping) or not all(isinstance(name, str) and name.isprintable() for name in scores):
        raise ConfigError(f"{function} must return {{name: number}}, not {format_value(scores)}")
    for name, value in scores.items():
        if np.ndim(value) or np.asarray(value).dtype.kind not in "biuf":
            raise ConfigError(f"{function} must return a number as {name!r}, not {format_value(value)}")
    return {name: float(value) for name, value in scores.items()}


def run(
    config: Config, workdir: pathlib.Path, split: str, which: str = "newest", *, named: str = ""
) -> dict[str, float]:
    """Evaluate a checkpoint (see `open_run`) of a workdir on one split; keys are `split/metric`.

    With `named`, the name of one of config.evals, evaluate that instead.
    """
    run = open_run(config, workdir, which)
    if named:
        each = evaluations.of_name(run.job, named, run.workdir)
        run.compare(named, each.examples)
        return {"step": run.step, **measure(each.job, each.examples, named, run.params)}
    return of_run(run, split, run.params)


def of_run(run: SavedRun, split: str, restore: Callable[[], Any]) -> dict[str, float]:
    """Evaluate an open checkpoint, whose parameters `restore` returns, on one split; keys are `split/metric`."""
    return {"step": run.step, **measure(run.job, run.require(split), split, restore)}


def measure(job: Job, examples: pipeline.Examples, name: str, restore: Callable[[], Any]) -> dict[str, float]:
    """Return metrics and scores of the parameters that `restore` returns; keys are `name/metric`."""
    values = measurer(job)(restore(), examples, name)
    return {f"{name}/{metric}": value for metric, value in values.items()}


def measurer(job: Job) -> Evaluate:
    """Return a function (params, examples, name) -> metrics and scores, of config.eval_batches, that compiles once."""
    watch = display.watcher()
    evaluate = make(job, watch=watch)
    programs = predictors(job, watch=watch) if wants_scores(job) else None

    def values(params: Any, examples: pipeline.Examples, name: str) -> dict[str, float]:
        examples, marks = limit_examples(job, examples)
        measured = evaluate(params, examples, name) | marks
        if programs is not None:
            measured |= scores(job, programs, params, examples, f"{name} predictions", watch)
        return measured

    return values
