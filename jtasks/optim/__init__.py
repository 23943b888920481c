"""Optimizers and schedules from config.optim, by their names in optax."""

from jtasks.optim.optimizers import (
    ALLOWED,
    PER_LEAF,
    arguments,
    checked,
    defaults,
    factories,
    matching,
    optimizer,
    paths,
    schedule,
    trainable,
)

__all__ = [
    "ALLOWED",
    "PER_LEAF",
    "arguments",
    "checked",
    "defaults",
    "factories",
    "matching",
    "optimizer",
    "paths",
    "schedule",
    "trainable",
]
