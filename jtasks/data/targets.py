"""What a text or picture is to be given: one class, any number of classes, or a number; as arrays from a data file."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jtasks.data import values
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import Field

SINGLE, MULTI, NUMBER = PROBLEMS = ("single_label", "multi_label", "regression")  # as transformers names them

# Field of a task that can do all of them, for its `defaults`.
FIELDS = {"problem": Field(str, PROBLEMS, SINGLE)}

CHECKS: Mapping[str, values.Check] = {SINGLE: values.label, MULTI: values.labels, NUMBER: values.number}


def problem(config: Mapping[str, Any]) -> str:
    """Return config.problem; a config in code of one's own may lack it."""
    return config.get("problem", SINGLE)


def class_names(given: Sequence[Any], found: Sequence[Any], problem: str, column: str) -> tuple[str, ...]:
    """Return the names of the classes in order: `given` (config.data.labels), or those `found`, sorted.

    Args:
      given: names by the config; (): none.
      found: the labels of the training rows.
      problem: one of PROBLEMS; a regression has the one name of its column.
      column: config.data.label.

    Raises:
      ConfigError: the classes are too few.
    """
    if problem == NUMBER:
        return (column,)
    if given:
        return tuple(values.label(name, "config.data.labels") for name in given)
    names = {name for row in found for name in (row if problem == MULTI else [row])}
    if len(names) < (1 if problem == MULTI else 2):
        raise ConfigError(f"config.data.label={column!r} has the values {sorted(names)}: no two classes")
    return tuple(sorted(names, key=lambda name: (int(name), "") if name.isdecimal() else (0, name)))


def transformers_name(problem: str) -> str:
    """Return the value of `problem_type` in a config.json of transformers."""
    return problem if problem == NUMBER else f"{problem}_classification"


def from_transformers(config: Mapping[str, Any], classes: Sequence[str] | None) -> str:
    """Return the problem of a config.json of transformers; without `problem_type`, one label is a regression."""
    for problem in PROBLEMS:
        if config.get("problem_type") == transformers_name(problem):
            return problem
    return NUMBER if classes and len(classes) == 1 else SINGLE


def arrays(labels: Sequence[Any], names: Sequence[str], problem: str, where: str, *, given: bool) -> np.ndarray:
    """Return the labels of all rows: int32 [n], uint8 [n, classes] of 0 and 1, or float32 [n].

    Args:
      labels: of each row, after its check in CHECKS.
      names: of the classes.
      problem: one of PROBLEMS.
      where: the split, for messages.
      given: whether the config names the classes.

    Raises:
      DataError: a label is not among the classes.
    """
    if problem == NUMBER:
        return np.array(labels, np.float32)
    numbers = {name: i for i, name in enumerate(names)}
    rows = labels if problem == MULTI else [[label] for label in labels]
    if unknown := sorted({name for row in rows for name in row} - set(numbers)):
        hint = "; --config.data.labels='()' takes those of the data" if given else ""
        raise DataError(f"the {where} split has the labels {unknown[:5]}; the classes are {list(numbers)}{hint}")
    if problem == SINGLE:
        return np.array([numbers[label] for label in labels], np.int32)
    hot = np.zeros((len(rows), len(names)), np.uint8)
    for i, row in enumerate(rows):
        hot[i, [numbers[name] for name in row]] = 1
    return hot
