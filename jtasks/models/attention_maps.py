"""Maps of what texts attend to: the weights of cross-attention, plain or as Grad-CAM (Selvaraju et al. 2017).

Models say nothing of their weights. `CrossAttention` hands them out through Flax's collections if they are asked for,
so that a training step neither forms nor keeps them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def cross_attention_weights(model: Any, params: Any, *inputs: Any, tower: str, **options: Any) -> jax.Array:
    """Return the weights [depth, b, h, t, s] with which each of a tower's t tokens attends to its memory.

    Args:
      model: has the tower.
      params: the model's parameters.
      inputs: of the model's method.
      tower: attribute of the model: a text encoder or decoder whose layers attend to a memory.
      options: of `model.apply`, such as `method`.
    """
    return _weights(_apply(model, params, *inputs, **options)[1], tower)


def grad_cam(
    model: Any,
    params: Any,
    *inputs: Any,
    score: Callable[[Any], jax.Array],
    tower: str,
    layer: int,
    shape: tuple[int, int],
    **options: Any,
) -> jax.Array:
    """Return the map [b, t, rows, columns] of each token over the patches of a picture, by Grad-CAM.

    A map has the weights of a layer's cross-attention times the gradient of a score with respect to them where it is
    positive, averaged over the heads: where the token looked in favor of the score. ALBEF (Li et al. 2021) and LAVIS
    draw these maps. The gradient treats the weights as independent, as if they need not sum to 1.

    Args:
      model, params, inputs, tower, options: see `cross_attention_weights`. The memory is a class token and the patches.
      score: function from the method's outputs to a score of each example [b], or of each token [b, t]; then the map
        of a token is by its own score alone.
      layer: number of the layer; negative ones count from the last.
      shape: rows and columns of the patches.
    """
    shapes = jax.eval_shape(lambda: _apply(model, params, *inputs, **options)[1])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def run(perturbations: Any) -> tuple[jax.Array, jax.Array]:
        outputs, weights = _apply(model, params, *inputs, perturbations=perturbations, **options)
        return score(outputs), _weights(weights, tower)[layer]

    scores, pullback, weights = jax.vjp(run, zeros, has_aux=True)

    def gradient(cotangent: jax.Array) -> jax.Array:
        return _weights(pullback(cotangent)[0], tower)[layer]

    def own_gradient(token: jax.Array) -> jax.Array:
        cotangent = jnp.zeros_like(scores).at[:, token].set(1)
        return jax.lax.dynamic_index_in_dim(gradient(cotangent), token, axis=2, keepdims=False)

    if scores.ndim == 1:
        gradients = gradient(jnp.ones_like(scores))
    else:  # one backward pass a token; a gradient of the sum would mix in the scores of later tokens
        gradients = jnp.moveaxis(jax.lax.map(own_gradient, jnp.arange(scores.shape[1])), 0, 2)
    maps = jnp.mean(weights * jnp.maximum(gradients, 0), axis=1)
    return maps[..., 1:].reshape(*maps.shape[:2], *shape)


def _apply(model: Any, params: Any, *inputs: Any, perturbations: Any = None, **options: Any) -> tuple[Any, Any]:
    """Return the outputs of a model, and the weights of all its cross-attention, a tree like `perturbations`."""
    variables = {"params": params} | ({} if perturbations is None else {"perturbations": perturbations})
    outputs, state = model.apply(variables, *inputs, mutable=["intermediates"], **options)
    return outputs, state["intermediates"]


def _weights(tree: Any, tower: str) -> jax.Array:
    weights: jax.Array = tree[tower]["blocks"]["cross"]["weights"]
    return weights
