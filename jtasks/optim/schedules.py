"""Learning rates as functions of the count of updates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jtasks.optim.fields import resolve_fields


def schedule(optim: Any, steps: int) -> optax.Schedule:
    """Return the learning rate as a jittable function of the 0-based count of updates, float32.

    The factor of the linear warm-up is (count + 1) / warmup while count < warmup: no update has a rate of 0, and the
    last update of the warm-up runs at `lr`. A warm-up longer than the schedule is cut at its end, so that a trial of a
    few steps runs. After the warm-up, with `total` updates in all:

    - constant: lr
    - linear, cosine: from lr at count = warmup to end_lr at count = total, end_lr afterwards
    - polynomial: end_lr + (lr - end_lr) * (1 - (count - warmup) / (total - warmup)) ** power, then end_lr; equals the
      PolynomialDecayScheduler of HetSeq and fairseq
    - rsqrt: lr * sqrt(max(warmup, 1) / (count + 1)) (Vaswani et al. 2017, arXiv:1706.03762)

    Args:
      optim: `config.optim`, a ConfigDict or a mapping; absent fields have their default values.
      steps: updates in the run, the schedule's total unless `optim.decay_steps` is set.

    Raises:
      ConfigError: an unknown or negative field, or an unknown schedule.

    >>> rate = schedule({"lr": 1.0, "schedule": "linear", "warmup": 2}, steps=4)
    >>> [float(rate(count)) for count in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    fields = resolve_fields(optim)
    name, peak, end, power = (fields[field] for field in ("schedule", "lr", "end_lr", "power"))
    warmup, total = _spans(fields, steps)
    held = max(warmup, 1)
    # Python's numbers are weakly typed, so everything stays in float32.
    decays: dict[str, Callable[[jax.Array, jax.Array], Any]] = {
        "constant": lambda count, left: peak,
        "linear": lambda count, left: end + (peak - end) * left,
        "cosine": lambda count, left: end + (peak - end) * 0.5 * (1 - jnp.cos(jnp.pi * left)),
        "polynomial": lambda count, left: end + (peak - end) * left**power,
        "rsqrt": lambda count, left: peak * jnp.sqrt(held / jnp.maximum(count + 1, held)),
    }

    def rate(count: Any) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        left = jnp.clip((total - count) / max(total - warmup, 1), 0, 1)
        return jnp.minimum((count + 1) / held, 1) * decays[name](count, left)

    return rate


def _spans(fields: dict[str, Any], steps: int) -> tuple[int, int]:
    """Return the updates of the warm-up and of the whole schedule."""
    given, total = fields["warmup"], fields["decay_steps"] or steps
    warmup = int(given) if given >= 1 else round(given * total)
    return warmup, total
