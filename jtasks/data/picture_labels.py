"""Folders of pictures whose labels are in a file: labels.csv or metadata.jsonl, as `datasets` reads them too.

The file lies in the folder of a split, `train/labels.csv`; or it is called by the split, `train.csv`; or it is the one
file `labels.csv` for all pictures, whose column `split` may tell their splits. A row has a picture, `image` or
`file_name`, and its `label` or `labels`.
"""

import functools
import pathlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jtasks.data import files, parsing, picture_files, targets, values
from jtasks.data.caption_files import PICTURE_COLUMNS
from jtasks.data.examples import Examples
from jtasks.data.targets import Target
from jtasks.errors import ConfigError, DataError

SUFFIXES = ("csv", "tsv", "jsonl")
STEMS = ("labels", "metadata")
SPLITS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
LABEL_COLUMNS = ("label", "labels")


class _Row(NamedTuple):
    file: str
    label: Any  # names of classes, a name or a number
    where: str  # place of the row, for messages
    split: str
    path: pathlib.Path  # the file of the row


def read(name: str, folder: pathlib.Path, target: Target) -> tuple[dict[str, Examples], tuple[str, ...]] | None:
    """Return the splits of a folder by name and its classes in the order of their labels; None without such a file.

    Args:
      name: of the data, for messages.
      folder: the folder.
      target: what the labels are; its `column` names their column, its `names` the classes. Without these the classes
        are the sorted names in train.

    Raises:
      ConfigError: the named column is absent, or there are no two classes.
      DataError: a file is wrong, names a picture that is missing, or has a label that is none of the classes.
    """
    rows = _rows(folder, target)
    if not rows and target.column:
        raise ConfigError(
            f"config.data.label={target.column!r}: {name} has no file with such a column; expected labels.csv,"
            f" {', '.join(_names('train', SUFFIXES[:1]))}, or these as .tsv or .jsonl"
        )
    if not rows:
        return None
    if "train" not in rows:
        raise DataError(f"{name} has no train split: expected one of {', '.join(_names('train', SUFFIXES[:1]))}")
    train = [row.label for row in rows["train"]]
    classes = targets.class_names(target.names, train, target.problem, target.column or LABEL_COLUMNS[0])
    numbers = {label: number for number, label in enumerate(classes)}
    splits = {}
    for split, own in rows.items():
        given = bool(target.names)
        arrays = targets.arrays([row.label for row in own], list(numbers), target.problem, split, given=given)
        wanted = [(row.file, row.where) for row in own]
        located = picture_files.locate(wanted, "", own[0].path.parent, folder)
        decode = functools.partial(_decode, located, [row.file for row in own], arrays)
        splits[split] = Examples(name, decode, np.arange(len(own)))
    return splits, classes


def _decode(
    located: picture_files.PictureFiles, names: Sequence[str], labels: np.ndarray, index: int
) -> tuple[np.ndarray, np.ndarray]:
    return located.decode(names[index]), labels[index]


def _rows(folder: pathlib.Path, target: Target) -> dict[str, list[_Row]]:
    """Return the rows of each split that has any."""
    own = {split: files.find(_names(split, SUFFIXES), [folder]) for split in SPLITS}
    rows = {split: _file(path, files.identity([path]), target, split) for split, path in own.items() if path}
    if not any(rows.values()):
        whole = files.find([f"{stem}.{suffix}" for stem in STEMS for suffix in SUFFIXES], [folder])
        every = _file(whole, files.identity([whole]), target, "train") if whole else []
        rows = {split: [row for row in every if row.split in words] for split, words in SPLITS.items()}
        known = [word for words in SPLITS.values() for word in words]
        if odd := [row for row in every if row.split not in known]:
            raise DataError(f"{odd[0].where}: the split is {odd[0].split!r}; expected one of {', '.join(known)}")
    return {split: own for split, own in rows.items() if own}


def _names(split: str, suffixes: Sequence[str]) -> list[str]:
    inside = [f"{word}/{stem}.{suffix}" for word in SPLITS[split] for stem in STEMS for suffix in suffixes]
    return [*inside, *(f"{word}.{suffix}" for word in SPLITS[split] for suffix in suffixes)]


@functools.lru_cache(maxsize=4)
def _file(path: pathlib.Path, identity: str, target: Target, split: str) -> list[_Row]:
    """Return the rows of a file, [] if it has no labels; a picture in several rows has the classes of all of them."""
    rows: dict[str, _Row] = {}
    for row in _parse(path, target, split):
        file = posixpath.normpath(row.file)  # ./a.png is a.png
        known = rows.get(file)
        if known and (target.problem != targets.MULTI or known.split != row.split):
            raise DataError(f"{row.where}: the picture {row.file!r} occurs in {known.where} too; expected it once")
        rows[file] = known._replace(label=list(dict.fromkeys(known.label + row.label))) if known else row
    return list(rows.values())


def _parse(path: pathlib.Path, target: Target, split: str) -> Iterator[_Row]:
    picture = column = ""
    lines = parsing.Lines(parsing.byte_lines(files.stream(path), path.suffix), str(path))
    for number, row in parsing.parse(lines, path.suffix):
        where = f"{path}, line {number}"
        if isinstance(row, DataError):
            raise row
        if not column:
            picture = next((name for name in PICTURE_COLUMNS if name in row), "")
            column = next((name for name in ([target.column] if target.column else LABEL_COLUMNS) if name in row), "")
            if not (picture and column):
                _refuse(row, where, picture, target)
                return
        file = values.content(_entry(row, picture, where), f"{where}, column {picture!r}")
        label = targets.CHECKS[target.problem](_entry(row, column, where), f"{where}, column {column!r}")
        yield _Row(file, label, where, values.text(row.get("split", split), f"{where}, column 'split'"), path)
    if not column:
        raise DataError(f"{path} has no rows; expected pictures with labels")


def _refuse(row: Mapping[str, Any], where: str, picture: str, target: Target) -> None:
    """Raise ConfigError if the file should have labels, by the config; else it has captions, or something else."""
    if target.column or target.problem != targets.SINGLE:
        wanted = repr(target.column) if target.column else " or ".join(LABEL_COLUMNS)
        raise ConfigError(
            f"{where} has the columns {', '.join(row)}; expected {f'{wanted} of labels' if picture else 'a picture'}:"
            f" {'name it by config.data.label' if picture else ', '.join(PICTURE_COLUMNS)}"
        )


def _entry(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row:
        raise DataError(f"{where} has no {name!r}; expected it in all rows")
    return row[name]
