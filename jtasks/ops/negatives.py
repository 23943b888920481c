"""Hard negatives of a batch: pairs that do not belong together, and that a model finds similar."""

import jax
import jax.numpy as jnp

from jtasks.ops.precision import wide

SMALLEST = -1e30  # finite, so that no padding becomes NaN
FLOOR = 1e-4  # added to each probability, so that every other example can be drawn


def draw(similarities: jax.Array, seeds: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw for each row of `similarities` another column, by the softmax of the row (Li et al. 2021, section 3.2).

    A draw depends on the seeds of the two examples alone, so neither the order of the batch nor padding changes it.

    Args:
      similarities: [b, b] logits of example i with example j.
      seeds: [b] uint32, one of each example.
      mask: [b], 0 for padding, which is never drawn.

    Returns:
      The column [b] of each row, and whether there was one to draw [b] bool.

    >>> column, valid = draw(jnp.zeros((2, 2)), jnp.arange(2, dtype=jnp.uint32), jnp.ones(2))
    >>> column.tolist(), valid.tolist()
    ([1, 0], [True, True])
    """
    own, real = jnp.eye(len(similarities), dtype=bool), (mask > 0)[None]

    def noise(one: jax.Array, other: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(one), other), (), wide(similarities))

    gumbel = jax.vmap(lambda one: jax.vmap(lambda other: noise(one, other))(seeds))(seeds)
    logits = jnp.where(real & real.T, jax.lax.stop_gradient(similarities), SMALLEST).astype(gumbel.dtype)
    scores = jnp.log(jax.nn.softmax(logits) + FLOOR) + gumbel  # the largest is drawn by the probabilities (Gumbel 1954)
    return jnp.argmax(jnp.where(real & ~own, scores, SMALLEST), axis=1), (real & ~own).any(1)
