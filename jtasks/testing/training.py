"""Checks that the task trains: gradients, compilation, overfitting, resuming."""

import pathlib
import re
import tempfile
import time
from typing import Any

import jax
import numpy as np
import optax

from jtasks.data import pipeline
from jtasks.faults import Fault, require, some
from jtasks.metrics import total
from jtasks.run import checkpoint, checkpoint_writer
from jtasks.run.step import State
from jtasks.testing.replay import first_non_finite, out_of_bounds
from jtasks.testing.result import Skip
from jtasks.testing.subject import Batch, Subject, Tree, close, keep, key, unequal, value
from jtasks.tree import by_name, leaf_name

BETTER_HIGH = re.compile(r"acc|correct|f1|exact|recall|precision|bleu|rouge", re.IGNORECASE)
COMPILES = "nothing recompiles after step 1"
BUDGET = 20.0  # seconds for overfitting


def gradients_reach(subject: Subject) -> str:
    """Check that gradients of the first batches are finite, and not zero for any trainable parameter."""
    batches = list(subject.batches(6))
    if not batches:
        raise Skip(f"needs batches of one shape: {COMPILES!r}")
    names = list(by_name(subject.params))
    reached = np.zeros(len(names), bool)
    for index, batch in enumerate(batches):
        for params in (subject.params, subject.perturbed)[: 2 if index < 2 else 1]:
            gradient, metrics = jax.device_get(subject.measure(params, batch, key(index)))
            if params is subject.params:
                _check_finite(subject, gradient, metrics, batch, index)
            reached |= [bool(np.any(np.nan_to_num(leaf) != 0)) for leaf in jax.tree.leaves(gradient)]
    train = [bool(np.any(leaf)) for leaf in jax.tree.leaves(subject.program.trainable)]
    unreached = [n for n, hit, wanted in zip(names, reached, train, strict=True) if wanted and not hit]
    frozen = [n for n, wanted in zip(names, train, strict=True) if not wanted]
    require(
        not unreached,
        f"the gradient is zero for {len(unreached)} of {len(names)} parameters on {len(batches)} batches:"
        f" {some(unreached)}",
        "use them in loss_fn, remove a stop_gradient, argmax, rounding or comparison on their way to the loss, or"
        " freeze them by config.optim.freeze (a regex of their names)",
    )
    return f"{len(names) - len(frozen)} parameters" + (f"; frozen: {some(frozen)}" if frozen else "")


def nothing_recompiles(subject: Subject) -> str:
    """Check that batches keep their shapes, the state keeps its types, and the jitted step compiles once."""
    _check_shapes(subject)
    state, step = _initial_state(subject), subject.program.step
    before = jax.eval_shape(lambda s: s, state)
    after = jax.eval_shape(step, state, subject.batch)[0]
    changed = [
        f"{leaf_name(path)}: {_type(old)} -> {_type(new)}"
        for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
        if _type(old) != _type(new)
    ]
    hint = "give parameters explicit types in init: jnp.full(shape, 1.0, jnp.float32), not a Python number's weak type"
    require(not changed, f"a step changes the types of the state: {some(changed)}", hint)
    count = 0
    for batch in subject.batches(4):
        state, _ = step(state, batch)
        count += 1
    compiled = step._cache_size()
    require(compiled == 1, f"the step was compiled {compiled} times in {count} steps", hint)
    return f"{count} steps, compiled once"


def overfits(subject: Subject) -> str:
    """Check that Adam halves the loss on eight examples, or nearly so with a vanishing gradient."""
    batch = keep(subject.batch, np.arange(len(subject.batch["mask"])) < 8)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(subject.first)):
        raise Skip("needs a finite loss and gradient")
    before = jax.device_get(subject.evaluate(subject.params, batch))
    best: tuple[float, float] | None = None
    begun = time.monotonic()
    for rate in (3e-3, 3e-2, 3e-4):
        losses, norms, params = _descend(subject, batch, rate, begun)
        fell = losses[0] - losses[-1]
        converged = fell >= 0.4 * abs(losses[0]) and norms[-1] <= 0.05 * norms[0]
        if fell >= max(0.5 * abs(losses[0]), 1e-7) or converged:
            _check_evaluation(subject, before, jax.device_get(subject.evaluate(params, batch)), losses)
            return f"loss {losses[0]:.4g} -> {losses[-1]:.4g} in {len(losses) - 1} steps of Adam at {rate:g}"
        best = min(best or (np.inf, 0.0), (losses[-1], rate))
        if time.monotonic() - begun > BUDGET:
            break
    assert best is not None
    raise Fault(
        f"the loss on 8 examples went from {losses[0]:.4g} to no less than {best[0]:.4g}"
        f" (Adam at {best[1]:g}), which is not half",
        "can the inputs predict the targets? Look for labels drawn or shuffled apart from their inputs, a loss of"
        " the wrong sign, inputs that are cut off, rounded or constant, a gradient that is stopped; a loss with a high"
        " floor (soft targets, noise) cannot pass, and this failure is then acceptable",
    )


def resumes_exactly(subject: Subject) -> str:
    """Check that four steps equal two steps, a checkpoint, and two more steps from the checkpoint."""
    count = 4
    undisturbed = _run(subject, _initial_state(subject), subject.program.step, 0, count)
    halfway = _run(subject, _initial_state(subject), subject.program.step, 0, count // 2)
    with tempfile.TemporaryDirectory() as folder:
        with checkpoint_writer.Checkpoints(pathlib.Path(folder)) as checkpoints:
            checkpoints.save(halfway, count // 2)
            checkpoints.wait()
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), halfway)
        restored = checkpoint.restore(pathlib.Path(folder) / str(count // 2), like)
    step, known = subject.build().step, subject.program.step
    if step.lower(restored, subject.batch).as_text() == known.lower(restored, subject.batch).as_text():
        step = known  # the new trace is the same program: skip compiling
    resumed = _run(subject, restored, step, count // 2, count)
    differing = unequal(jax.device_get(undisturbed), jax.device_get(resumed))
    if differing and jax.default_backend() != "cpu":
        again = _run(subject, _initial_state(subject), subject.program.step, 0, count)
        if unequal(jax.device_get(undisturbed), jax.device_get(again)):
            raise Skip("two undisturbed runs differ on this accelerator, whose sums have no fixed order")
    require(
        not differing,
        f"after {count // 2} + {count // 2} steps with a checkpoint between, {len(differing)} of"
        f" {len(jax.tree.leaves(resumed))} arrays differ from {count} steps in one go: {some(differing)}",
        "a resumed run knows only the step number: keep no state in module variables, datasets or"
        " collate_fn, and draw no numbers from numpy or Python; see also the check of equal seeds",
    )
    return f"{len(jax.tree.leaves(resumed))} arrays after {count // 2} + {count // 2} steps"


def _initial_state(subject: Subject) -> State:
    """Return the state before the first step, with the config's own optimizer."""
    return jax.jit(subject.program.create, out_shardings=subject.program.shardings)(subject.params)


def _run(subject: Subject, state: State, step: Any, start: int, stop: int) -> State:
    for index in range(start, stop):
        state, _ = step(state, subject.job.batch_at(subject.examples, subject.plan, index))
    return state


def _check_finite(subject: Subject, gradient: Tree, metrics: Any, batch: Batch, index: int) -> None:
    wrong = [f"metric {k}" for k, m in metrics.items() if not np.isfinite([float(m.total), float(m.count)]).all()]
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    wrong += [f"gradient of {leaf_name(path)}" for path, leaf in leaves if not np.isfinite(leaf).all()]
    if not wrong:
        return
    task, loss_fn = subject.task, subject.loss(subject.config)

    def loss(params: Tree, batch: Batch) -> Any:
        return loss_fn(params, batch, jax.random.fold_in(key(index), 0))

    summary = f"batch {index} gives values that are not finite: {some(wrong)}\n"
    if outside := out_of_bounds(loss, subject.params, batch, task):
        raise Fault(
            summary + outside,
            "labels and tokens must be numbers from 0 to one less than the size of what they index: look at those of"
            f" dataset ({some(_ranges(batch))}), and at the number of classes in config",
        )
    raise Fault(
        summary + first_non_finite(loss, subject.params, batch, task),
        "guard the argument, not the result: log(max(x, tiny)), sqrt(x + tiny), x / where(n == 0, 1, n); the gradient"
        " of a branch that jnp.where leaves out is computed too",
    )


def _ranges(batch: Batch) -> list[str]:
    """Describe the integer entries of a batch by their lowest and highest values."""
    integers = {k: np.asarray(x) for k, x in batch.items() if x.dtype.kind in "iu" and k != "seed"}
    return [f"{k!r} is {x.min()} ... {x.max()}" for k, x in integers.items() if x.size]


def _check_shapes(subject: Subject) -> None:
    """Check the shapes of two dozen batches, or of those that can be read in five seconds."""
    begun = time.monotonic()
    expected = _signature(subject.batch)
    for index in range(24):
        batch = pipeline.batch_at(subject.examples, subject.plan, index, subject.job.collate)
        signature = _signature(batch)
        changed = [
            f"{k!r} is {expected.get(k)}, then {signature.get(k)}"
            for k in expected | signature
            if expected.get(k) != signature.get(k)
        ]
        source = "collate_fn" if hasattr(subject.task, "collate_fn") else "dataset"
        require(
            not changed,
            f"{source}: the arrays of batch {index} are not of batch 0's type: {some(changed)}",
            "every new shape recompiles the step: pad to one fixed length, taken from config",
        )
        if time.monotonic() - begun > 5:
            return


def _signature(batch: Any) -> dict[str, str]:
    return {k: f"{np.dtype(x.dtype).name}{list(x.shape)}" for k, x in batch.items()}


def _type(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}" + (
        " (weak)" if getattr(array, "weak_type", False) else ""
    )


def _descend(subject: Subject, batch: Batch, rate: float, begun: float) -> tuple[list[float], list[float], Tree]:
    """Run up to 100 steps of Adam; returns losses, gradient norms and the final parameters."""
    adam = optax.adam(lambda count: rate * optax.linear_schedule(0.1, 1.0, 5)(count))

    def update(gradient: Tree, state: Any, params: Tree) -> Any:
        gradient = jax.tree.map(lambda g, train: g * train, gradient, subject.program.trainable)
        updates, state = adam.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(gradient)

    update, params = jax.jit(update), subject.params
    state, losses, norms = adam.init(params), list[float](), list[float]()
    for index in range(101):
        gradient, metrics = subject.quiet(params, batch, key(index))
        metrics = jax.device_get(metrics)
        losses.append(float(total(metrics)))
        require(
            bool(np.isfinite(losses[-1])) or index == 0 or rate > 3e-3,
            f"the loss is {losses[-1]} after {index} steps of Adam at {rate:g} on one batch",
            "it became non-finite as parameters moved: guard log, sqrt, exp and divisions",
        )
        new, state, norm = update(gradient, state, params)
        norms.append(float(norm))
        slow = time.monotonic() - begun > BUDGET
        if not np.isfinite(losses[-1]) or index == 100 or slow or losses[-1] <= losses[0] - 0.52 * abs(losses[0]):
            break
        params = new
    return losses, norms, params


def _check_evaluation(subject: Subject, before: Any, after: Any, losses: list[float]) -> None:
    """Check that eval_fn's metrics of the same batch did not get worse."""
    hint = "is the sign of loss_fn's loss right? It is minimized: a cross-entropy is -log p, a reward -reward"
    for metric in before:
        old, new = value(before[metric]), value(after[metric])
        text = (
            f"training brought the loss on one batch from {losses[0]:.4g} to {losses[-1]:.4g}, but eval_fn's {metric!r}"
        )
        # A falling loss of at least 0 has the right sign; a task that mixes examples may report untrained metrics.
        if losses[-1] < 0 and not subject.mixes and BETTER_HIGH.search(metric) and metric not in subject.losses:
            require(new >= old - 0.05, f"{text} fell from {old:.4g} to {new:.4g}", hint)
    old, new = (float(total(metrics)) for metrics in (before, after))
    text = f"training brought the loss on one batch from {losses[0]:.4g} to {losses[-1]:.4g}, but eval_fn's from"
    require(new <= old + max(abs(old), 0.5) or close(new, old), f"{text} {old:.4g} to {new:.4g}", hint)
