"""What classifiers share whose examples have any number of classes: loss, accuracy, F1, and the scores of a split."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks.metrics import F1, Loss, Mean, number
from jtasks.metrics.classification import class_weights, focus
from jtasks.ops.precision import wide


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array, options: Any = None) -> dict[str, Mean]:
    """Return `loss`, the mean nats of a label's presence; the `accuracy` of these answers, and the micro `f1`.

    Args:
      logits: [b, classes]; an example has a class if its logit is above 0.
      labels: [b, classes], 1 for the classes that an example has, else 0.
      weights: [b] of the examples.
      options: config.loss with `classification.FIELDS`, for training; None: the plain cross-entropy. The focal loss is
        that of Lin et al. (2017), and smoothing moves labels towards one half.

    Raises:
      ConfigError: there are not as many class weights as classes.
    """
    truth, logits = labels.astype(wide(logits)), logits.astype(wide(logits))
    smoothing, gamma = (options.smoothing, options.focal) if options is not None else (0.0, 0.0)
    present, absent = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    smooth = truth * (1 - smoothing) + smoothing / 2
    nats = -smooth * present * focus(present, gamma) - (1 - smooth) * absent * focus(absent, gamma)
    rows = jnp.broadcast_to(weights[:, None], nats.shape)
    predicted = (logits > 0).astype(truth.dtype)
    f1 = by_class(logits, labels, weights)
    return {
        "loss": Loss.of(nats, rows * class_weights(options, logits.shape[-1])[None]),
        "accuracy": Mean.of(predicted == truth, rows),
        "f1": F1(f1.total.sum(), f1.count.sum()),
    }


def f1_of_classes(logits: jax.Array, labels: jax.Array, weights: jax.Array, names: Sequence[str]) -> dict[str, Mean]:
    """Return `f1_macro`, and the F1 of each class as `f1/NAME`; exact over any batches. Arguments: see `by_class`."""
    f1 = by_class(logits, labels, weights)
    return {"f1_macro": f1, **{f"f1/{name}": F1(f1.total[i], f1.count[i]) for i, name in enumerate(names)}}


def by_class(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> F1:
    """Return the sums of the F1 of each class, [classes]; arguments as above."""
    truth = labels.astype(wide(logits))
    predicted, rows = (logits > 0).astype(truth.dtype), jnp.broadcast_to(weights[:, None], truth.shape)
    sums = [
        jnp.sum(jnp.where(rows == 0, 0.0, values) * rows, axis=0)
        for values in (2 * predicted * truth, predicted + truth)
    ]
    return F1(*sums)


def probabilities(logits: jax.Array) -> dict[str, jax.Array]:
    """Return the `probabilities` [b, classes] of an example's classes, each by itself."""
    return {"probabilities": jax.nn.sigmoid(logits.astype(wide(logits)))}


def chosen(probabilities: np.ndarray) -> np.ndarray:
    """Return whether an example has each of the classes: the probability is above one half."""
    return np.asarray(probabilities) > 0.5


def scores(truth: Iterable[np.ndarray], predicted: Iterable[np.ndarray], names: Sequence[str]) -> dict[str, float]:
    """Return `f1_micro`, of all answers together, `f1_macro`, the mean over classes, and the F1 of each class.

    Args:
      truth: for each example, whether it has each of the classes.
      predicted: the same, as predicted.
      names: of the classes; the F1 of class NAME is `f1/NAME`.

    >>> scores([[1, 0], [1, 1]], [[1, 0], [0, 1]], ["a", "b"])
    {'f1_micro': 0.8, 'f1_macro': 0.8333333333333333, 'f1/a': 0.6666666666666666, 'f1/b': 1.0}
    """
    both, either = np.zeros((2, len(names)), np.int64)
    for true, answer in zip(truth, predicted, strict=True):
        true, answer = np.asarray(true, bool), np.asarray(answer, bool)
        both += true & answer
        either += true.astype(np.int64) + answer
    each = {f"f1/{name}": F1(2 * both[i], either[i]) for i, name in enumerate(names)}
    means = {"f1_micro": F1(2 * both.sum(), either.sum()), "f1_macro": F1(2 * both, either), **each}
    return {name: number(mean) for name, mean in means.items()}
