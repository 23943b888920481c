"""Learning rates as functions of the count of updates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jtasks.errors import ConfigError
from jtasks.optim.fields import resolve_fields, updates


def schedule(optim: Any, steps: int) -> optax.Schedule:
    """Return the learning rate as a jittable function of the 0-based count of updates, float32.

    The factor of the linear warm-up is (count + 1) / warmup while count < warmup: no update has a rate of 0, and the
    last update of the warm-up runs at `lr`. A warm-up longer than the schedule is cut at its end, so that a trial of a
    few steps runs. After the warm-up, with `total` updates in all:

    - constant: lr
    - linear, cosine: from lr at count = warmup to end_lr at count = total, end_lr afterwards
    - polynomial: end_lr + (lr - end_lr) * (1 - (count - warmup) / (total - warmup)) ** power, then end_lr; equals the
      PolynomialDecayScheduler of HetSeq and fairseq
    - cosine_restarts: cycles of cosine from lr to end_lr, the first of `cycle` updates, each `cycle_growth` times as
      long as the one before (SGDR, Loshchilov and Hutter 2017, arXiv:1608.03983)
    - step: lr, times gamma from each of the milestones on
    - wsd: lr up to the last `cooldown` updates, then as polynomial to end_lr (warmup-stable-decay, Hu et al. 2024,
      arXiv:2404.06395)
    - rsqrt: lr * sqrt(max(warmup, 1) / (count + 1)) (Vaswani et al. 2017, arXiv:1706.03762)

    Args:
      optim: `config.optim`, a ConfigDict or a mapping; absent fields have their default values.
      steps: updates in the run, the schedule's total unless `optim.decay_steps` is set.

    Raises:
      ConfigError: an unknown or negative field, an unknown schedule, or milestones that do not ascend.

    >>> rate = schedule({"lr": 1.0, "schedule": "linear", "warmup": 2}, steps=4)
    >>> [float(rate(count)) for count in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    fields = resolve_fields(optim)
    name, peak, end, power = (fields[field] for field in ("schedule", "lr", "end_lr", "power"))
    warmup, total = _spans(fields, steps)
    held = max(warmup, 1)
    milestones = jnp.array(_milestones(fields, total), jnp.float32)
    cooldown = max(min(updates(fields["cooldown"], total), total - warmup), 1)
    cycle, growth = max(updates(fields["cycle"], max(total - warmup, 1)), 1), fields["cycle_growth"]
    # Python's numbers are weakly typed, so everything stays in float32.
    decays: dict[str, Callable[[jax.Array, jax.Array], Any]] = {
        "constant": lambda count, left: peak,
        "linear": lambda count, left: end + (peak - end) * left,
        "cosine": lambda count, left: end + (peak - end) * 0.5 * (1 - jnp.cos(jnp.pi * left)),
        "polynomial": lambda count, left: end + (peak - end) * left**power,
        "cosine_restarts": lambda count, left: end + (peak - end) * 0.5 * (1 + jnp.cos(jnp.pi * phase(count))),
        "step": lambda count, left: peak * fields["gamma"] ** jnp.searchsorted(milestones, count, side="right"),
        "wsd": lambda count, left: end + (peak - end) * jnp.clip((total - count) / cooldown, 0, 1) ** power,
        "rsqrt": lambda count, left: peak * jnp.sqrt(held / jnp.maximum(count + 1, held)),
    }

    begins, lengths = _cycles(cycle, growth, total - warmup) if growth > 1 else (None, None)

    def phase(count: jax.Array) -> jax.Array:
        """Return the fraction of the current cycle that has passed."""
        passed = jnp.maximum(count - warmup, 0)
        if begins is None or lengths is None:
            return passed % cycle / cycle
        number = jnp.searchsorted(begins, passed, side="right") - 1
        return jnp.clip((passed - begins[number]) / lengths[number], 0, 1)

    def rate(count: Any) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        left = jnp.clip((total - count) / max(total - warmup, 1), 0, 1)
        return jnp.minimum((count + 1) / held, 1) * decays[name](count, left)

    return rate


def _spans(fields: dict[str, Any], steps: int) -> tuple[int, int]:
    """Return the updates of the warm-up and of the whole schedule."""
    total = fields["decay_steps"] or steps
    return updates(fields["warmup"], total), total


def _cycles(first: int, growth: float, total: int) -> tuple[jax.Array, jax.Array]:
    """Return where each cycle begins, up to `total`, and its length."""
    begins, lengths = [0.0], [float(first)]
    while begins[-1] + lengths[-1] <= total:
        begins.append(begins[-1] + lengths[-1])
        lengths.append(lengths[-1] * growth)
    return jnp.array(begins, jnp.float32), jnp.array(lengths, jnp.float32)


def _milestones(fields: dict[str, Any], total: int) -> list[int]:
    """Return the milestones in updates; raise ConfigError if they do not ascend."""
    whole = [updates(span, total) for span in fields["milestones"]]
    if whole != sorted(set(whole)):
        raise ConfigError(f"config.optim.milestones={fields['milestones']} are the updates {whole}, which must ascend")
    return whole
