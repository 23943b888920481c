"""What a text or picture is to be given: one class, any number of classes, or a number; as arrays from a data file."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jtasks.data import values
from jtasks.errors import ConfigError, DataError
from jtasks.ops import problems
from jtasks.ops.problems import MULTI, NUMBER, PROBLEMS, SINGLE
from jtasks.ranges import Field

# Fields of a task of labeled pictures, for its `defaults`.
FIELDS = {
    **problems.FIELDS,
    "data.label": Field(str, None, ""),  # column of the labels in tables and label files; "": the usual names
}

CHECKS: Mapping[str, values.Check] = {SINGLE: values.label, MULTI: values.labels, NUMBER: values.number}


class Target(NamedTuple):
    """Kind, column and class names of the labels of a data set of pictures."""

    problem: str = SINGLE  # one of PROBLEMS
    column: str = ""  # of the labels, where the data has columns; "": the usual names
    names: tuple[str, ...] = ()  # of the classes in order (config.data.labels); (): as the data has them


def of(config: Mapping[str, Any]) -> Target:
    """Return the target that a config of labeled pictures asks for."""
    data = config["data"]
    return Target(problems.of(config), data.get("label", ""), tuple(map(str, data.get("labels", ()))))


def class_names(given: Sequence[Any], labels: Sequence[Any], problem: str, column: str) -> tuple[str, ...]:
    """Return the names of the classes in order: `given` (config.data.labels), or the training rows', sorted.

    Args:
      given: names by the config; (): none.
      labels: the labels of the training rows.
      problem: one of PROBLEMS; a regression has the one name of its column.
      column: config.data.label.

    Raises:
      ConfigError: the classes are too few.
      DataError: two classes have one name in two Unicode forms.
    """
    if problem == NUMBER:
        return (column,)
    if given:
        return tuple(values.label(name, "config.data.labels") for name in given)
    names = {name for row in labels for name in (row if problem == MULTI else [row])}
    if len(names) < (1 if problem == MULTI else 2):
        raise ConfigError(f"config.data.label={column!r} has the values {sorted(names)}; expected at least two classes")
    require_distinct(names, f"config.data.label={column!r}")
    # The name itself comes last, because 1 and 01 are two classes of one number.
    return tuple(sorted(names, key=lambda name: (int(name), "", name) if name.isdecimal() else (0, name, name)))


def require_distinct(names: Iterable[str], where: str) -> None:
    """Raise DataError if two classes have one name in two Unicode forms, as systems write accents in file names."""
    forms = dict[str, str]()
    for name in sorted(names):
        other = forms.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise DataError(
                f"{where} has the classes {other!a} and {name!a}, one name in two Unicode forms: write both"
                " in one form, such as NFC"
            )


def table(classes: Sequence[str], target: Target, where: str) -> np.ndarray:
    """Return the label of a picture of each class of the data: int32 [n], uint8 [n, classes] or float32 [n].

    Args:
      classes: the data's names of its classes, in their order.
      target: its names, if any, are those of the data in another order, perhaps with more; or new names in the order
        of the data's. For a regression, the name of a class is a number.
      where: name of the data, for messages.

    Raises:
      ConfigError: the names are neither, or a regression's class is no number.
      DataError: two classes have one name in two Unicode forms.
    """
    require_distinct(classes, where)
    if target.problem == NUMBER:
        try:
            return np.array([values.number(name, f"the class {name!r} of {where}") for name in classes], np.float32)
        except DataError as error:
            raise ConfigError(
                f"config.problem=regression: {error}; the names of its classes are not numbers: choose a column of"
                " numbers with config.data.label, or another config.problem"
            ) from error
    numbers = np.arange(len(classes), dtype=np.int32)
    if target.names and set(classes) & set(target.names):
        if lacking := [name for name in classes if name not in target.names]:
            raise ConfigError(
                f"config.data.labels={target.names} lacks the class {lacking[0]!r} of {where}, which has"
                f" {', '.join(classes[:20])}"
            )
        numbers = np.array([target.names.index(name) for name in classes], np.int32)
    elif target.names and len(target.names) != len(classes):
        raise ConfigError(
            f"config.data.labels names {len(target.names)} classes, but {where} has {len(classes)}:"
            f" {', '.join(classes[:20])}"
        )
    return np.eye(len(target.names or classes), dtype=np.uint8)[numbers] if target.problem == MULTI else numbers


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
