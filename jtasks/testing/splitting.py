"""Checks of a loss that compares the examples of a batch: the batch may be split and padded in any way."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks.config import Config
from jtasks.distributed import sharding
from jtasks.faults import require
from jtasks.run import batch_gradient
from jtasks.run.batch_gradient import Embeddings, Functions
from jtasks.run.gradient import gradient_fn
from jtasks.testing.exactness import SUMS
from jtasks.testing.subject import (
    MICROBATCHES,
    Batch,
    Measured,
    Metrics,
    Subject,
    close,
    gradient_difference,
    keep,
    key,
    mesh_of,
    pick,
    value,
)

MASK = 'batch_loss_fn must leave out rows of batch["mask"] 0, as examples and as what others are compared with'
PLACE = "batch_loss_fn gets the rows in another order for each split: row i of embeddings and batch is one example, and"
PLACE += " neither its place nor the number of rows may matter"


def batch_loss_agrees(subject: Subject) -> str:
    """Check batch_loss_fn on rows in another order and with padding, and the gradient of the batch in parts."""
    task, config = subject.task, subject.config
    functions = batch_gradient.functions(task, config)
    if functions is None:
        return "the task has no batch_loss_fn"
    _check_rows(subject, functions)
    _check_own_loss(subject, functions)
    _check_microbatches(subject, functions)
    devices = _check_devices(subject)
    drops = f", with {', '.join(subject.dropout)}" if subject.random and subject.dropout else ""
    return f"rows in any order, padding, {MICROBATCHES} microbatches{drops}{devices}"


def _check_rows(subject: Subject, functions: Functions) -> None:
    """Check that rows may stand anywhere, and that rows of mask 0 may hold anything."""
    b = len(subject.batch["mask"])
    rows = np.arange(b)
    batch = keep(subject.batch, rows % 3 != 1)
    embeddings = jax.jit(functions.embed)(subject.perturbed, batch, key(0))
    measure = jax.jit(lambda embeddings, batch: functions.loss(subject.perturbed, embeddings, batch)[1])

    def metrics(embeddings: Embeddings, batch: Batch) -> Metrics:
        return jax.device_get(measure(embeddings, batch))

    whole = metrics(embeddings, batch)
    order = np.random.default_rng(0).permutation(b)
    _compare(whole, metrics(pick(embeddings, order), pick(batch, order)), "with the rows in another order", PLACE)
    real = np.asarray(batch["mask"]) > 0
    for number in (1.0, -2.0):
        others = {k: jnp.where(real.reshape(-1, *[1] * (x.ndim - 1)), x, number) for k, x in embeddings.items()}
        _compare(whole, metrics(others, batch), f"when masked rows have embeddings of {number}", MASK)
    few = np.flatnonzero(real)
    alone = metrics(pick(embeddings, few), pick(batch, few))
    _compare(alone, whole, f"with {b - len(few)} rows of padding beside {len(few)} examples", MASK)
    _check_empty(whole, metrics(embeddings, keep(batch, np.zeros(b))))


def _check_empty(whole: Metrics, empty: Metrics) -> None:
    """Check that no mean is of the batch's mean, which would count each batch as one example."""
    for metric, mean in empty.items():
        text = (
            f"{metric!r} is {float(mean.total):.6g} / {float(mean.count):.6g} on a batch in which every row is padding"
        )
        require(bool(np.isfinite([mean.total, mean.count]).all()), text, f"do not divide by the mask's sum: {SUMS}")
        constant = close(mean.total, whole[metric].total) and close(mean.count, whole[metric].count)
        detail = f"{text}, so it is a mean of means: evaluation would give each batch the same weight"
        require(not float(mean.count) or constant, detail, SUMS)


def _check_own_loss(subject: Subject, functions: Functions) -> None:
    """Check that a loss_fn beside batch_loss_fn says the same."""
    if not hasattr(subject.task, "loss_fn"):
        return

    @jax.jit
    def both(params: Any, batch: Batch) -> Any:
        composed = functions.loss(params, functions.embed(params, batch, None), batch)
        return composed[1], subject.task.loss_fn(params, batch, None, subject.config)[1]

    composed, own = jax.device_get(both(subject.perturbed, subject.batch))
    hint = "leave loss_fn out: by default it is batch_loss_fn on the embeddings of embed_fn"
    _compare(composed, own, "by loss_fn", hint)


def _check_microbatches(subject: Subject, functions: Functions) -> None:
    """Compare the two passes with one pass that has the same dropout."""
    rows = np.arange(len(subject.batch["mask"]))
    batch = keep(subject.batch, (rows % MICROBATCHES != 0) & (rows != 1))
    keys = [jax.random.fold_in(key(0), number) for number in range(MICROBATCHES)]
    parts = [pick(batch, np.flatnonzero(rows % MICROBATCHES == number)) for number in range(MICROBATCHES)]
    plain = jax.jit(jax.grad(batch_gradient.plain_loss(functions, keys), has_aux=True))
    whole = jax.device_get(plain(subject.params, parts))
    split = jax.device_get(subject.measurement(subject.config, MICROBATCHES)(subject.params, batch, key(0)))
    hint = "embed_fn must draw only from rng and batch['seed'], so that it gives the same features when called again"
    _compare_gradients(whole, split, f"in {MICROBATCHES} microbatches that are embedded twice", hint)


def _check_devices(subject: Subject) -> str:
    """Compare one device with all, and with two that take unequal shares; returns a text for the result."""
    devices = jax.local_devices()
    if len(devices) == 1 or subject.noisy:
        return ""
    one = jax.device_get(subject.quiet(subject.params, subject.batch, key(0)))
    hint = "batch_loss_fn gets the whole batch whatever the mesh: no pmean, psum, axis_index or device_count in it"
    for count, shares in ((len(devices), None), (2, (3, 1))):
        config = Config(subject.quiet_config.to_dict() | {"shares": shares})
        job = subject.job._replace(config=config, mesh=mesh_of(devices[:count]))
        plan = job.plan(subject.examples, shuffle=True)
        whole = sharding.replicated_sharding(job.mesh)
        measure = jax.jit(gradient_fn(job.task, config, job.mesh), out_shardings=whole)
        params, rng = jax.device_put((subject.params, key(0)), whole)
        many = jax.device_get(measure(params, job.batch_at(subject.examples, plan, 0), rng))
        how = f"on {count} devices" + (f" with shares {shares}" if shares else "")
        _compare_gradients(one, many, how, hint)
    return f", {len(devices)} devices, shares (3, 1)"


def _compare_gradients(whole: Measured, split: Measured, how: str, hint: str) -> None:
    _compare(whole[1], split[1], how, hint)
    difference, path = gradient_difference(whole[0], split[0])
    require(not difference, f"the gradient of {path} differs by {difference:.2g} {how}", hint)


def _compare(whole: Metrics, other: Metrics, how: str, hint: str) -> None:
    names = sorted(whole.keys() ^ other.keys())
    require(not names, f"the metrics {', '.join(names)} exist only once {how}", hint)
    for metric, mean in whole.items():
        a, b = (f"{value(m):.6g} ({np.sum(m.total):.6g} / {np.sum(m.count):.6g})" for m in (mean, other[metric]))
        same = close(mean.total, other[metric].total, float(mean.count)) and close(mean.count, other[metric].count)
        require(same, f"{metric!r} is {a}, but {b} {how}", hint)
