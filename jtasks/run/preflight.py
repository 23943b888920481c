"""Checks of a fresh run before step 1, for errors that would otherwise appear at its first evaluation or its end."""

import contextlib
import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jtasks.config import Config
from jtasks.console import warn
from jtasks.data import mixture, pipeline
from jtasks.distributed import processes, sharding
from jtasks.errors import ConfigError, DataError
from jtasks.faults import Fault, explain
from jtasks.run import evaluate, evaluations, predict, results, returned_loss
from jtasks.run.evaluations import Evaluation
from jtasks.run.job import Job

# Errors that a mistake in a function raises, whatever numbers the function gets.
MISTAKES = (AttributeError, ConfigError, DataError, ImportError, NameError, NotImplementedError, TypeError)

Batch = dict[str, Any]


def check(
    job: Job,
    splits: Mapping[str, pipeline.Examples | None],
    batch: Batch,
    params: Any,
    programs: evaluate.Programs,
    evals: Mapping[str, Evaluation] | None = None,
) -> bool:
    """Call each function of the task once per split: traced on a batch, or on the host on zeros.

    Args:
      job: the run's job.
      splits: the examples of each split, None if there is none.
      batch: the first training batch.
      params: the parameters' shapes.
      programs: those of the evaluations, which the run compiles later from the traces made here.
      evals: the evaluations of config.evals.

    Returns:
      See `check_loss`.

    Raises:
      ConfigError: a result breaks the contract, or a field that names a metric names none.
      Exception: any error of the task's functions.
    """
    with _as_config_error():
        sure = check_loss(job.task, job.config, params, batch)
        placed = sharding.with_shardings(params, job.shardings(params, params))  # as the run calls the programs
        checked = {s: (job, x) for s, x in splits.items() if s != "train" and x is not None}
        checked |= {name: (each.job, each.examples) for name, each in (evals or {}).items()}
        names = {name: _check_split(own, name, x, batch, placed, programs) for name, (own, x) in checked.items()}
    for metric in evaluations.best_metrics(job.config):
        split, _, own = metric.partition("/")
        field = "config.best" if metric == job.config.best else f"config.evals.{split}.best"
        check_best(metric, names, f"{field}={metric if metric == job.config.best else own}")
    check_watched(job.config, names)
    return sure


def check_params(params: Any) -> None:
    """Raise ConfigError unless init returned only arrays, each with a path of its own."""
    with _as_config_error():
        results.require_arrays(params)


@contextlib.contextmanager
def _as_config_error() -> Iterator[None]:
    try:
        yield
    except Fault as fault:
        raise ConfigError(f"{fault.detail}\n-> {fault.hint}") from fault


def check_best(best: str, names: Mapping[str, set[str]], given: str) -> None:
    """Refuse a config.best that is not a metric of its split, and warn if the split is absent.

    Args:
      best: as in config.best.
      names: the metrics of each split that exists.
      given: field and value, for messages.
    """
    split, _, metric = best.partition("/")
    if best and split not in names:
        warn(f"{given}, but there is no {split} split: the newest checkpoints are kept")
    elif best and metric not in names[split]:
        there = ", ".join(f"{split}/{name}" for name in sorted(names[split]))
        raise ConfigError(f"{given}: expected one of {there}")


def check_watched(config: Config, names: Mapping[str, set[str]]) -> None:
    """Raise ConfigError if config.stop or config.plateau watches what no evaluation measures on the way.

    Args:
      config: the config.
      names: the metrics of each evaluation, without scores.
    """
    for group in ("stop", "plateau"):
        of, _, metric = config[group].metric.partition("/")
        if of and metric not in names.get(of, ()):
            there = [f"{name}/{own}" for name in names if name != "test" for own in sorted(names[name])]
            raise ConfigError(f"config.{group}.metric={of}/{metric}: expected one of {', '.join(there)}")


def check_loss(task: ModuleType, config: Config, params: Any, batch: Any) -> bool:
    """Trace the loss once; raise a Fault if its result breaks the contract.

    Returns:
      Whether the loss is the sum of its terms for sure; else `returned_loss.compare` can tell.
    """
    rng, sure = jax.random.key(0), True
    if hasattr(task, "loss_fn"):
        loss = lambda p, b, rng: task.loss_fn(p, b, rng, config)  # noqa: E731
        result, jaxpr = _trace(task, "loss_fn", params, batch, loss, rng)
        results.check_loss_result("loss_fn", result)
        sure = returned_loss.is_sum(jaxpr)
    if hasattr(task, "batch_loss_fn"):
        embed = lambda p, b, rng: task.embed_fn(p, b, rng, config)  # noqa: E731
        traced, _ = _trace(task, "embed_fn", params, batch, embed, rng)
        results.check_embeddings(traced, len(next(iter(batch.values()))))
        embeddings = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), traced)
        loss = lambda p, b, embeddings: task.batch_loss_fn(p, embeddings, b, config)  # noqa: E731
        result, jaxpr = _trace(task, "batch_loss_fn", params, batch, loss, embeddings)
        results.check_loss_result("batch_loss_fn", result)
        sure = returned_loss.is_sum(jaxpr)
    return sure


def _trace(
    task: ModuleType, name: str, params: Any, batch: Any, function: Callable[[Any, Any, Any], Any], argument: Any
) -> tuple[Any, Any]:
    """Return what a function of the task returns when traced, and the jaxpr with `returned_loss.outputs` first.

    Raises:
      Fault: the function changes or keeps what it gets.
    """
    returned: list[Any] = []

    def traced(params: Any, batch: Any, argument: Any) -> Any:
        mine = jax.tree.map(lambda x: x, params), dict(batch)
        returned.append(function(*mine, argument))
        results.require_unchanged(name, (params, batch), mine)
        leaves = [leaf for leaf in jax.tree.leaves(returned[-1]) if hasattr(leaf, "dtype")]
        return [*returned_loss.outputs(returned[-1]), *leaves]

    jaxpr = jax.make_jaxpr(traced)(params, batch, argument)
    results.require_no_leak(task, name)
    return returned[0], jaxpr


def _check_split(
    job: Job, split: str, examples: pipeline.Examples, train: Batch, params: Any, programs: evaluate.Programs
) -> set[str]:
    """Check one split, and return the names of its metrics."""
    batch = job.batch_at(examples, job.plan(examples, shuffle=False), 0)
    try:
        metrics = programs.metrics(job).shapes(params, batch)
        for name in metrics:
            results.check_metric_name(name, "eval_fn")
        names = {"loss", *metrics}
        names |= {f"{source}/{name}" for source in mixture.parts(examples) for name in names}
        if hasattr(job.task, "predict_fn"):
            scores = _check_predictions(job, split, examples, batch, params, programs)
            if taken := sorted(names & scores):
                raise Fault(f"score_fn and eval_fn both return {taken[0]!r}", "give the score another name")
            for name in scores:
                results.check_metric_name(name, "score_fn")
            names |= scores
    except Exception as error:
        if difference := _differences(train, batch):
            error.add_note(f"the {split} split: {difference}; give every split the entries, types and shapes of train")
        raise
    return names


def _differences(train: Batch, batch: Batch) -> str:
    kinds = [{k: f"{x.dtype}{list(x.shape[1:])}" for k, x in each.items()} for each in (train, batch)]
    pairs = {k: (kinds[0].get(k, "absent"), kinds[1].get(k, "absent")) for k in kinds[0] | kinds[1]}
    return ", ".join(f"{k!r} is {b}, in train {a}" for k, (a, b) in pairs.items() if a != b)


def _check_predictions(
    job: Job, split: str, examples: pipeline.Examples, batch: Batch, params: Any, programs: evaluate.Programs
) -> set[str]:
    """Check predict_fn, score_fn and show_fn, and return the names of the scores."""
    try:
        outputs = programs.predictions(job).shapes(params, batch)
    except TypeError as error:
        if "not a valid JAX type" not in str(error):
            raise
        raise Fault("predict_fn returned something other than arrays", "return a dict of arrays [b, ...]") from error
    rows = len(next(iter(batch.values())))
    wrong = [x.shape for x in jax.tree.leaves(outputs) if x.shape[:1] != (rows,)]
    if wrong or not jax.tree.leaves(outputs):
        raise Fault(
            f"predict_fn of {rows} examples returned {f'an output of shape {list(wrong[0])}' if wrong else 'nothing'}",
            "return outputs, such as a dict of arrays, each with one row an example: [b, ...]",
        )
    if not processes.first():
        return set()
    count = min(max(job.config.show_count, 1), rows, pipeline.size(examples))
    zeros = [jax.tree.map(lambda x: np.zeros(x.shape[1:], x.dtype), outputs) for _ in range(count)]
    first = predict.rows(examples)[:count]
    if job.config.show_count and hasattr(job.task, "show_fn"):
        _try(job, "show_fn", split, lambda: _show(job.task.show_fn(first, zeros, job.config)))
    scores: dict[str, float] = {}
    if evaluate.wants_scores(job):
        _try(job, "score_fn", split, lambda: scores.update(evaluate.compute_scores(job, first, zeros)))
        if hasattr(job.task, "rescore_fn"):
            again = functools.partial(_pair_zeros, job, params)
            _try(
                job,
                "rescore_fn",
                split,
                lambda: scores.update(evaluate.compute_rescores(job, first, zeros, again)),
            )
    return set(scores)


def _pair_zeros(job: Job, params: Any, pairs: pipeline.Examples) -> list[Any]:
    """Trace pair_fn on the first of the examples that rescore_fn made; return outputs of zeros for all."""
    plan = job.plan(pairs, shuffle=False)
    batch, rng = pipeline.batch_at(pairs, plan, 0, job.collate), jax.random.key(job.config.seed)
    outputs = jax.eval_shape(lambda p, b: job.task.pair_fn(p, b, rng, job.config), params, batch)
    return [jax.tree.map(lambda x: np.zeros(x.shape[1:], x.dtype), outputs)] * pipeline.size(pairs)


def _try(job: Job, name: str, split: str, call: Any) -> None:
    """Call a host function on outputs of zeros; a failure there may be legitimate, so it only warns."""
    try:
        call()
    except Exception as error:
        misnamed = isinstance(error, KeyError) and error.args and isinstance(error.args[0], str)
        if misnamed or isinstance(error, MISTAKES):
            raise
        warn(f"{name} fails on outputs of zeros for examples of {split}: {explain(error, job.task)}")


def _show(shown: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        predict.write_shown(predict.check_shown(shown), pathlib.Path(folder), "preflight")
