"""When a metric has not improved for too long: pure functions of the values of all evaluations so far."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

Values = Mapping[int, float]  # of a metric, by step


def waits(values: Values, rule: Any) -> Iterator[tuple[int, int]]:
    """Yield each step with the number of evaluations in a row, up to it, that did not improve.

    An evaluation improves if it is better than the best one before by more than `min_delta`; nan never does.

    Args:
      values: the metric at each evaluation.
      rule: `config.stop` or `config.plateau`.

    >>> from types import SimpleNamespace
    >>> rule = SimpleNamespace(mode="min", min_delta=0.0)
    >>> list(waits({10: 3.0, 20: 2.0, 30: 2.0, 40: 2.5, 50: 1.0}, rule))
    [(10, 0), (20, 0), (30, 1), (40, 2), (50, 0)]
    """
    sign = -1.0 if rule.mode == "max" else 1.0
    best, waited = math.inf, 0
    for step in sorted(values):
        value = sign * values[step]
        improves = value < best - rule.min_delta
        best, waited = (value, 0) if improves else (best, waited + 1)
        yield step, waited


def best_step(values: Values, rule: Any) -> int | None:
    """Return the step of the last improvement; None if there was none."""
    return max((step for step, waited in waits(values, rule) if not waited), default=None)


def is_exhausted(values: Values, rule: Any) -> bool:
    """Return whether the newest value ends the patience of `rule`, or an earlier one has ended it."""
    return bool(rule.metric) and any(waited >= rule.patience for _, waited in waits(values, rule))


def factor(values: Values, plateau: Any) -> float:
    """Return the factor of the learning rate after the newest evaluation: one reduction for each end of the patience.

    After a reduction the evaluations are counted from 0. `torch.optim.lr_scheduler.ReduceLROnPlateau` waits one
    evaluation longer with the same patience, and counts the best value in the same way.
    """
    reductions = sum(waited > 0 and waited % plateau.patience == 0 for _, waited in waits(values, plateau))
    return max(plateau.factor**reductions, plateau.min_factor)
