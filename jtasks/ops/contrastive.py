"""Losses of pairs of embeddings against all other pairs of the batch: CLIP's softmax and SigLIP's sigmoid.

Row i of `images` [b, d] belongs to row i of `texts` [b, d]. In a function that runs over a mesh (`sharding.on_mesh`)
each device keeps its own images. The texts travel around the ring of the devices, together with what they have seen of
the images. So no device ever holds the similarities [b, b] (SigLIP, Zhai et al. 2023, section 3.3). The backward pass
computes each block of them again.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jtasks.ops.precision import wide
from jtasks.schema import BATCH_AXES

EXCLUDED = -1e30  # instead of a masked similarity: finite, so that its gradient is 0 and not NaN
UNROLL = 32  # steps of a ring without a loop: XLA:CPU may wait forever for a loop beside other collectives

# (logits, whether an entry is a pair's own, whether its image counts, whether its text counts) -> (rows, columns)
Sums = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]


class Contrast(NamedTuple):
    """Losses of the pairs of a batch, and which pairs are closest; zeros in rows of weight 0."""

    nats: jax.Array  # [b] loss of each pair
    text_found: jax.Array  # [b] whether the image is closer to its text than to any other text of the batch
    image_found: jax.Array  # [b] whether the text is closer to its image than to any other image of the batch


class _Seen(NamedTuple):
    """What images have seen of texts, or texts of images."""

    sums: Any  # [n] as `Sums` gives them
    closest: jax.Array  # [n] largest similarity to an embedding of another pair


def softmax_loss(images: jax.Array, texts: jax.Array, scale: Any, mask: jax.Array) -> Contrast:
    """Return the cross-entropies of finding each image's text, and each text's image, half each, in nats.

    This is the loss of CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3).

    Args:
      images: [b, d] embeddings, of unit length as a rule.
      texts: [b, d] embeddings of the texts of these images.
      scale: multiplies the dot products, such as the exponential of a parameter: the inverse of the temperature.
      mask: [b] weights of the pairs; a pair of weight 0 is no alternative for another pair.

    >>> x = jnp.eye(3)
    >>> loss = softmax_loss(x, x, 100.0, jnp.array([1.0, 1.0, 0.0]))
    >>> loss.nats.tolist(), loss.text_found.tolist()
    ([0.0, 0.0, 0.0], [True, True, False])
    """
    of_images, of_texts, own = _compare(images, texts, scale, 0.0, mask, sums=_log_sums, add=jnp.logaddexp)
    return _contrast((of_images.sums + of_texts.sums) / 2 - own, of_images, of_texts, own, mask)


def sigmoid_loss(images: jax.Array, texts: jax.Array, scale: Any, bias: Any, mask: jax.Array) -> Contrast:
    """Return the binary cross-entropies of each image with all texts of the batch, added up over the texts, in nats.

    This is the loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343, algorithm 1). The arguments are those of
    `softmax_loss`; `bias`, a parameter that starts at -10 there, is added to the scaled dot products.
    """
    of_images, of_texts, own = _compare(images, texts, scale, bias, mask, sums=_binary_sums, add=jnp.add)
    return _contrast(of_images.sums, of_images, of_texts, own, mask)


def _contrast(nats: Any, of_images: _Seen, of_texts: _Seen, own: jax.Array, mask: jax.Array) -> Contrast:
    valid = mask > 0
    found = [valid & (own > seen.closest) for seen in (of_images, of_texts)]
    return Contrast(jnp.where(valid, nats, 0), *found)


def _compare(
    images: jax.Array, texts: jax.Array, scale: Any, bias: Any, mask: jax.Array, *, sums: Sums, add: Callable[..., Any]
) -> tuple[_Seen, _Seen, jax.Array]:
    """Return what images and texts have seen of each other, and the similarity [b] of each pair."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty or mesh.manual_axes else tuple(a for a in BATCH_AXES if mesh.shape.get(a, 1) > 1)
    size = 1
    for axis in axes:
        size *= mesh.shape[axis]
    arguments = (images, texts, mask, jnp.asarray(scale), jnp.asarray(bias))
    ring = functools.partial(_ring, axes=axes, size=size, sums=sums, add=add)
    if size == 1 or len(images) % size:
        return ring(*arguments, axes=(), size=1)
    divided, whole = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(ring, in_specs=(divided, divided, divided, whole, whole), out_specs=divided)(*arguments)


def _ring(
    images: jax.Array,
    texts: jax.Array,
    mask: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    axes: tuple[str, ...],
    size: int,
    sums: Sums,
    add: Callable[..., Any],
) -> tuple[_Seen, _Seen, jax.Array]:
    """Compare the images of this device with its own texts, and then with those that arrive around the ring."""
    valid = (mask > 0)[:, None]
    images, texts = (jnp.where(valid, x, 0) for x in (images, texts))  # a masked row may hold NaN
    block = jax.checkpoint(functools.partial(_block, sums=sums), static_argnums=6)

    def shift(tree: Any) -> Any:
        return jax.lax.ppermute(tree, axes, [(i, (i + 1) % size) for i in range(size)])

    def merge(first: _Seen, second: _Seen) -> _Seen:
        total = None if first.sums is None else add(first.sums, second.sums)
        return _Seen(total, jnp.maximum(first.closest, second.closest))

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        of_images, travelers = carry
        texts, weights, of_texts = shift(travelers)
        rows, columns, _ = block(images, texts, mask, weights, scale, bias, False)
        return (merge(of_images, rows), (texts, weights, merge(of_texts, columns))), None

    of_images, of_texts, own = block(images, texts, mask, mask, scale, bias, True)
    if size == 1:
        return of_images, of_texts, own
    carry: tuple[Any, Any] = of_images, (texts, mask, of_texts)
    (of_images, (*_, of_texts)), _ = jax.lax.scan(step, carry, length=size - 1, unroll=min(size - 1, UNROLL))
    return of_images, shift(of_texts), own


def _block(
    images: jax.Array,
    texts: jax.Array,
    image_weights: jax.Array,
    text_weights: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    pairs: bool,
    *,
    sums: Sums,
) -> tuple[_Seen, _Seen, jax.Array]:
    """Compare images [n, d] with texts [m, d]; row i of both is a pair if `pairs`. Returns also the pairs' logits."""
    dtype = wide(images, texts)
    logits = jnp.einsum("nd,md->nm", images, texts, preferred_element_type=dtype) * scale.astype(dtype)
    logits += bias.astype(dtype)
    own = jnp.eye(len(images), len(texts), dtype=bool) if pairs else jnp.zeros((len(images), len(texts)), bool)
    valid = (image_weights > 0)[:, None], (text_weights > 0)[None]
    others = jnp.where(own | ~(valid[0] & valid[1]), EXCLUDED, jax.lax.stop_gradient(logits))
    rows, columns = sums(logits, own, *valid)
    diagonal = jnp.diagonal(logits) if pairs else jnp.zeros(len(images), dtype)
    return _Seen(rows, jnp.max(others, axis=1)), _Seen(columns, jnp.max(others, axis=0)), diagonal


def _log_sums(logits: jax.Array, own: jax.Array, image: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, columns = (jnp.where(valid, logits, EXCLUDED) for valid in (text, image))
    return jax.nn.logsumexp(rows, axis=1), jax.nn.logsumexp(columns, axis=0)


def _binary_sums(logits: jax.Array, own: jax.Array, image: jax.Array, text: jax.Array) -> tuple[jax.Array, None]:
    nats = jax.nn.softplus(jnp.where(own, -logits, logits))  # -log(sigmoid(+-logits))
    return jnp.sum(jnp.where(image & text, nats, 0), axis=1), None
