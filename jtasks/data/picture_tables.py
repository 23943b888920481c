"""Labeled pictures in tables: Parquet and Arrow files as `datasets` writes them, data sets on the hub, and shards.

The pictures are the column `image`, else the first column of pictures. The labels are the column that the config names,
else `label`, else the first column whose classes have names, else `labels`.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jtasks.data import arrow, files, pictures, store, targets
from jtasks.data.examples import Examples
from jtasks.data.targets import Target
from jtasks.errors import ConfigError, DataError


def read(name: str, split: str, folder: pathlib.Path, target: Target) -> Examples | None:
    """Return the pictures of one split, decoded as they are read; None if there is no such split.

    Args:
      name: as for `arrow.find`.
      split: `train`, `valid` or `test`.
      folder: data folder.
      target: what the labels are, and their column.

    Raises:
      ConfigError: there is no such data, or no such column.
      DataError: it cannot be read, or has no column of pictures or of labels.
    """
    table = _find(name, split, folder)
    if table is None:
        return None
    image, label = _columns(table, target.column)
    cells = arrow.cells(table, (image, label), folder)
    if target.problem == targets.NUMBER:
        return Examples(name, functools.partial(_decode_number, cells), range(len(cells)))
    names = classes(name, folder, target)
    numbers = {name: number for number, name in enumerate(names)}
    named = table.classes(label) or ()
    by_class = targets.table(names, target, name)
    return Examples(name, functools.partial(_decode, cells, named, numbers, by_class), range(len(cells)))


def classes(name: str, folder: pathlib.Path, target: Target) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels: as the data says, else the sorted labels in train.

    Raises:
      ConfigError: there is no such data.
      DataError: it cannot be read, or has no train split.
    """
    table = _find(name, "train", folder)
    if table is None:
        raise DataError(f"{name} has no train split, which the classes follow from")
    _, label = _columns(table, target.column)
    if target.problem == targets.NUMBER:
        return (label,)
    if named := table.classes(label):
        return named

    def write(writer: store.Writer) -> None:
        labels = set[Any]()
        for where, row in arrow.rows(table, (label,)):
            labels.update(_values(row[label], target, f"{name}, {where}, column {label!r}"))
        if not all(isinstance(value, int | str) for value in labels):
            raise DataError(f"{name}: the column {label!r} holds other labels than numbers and texts")
        ordered = sorted(labels, key=lambda value: (isinstance(value, str), value))
        writer.facts["classes"] = list(map(str, ordered))

    _, facts = store.load_or_make("classes", [files.identity(table.paths, label, target.problem)], folder, write)
    return tuple(facts["classes"])


def decoder(table: arrow.Table, folder: pathlib.Path) -> Callable[[str], np.ndarray]:
    """Return a picklable function from the number of a row, as text, to its picture uint8 [h, w, 3].

    Raises:
      DataError: the table has no column of pictures.
    """
    cells = arrow.cells(table, (_picture_column(table),), folder)
    return functools.partial(_decode_row, cells)


def _decode_row(cells: arrow.Cells | arrow.ShardCells, row: str) -> np.ndarray:
    return _decode_cell(cells[int(row)][0], f"row {row}")


def _picture_column(table: arrow.Table) -> str:
    images = [column for column in table.columns if table.is_picture(column)]
    if not images:
        raise DataError(
            f"{table.name} has the columns {', '.join(table.columns)}; expected one of pictures, such as 'image'"
        )
    return "image" if "image" in images else images[0]


def _find(name: str, split: str, folder: pathlib.Path) -> arrow.Table | None:
    return arrow.find(name, split, "config.data.name", folder)


def _columns(table: arrow.Table, label: str) -> tuple[str, str]:
    """Return the names of the columns of pictures and of labels; `label` is given by the config, or ""."""
    columns = table.columns
    images = [column for column in columns if table.is_picture(column)]
    if label and label not in columns:
        raise ConfigError(f"config.data.label={label!r}: {table.name} has the columns {', '.join(columns)}")
    labels = [label] if label else [column for column in columns if column == "label" or table.classes(column)]
    labels += [column for column in columns if column == "labels"]
    if not images or not labels:
        raise DataError(
            f"{table.name} has the columns {', '.join(columns)}; expected one of pictures, such as 'image', and one"
            " of labels, such as 'label'"
        )
    return ("image" if "image" in images else images[0], "label" if "label" in labels else labels[0])


def _values(cell: Any, target: Target, where: str) -> list[Any]:
    """Return the labels of a cell: one, or all in its list or text if a picture may have several classes."""
    if isinstance(cell, list) and target.problem != targets.MULTI:
        raise DataError(f"{where}: the label is a list; config.problem=multi_label reads several classes of a picture")
    if target.problem != targets.MULTI or not isinstance(cell, list | str):
        return [cell]
    return cell if isinstance(cell, list) else list(targets.CHECKS[target.problem](cell, where))


def _decode(
    cells: arrow.Cells | arrow.ShardCells,
    named: Sequence[str],
    numbers: Mapping[str, int],
    by_class: np.ndarray,
    index: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Decode one picture; return it with its label, an item of `by_class`, or the union of several."""
    picture, cell = cells[index]
    where = f"row {index}"
    target = Target(targets.MULTI if by_class.ndim > 1 else targets.SINGLE)
    chosen = [_number(value, named, numbers, where) for value in _values(cell, target, where)]
    return _decode_cell(picture, where), by_class[chosen].max(0, initial=0) if by_class.ndim > 1 else by_class[
        chosen[0]
    ]


def _number(value: Any, named: Sequence[str], numbers: Mapping[str, int], where: str) -> int:
    """Return the number of a class by its name, or of a column whose classes have names by its number."""
    known = isinstance(value, int) and 0 <= value < len(named) if named else str(value) in numbers
    if not known:
        raise DataError(f"{where}: the label is {value!r}; expected one of {len(numbers)} classes")
    return int(value) if named else numbers[str(value)]


def _decode_number(cells: arrow.Cells | arrow.ShardCells, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode one picture; return it with its label, a number."""
    picture, cell = cells[index]
    number = targets.CHECKS[targets.NUMBER](cell, f"row {index}, its label")
    return _decode_cell(picture, f"row {index}"), np.array(number, np.float32)


def _decode_cell(picture: Any, where: str) -> np.ndarray:
    content = picture.get("bytes") if isinstance(picture, dict) else picture
    if not isinstance(content, bytes):
        raise DataError(f"{where} holds no picture, but {picture!r:.80}; expected the bytes of a picture file")
    return pictures.decode_bytes(content, f"the picture in {where}")
