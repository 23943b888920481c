"""What regressions share: the squared error, and the correlations of a whole split."""

import jax
import jax.numpy as jnp
import numpy as np

from jtasks.metrics import Loss, Mean


def squared_error(values: jax.Array, labels: jax.Array, weights: jax.Array) -> dict[str, Mean]:
    """Return `loss`, the mean square of the error, and `error`, the mean of its size.

    Args:
      values: [b], predicted.
      labels: [b], the numbers that they stand for.
      weights: [b].
    """
    difference = values - labels
    return {"loss": Loss.of(jnp.square(difference), weights), "error": Mean.of(jnp.abs(difference), weights)}


def scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return the correlations `pearson` and `spearman`, of the ranks; 0 if either side has only one value.

    >>> scores(np.array([1, 2, 3]), np.array([1, 4, 9]))["spearman"]
    1.0
    """
    from scipy import stats

    ranks = stats.rankdata(truth), stats.rankdata(predicted)  # equal values share the mean of their ranks
    return {"pearson": _correlation(truth, predicted), "spearman": _correlation(*ranks)}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (a, b))
    spread = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / spread, -1, 1)) if spread else 0.0
