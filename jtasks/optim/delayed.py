"""Parameters that change only from some update on: `config.optim.unfreeze`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Passed(NamedTuple):
    """The updates so far; not called `count`, which is the schedule's."""

    updates: jax.Array


def hold(begins: Any) -> optax.GradientTransformation:
    """Return a transformation whose updates of a parameter are 0 before its update in `begins`, counted from 0.

    Args:
      begins: a tree like the parameters, of ints, or of int arrays [depth, 1, ...] for the layers of a stack.

    >>> transformation = hold({"a": 0, "b": 1})
    >>> state = transformation.init(None)
    >>> for _ in range(2):
    ...     updates, state = transformation.update({"a": jnp.ones(()), "b": jnp.ones(())}, state)
    ...     print(float(updates["a"]), float(updates["b"]))
    1.0 0.0
    1.0 1.0
    """

    def update(updates: Any, state: Passed, params: Any = None) -> tuple[Any, Passed]:
        held = jax.tree.map(
            lambda u, begin: jnp.where(state.updates >= jnp.asarray(begin), u, jnp.zeros_like(u)), updates, begins
        )
        return held, Passed(state.updates + 1)

    return optax.GradientTransformation(lambda params: Passed(jnp.int32(0)), update)


def clip(largest: float, begins: Any) -> optax.GradientTransformation:
    """Return a clipping by the global norm of the parameters that change already; it scales the others too."""
    active = hold(begins)

    def update(updates: Any, state: Passed, params: Any = None) -> tuple[Any, Passed]:
        changing, state = active.update(updates, state)
        norm = optax.tree.norm(changing)
        return jax.tree.map(lambda u: jnp.where(norm < largest, u, u / norm.astype(u.dtype) * largest), updates), state

    return optax.GradientTransformation(active.init, update)
