"""Optimizers and schedules from config.optim, by their names in optax."""

from jtasks.optim.fields import ALLOWED, arguments, defaults, factories, resolve_fields
from jtasks.optim.optimizers import PER_LEAF, matching, optimizer, paths, trainable
from jtasks.optim.schedules import schedule

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
