"""The metrics of each source of a mixture in training, as exact sums from the one forward pass."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import metrics
from jtasks.data.mixture import SOURCE
from jtasks.metrics import Mean

Loss = tuple[jax.Array, dict[str, Mean]]


def split_metrics(loss_fn: Callable[..., Loss], sources: Iterable[str]) -> Callable[..., Loss]:
    """Return a loss (params, batch, rng) that also has the metrics of each source, as `SOURCE/METRIC`.

    A sum over examples is linear in the batch's `mask`, so its derivative in the direction of the mask of one source's
    rows is the sum over these rows. The derivative needs what the forward pass has computed, and nothing of the model,
    which does not depend on the mask. A loss whose mask goes through a `jax.custom_vjp` has no such derivative in JAX,
    and no metrics by source.
    """
    names = sorted(sources)

    def split(params: Any, batch: dict[str, jax.Array], rng: Any) -> Loss:
        if SOURCE not in batch:
            return loss_fn(params, batch, rng)
        mask, number = batch["mask"], batch[SOURCE]
        try:
            (loss, means), of_mask = jax.linearize(lambda mask: loss_fn(params, batch | {"mask": mask}, rng), mask)
        except TypeError as error:
            if "custom_vjp" not in str(error):
                raise
            return loss_fn(params, batch, rng)
        masks = jnp.stack([mask * (number == i) for i in range(len(names))])
        sums = jax.vmap(lambda one: {k: (m.total, m.count) for k, m in of_mask(one)[1].items()})(masks)
        own = {
            f"{name}/{metric}": Mean(total[i], count[i])
            for i, name in enumerate(names)
            for metric, (total, count) in sums.items()
        }
        return loss, means | own

    return split


def values(sums: Mapping[str, Mean], sources: Iterable[str]) -> dict[str, float]:
    """Return means as plain numbers, as `metrics.values` does, also those of each source.

    A metric that is no sum over examples, so that its parts do not add up to it, has no values by source.
    """
    names = sorted(sources)
    if not names:
        return metrics.values(sums)
    whole = {name: mean for name, mean in sums.items() if name.partition("/")[0] not in names}
    numbers = metrics.values(whole)
    split = {metric for metric, mean in whole.items() if _adds_up(mean, [sums.get(f"{n}/{metric}") for n in names])}
    if not set(metrics.terms(whole)) <= split:
        return numbers
    for name in names:
        own = {metric: _like(whole[metric], sums[f"{name}/{metric}"]) for metric in whole if metric in split}
        numbers |= {f"{name}/{metric}": value for metric, value in metrics.values(own).items()}
    return numbers


def _like(mean: Mean, sums: Mean) -> Mean:
    """Return a mean of the same kind, such as a term of the loss, with other sums."""
    return jax.tree.unflatten(jax.tree.structure(mean), [sums.total, sums.count])


def _adds_up(mean: Mean, parts: list[Mean | None]) -> bool:
    own = [part for part in parts if part is not None]
    if len(own) < len(parts):
        return False
    sums = [sum(part.total for part in own), sum(part.count for part in own)]
    return bool(np.allclose(sums, [mean.total, mean.count], rtol=1e-3, atol=1e-6))
