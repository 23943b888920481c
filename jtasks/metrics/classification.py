"""What classifiers share: loss and accuracy from logits, the likeliest class, and the scores of a whole split."""

from collections.abc import Sequence

import jax
import numpy as np
import optax

from jtasks.metrics import Loss, Mean


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> dict[str, Mean]:
    """Return `loss`, the nats of the labels, and `accuracy`, of the likeliest class.

    Args:
      logits: [..., classes].
      labels: [...] int.
      weights: of the labels, broadcast to [...].
    """
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {"loss": Loss.of(nats, weights), "accuracy": Mean.of(logits.argmax(-1) == labels, weights)}


def likeliest(logits: jax.Array) -> dict[str, jax.Array]:
    """Return the likeliest class `label` [...] of logits [..., classes], and its `probability` [...]."""
    probabilities = jax.nn.softmax(logits)
    return {"label": probabilities.argmax(-1), "probability": probabilities.max(-1)}


def scores(truth: Sequence[int], predicted: Sequence[int], classes: int) -> dict[str, float]:
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
