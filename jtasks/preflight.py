"""Try on a fresh run, before step 1, what would otherwise fail at its first evaluation or at its end."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jtasks import evaluate, predict, processes
from jtasks.data import pipeline
from jtasks.errors import ConfigError, DataError
from jtasks.job import Job
from jtasks.log import warn
from jtasks.testing.result import Fault, explained

# What a mistake in a function raises, whatever the numbers are that it is given.
MISTAKES = (AttributeError, ConfigError, DataError, ImportError, NameError, NotImplementedError, TypeError)

Batch = dict[str, Any]


def check(job: Job, splits: Mapping[str, pipeline.Examples | None], batch: Batch, params: Any) -> None:
    """Call each function of the task once on a batch of each split: abstractly, those of the host on zeros.

    Args:
      job: of the run.
      splits: the examples of each split, None where there is none.
      batch: the first of training.
      params: the parameters' shapes.

    Raises:
      ConfigError: a function does not return what the contract says, or config.best names no metric.
      Exception: whatever a function of the task raised.
    """
    with _as_config_error():
        _check_loss(job, batch, params)
        names = {s: _evaluated(job, s, x, batch, params) for s, x in splits.items() if s != "train" and x is not None}
    check_best(job.config.best, names)


def check_params(params: Any) -> None:
    """Raise ConfigError where what init returned is not arrays alone, each with a path of its own."""
    from jtasks.testing import contract

    with _as_config_error():
        contract.check_params(params)


@contextlib.contextmanager
def _as_config_error() -> Iterator[None]:
    try:
        yield
    except Fault as fault:
        raise ConfigError(f"{fault.detail}\n-> {fault.hint}") from fault


def check_best(best: str, names: Mapping[str, set[str]]) -> None:
    """Refuse a config.best that is no metric of its split, and warn where the split is absent.

    Args:
      best: as in the config.
      names: the metrics of each split that is there.
    """
    split, _, metric = best.removeprefix("-").partition("/")
    if best and split not in names:
        warn(f"config.best={best}, but there is no {split} split: the newest checkpoints are kept")
    elif best and metric not in names[split]:
        there = ", ".join(f"{split}/{name}" for name in sorted(names[split]))
        raise ConfigError(f"config.best={best}: expected one of {there}")


def _check_loss(job: Job, batch: Batch, params: Any) -> None:
    from jtasks.testing import contract
    from jtasks.testing.subject import Subject

    subject = Subject(job, {}, params, {})
    subject.__dict__["batch"] = batch
    contract.check_loss(subject)


def _evaluated(job: Job, split: str, examples: pipeline.Examples, train: Batch, params: Any) -> set[str]:
    """Check one split, and return the names of its metrics."""
    batch = job.batch_at(examples, job.plan(examples, shuffle=False), 0)
    try:
        metrics = jax.eval_shape(lambda p, b: evaluate.sums_of(job, p, b), params, batch)
        names = {"loss", *metrics}
        if hasattr(job.task, "predict_fn"):
            scores = _check_predictions(job, split, examples, batch, params)
            if taken := sorted(names & scores):
                raise Fault(f"score_fn and eval_fn both return {taken[0]!r}", "give the score another name")
            names |= scores
    except Exception as error:
        if told := _unlike(train, batch):
            error.add_note(f"the {split} split: {told}; give every split the entries, types and shapes of train")
        raise
    return names


def _unlike(train: Batch, batch: Batch) -> str:
    kinds = [{k: f"{x.dtype}{list(x.shape[1:])}" for k, x in each.items()} for each in (train, batch)]
    pairs = {k: (kinds[0].get(k, "absent"), kinds[1].get(k, "absent")) for k in kinds[0] | kinds[1]}
    return ", ".join(f"{k!r} is {b}, in train {a}" for k, (a, b) in pairs.items() if a != b)


def _check_predictions(job: Job, split: str, examples: pipeline.Examples, batch: Batch, params: Any) -> set[str]:
    """Check predict_fn, score_fn and show_fn, and return the names of the scores."""
    rng = jax.random.key(job.config.seed)
    try:
        outputs = jax.eval_shape(lambda p, b: job.task.predict_fn(p, b, rng, job.config), params, batch)
    except TypeError as error:
        if "not a valid JAX type" not in str(error):
            raise
        raise Fault("predict_fn returned something else than arrays", "return a dict of arrays [b, ...]") from error
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
        _try(job, "score_fn", split, lambda: scores.update(evaluate.scored(job, first, zeros)))
    return set(scores)


def _try(job: Job, name: str, split: str, call: Any) -> None:
    """Call a function of the host on made outputs, on which it may fail although it is right on real ones."""
    try:
        call()
    except Exception as error:
        misnamed = isinstance(error, KeyError) and error.args and isinstance(error.args[0], str)
        if misnamed or isinstance(error, MISTAKES):
            raise
        warn(f"{name} fails on outputs of zeros for examples of {split}: {explained(error, job.task)}")


def _show(shown: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        predict.write_shown(predict.checked_shown(shown), pathlib.Path(folder), "preflight")
