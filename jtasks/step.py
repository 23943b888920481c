"""The training step: the exact gradient of the whole batch, however the batch is split.

The loss is a sum of means over the batch, and a mean of means is not the mean: microbatches may
count differently (masks, padding, tokens). So the counts of the whole batch come first; then each
microbatch's vector-Jacobian product of its totals with cotangents 1/count, summed up, is the gradient.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jtasks import task as tasks
from jtasks.config import Config
from jtasks.metrics import Mean, checked

Params = dict[str, Any]
Batch = dict[str, jax.Array]
Metrics = dict[str, Mean]
LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]


class State(NamedTuple):
    """All that a run carries from step to step, and all that a checkpoint holds."""

    step: jax.Array  # int32 scalar: steps done
    params: Params
    opt_state: optax.OptState
    average: Params | None  # moving average of params, if asked for
    bad_steps: jax.Array  # int32 scalar: non-finite steps in a row, up to now

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate: the average, if there is one."""
        return self.params if self.average is None else self.average


class Report(NamedTuple):
    """What a step tells: metrics as sums and counts, and scalars about the update."""

    metrics: Metrics
    gradient_norm: jax.Array
    learning_rate: jax.Array
    bad_steps: jax.Array  # 0 when the update was made


def create(params: Params, optimizer: optax.GradientTransformation, *, average: bool) -> State:
    """The state before the first step."""
    copy = jax.tree.map(jnp.copy, params) if average else None  # a copy: both are donated to the step
    return State(jnp.int32(0), params, optimizer.init(params), copy, jnp.int32(0))


def make(
    task: ModuleType, config: Config, optimizer: optax.GradientTransformation, schedule: optax.Schedule, trainable: Any
) -> Callable[[State, Batch], tuple[State, Report]]:
    """The step as a pure function (state, batch) -> (state, report), to be jitted with the state donated.

    `trainable` is a tree of bools like params. A step whose loss or gradient is not finite changes
    nothing but `step` and `bad_steps`.
    """

    def loss_fn(params: Params, batch: Batch, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        return task.loss_fn(params, batch, rng, config)

    def step(state: State, batch: Batch) -> tuple[State, Report]:
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        gradient, metrics = exact_gradient(
            loss_fn, tasks.losses(task), state.params, batch, rng, microbatches=config.accumulate
        )
        gradient = jax.tree.map(lambda g, train: g if train else jnp.zeros_like(g), gradient, trainable)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(norm) & jnp.all(jnp.array([jnp.isfinite(metrics[k].total) for k in tasks.losses(task)]))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = None
        if state.average is not None:
            average = optax.incremental_update(params, state.average, 1 - config.ema)
        bad_steps = jnp.where(finite, 0, state.bad_steps + 1)
        new = State(state.step + 1, params, opt_state, average, bad_steps)
        old = state._replace(step=new.step, bad_steps=bad_steps)
        report = Report(metrics, norm, jnp.asarray(schedule(state.step), jnp.float32), bad_steps)
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old), report

    return step


def exact_gradient(
    loss_fn: LossFn, losses: tuple[str, ...], params: Params, batch: Batch, rng: jax.Array, *, microbatches: int = 1
) -> tuple[Params, Metrics]:
    """The gradient of the sum of the terms' means over the whole batch, and its metrics.

    Args:
      loss_fn: (params, batch, rng) -> (loss, metrics); `losses` names the terms among the metrics.
      batch: arrays [b, ...]; b must be divisible by `microbatches`.
      rng: each microbatch gets its own, folded from this one.
    """

    def totals(params: Params, part: Batch, i: Any) -> tuple[dict[str, jax.Array], Metrics]:
        _, found = loss_fn(params, part, jax.random.fold_in(rng, i))
        metrics = checked(found, losses, "loss_fn")
        return {name: metrics[name].total for name in losses}, metrics

    if microbatches == 1:
        _, pullback, metrics = jax.vjp(lambda p: totals(p, batch, 0), params, has_aux=True)
        (gradient,) = pullback(_cotangents(metrics, losses))
        return gradient, metrics

    parts = jax.tree.map(lambda x: _interleaved(x, microbatches), batch)
    indices = jnp.arange(microbatches)
    # Counts need no parameters, so the compiler drops the model from this first pass.
    counts = jax.lax.map(lambda part: _counts(totals(params, *part)[1]), (parts, indices))
    cotangents = _cotangents(jax.tree.map(lambda c: jnp.sum(c, 0), counts), losses)

    def add(carry: tuple[Params, Metrics], part: tuple[Batch, jax.Array]) -> tuple[tuple[Params, Metrics], None]:
        _, pullback, metrics = jax.vjp(lambda p: totals(p, *part), params, has_aux=True)
        (gradient,) = pullback(cotangents)
        return jax.tree.map(jnp.add, carry, (gradient, metrics)), None

    shapes = jax.eval_shape(lambda p: totals(p, jax.tree.map(lambda x: x[0], parts), 0)[1], params)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, shapes))
    (gradient, metrics), _ = jax.lax.scan(add, zeros, (parts, indices))
    return gradient, metrics


def non_finite(task: ModuleType, config: Config, params: Params, batch: Batch, step: int) -> list[str]:
    """Names of the metrics and the leaves of the gradient that are not finite on the batch of a step (0-based)."""

    @jax.jit
    def finite(params: Params, batch: Batch, rng: jax.Array) -> Any:
        loss_fn = functools.partial(task.loss_fn, config=config)
        gradient, metrics = exact_gradient(loss_fn, tasks.losses(task), params, batch, rng)
        totals = {name: mean.total for name, mean in metrics.items()}
        return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), {"metrics": totals, "gradient": gradient})

    found = finite(params, batch, jax.random.fold_in(jax.random.key(config.seed), step))
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(found))
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, good in leaves if not good]


def _counts(metrics: Metrics) -> Metrics:
    return {name: Mean(jnp.zeros_like(mean.total), mean.count) for name, mean in metrics.items()}


def _cotangents(metrics: Metrics, losses: tuple[str, ...]) -> dict[str, jax.Array]:
    def inverse(mean: Mean) -> jax.Array:
        return (1.0 / jnp.where(mean.count == 0, 1.0, mean.count)).astype(mean.total.dtype)

    return {name: inverse(metrics[name]) for name in losses}


def _interleaved(x: jax.Array, microbatches: int) -> jax.Array:
    """[b, ...] -> [microbatches, b / microbatches, ...].

    Microbatch m holds rows m, m + microbatches, ..., so that each device's rows spread over all
    microbatches and none has to move.
    """
    return jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1)
