"""Labeled pictures in tables: Parquet and Arrow files as `datasets` writes them, data sets on the hub, and shards.

The pictures are the column `image`, else the first column of pictures. The labels are the column `label`, else the
first column whose classes have names.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jtasks.data import arrow, files, pictures, store
from jtasks.data.examples import Examples
from jtasks.errors import DataError


def read(name: str, split: str, folder: pathlib.Path) -> Examples | None:
    """Return the pictures of one split, decoded as they are read; None if there is no such split.

    Args:
      name: as for `arrow.find`.
      split: `train`, `valid` or `test`.
      folder: data folder.

    Raises:
      ConfigError: there is no such data.
      DataError: it cannot be read, or has no column of pictures or of labels.
    """
    table = _find(name, split, folder)
    if table is None:
        return None
    image, label = _columns(table)
    cells = arrow.cells(table, (image, label), folder)
    named = table.classes(label)
    names = named or classes(name, folder)
    numbers = dict(enumerate(range(len(names)))) if named else {name: number for number, name in enumerate(names)}
    return Examples(name, functools.partial(_decode, cells, numbers), range(len(cells)))


def classes(name: str, folder: pathlib.Path) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels: as the data says, else the sorted labels in train.

    Raises:
      ConfigError: there is no such data.
      DataError: it cannot be read, or has no train split.
    """
    table = _find(name, "train", folder)
    if table is None:
        raise DataError(f"{name} has no train split, which the classes follow from")
    _, label = _columns(table)
    if named := table.classes(label):
        return named

    def write(writer: store.Writer) -> None:
        labels = {row[label] for _, row in arrow.rows(table, (label,))}
        if not all(isinstance(value, int | str) for value in labels):
            raise DataError(f"{name}: the column {label!r} holds other labels than numbers and texts")
        ordered = sorted(labels, key=lambda value: (isinstance(value, str), value))
        writer.facts["classes"] = list(map(str, ordered))

    _, facts = store.load_or_make("classes", [files.identity(table.paths, label)], folder, write)
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


def _columns(table: arrow.Table) -> tuple[str, str]:
    """Return the names of the columns of pictures and of labels."""
    columns = table.columns
    images = [column for column in columns if table.is_picture(column)]
    labels = [column for column in columns if column == "label" or table.classes(column)]
    if not images or not labels:
        raise DataError(
            f"{table.name} has the columns {', '.join(columns)}; expected one of pictures, such as 'image', and one"
            " of labels, such as 'label'"
        )
    return ("image" if "image" in images else images[0], "label" if "label" in labels else labels[0])


def _decode(cells: arrow.Cells | arrow.ShardCells, numbers: dict[Any, int], index: int) -> tuple[np.ndarray, int]:
    """Decode one picture; return it with its label."""
    picture, label = cells[index]
    where = f"row {index}"
    number = numbers.get(label, numbers.get(str(label)))
    if number is None:
        raise DataError(f"{where}: the label is {label!r}; expected one of {len(numbers)} classes")
    return _decode_cell(picture, where), number


def _decode_cell(picture: Any, where: str) -> np.ndarray:
    content = picture.get("bytes") if isinstance(picture, dict) else picture
    if not isinstance(content, bytes):
        raise DataError(f"{where} holds no picture, but {picture!r:.80}; expected the bytes of a file of pictures")
    return pictures.decode_bytes(content, f"the picture in {where}")
