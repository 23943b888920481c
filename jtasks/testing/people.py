"""Checks of what a task does for people: examples of their inputs, features of each example, answers to read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jtasks.data import buckets, pipeline
from jtasks.data.lazy import Lazy
from jtasks.errors import DataError
from jtasks.faults import require, some
from jtasks.run.results import kind
from jtasks.task import sequence_keys
from jtasks.testing.padding import short_rows
from jtasks.testing.result import Skip
from jtasks.testing.subject import Batch, Subject, key, pick, unequal

ROWS = 8  # rows of the dataset that serve as inputs


def features(subject: Subject) -> str:
    """Check that embed_fn gives float32 [b, d], each row the features of its own example without its padding.

    For a batch_loss_fn, features may have more axes.
    """
    task = subject.task
    if not hasattr(task, "embed_fn"):
        return "the task has no embed_fn"
    embed = jax.jit(lambda params, batch: task.embed_fn(params, batch, None, subject.config))
    params, batch, b = subject.perturbed, subject.batch, len(subject.batch["mask"])
    whole = jax.device_get(embed(params, batch))
    hint = "return {name: features}, float32 [b, d], such as the mean over an example's own tokens"
    require(isinstance(whole, Mapping) and bool(whole), f"embed_fn returned {kind(whole)}", hint)
    for name, value in whole.items():
        axes = range(2, 9) if hasattr(task, "batch_loss_fn") else (2,)
        form = getattr(value, "ndim", 0) in axes and len(value) == b and value.dtype == np.float32
        require(form, f"embed_fn's {name!r} is {kind(value)}, for {b} examples", hint)
        require(bool(np.isfinite(value).all()), f"embed_fn's {name!r} has values that are not finite", hint)
        require(bool(np.ptp(value, axis=0).any()), f"embed_fn's {name!r} is the same for all examples of a batch", hint)
    differing = unequal(whole, jax.device_get(embed(params, batch)))
    require(not differing, f"embed_fn's {some(differing)} differs when called again", "draw nothing when rng is None")
    rows = np.arange(b)
    alone = "treat each row alone: no statistics over the batch, and no mean over padding"
    for indices, how in ((np.where(rows < b // 2, rows, 0), "beside other examples"), (rows[::-1], "at another place")):
        moved = jax.device_get(embed(params, pick(batch, indices)))
        differing = unequal({name: x[indices] for name, x in whole.items()}, moved, tolerance=1e-4)
        require(not differing, f"embed_fn's {some(differing)} of an example changes {how}", alone)
    cut = _cut(subject)
    if cut is not None:
        real, shorter = cut
        short = jax.device_get(embed(params, shorter))
        differing = unequal({k: x[real] for k, x in whole.items()}, {k: x[real] for k, x in short.items()}, 1e-4)
        require(not differing, f"embed_fn's {some(differing)} of an example changes with its padding", alone)
    return ", ".join(f"{name} {list(value.shape[1:])}" for name, value in whole.items())


def inputs(subject: Subject) -> str:
    """Check that rows of the dataset are inputs that become the same examples, and that others are refused."""
    task, config = subject.task, subject.config
    if not hasattr(task, "examples"):
        return "the task has no examples"
    hint = "raise jtasks.errors.DataError that says what was given and what was expected"
    try:
        task.examples([object()], config)
        refused = "accepts object()"
    except DataError:
        refused = ""
    except Exception as error:
        refused = f"raises {type(error).__name__} for object(): {error}"
    require(not refused, f"examples(inputs, config) {refused}", hint)
    indices, _ = subject.plan.at(np.arange(ROWS))
    rows = [pipeline.read(subject.examples, int(i)) for i in indices]
    try:
        made = _rows(task.examples(rows, config), len(rows))
    except DataError as error:
        raise Skip(f"examples does not take rows of the dataset: {error}") from error
    again = _rows(task.examples(rows, config), len(rows))
    single = [_rows(task.examples([row], config), 1)[0] for row in rows]
    for i, own in enumerate(made):
        for other, how in ((again[i], "when called again"), (single[i], "when it is the only input")):
            differing = _differing(own, other)
            require(not differing, f"examples: {some(differing)} of an input changes {how}", "read each input alone")
    if any(len(own) != 1 for own in made) or not hasattr(task, "predict_fn"):
        return f"{len(rows)} rows of the dataset, {sum(map(len, made))} examples"
    _check_predictions(subject, [own[0] for own in made])
    return f"{len(rows)} rows of the dataset, with the same predictions"


def answers(subject: Subject, examples: Sequence[Any], outputs: Sequence[Any]) -> str:
    """Check that `answers` gives one dict per example, in JSON, beside the outputs; returns a text for the result."""
    task = subject.task
    if not hasattr(task, "answers"):
        return ""
    hint = (
        "return [{name: text, number or list}, ...] on the host, one dict per example, under other names than outputs"
    )
    first, again = (task.answers(examples, outputs, subject.config) for _ in range(2))
    right = isinstance(first, list | Lazy) and len(first) == len(outputs) and all(isinstance(x, dict) for x in first)
    require(right, f"answers returned {kind(first)} for {len(outputs)} examples", hint)
    taken = {"index", *(name for output in outputs if isinstance(output, Mapping) for name in output)}
    names = dict.fromkeys(name for answer in first for name in answer)
    clash = [name for name in names if name in taken]
    require(not clash, f"answers has {some(clash)}, which predict_fn's outputs have too", hint)
    try:
        text = json.dumps(list(first), allow_nan=False)
    except (TypeError, ValueError) as error:
        text = ""
        require(False, f"answers cannot be written as JSON: {error}", hint)
    require(text == json.dumps(list(again)), "answers gives other answers the second time", "draw nothing")
    return f"; answers {some(names)}" if names else ""


def _cut(subject: Subject) -> tuple[np.ndarray, Batch] | None:
    """Return the rows of the batch that are short, and the batch cut to the longest of these; None without lengths."""
    lengths = subject.job.lengths(subject.examples)
    if lengths is None:
        return None
    real, longest = short_rows(subject, lengths)
    return real, buckets.cut(subject.batch, sequence_keys(subject.task), longest)


def _rows(examples: Any, count: int) -> list[list[Mapping[str, Any]]]:
    """Return the examples of each of `count` inputs."""
    hint = "return examples as dataset does: arrays [n, ...] by name, or dicts; several of one input have `input` [n]"
    listed = isinstance(examples, Mapping) or (isinstance(examples, Sequence) and not isinstance(examples, str))
    require(listed, f"examples returned {kind(examples)}", hint)
    rows = [pipeline.read(examples, i) for i in range(pipeline.size(examples))]
    taken = {"mask", "seed"} & {name for row in rows for name in row}
    require(not taken, f"examples has entries {sorted(taken)}, which the library adds itself", "rename them")
    owners = [int(row["input"]) if "input" in row else i for i, row in enumerate(rows)]
    right = owners == sorted(owners) and sorted({*owners}) == [*range(count)]
    require(right, f"examples returned {len(rows)} examples of {count} inputs, whose inputs are {owners}", hint)
    return [[row for row, owner in zip(rows, owners, strict=True) if owner == i] for i in range(count)]


def _differing(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the arrays that differ, except for `input` and other numbers of the input."""
    if len(ours) != len(theirs):
        return ["the number of examples"]
    names = set[str]()
    for pair in zip(ours, theirs, strict=True):
        a, b = ({k: np.asarray(x) for k, x in row.items() if _is_array(x)} for row in pair)
        names |= {k for k in unequal(a, b) if not (_is_number_of_input(k, a) and _is_number_of_input(k, b))}
    return sorted(names)


def _is_number_of_input(name: str, row: Mapping[str, np.ndarray]) -> bool:
    return name in row and "input" in row and np.array_equal(row[name], row["input"])


def _is_array(value: Any) -> bool:
    return getattr(value, "dtype", np.dtype(object)).kind in "biufc"


def _check_predictions(subject: Subject, made: list[Mapping[str, Any]]) -> None:
    """Check that predictions for examples of the first rows of the batch equal those for the rows themselves."""
    theirs, count = subject.batch, len(made)
    collate = subject.job.collate
    ours = pipeline.stack([{k: x for k, x in row.items() if collate or _is_array(x)} for row in made], collate)
    hint = "share the code with dataset, so that the same row gives the same arrays"
    kinds = {name: (str(x.dtype), x.shape[1:]) for name, x in theirs.items()}
    other = [name for name, x in ours.items() if name in kinds and (str(x.dtype), x.shape[1:]) != kinds[name]]
    require(not other, f"examples gives {some(other)} another type or shape than dataset does", hint)
    merged = {k: np.concatenate([ours[k], np.asarray(x)[count:]]) if k in ours else x for k, x in theirs.items()}
    outputs = [jax.device_get(subject.predict(subject.params, batch, key(0))) for batch in (theirs, merged)]
    differing = unequal(*(jax.tree.map(lambda x: x[:count], output) for output in outputs))
    require(not differing, f"predict_fn's {some(differing)} differs for rows of dataset that come by examples", hint)
