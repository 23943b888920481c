"""Kinds of labels, config.problem: one class of an example, any number of classes, or a number."""

from collections.abc import Mapping
from typing import Any

from jtasks.ranges import Field

SINGLE, MULTI, NUMBER = PROBLEMS = ("single_label", "multi_label", "regression")  # as transformers names them

# Field of a task that can do all of them, for its `defaults`.
FIELDS = {"problem": Field(str, PROBLEMS, SINGLE)}


def of(config: Mapping[str, Any]) -> str:
    """Return config.problem; a config in code of one's own may lack it."""
    return config.get("problem", SINGLE)
