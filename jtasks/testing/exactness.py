"""Checks of sums and counts: padding, splits and meshes must not change any number."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks.data import pipeline
from jtasks.data.batch_plan import BatchPlan
from jtasks.distributed import sharding
from jtasks.faults import Fault, require
from jtasks.metrics import merge, weight
from jtasks.metrics import terms as loss_terms
from jtasks.testing.result import Skip
from jtasks.testing.subject import (
    MICROBATCHES,
    Measured,
    Subject,
    Tree,
    close,
    gradient_difference,
    keep,
    key,
    mesh_of,
    one_device,
    value,
)

SUMS = 'give each Mean the sum over examples and their number, Mean.of(values [b], batch["mask"])'


def loss_is_the_sum(subject: Subject) -> str:
    """Check that the loss and its gradient are the sums over its terms, on a whole and a padded batch."""
    compute = jax.jit(jax.value_and_grad(subject.loss(subject.config), has_aux=True))
    rng, worst = jax.random.fold_in(key(0), 0), 0.0
    for what, batch in {"whole": subject.batch, "padded": keep(subject.batch, _uneven_rows(subject))}.items():
        (loss, metrics), gradient = jax.device_get(compute(subject.params, batch, rng))
        terms = {term: weight(mean) * value(mean) for term, mean in loss_terms(metrics).items()}
        total = sum(terms.values())
        listed = " + ".join(f"{term} {mean:.6g}" for term, mean in terms.items())
        detail = f"on a {what} batch the loss is {loss:.6g}, but its terms give {listed}" + (
            f" = {total:.6g}" if len(terms) > 1 else ""
        )
        hint = "return jtasks.metrics.total(metrics) as the loss; training uses the terms"
        if what == "padded":
            hint += '. A loss that ignores batch["mask"] also shows here'
        others = [m for m in metrics if m not in terms and close(loss - total, value(metrics[m]))]
        hint += f". Is {others[0]!r} to be a Loss?" if others and not close(loss, total) else ""
        require(close(loss, total), detail, hint)
        worst = max(worst, abs(float(loss) - total))
        from_terms = jax.device_get(subject.measure(subject.params, batch, key(0)))[0]
        difference, path = gradient_difference(gradient, from_terms)
        require(
            not difference,
            f"on a {what} batch the gradient of the loss and that of its terms differ, most for {path}"
            f" (by {difference:.2g})",
            "training takes the gradient of the terms' totals: they must not pass through stop_gradient, rounding or"
            " float(), and their counts must not depend on params",
        )
    return f"{' + '.join(terms)}, to {worst:.0e}"


def counts_are_constant(subject: Subject) -> str:
    """Check that other parameters, even NaN, do not change the counts of the loss's terms."""
    losses, loss_fn = subject.losses, subject.loss(subject.config)

    def counts(params: Tree) -> dict[str, jax.Array]:
        metrics = loss_fn(params, subject.batch, key(0))[1]
        return {term: jnp.asarray(metrics[term].count, jnp.float32) for term in losses}

    count = jax.jit(counts)
    expected = jax.device_get(count(subject.params))
    others = {f"other parameters ({seed})": subject.perturbation(seed) for seed in (1, 2, 3)}
    others["negated parameters"] = jax.tree.map(np.negative, jax.device_get(subject.params))
    others["parameters that are NaN"] = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), subject.params)
    for factor in (1e9, np.inf):
        big = jax.tree.map(lambda x, by=factor: np.where(x == 0, 1, x) * np.float32(by), jax.device_get(subject.params))
        others[f"parameters times {factor:g}"] = big
    for what, params in others.items():
        actual = jax.device_get(count(params))
        for term in losses:
            require(
                bool(np.array_equal(expected[term], actual[term])),
                f"the count of {term!r} is {expected[term]:.6g}, but {actual[term]:.6g} with {what}",
                "count what the batch holds, from its entries and rng alone: the gradient treats counts as constants."
                " A number of correct or confident predictions belongs in a total",
            )
    # jit drops unused arguments, so a program with arguments computes part of the model.
    slow = "; NOTE: they depend on params needlessly" if "@main(%arg" in count.lower(subject.params).as_text() else ""
    return ", ".join(f"{term}: {n:.6g}" for term, n in expected.items()) + slow


def accumulation_agrees(subject: Subject) -> str:
    """Check that 1 and 4 microbatches, with unequal masks and one of them empty, have equal gradients."""
    if subject.splits_nothing:
        raise Skip("MIXES_EXAMPLES = True declares that microbatches change the loss")
    real = _uneven_rows(subject)
    if subject.noisy:
        split_by_mask(subject, real)
        return "loss_fn draws from rng and no dropout field switches that off: parts were made by mask alone"
    batch = keep(subject.batch, real)
    whole = jax.device_get(subject.quiet(subject.params, batch, key(0)))
    split = jax.device_get(subject.measurement(subject.quiet_config, MICROBATCHES)(subject.params, batch, key(0)))
    _compare_parts(subject, whole, split, f"{MICROBATCHES} microbatches")
    quiet = "" if subject.quiet_config is subject.config else f", with {', '.join(subject.dropout)} off"
    return f"1 and {MICROBATCHES} microbatches" + quiet


def meshes_agree(subject: Subject) -> str:
    """Check that one device and all devices give equal sums and gradients."""
    devices = jax.local_devices()
    if len(devices) == 1:
        raise Skip("there is one device; on CPU, JAX_NUM_CPU_DEVICES=8 in the environment makes eight")
    mesh = mesh_of(devices)
    one = jax.device_get(subject.measure(subject.params, subject.batch, key(0)))
    measure = subject.measurement(subject.config)
    params, rng = jax.device_put((subject.params, key(0)), sharding.replicated_sharding(mesh))
    many = jax.device_get(measure(params, jax.device_put(subject.batch, sharding.batch_sharding(mesh)), rng))
    difference, path = gradient_difference(one[0], many[0])
    hint = "a task sees the whole batch whatever the mesh: no pmean, psum, axis_index or device_count in it"
    for metric, mean in one[1].items():
        detail = f"{metric!r} is {value(mean):.6g} on one device, {value(many[1][metric]):.6g} on {len(devices)}"
        require(close(value(mean), value(many[1][metric])), detail, hint)
    require(not difference, f"the gradient of {path} differs by {difference:.2g} on {len(devices)} devices", hint)
    _check_device_counts(subject, one, hint)
    return f"1 and {len(devices)} devices"


def _check_device_counts(subject: Subject, expected: Measured, hint: str) -> None:
    """Check that loss_fn and eval_fn give equal numbers when traced while JAX lists only one device."""
    arguments = (subject.params, subject.batch)
    evaluated = jax.device_get(subject.evaluate(*arguments))
    with one_device(subject.task):
        measured = jax.device_get(subject.measurement(subject.config)(*arguments, key(0)))
        metrics = jax.device_get(subject.evaluation()(*arguments))
    for function, old, new in (("loss_fn", expected[1], measured[1]), ("eval_fn", evaluated, metrics)):
        for metric, mean in old.items():
            numbers = f"{value(mean):.6g}, but {value(new[metric]):.6g} where jax.devices() lists one device"
            require(close(value(mean), value(new[metric])), f"{function}'s {metric!r} is {numbers}", hint)
    difference, path = gradient_difference(expected[0], measured[0])
    require(
        not difference, f"the gradient of {path} differs by {difference:.2g} where jax.devices() lists one device", hint
    )


def evaluation_agrees(subject: Subject) -> str:
    """Check that batches of 1, 7 and all examples give equal metrics."""
    n = min(29, pipeline.size(subject.examples))
    if isinstance(subject.examples, Mapping):
        examples: Any = {k: v[:n] for k, v in subject.examples.items()}
    else:
        examples = [pipeline.read(subject.examples, i) for i in range(n)]
    results: dict[int, dict[str, float]] = {}
    for size in sorted({n, min(7, n), 1}, reverse=True):
        plan = BatchPlan(n, subject.config.seed, size, shuffle=False)
        batches = (subject.job.batch_at(examples, plan, index) for index in range(-(-n // size)))
        sums = merge(jax.device_get(subject.evaluate(subject.params, batch)) for batch in batches)
        results[size] = {k: value(m) for k, m in sums.items()}
    for size, metrics in results.items():
        for metric, expected in results[n].items():
            if close(metrics[metric], expected, 10):
                continue
            detail = f"{metric!r} over {n} examples is {expected:.6g} in one batch,"
            detail += f" {metrics[metric]:.6g} in batches of {size}"
            if subject.mixes:
                raise Skip(f"the loss compares examples, and {detail}: compare evaluations of one batch size only")
            raise Fault(
                detail,
                f"eval_fn must treat each row alone and leave out padding (the last batch has some): {SUMS}; no mean of"
                " means, no statistics of the batch, nothing that depends on a row's position",
            )
    return f"{n} examples in batches of {', '.join(map(str, sorted(results)))}"


def _uneven_rows(subject: Subject) -> np.ndarray:
    """Return the rows to keep, [b] bool: microbatches keep unequal numbers, the first of the four none."""
    index = np.arange(len(subject.batch["mask"]))
    return (index % MICROBATCHES != 0) & (index != 1)


def split_by_mask(subject: Subject, real: np.ndarray) -> None:
    """Split by mask, without changing shapes, so that draws from rng stay the same."""
    whole = jax.device_get(subject.measure(subject.params, subject.batch, key(0)))
    parts = [jax.device_get(subject.measure(subject.params, keep(subject.batch, x), key(0))) for x in (real, ~real)]
    metrics = {k: parts[0][1][k].merge(parts[1][1][k]) for k in whole[1]}

    def weight(part: Measured) -> float:
        return float(part[1][term].count) / max(float(metrics[term].count), 1e-30)

    term = subject.losses[0]
    gradient = whole[0]
    if len(subject.losses) == 1:  # with more terms, each has weights of its own
        first, second = weight(parts[0]), weight(parts[1])
        gradient = jax.tree.map(lambda a, b: first * a + second * b, parts[0][0], parts[1][0])
    _compare_parts(subject, whole, (gradient, metrics), "two parts of the batch, each with the other masked")


def _compare_parts(subject: Subject, whole: Measured, split: Measured, how: str) -> None:
    declare = (
        "; if the loss compares examples with each other (contrastive), write it as batch_loss_fn over embed_fn, or"
    )
    declare += " declare MIXES_EXAMPLES = True"
    if hasattr(subject.task, "batch_loss_fn"):
        declare = "; embed_fn treats each example alone, and only batch_loss_fn compares them"
    for metric, mean in whole[1].items():
        other = split[1][metric]
        if close(value(mean), value(other)):
            continue
        a, b = (f"{np.sum(m.total):.6g} / {np.sum(m.count):.6g}" for m in (mean, other))
        detail = f"{metric!r} is {value(mean):.6g} ({a}) for the whole batch, {value(other):.6g} ({b}) for {how}"
        if not close(mean.count, other.count):
            raise Fault(detail, f"its counts do not add up, so it is a mean of means: {SUMS}" + declare)
        raise Fault(
            detail,
            "its counts add up but its totals do not, so rows act on each other: no statistics over the batch (batch"
            " norm, means, softmax or sort over axis 0), nothing that depends on a row's position or the batch's size"
            + declare,
        )
    difference, path = gradient_difference(whole[0], split[0])
    require(
        not difference,
        f"the gradient of {path} differs by {difference:.2g} for {how}",
        f"{SUMS}; no statistics over the batch" + declare,
    )
