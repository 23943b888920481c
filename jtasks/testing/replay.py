"""Replay of one training step, to find where the first non-finite value appears."""

import pathlib
import traceback
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jtasks.config import Config
from jtasks.console import say, warn
from jtasks.data.batch_plan import BatchPlan
from jtasks.distributed import processes, sharding
from jtasks.distributed.shares import rows_of_microbatches
from jtasks.errors import ConfigError
from jtasks.faults import author_frames, format_frame, some
from jtasks.run import adapter, autoshare, batch_gradient, checkpoint_files, programs
from jtasks.run import step as steps
from jtasks.run.gradient import gradient_fn
from jtasks.run.job import Job, total_steps
from jtasks.run.restore import prepare_and_compare
from jtasks.tree import leaf_name


def replay(config: Config, workdir: pathlib.Path, step: int) -> str:
    """Compute loss and gradient of training step `step` (1 for the first) again, and report what is not finite.

    Training resumes from the newest checkpoint before the step, or from the initial state. Data and rng are functions
    of the step, so the replayed state equals the run's.

    Raises:
      ConfigError: there is no such step.
      CheckpointError: the checkpoint does not fit the config.
    """
    job = prepare_and_compare(config, workdir)
    job = autoshare.load_shares(job, workdir) or job
    examples = job.require("train")
    plan = job.plan(examples, shuffle=True)
    steps_ = total_steps(config, plan)
    if not 1 <= step <= steps_:
        raise ConfigError(f"step {step} is not of this run: give 1 ... {steps_}")
    state, start = _state(job, examples, plan, workdir, step, steps_)
    batch = job.batch_at(examples, plan, step - 1)
    rng = jax.random.fold_in(jax.random.key(config.seed), step - 1)

    exact = gradient_fn(job.task, job.config, job.mesh)
    measure = jax.jit(lambda p, b, base: exact(p, b, rng, base), out_shardings=sharding.replicated_sharding(job.mesh))
    gradient, metrics = jax.device_get(measure(state.params, batch, state.base))
    indices, entries = plan.at(plan.positions(step - 1))
    lines = [
        f"step {step}, from the {f'checkpoint of step {start}' if start else 'initial state'}"
        + (f" and {step - 1 - start} steps of training" if step - 1 > start else ""),
        f"examples: {indices[entries['mask'] > 0].tolist()}",
        *(f"{k}: {float(m.total):.6g} / {float(m.count):.6g}" for k, m in metrics.items()),
    ]
    groups = {"parameters": state.params, "batch": batch, "metrics": metrics, "gradient": gradient}
    params = adapter.full(job.config, state.params, state.base)
    bad = {what: _non_finite(tree) for what, tree in groups.items()}
    lines += [f"not finite in {what}: {some(names, 20)}" for what, names in bad.items() if names]
    if not any(bad.values()):
        return "\n".join([*lines, "everything is finite"])
    microbatches = rows_of_microbatches(plan.shares, plan.rows(step - 1))
    losses = [*_losses(job, batch, rng, microbatches)]
    for i, (loss_fn, part) in enumerate(losses):
        place = first_non_finite(loss_fn, params, part, job.task)
        if not place.startswith("no "):
            return "\n".join([*lines, place + (f" (microbatch {i})" if len(losses) > 1 else "")])
    return "\n".join([*lines, place])


def _losses(job: Job, batch: Any, rng: jax.Array, microbatches: list[np.ndarray]) -> Iterator[tuple[Any, Any]]:
    """Yield the loss (params, part) -> (loss, metrics) of each microbatch, with its part of the batch.

    A loss of the whole batch has all parts at once.
    """
    parts = [jax.tree.map(lambda x, rows=rows: x[rows], batch) for rows in microbatches]
    keys = [jax.random.fold_in(rng, i) for i in range(len(parts))]
    functions = batch_gradient.functions(job.task, job.config)
    if functions is not None:
        yield batch_gradient.plain_loss(functions, keys), parts
        return
    for part, key in zip(parts, keys, strict=True):
        yield lambda p, b, key=key: job.task.loss_fn(p, b, key, job.config), part


def first_non_finite(
    loss_fn: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, batch: Any, task: ModuleType | None
) -> str:
    """Say where the loss or its gradient first turns into NaN or infinity, with the author's line."""
    from jax.experimental import checkify

    params, batch = jax.device_get((params, batch))
    forward = lambda p: loss_fn(p, batch)[0]  # noqa: E731
    for what, function in (("loss", forward), ("gradient", jax.grad(forward))):
        try:
            error, _ = jax.jit(checkify.checkify(function, errors=checkify.float_checks))(params)
            failure = error.get_exception()
        except Exception:  # a primitive that checkify does not know
            return _operation_by_operation(jax.value_and_grad(forward), params, task)
        if failure is not None:
            text = " ".join(str(failure).split())
            frames = author_frames(_python_frames(failure), task)
            return f"in the {what}, first: {text.split('. Check failed')[0]}" + (
                f"\nat {format_frame(frames[-1])}" if frames else ""
            )
    return _operation_by_operation(jax.value_and_grad(forward), params, task)


def out_of_bounds(
    loss_fn: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, batch: Any, task: ModuleType | None
) -> str:
    """Say where the loss indexes out of bounds, with the author's line; "" for nowhere."""
    from jax.experimental import checkify

    params, batch = jax.device_get((params, batch))
    forward = checkify.checkify(lambda p, b: loss_fn(p, b)[0], errors=checkify.index_checks)
    try:
        failure = jax.jit(forward)(params, batch)[0].get_exception()
    except Exception:  # a primitive that checkify does not know
        return ""
    frames = author_frames(_python_frames(failure), task)
    text = " ".join(str(failure).split()).split(". Check failed")[0]
    return "" if failure is None else text + (f"\nat {format_frame(frames[-1])}" if frames else "")


def _python_frames(error: Any) -> list[traceback.FrameSummary]:
    info = getattr(error, "traceback_info", None)
    return list(traceback.extract_tb(info.as_python_traceback())) if info is not None else []


def _operation_by_operation(function: Callable[[Any], Any], params: Any, task: ModuleType | None) -> str:
    """Run each operation alone, to find the first NaN or infinity: slow, but checkify misses infinities."""
    with jax.debug_nans(True), jax.debug_infs(True), jax.disable_jit():
        try:
            function(params)
        except FloatingPointError as error:
            chain = [error.__cause__ or error, error]
            for link in chain:
                if frames := author_frames(traceback.extract_tb(link.__traceback__), task):
                    return f"first: {error}\nat {format_frame(frames[-1])}"
            return f"first: {error}"
        except Exception as error:
            return f"no place found: {type(error).__name__} when run operation by operation"
    return "no place found: run operation by operation, everything is finite"


def _non_finite(tree: Any) -> list[str]:
    leaves = [(leaf_name(p), np.asarray(x)) for p, x in jax.tree_util.tree_leaves_with_path(tree)]
    return [f"{name} ({np.sum(~np.isfinite(x))} of {x.size})" for name, x in leaves if not np.isfinite(x).all()]


def _state(
    job: Job, examples: Any, plan: BatchPlan, workdir: pathlib.Path, step: int, total: int
) -> tuple[steps.State, int]:
    """Return the state before `step`, and the step of the checkpoint that it comes from (0: initial state)."""
    batch = job.batch_at(examples, plan, 0)
    start = processes.broadcast_from_first(
        lambda: checkpoint_files.newest(workdir / "checkpoints", warn, before=step) or 0
    )
    program = programs.build(job, batch, total, adapter.whole(job.config, workdir, start))
    state = programs.state_at(start, program, job, workdir, batch, say)
    for index in range(start, step - 1):
        state, _ = program.step(state, job.batch_at(examples, plan, index))
    return state, start
