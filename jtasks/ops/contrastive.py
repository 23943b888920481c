"""Losses of pairs of embeddings against all other pairs of the batch: CLIP's softmax and SigLIP's sigmoid.

Row i of `images` [b, d] belongs to row i of `texts` [b, d]. In a function that runs over a mesh (`sharding.on_mesh`)
each device keeps its own images. The texts travel around the ring of the devices, together with what they have seen of
the images. So no device ever holds the similarities [b, b] (SigLIP, Zhai et al. 2023, section 3.3). The backward pass
computes each block of them again.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jtasks.ops.precision import wide
from jtasks.schema import BATCH_AXES

EXCLUDED = -1e30  # instead of a masked similarity: finite, so that its gradient is 0 and not NaN
BLOCK = 2**22  # largest number of similarities that a device holds at a time
UNROLL = 32  # steps of a ring without a loop: XLA:CPU may wait forever for a loop beside other collectives


class Contrast(NamedTuple):
    """Losses of the pairs of a batch, and which pairs are closest; zeros in rows of weight 0."""

    nats: jax.Array  # [b] loss of each pair
    text_found: jax.Array  # [b] whether the image is closer to its text than to any other text of the batch
    image_found: jax.Array  # [b] whether the text is closer to its image than to any other image of the batch


class _Seen(NamedTuple):
    """What images have seen of texts, or texts of images."""

    sums: Any  # [n] the rule's sums over these similarities, or None
    closest: jax.Array  # [n] largest similarity to an embedding of another pair
    own: Any  # [n] similarity to the text of the same pair, 0 until that is seen; None for texts


class _Rule(NamedTuple):
    """How a loss adds up similarities."""

    # (logits [n, m], which are of a pair, [n, 1] image counts, [1, m] text counts) -> sums of rows [n], of columns [m]
    sums: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]
    total: Callable[..., jax.Array]  # (sums [k, n], axis) -> sums [n]


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
    of_images, of_texts = _compare(images, texts, scale, 0.0, mask, _Rule(_log_sums, jax.nn.logsumexp))
    return _contrast((of_images.sums + of_texts.sums) / 2 - of_images.own, of_images, of_texts, mask)


def sigmoid_loss(images: jax.Array, texts: jax.Array, scale: Any, bias: Any, mask: jax.Array) -> Contrast:
    """Return the binary cross-entropies of each image with all texts of the batch, added up over the texts, in nats.

    This is the loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343, algorithm 1). The arguments are those of
    `softmax_loss`; `bias`, a parameter that starts at -10 there, is added to the scaled dot products.
    """
    of_images, of_texts = _compare(images, texts, scale, bias, mask, _Rule(_binary_sums, jnp.sum))
    return _contrast(of_images.sums, of_images, of_texts, mask)


def _contrast(nats: jax.Array, of_images: _Seen, of_texts: _Seen, mask: jax.Array) -> Contrast:
    valid = mask > 0
    closest = [valid & (of_images.own > seen.closest) for seen in (of_images, of_texts)]
    return Contrast(jnp.where(valid, nats, 0), *closest)


def _compare(
    images: jax.Array, texts: jax.Array, scale: Any, bias: Any, mask: jax.Array, rule: _Rule
) -> tuple[_Seen, _Seen]:
    """Return what images have seen of all texts, and texts of all images."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty or mesh.manual_axes else tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
    size = math.prod(mesh.shape[axis] for axis in axes)
    arguments = images, texts, mask, jnp.asarray(scale), jnp.asarray(bias)
    if size == 1 or len(images) % size:
        return _ring(*arguments, rule=rule, axes=(), size=1)
    ring = functools.partial(_ring, rule=rule, axes=axes, size=size)
    divided, whole = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(ring, in_specs=(divided, divided, divided, whole, whole), out_specs=divided)(*arguments)


def _ring(
    images: jax.Array,
    texts: jax.Array,
    mask: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    rule: _Rule,
    axes: tuple[str, ...],
    size: int,
) -> tuple[_Seen, _Seen]:
    """Compare the images of this device with its own texts, and then with those that arrive around the ring."""
    images, texts = (jnp.where((mask > 0)[:, None], x, 0) for x in (images, texts))  # masked rows may hold NaN

    def shift(tree: Any) -> Any:
        return jax.lax.ppermute(tree, axes, [(i, (i + 1) % size) for i in range(size)])

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        of_images, (texts, weights, of_texts) = carry[0], shift(carry[1])
        rows, columns = _blocks(images, texts, mask, weights, scale, bias, len(images), rule)
        return (_join(rule, of_images, rows), (texts, weights, _join(rule, of_texts, columns))), None

    of_images, of_texts = _blocks(images, texts, mask, mask, scale, bias, 0, rule)
    if size == 1:
        return of_images, of_texts
    carry: tuple[Any, Any] = of_images, (texts, mask, of_texts)
    (of_images, (*_, of_texts)), _ = jax.lax.scan(step, carry, length=size - 1, unroll=min(size - 1, UNROLL))
    return of_images, shift(of_texts)


def _blocks(
    images: jax.Array,
    texts: jax.Array,
    image_weights: jax.Array,
    text_weights: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    first: int,
    rule: _Rule,
) -> tuple[_Seen, _Seen]:
    """Compare images [n, d] with texts [m, d] in blocks; image i and text i - first are a pair."""
    block = jax.checkpoint(functools.partial(_block, rule=rule))
    size = max(1, min(len(texts), BLOCK // len(images)))
    count = -(-len(texts) // size)
    if count == 1:
        return block(images, texts, image_weights, text_weights, scale, bias, first)
    padding = [(0, count * size - len(texts))]
    parts = jnp.pad(texts, [*padding, (0, 0)]).reshape(count, size, -1)
    weights = jnp.pad(text_weights, padding).reshape(count, size)

    def part(x: tuple[jax.Array, ...]) -> tuple[_Seen, _Seen]:
        return block(images, x[0], image_weights, x[1], scale, bias, first + x[2])

    rows, columns = jax.lax.map(part, (parts, weights, size * jnp.arange(count)))
    return _merge(rule, rows), jax.tree.map(lambda x: x.reshape(-1)[: len(texts)], columns)


def _block(
    images: jax.Array,
    texts: jax.Array,
    image_weights: jax.Array,
    text_weights: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    first: Any,
    *,
    rule: _Rule,
) -> tuple[_Seen, _Seen]:
    dtype = wide(images, texts)
    logits = jnp.einsum("nd,md->nm", images, texts, preferred_element_type=dtype) * scale.astype(dtype)
    logits += bias.astype(dtype)
    own = jnp.arange(len(images))[:, None] == first + jnp.arange(len(texts))[None]
    valid = (image_weights > 0)[:, None], (text_weights > 0)[None]
    others = jnp.where(own | ~(valid[0] & valid[1]), EXCLUDED, jax.lax.stop_gradient(logits))
    rows, columns = rule.sums(logits, own, *valid)
    of_images = _Seen(rows, jnp.max(others, axis=1), jnp.sum(jnp.where(own, logits, 0), axis=1))
    return of_images, _Seen(columns, jnp.max(others, axis=0), None)


def _join(rule: _Rule, first: _Seen, second: _Seen) -> _Seen:
    return _merge(rule, jax.tree.map(lambda *x: jnp.stack(x), first, second))


def _merge(rule: _Rule, parts: _Seen) -> _Seen:
    """Merge what has been seen in several parts, from arrays [k, n] to [n]."""
    sums = None if parts.sums is None else rule.total(parts.sums, axis=0)
    return _Seen(sums, jnp.max(parts.closest, axis=0), None if parts.own is None else jnp.sum(parts.own, axis=0))


def _log_sums(logits: jax.Array, own: jax.Array, image: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, columns = (jnp.where(valid, logits, EXCLUDED) for valid in (text, image))
    return jax.nn.logsumexp(rows, axis=1), jax.nn.logsumexp(columns, axis=0)


def _binary_sums(logits: jax.Array, own: jax.Array, image: jax.Array, text: jax.Array) -> tuple[jax.Array, None]:
    nats = jax.nn.softplus(jnp.where(own, -logits, logits))  # -log(sigmoid(+-logits))
    return jnp.sum(jnp.where(image & text, nats, 0), axis=1), None
