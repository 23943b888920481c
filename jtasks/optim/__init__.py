"""Optimizers and schedules from config.optim, by their names in optax."""

from jtasks.optim.optimizers import (
    ALLOWED,
    PER_LEAF,
    arguments,
    defaults,
    factories,
    matching,
    optimizer,
    paths,
    resolve_fields,
    schedule,
    trainable,
)

__all__ = [
    "ALLOWED",
    "PER_LEAF",
    "arguments",
    "defaults",
    "factories",
    "matching",
    "optimizer",
    "paths",
    "resolve_fields",
    "schedule",
    "trainable",
]
