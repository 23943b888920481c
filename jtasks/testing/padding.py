"""Checks of padding: masked rows, and entries beyond the length of an example, must not change any number."""

import jax
import jax.numpy as jnp
import numpy as np

from jtasks.data import buckets, pipeline
from jtasks.faults import require
from jtasks.task import sequence_keys
from jtasks.testing.exactness import SUMS, split_by_mask
from jtasks.testing.subject import Batch, Measured, Metrics, Subject, close, gradient_difference, keep, key, pick, value


def padding_is_nothing(subject: Subject) -> str:
    """Check that neither the presence nor the content of masked rows changes a sum, a count or a gradient."""
    b = len(subject.batch["mask"])
    real = np.arange(b) < round(0.7 * b)
    few = np.flatnonzero(real)
    reference: Measured | None = None
    for what, batch in _paddings(subject.batch, real).items():
        measured = jax.device_get(subject.measure(subject.params, batch, key(0)))
        if reference is None:
            reference = measured
        elif what != "zeros" or _is_finite(measured):  # zeros may be no valid example
            _compare_padding(reference, measured, f"when padding rows hold {what} instead of copies of a real row")
    assert reference is not None
    nothing = jax.device_get(subject.measure(subject.params, keep(subject.batch, np.zeros(b)), key(0)))[1]
    wrong = [
        f"{k} {np.sum(m.total)}/{np.sum(m.count)}"
        for k, m in nothing.items()
        if not np.isfinite([m.total, m.count]).all()
    ]
    finite = all(np.isfinite([m.total, m.count]).all() for m in reference[1].values())
    require(
        not wrong or not finite,
        f"a batch in which every row is padding gives {', '.join(wrong)}",
        "do not divide by the mask's sum inside the task: the total is 0 there and the count too. " + SUMS,
    )
    if subject.noisy:
        if not subject.mixes:
            split_by_mask(subject, real)
        return f"{b - len(few)} of {b} rows; loss_fn draws from rng, so splits were made by mask alone"
    metrics = jax.jit(lambda p, batch: subject.loss(subject.quiet_config)(p, batch, key(0))[1])
    padded = _paddings(subject.batch, real)["copies"]
    alone, with_padding = (jax.device_get(metrics(subject.params, x)) for x in (pick(subject.batch, few), padded))
    _compare_sums(alone, with_padding, f"{len(few)} examples alone", f"with {b - len(few)} rows of padding")
    return f"{b - len(few)} of {b} rows: sums, counts and gradients stay"


def lengths_are_true(subject: Subject) -> str:
    """Check that a batch cut to the length of its longest unmasked example evaluates as before."""
    task, lengths = subject.task, subject.job.lengths(subject.examples)
    if lengths is None:
        return "the task gives no lengths"
    hint = "lengths(examples, config) returns the tokens of each example of the dataset, int [n] or [n, k]"
    padded = sequence_keys(task)
    n = pipeline.size(subject.examples)
    kinds = lengths.size // n
    shaped = lengths.shape in ((n,), (n, kinds)) and lengths.dtype.kind in "iu"
    require(shaped, f"lengths is {lengths.dtype}{list(lengths.shape)}", hint)
    tuples = "give SEQUENCE_KEYS a tuple of names for each length of an example"
    require(kinds == len(padded), f"lengths is {list(lengths.shape)}, but SEQUENCE_KEYS {task.SEQUENCE_KEYS}", tuples)
    absent = [name for names in padded for name in names if name not in subject.batch]
    require(not absent, f"SEQUENCE_KEYS names {absent}, which batches do not have", "name the entries to cut")
    real, longest = short_rows(subject, lengths)
    batch = keep(subject.batch, real)
    cut = buckets.cut(batch, padded, longest)
    large = jax.tree.map(lambda x: 5 * x, subject.perturbed)  # an untrained model hardly depends on its inputs
    whole, short = (jax.device_get(subject.evaluate(large, x)) for x in (batch, cut))
    for metric, mean in whole.items():
        require(
            close(value(mean), value(short[metric]), 10) and close(mean.count, short[metric].count),
            f"{metric!r} is {value(mean):.6g}, but {value(short[metric]):.6g} when {list(task.SEQUENCE_KEYS)} are cut"
            f" to {buckets.describe(longest)}, the most that lengths says of these examples",
            "entries beyond an example's length must be padding that the model does not see, and SEQUENCE_KEYS must"
            " name all entries of that length",
        )
    return f"cut to {buckets.describe(longest)}: the metrics stay"


def short_rows(subject: Subject, lengths: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return which rows of the batch are short, bool [b], and the longest lengths among these."""
    own = lengths[subject.plan.at(subject.plan.positions(0))[0]].reshape(-1, lengths.size // len(lengths))
    real = own.sum(axis=1) <= np.quantile(own.sum(axis=1), 0.25, method="higher")
    return real, own[real].max(axis=0).tolist()


def _paddings(batch: Batch, real: np.ndarray) -> dict[str, Batch]:
    rows, last = np.arange(len(real)), int(np.flatnonzero(real)[-1])
    others = pick(batch, np.where(real, rows, rows[::-1]))
    shuffled = others | {"seed": jnp.where(jnp.asarray(real), batch["seed"], others["seed"] + 12345)}
    blank = {
        k: jnp.where(jnp.asarray(real).reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)) for k, x in batch.items()
    }
    kinds = {"copies": pick(batch, np.where(real, rows, last)), "other examples": batch, "zeros": blank}
    return {what: keep(kind, real) for what, kind in (kinds | {"other rows": shuffled}).items()}


def _is_finite(measured: Measured) -> bool:
    return all(bool(np.isfinite(x).all()) for x in jax.tree.leaves(measured))


def _compare_padding(a: Measured, b: Measured, when: str) -> None:
    hint = (
        f'multiply each example\'s value by batch["mask"] before anything is summed: {SUMS}. Statistics over the batch'
    )
    hint += " (batch norm, means for contrast) must leave out masked rows too"
    for metric, mean in a[1].items():
        other = b[1][metric]
        for part in ("total", "count"):
            x, y = getattr(mean, part), getattr(other, part)
            text = f"the {part} of {metric!r} goes from {float(x):.6g} to {float(y):.6g} {when}"
            require(close(x, y, float(mean.count)), text, hint)
    difference, path = gradient_difference(a[0], b[0])
    require(not difference, f"the gradient of {path} changes by {difference:.2g} {when}", hint)


def _compare_sums(a: Metrics, b: Metrics, one: str, other: str) -> None:
    for metric, mean in a.items():
        for part in ("total", "count"):
            x, y = float(getattr(mean, part)), float(getattr(b[metric], part))
            require(
                close(x, y, float(mean.count)),
                f"the {part} of {metric!r} is {x:.6g} for {one}, {y:.6g} {other}",
                f"rows with mask 0 must not be counted: {SUMS}, and never by the batch's shape",
            )
