"""The training step: the exact gradient of the whole batch, however the batch is split.

The loss is a sum of means over the batch, and a mean of means is not the mean: microbatches may
count differently (masks, padding, tokens). So the counts of the whole batch come first; then each
microbatch's vector-Jacobian product of its totals with cotangents 1/count, summed up, is the gradient.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from jtasks.config import Config
from jtasks.distributed import sharding
from jtasks.distributed.shares import count_microbatches, unequal
from jtasks.metrics import Mean, checked, terms, weight
from jtasks.tree import leaf_name

Params = dict[str, Any]
Batch = dict[str, jax.Array]
Metrics = dict[str, Mean]
LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]


class State(NamedTuple):
    """All that a run carries from step to step, and all that a checkpoint holds."""

    step: jax.Array  # int32 scalar: steps done
    params: Params
    opt_state: optax.OptState
    ema_params: Params | None  # moving average of params, if config.ema is set
    nonfinite_steps: jax.Array  # int32 scalar: non-finite steps in a row, up to this one

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate: the moving average, if there is one."""
        return self.params if self.ema_params is None else self.ema_params


class StepOutput(NamedTuple):
    """The output of a step: metrics as sums and counts, and scalars about the update."""

    metrics: Metrics
    gradient_norm: jax.Array
    learning_rate: jax.Array
    nonfinite_steps: jax.Array  # 0 when the update was made


def init_state(params: Params, optimizer: optax.GradientTransformation, *, ema: bool) -> State:
    """Return the state before the first step."""
    copy = jax.tree.map(jnp.copy, params) if ema else None  # a copy: both are donated to the step
    return State(jnp.int32(0), params, optimizer.init(params), copy, jnp.int32(0))


def make_train_step(
    task: ModuleType,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    trainable: Any,
    mesh: Mesh | None = None,
) -> Callable[[State, Batch], tuple[State, StepOutput]]:
    """Return the step as a pure function (state, batch) -> (state, output), to be jitted with the state donated.

    A step whose loss, gradient or updates are not finite changes only `step` and `nonfinite_steps`.

    Args:
      task: the task's module.
      config: the filled config.
      optimizer: makes the updates.
      schedule: learning rate by number of updates, for the output.
      trainable: a tree like the parameters, from `optim.trainable`.
      mesh: where state and batch live.
    """
    measure = gradient_fn(task, config, mesh)

    def step(state: State, batch: Batch) -> tuple[State, StepOutput]:
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        gradient, metrics = measure(state.params, batch, rng)
        gradient = jax.tree.map(_mask_frozen, gradient, trainable)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(norm) & jnp.all(jnp.array([jnp.isfinite(term.total) for term in terms(metrics).values()]))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = _select_float(optax.apply_updates(state.params, updates), state.params)
        finite &= _stays_finite(state.params, params, updates)
        ema_params = None
        if state.ema_params is not None:
            ema_params = _select_float(optax.incremental_update(params, state.ema_params, 1 - config.ema), params)
        nonfinite_steps = jnp.where(finite, 0, state.nonfinite_steps + 1)
        new = State(state.step + 1, params, opt_state, ema_params, nonfinite_steps)
        old = state._replace(step=new.step, nonfinite_steps=nonfinite_steps)
        output = StepOutput(metrics, norm, jnp.asarray(schedule(_updates(state)), jnp.float32), nonfinite_steps)
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old), output

    return step


def gradient_fn(task: ModuleType, config: Config, mesh: Mesh | None) -> Callable[..., tuple[Params, Metrics]]:
    """Return a function (params, batch, rng) -> (exact gradient, metrics), on a mesh and split as the config says."""
    shares = unequal(config.shares)

    def loss_fn(params: Params, batch: Batch, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        return task.loss_fn(params, batch, rng, config)

    def measure(params: Params, batch: Batch, rng: jax.Array) -> tuple[Params, Metrics]:
        if shares and mesh is not None:
            return uneven_gradient(loss_fn, params, batch, rng, shares=shares, mesh=mesh)
        sharded_loss = sharding.on_mesh(mesh, config.sharding, loss_fn)
        microbatches = count_microbatches(config)
        after = functools.partial(sharding.params_after, mesh=mesh, rules=config.sharding)
        gradient, metrics = exact_gradient(sharded_loss, params, batch, rng, microbatches=microbatches, after=after)
        return sharding.constrained(gradient, mesh, config.sharding), metrics

    return measure


def exact_gradient(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    rng: jax.Array,
    *,
    microbatches: int = 1,
    after: Callable[[Any, Any], Any] = lambda params, counts: params,
) -> tuple[Params, Metrics]:
    """Return the gradient of the weighted sum of the terms' means over the whole batch, and the metrics.

    Args:
      loss_fn: (params, batch, rng) -> (loss, metrics); the terms are those of `metrics.terms`.
      batch: arrays [b, ...]; b must be divisible by `microbatches`.
      rng: random key; each microbatch gets its own, folded from this one.
      after: (params, counts) -> params; may make XLA compute the counts before it uses the parameters.
    """
    if microbatches == 1:
        _, pullback, metrics = jax.vjp(lambda p: _totals(loss_fn, p, batch, rng, 0), params, has_aux=True)
        (gradient,) = pullback(_cotangents(metrics))
        return _select_float(gradient, jax.tree.map(jnp.zeros_like, params)), metrics
    parts = jax.tree.map(lambda x: _interleave(x, microbatches), batch)
    return _sum_microbatches(
        loss_fn, params, parts, rng, jnp.arange(microbatches), microbatches, lambda sums: sums, after
    )


def uneven_gradient(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    rng: jax.Array,
    *,
    shares: tuple[int, ...],
    mesh: Mesh,
) -> tuple[Params, Metrics]:
    """Return the exact gradient and the metrics where device d of the `data` axis takes shares[d] equal microbatches.

    All devices run one program: each loops over its own microbatches without waiting for another device, and the sums
    are combined once after the loop. Microbatches, with their rngs and rows, are numbered through the devices in turn,
    so the result equals that of `exact_gradient` with sum(shares) microbatches.

    Args:
      loss_fn: (params, batch, rng) -> (loss, metrics).
      params: replicated over the mesh.
      batch: arrays [b, ...] with rows in the order of `shares.layout`.
      rng: random key; each microbatch gets its own, folded from this one.
      shares: microbatches of each device.
      mesh: has whole parameters on each device.
    """

    def on_device(params: Params, slab: Batch, rng: jax.Array, share: jax.Array, first: jax.Array) -> Any:
        parts = jax.tree.map(lambda x: x.reshape(max(shares), -1, *x.shape[1:]), slab)
        numbers = first[0] + jnp.arange(max(shares))
        return _sum_microbatches(
            loss_fn, params, parts, rng, numbers, share[0], lambda sums: jax.lax.psum(sums, "data")
        )

    first = np.cumsum((0, *shares[:-1]))
    whole, divided = PartitionSpec(), PartitionSpec("data")
    # check_vma=False: the check would insert a psum inside the loop, and devices run different trip counts.
    run = jax.shard_map(
        on_device, mesh=mesh, in_specs=(whole, divided, whole, divided, divided), out_specs=whole, check_vma=False
    )
    return run(params, batch, rng, jnp.array(shares, jnp.int32), jnp.array(first, jnp.int32))


def _totals(
    loss_fn: LossFn, params: Params, part: Batch, rng: jax.Array, number: Any
) -> tuple[dict[str, jax.Array], Metrics]:
    metrics = checked(loss_fn(params, part, jax.random.fold_in(rng, number))[1], "loss_fn")
    return {name: term.total for name, term in terms(metrics).items()}, metrics


def _sum_microbatches(
    loss_fn: LossFn,
    params: Params,
    parts: Batch,
    rng: jax.Array,
    numbers: jax.Array,
    count: Any,
    everywhere: Callable[[Any], Any],
    after: Callable[[Any, Any], Any] = lambda params, counts: params,
) -> tuple[Params, Metrics]:
    """Return gradient and metrics of the first `count` microbatches of `parts` [k, b, ...], summed by `everywhere`."""

    def totals(params: Params, i: Any) -> tuple[dict[str, jax.Array], Metrics]:
        part, number = jax.tree.map(lambda x: x[i], (parts, numbers))
        return _totals(loss_fn, params, part, rng, number)

    shapes = jax.eval_shape(lambda p: totals(p, 0)[1], params)
    gradients, zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, shapes))
    # Counts need no parameters, so the compiler drops the model from this first pass.
    counts = jax.lax.fori_loop(
        0, count, lambda i, sums: jax.tree.map(jnp.add, sums, _counts(totals(params, i)[1])), zeros
    )
    counts = everywhere(counts)
    cotangents, params = _cotangents(counts), after(params, counts)

    def add(i: jax.Array, sums: tuple[Params, Metrics]) -> tuple[Params, Metrics]:
        _, pullback, metrics = jax.vjp(lambda p: totals(p, i), params, has_aux=True)
        (gradient,) = pullback(cotangents)
        return jax.tree.map(jnp.add, sums, (_select_float(gradient, gradients), metrics))

    return everywhere(jax.lax.fori_loop(0, count, add, (gradients, zeros)))


def non_finite(
    task: ModuleType, config: Config, params: Params, batch: Batch, step: int, mesh: Mesh | None = None
) -> list[str]:
    """Return names of metrics and leaves of the gradient that are not finite on the batch of a step (0-based)."""
    measure = gradient_fn(task, config, mesh)

    @jax.jit
    def finite(params: Params, batch: Batch, rng: jax.Array) -> Any:
        gradient, metrics = measure(params, batch, rng)
        totals = {name: mean.total for name, mean in metrics.items()}
        return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), {"metrics": totals, "gradient": gradient})

    flags = finite(params, batch, jax.random.fold_in(jax.random.key(config.seed), step))
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(flags))
    return [leaf_name(path) for path, good in leaves if not good]


def _select_float(tree: Params, other: Params) -> Params:
    """Return the leaves of `tree`, with integer and bool leaves, which are never trained, from `other`."""
    return jax.tree.map(lambda x, y: x if jnp.issubdtype(y.dtype, jnp.inexact) else y, tree, other)


def _stays_finite(old: Params, new: Params, updates: Params) -> jax.Array:
    """Return whether finite parameters stay finite, and others (a constant -inf) get finite updates."""

    def finite(old: jax.Array, new: jax.Array, update: jax.Array) -> jax.Array:
        return jnp.all(jnp.isfinite(jnp.where(jnp.isfinite(old), new, update)))

    return jnp.all(jnp.array(jax.tree.leaves(jax.tree.map(finite, old, new, updates))))


def _updates(state: State) -> jax.Array:
    """Return the number of updates, by optax's own count if there is one: skipped steps do not advance its schedule."""
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    counts = [leaf for path, leaf in leaves if getattr(path[-1], "name", None) == "count"]
    return counts[-1] if counts else state.step


def _mask_frozen(gradient: jax.Array, train: Any) -> jax.Array:
    """Zero the gradient of frozen parameters: a whole leaf, or single layers of a stack."""
    if np.ndim(train):
        return jnp.where(train, gradient, 0)
    return gradient if train else jnp.zeros_like(gradient)


def _counts(metrics: Metrics) -> Metrics:
    return {name: dataclasses.replace(mean, total=jnp.zeros_like(mean.total)) for name, mean in metrics.items()}


def _cotangents(metrics: Metrics) -> dict[str, jax.Array]:
    def of_total(term: Mean) -> jax.Array:
        return (weight(term) / jnp.where(term.count == 0, 1.0, term.count)).astype(term.total.dtype)

    return {name: of_total(term) for name, term in terms(metrics).items()}


def _interleave(x: jax.Array, microbatches: int) -> jax.Array:
    """Reshape [b, ...] to [microbatches, b / microbatches, ...].

    Microbatch m holds rows m, m + microbatches, ..., so that each device has rows of all
    microbatches and no row moves to another device.
    """
    return jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1)
