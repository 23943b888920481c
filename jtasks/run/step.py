"""The training step: exact gradient, update, and the state that carries on."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jtasks.config import Config
from jtasks.metrics import terms
from jtasks.run import noise
from jtasks.run.gradient import gradient_fn
from jtasks.run.microbatches import Batch, Metrics, Params, select_float
from jtasks.tree import leaf_name


class State(NamedTuple):
    """All that a run carries from step to step, and all that a checkpoint holds."""

    step: jax.Array  # int32 scalar: steps done
    params: Params
    opt_state: optax.OptState
    ema_params: Params | None  # moving average of params, if config.ema is set
    nonfinite_steps: jax.Array  # int32 scalar: non-finite steps in a row, up to this one
    base: Params | None = None  # frozen parameters below an adapter (config.adapter), which no checkpoint holds
    # float32 scalar, of the updates, if config.plateau is set. It follows from the evaluations: no checkpoint holds it.
    lr_factor: jax.Array | None = None

    @property
    def eval_params(self) -> Params:
        """The trained parameters to evaluate: the moving average, if there is one."""
        return self.params if self.ema_params is None else self.ema_params


class StepOutput(NamedTuple):
    """The output of a step: metrics as sums and counts, and scalars about the update."""

    metrics: Metrics
    gradient_norm: jax.Array
    learning_rate: jax.Array
    nonfinite_steps: jax.Array  # 0 when the update was made


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    ema: bool,
    base: Params | None = None,
    plateau: bool = False,
) -> State:
    """Return the state before the first step."""
    copy = jax.tree.map(jnp.copy, params) if ema else None  # a copy: both are donated to the step
    factor = jnp.float32(1) if plateau else None
    return State(jnp.int32(0), params, optimizer.init(params), copy, jnp.int32(0), base, factor)


def make_train_step(
    task: ModuleType,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    trainable: Any,
    mesh: Mesh,
) -> Callable[[State, Batch], tuple[State, StepOutput]]:
    """Return the step as a pure function (state, batch) -> (state, output), to be jitted with the state donated.

    A step whose loss, gradient or updates are not finite changes only `step` and `nonfinite_steps`.

    Args:
      task: the task's module.
      config: the filled config.
      optimizer: makes the updates.
      schedule: learning rate by number of updates, for the output.
      trainable: a tree like the parameters, from `optim.trainable`.
      mesh: where state and batch live; its devices need not be this machine's.
    """
    if config.noise_scale:
        noise.check(task, config)

    def square(gradient: Params) -> jax.Array:
        return noise.square(jax.tree.map(_mask_frozen, gradient, trainable))

    measure = gradient_fn(task, config, mesh, square if config.noise_scale else None)
    on_cpu = mesh.devices.flat[0].platform == "cpu"

    def step(state: State, batch: Batch) -> tuple[State, StepOutput]:
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        gradient, metrics = measure(state.params, batch, rng, state.base)
        gradient = jax.tree.map(_mask_frozen, gradient, trainable)
        # The barrier keeps XLA from storing the squares until the optimizer's second moments need the same ones.
        norm = optax.tree.norm(jax.lax.optimization_barrier(gradient))
        finite = jnp.isfinite(norm) & jnp.all(jnp.array([jnp.isfinite(term.total) for term in terms(metrics).values()]))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        learning_rate = jnp.asarray(schedule(_updates(state)), jnp.float32)
        if (factor := state.lr_factor) is not None:
            learning_rate *= factor
            updates = jax.tree.map(lambda update: (update * factor).astype(update.dtype), updates)
        params = select_float(optax.apply_updates(state.params, updates), state.params)
        finite &= _stays_finite(state.params, params, updates)
        if on_cpu:
            # A loop that XLA compiles for the CPU has one result. So new moments and parameters would be stored, read
            # for the updates and their test, and copied over the old ones. Here they are computed again, in place.
            again = jax.lax.optimization_barrier((updates, state.opt_state, finite))
            updates, finite = again[0], again[2]
            opt_state = optimizer.update(gradient, again[1], state.params)[1]
            params = select_float(optax.apply_updates(state.params, updates), state.params)
        ema_params = None
        if state.ema_params is not None:
            ema_params = select_float(optax.incremental_update(params, state.ema_params, 1 - config.ema), params)
        nonfinite_steps = jnp.where(finite, 0, state.nonfinite_steps + 1)
        new = State(state.step + 1, params, opt_state, ema_params, nonfinite_steps, lr_factor=factor)
        old = state._replace(step=new.step, nonfinite_steps=nonfinite_steps, base=None)
        output = StepOutput(metrics, norm, learning_rate, nonfinite_steps)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        return new._replace(base=state.base), output

    return step


def non_finite(task: ModuleType, config: Config, state: State, batch: Batch, step: int, mesh: Mesh) -> list[str]:
    """Return names of metrics and leaves of the gradient that are not finite on the batch of a step (0-based)."""
    measure = gradient_fn(task, config, mesh)

    @jax.jit
    def finite(params: Params, base: Params, batch: Batch, rng: jax.Array) -> Any:
        gradient, metrics = measure(params, batch, rng, base)
        totals = {name: mean.total for name, mean in metrics.items()}
        return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), {"metrics": totals, "gradient": gradient})

    flags = finite(state.params, state.base, batch, jax.random.fold_in(jax.random.key(config.seed), step))
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(flags))
    return [leaf_name(path) for path, good in leaves if not good]


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
