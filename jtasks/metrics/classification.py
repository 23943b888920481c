"""What classifiers share: loss and accuracy from logits, the likeliest class, and the scores of a whole split."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtasks.errors import ConfigError
from jtasks.metrics import Loss, Mean
from jtasks.ops.precision import wide
from jtasks.ranges import Field

# Fields of a classifier's training loss, for a task's `defaults`. Evaluation has the plain cross-entropy.
FIELDS = {
    "loss.smoothing": Field(float, "[0, 1)", 0.0),  # share of each target that is spread evenly over all classes
    "loss.focal": Field(float, "[0, inf)", 0.0),  # gamma of the focal loss; 0: cross-entropy
    "loss.class_weights": Field(tuple, "[0, inf)", ()),  # weight of each class in the mean; (): equal weights
}


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, options: Any = None, name: str = "loss"
) -> dict[str, Mean]:
    """Return `loss`, the nats of the labels, and `accuracy`, of the likeliest class.

    Args:
      logits: [..., classes].
      labels: [...] int, or [..., classes] with the share of each class, which add up to 1.
      weights: of the labels, broadcast to [...].
      options: config.loss with FIELDS, for training; None: the plain cross-entropy.
      name: of the loss among the metrics.

    With `options` the loss is sum_c w_c q_c (1 - p_c)**focal (-log p_c), of the smoothed shares q (Szegedy et al. 2016)
    and the class weights w (Lin et al. 2017, "Focal Loss for Dense Object Detection", for a softmax). A label counts as
    much as its class weighs, as in PyTorch.

    Raises:
      ConfigError: there are not as many class weights as classes.
    """
    shares = labels if labels.ndim == logits.ndim else None
    if shares is None and not is_shaped(options):
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {name: Loss.of(nats, weights), "accuracy": Mean.of(logits.argmax(-1) == labels, weights)}
    if shares is None:
        shares = jax.nn.one_hot(labels, logits.shape[-1], dtype=wide(logits))
    nats, counts = _shaped(logits, shares, options)
    weights = weights.reshape(weights.shape + (1,) * (counts.ndim - weights.ndim))
    correct = jnp.take_along_axis(shares, logits.argmax(-1, keepdims=True), axis=-1)[..., 0]
    return {name: Loss.of(nats, weights * counts), "accuracy": Mean.of(correct, jnp.broadcast_to(weights, nats.shape))}


def top(count: int, logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Mean:
    """Return how often the label is among the `count` likeliest classes; arguments as for `cross_entropy`."""
    _, likeliest = jax.lax.top_k(logits, min(count, logits.shape[-1]))
    if labels.ndim < logits.ndim:
        return Mean.of((likeliest == labels[..., None]).any(-1), weights)
    return Mean.of(jnp.take_along_axis(labels, likeliest, axis=-1).sum(-1), weights)


def is_shaped(options: Any) -> bool:
    """Return whether config.loss asks for anything but the plain cross-entropy."""
    return options is not None and bool(options.smoothing or options.focal or options.class_weights)


def require_plain(options: Any, why: str) -> None:
    """Raise ConfigError if config.loss is set: it is for classifiers only."""
    if is_shaped(options):
        given = {name: value for name, value in options.items() if value}
        raise ConfigError(f"config.loss={given} is for the loss of classes, and {why}: leave it out")


def class_weights(options: Any, classes: int) -> jax.Array:
    """Return the weights of the classes [classes]; ConfigError if config.loss has another number, or no weight."""
    given = options.class_weights if options is not None else ()
    if given and (len(given) != classes or not any(given)):
        raise ConfigError(
            f"config.loss.class_weights={tuple(given)}: expected a weight for each of the {classes} classes, one of"
            " them above 0, or () for equal weights"
        )
    return jnp.asarray(given or (1.0,) * classes, jnp.float32)


def focus(log_probability: jax.Array, gamma: float) -> jax.Array:
    """Return the factor (1 - p)**gamma of the focal loss; its gradient is 0 where p rounds to 1."""
    rest = -jnp.expm1(log_probability)
    return jnp.maximum(rest, jnp.finfo(rest.dtype).eps) ** gamma if gamma else jnp.ones_like(rest)


def _shaped(logits: jax.Array, shares: jax.Array, options: Any) -> tuple[jax.Array, jax.Array]:
    """Return the loss of each label as a mean over its weight, [...], and the weights, [...]."""
    classes = logits.shape[-1]
    by_class = class_weights(options, classes)
    logs = jax.nn.log_softmax(logits.astype(wide(logits)))
    smoothing, gamma = (options.smoothing, options.focal) if options is not None else (0.0, 0.0)
    smooth = optax.smooth_labels(shares, smoothing) if smoothing else shares
    # A share of 0 drops its class, even if the class is impossible.
    terms = jnp.where(smooth == 0, 0.0, -logs * focus(logs, gamma)) * smooth
    counts = shares @ by_class.astype(shares.dtype)
    return terms @ by_class.astype(terms.dtype) / jnp.where(counts == 0, 1.0, counts), counts


def likeliest(logits: jax.Array) -> dict[str, jax.Array]:
    """Return the likeliest class `label` [...] of logits [..., classes], and its `probability` [...]."""
    probabilities = jax.nn.softmax(logits)
    return {"label": probabilities.argmax(-1), "probability": probabilities.max(-1)}


def scores(truth: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray, classes: int) -> dict[str, float]:
    """Return `f1` of the second of two classes, else the mean F1 of all classes; and `matthews`'s correlation."""
    from sklearn import metrics

    labels = list(range(classes))
    kind = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": labels}
    table = metrics.confusion_matrix(truth, predicted, labels=labels).astype(float)
    return {"f1": metrics.f1_score(truth, predicted, zero_division=0.0, **kind), "matthews": _matthews(table)}


def _matthews(table: np.ndarray) -> float:
    """Return the correlation in a table of counts [true, predicted] (Gorodkin 2004); 0 if either has only one class.

    Scikit-learn's `matthews_corrcoef` warns if all labels are of one class.
    """
    total, right, true, predicted = table.sum(), np.trace(table), table.sum(1), table.sum(0)
    spread = np.sqrt((total**2 - predicted @ predicted) * (total**2 - true @ true))
    return float((right * total - true @ predicted) / spread) if spread else 0.0
