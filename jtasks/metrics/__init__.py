"""Metrics are sums and counts until they are printed, so no split of a batch changes them."""

import dataclasses
import functools
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jtasks.errors import ConfigError
from jtasks.ops.precision import wide

TERM = "a Loss.of(values, batch['mask']) of jtasks.metrics"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Mean:
    """A weighted mean kept as its two sums; a pytree that merges by addition.

    >>> first, second = Mean.of(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])), Mean.of(jnp.array([8.0]))
    >>> float(first.merge(second).value)
    4.0
    """

    total: Any  # an array or a number
    count: Any

    @classmethod
    def of(cls, values: jax.Array, mask: jax.Array | None = None) -> Self:
        """Sum `values` [b, ...] with the weights `mask`.

        `mask` has the leading dimensions of `values` ([b], or [b, t] for masks per token) and holds weights, mostly 0
        and 1. None counts every value.

        Sums are float32, or float64 if `values` are. Those of whole numbers are exact up to 2**24 in one batch, and
        right to 1 in 10**7 above; `merge` of this module adds batches in float64.

        A value of zero weight is dropped, even a NaN, and its gradient is 0. That 0 becomes NaN only if a function of
        your own has an infinite derivative there, such as log at 0; then mask the argument too: `jnp.log(jnp.where(mask
        > 0, p, 1))`.

        Raises:
          ValueError: `mask` does not have the leading dimensions of `values`.
        """
        values = jnp.asarray(values)
        values = values.astype(wide(values))
        weights = jnp.ones(values.shape, values.dtype) if mask is None else jnp.asarray(mask, values.dtype)
        if values.shape[: weights.ndim] != weights.shape:
            raise ValueError(f"mask {weights.shape} must have the leading dimensions of values {values.shape}")
        weights = jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim)), values.shape)
        return cls(jnp.sum(jnp.where(weights == 0, 0.0, values) * weights), jnp.sum(weights))

    @property
    def value(self) -> jax.Array:
        """Compute total / count; 0 for an empty mean."""
        return self.total / jnp.where(self.count == 0, 1.0, self.count)

    def merge(self, other: Self) -> Self:
        """Return the mean over both sets of values."""
        return dataclasses.replace(self, total=self.total + other.total, count=self.count + other.count)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Loss(Mean):
    """A mean that is a term of the loss: `weight` times its value is added to the others.

    >>> terms = {"near": Loss.of(jnp.array([1.0, 3.0])), "far": Loss.of(jnp.array([4.0]), weight=0.5)}
    >>> float(total(terms))
    4.0
    """

    weight: float = dataclasses.field(default=1.0, metadata={"static": True})

    @classmethod
    def of(cls, values: jax.Array, mask: jax.Array | None = None, weight: float = 1.0) -> "Loss":
        """Sum `values` as `Mean.of` does; `weight` is a plain number, the same for every batch.

        Raises:
          ValueError: `weight` is no finite number.
        """
        try:
            number = float(weight)
        except TypeError:  # a traced array, which has no value yet
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"weight={weight} must be a plain number: multiply the values by what is computed")
        return dataclasses.replace(super().of(values, mask), weight=number)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Perplexity(Mean):
    """A mean of nats that is printed as its exponential; perplexities merge as means.

    >>> round(float(Perplexity.of(jnp.log(jnp.array([2.0, 8.0]))).value), 4)
    4.0
    """

    @property
    def value(self) -> jax.Array:
        """Compute exp(total / count); 1 for an empty mean."""
        return jnp.exp(super().value)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class F1(Mean):
    """An F1: twice the right answers over the predicted and the true ones, which merge as sums.

    It is 0 without any of them, as with `zero_division=0` in scikit-learn. Of arrays [classes] it is the macro F1: the
    mean over all classes.

    >>> float(F1(jnp.array([2.0, 0.0]), jnp.array([4.0, 0.0])).value)
    0.25
    """

    @property
    def value(self) -> jax.Array:
        """Compute total / count of each class, and the mean over classes."""
        return jnp.mean(super().value)


def example_weights(batch: Mapping[str, Any]) -> jax.Array:
    """Return the weights [b] of a batch's examples: `mask`, or ones without a mask."""
    return batch["mask"] if "mask" in batch else jnp.ones(len(next(iter(batch.values()))), jnp.float32)


def scale(mean: Mean, coefficient: float) -> Mean:
    """Return the mean of values multiplied by a coefficient, such as bits for nats."""
    return Mean(mean.total * coefficient, mean.count)


def total(metrics: Mapping[str, Mean]) -> jax.Array:
    """Return the loss [] of a task's metrics: the weighted sum of the means of its terms."""
    return functools.reduce(operator.add, (weight(term) * term.value for term in terms(metrics).values()))


def terms(metrics: Mapping[str, Mean]) -> dict[str, Mean]:
    """Return the terms of the loss: every `Loss` among the metrics, or the metric `loss` if there is no `Loss`."""
    losses: dict[str, Mean] = {name: mean for name, mean in metrics.items() if isinstance(mean, Loss)}
    return losses or {"loss": metrics["loss"]}


def weight(term: Mean) -> float:
    """Return the weight of a term in the loss."""
    return term.weight if isinstance(term, Loss) else 1.0


def check(metrics: Any, function: str) -> dict[str, Mean]:
    """Return the metrics of a task's `function` after checking their types.

    Raises:
      ConfigError: the metrics are not a dict of Mean, or have no term of the loss.
    """
    if not isinstance(metrics, Mapping) or not all(isinstance(mean, Mean) for mean in metrics.values()):
        kinds = {k: type(v).__name__ for k, v in metrics.items()} if isinstance(metrics, Mapping) else type(metrics)
        raise ConfigError(f"the metrics of {function} must be a dict of jtasks.metrics.Mean, not {kinds}")
    if "loss" not in metrics and not any(isinstance(mean, Loss) for mean in metrics.values()):
        raise ConfigError(f"the metrics of {function} have no term of the loss, {TERM}; they are {list(metrics)}")
    return dict(metrics)


def merge(batches: Iterable[Mapping[str, Mean]]) -> dict[str, Mean]:
    """Add up metrics on the host, in float64, which counts exactly up to 2**53."""
    sums: dict[str, Mean] = {}
    for metrics in batches:
        for name, mean in metrics.items():
            mean = dataclasses.replace(mean, total=np.float64(mean.total), count=np.float64(mean.count))
            sums[name] = sums[name].merge(mean) if name in sums else mean
    return sums


def values(means: Mapping[str, Mean]) -> dict[str, float]:
    """Return means as plain numbers, with `loss` (the weighted sum of the terms' means) first.

    An empty mean is nan, so it never counts as the lowest loss; an empty F1 is 0. The loss sums the terms that are not
    empty.
    """
    numbers = {name: number(mean) for name, mean in means.items()}
    with np.errstate(over="ignore"):
        numbers |= {name: float(np.exp(numbers[name])) for name in means if isinstance(means[name], Perplexity)}
    losses = [weight(term) * numbers[name] for name, term in terms(means).items() if term.count]
    return {"loss": sum(losses) if losses else math.nan, **{k: v for k, v in numbers.items() if k != "loss"}}


def number(mean: Mean) -> float:
    """Return a mean of host numbers as `values` does."""
    if isinstance(mean, F1):
        return float(np.mean(mean.total / np.where(mean.count == 0, 1.0, mean.count)))
    return float(mean.total / mean.count) if mean.count else math.nan
