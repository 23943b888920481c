"""Decoding as pure loops over step_fn(cache, tokens [b]) -> (logits [b, vocab], cache)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

StepFn = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


def filtered(logits: jax.Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """Logits [..., vocab] of the distribution to draw from.

    Args:
      temperature: divides the logits; above 0.
      top_k: keep the k likeliest; 0 keeps all.
      top_p: keep the fewest likeliest whose probabilities reach p (Holtzman et al. 2020); 1 keeps all.
    """
    logits = logits / temperature
    if top_k:
        threshold = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        kept = jnp.sum(before < top_p, axis=-1, keepdims=True)
        threshold = jnp.take_along_axis(ordered, jnp.maximum(kept, 1) - 1, axis=-1)
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    return logits


def sample(
    step_fn: StepFn,
    cache: Any,
    logits: jax.Array,
    keys: jax.Array,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
    """Draw `length` tokens, [b, length] int32.

    Args:
      logits: of the first token, [b, vocab], as the prefill gave them with `cache`.
      keys: one random key a sequence, [b]; so a draw does not depend on its neighbours.
      length: of the continuation; 0 draws nothing.
      temperature: 0 takes the likeliest token each time.
    """
    if not length:
        return jnp.zeros((logits.shape[0], 0), jnp.int32)

    def draw(logits: jax.Array, i: jax.Array) -> jax.Array:
        if temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        chosen = filtered(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        return jax.vmap(jax.random.categorical)(folded, chosen).astype(jnp.int32)

    def body(carry: tuple[jax.Array, Any], i: jax.Array) -> tuple[tuple[jax.Array, Any], jax.Array]:
        logits, cache = carry
        token = draw(logits, i)
        return step_fn(cache, token), token

    (logits, _), tokens = jax.lax.scan(body, (logits, cache), jnp.arange(length - 1))
    return jnp.concatenate([jnp.moveaxis(tokens, 0, 1), draw(logits, jnp.asarray(length - 1))[:, None]], axis=1)
