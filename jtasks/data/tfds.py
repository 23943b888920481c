"""TensorFlow Datasets prepared as ArrayRecord, read without TensorFlow; the only module that imports TFDS."""

import functools
import pathlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from jtasks.data import files, values
from jtasks.data.examples import Examples
from jtasks.errors import DataError

OWN = "tensorflow_datasets.core.features."
SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def prepared_builder(
    name: str, folders: Sequence[pathlib.Path | None], features: Collection[str] = ("image", "label")
) -> Any:
    """Return the builder of a prepared data set, such as `mnist` or `oxford_flowers102:2.1.1`.

    Only prepared files are read: nothing is generated or downloaded.

    Args:
      name: as TFDS spells it, with its config and version if they matter.
      folders: TFDS data folders in the order to search; None is TFDS's default.
      features: features that the examples must have; images must be uint8.

    Raises:
      DataError: TFDS cannot be imported, or the data is absent, lacks a feature, or names classes outside TFDS.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(f"tfds:{name} needs tensorflow-datasets, which cannot be imported: {error}") from error
    for folder in folders:
        for place in tensorflow_datasets.core.utils.file_utils.list_data_dirs(given_data_dir=folder):
            _check_names(pathlib.Path(place) / re.split("[/:]", name)[0])
        try:
            builder = tensorflow_datasets.core.read_only_builder.builder_from_files(name, data_dir=folder)
        except ValueError:  # not found
            continue
        _check_features(builder, name, features)
        return builder
    places = ", ".join(str(folder or "~/tensorflow_datasets") for folder in folders)
    raise DataError(f"tfds:{name} is not prepared in {places}; {_ways_out(name, folders[0])}")


def read(name: str, builder: Any, split: str) -> Examples | None:
    """Return the labeled images of one split, or None if the data set lacks it; raises as `source`."""
    examples = source(name, builder, SPLITS[split])
    if examples is None:
        return None
    count = len(classes(builder))
    return Examples(f"tfds:{name}", functools.partial(_record, examples, count), np.arange(len(examples)))


def source(name: str, builder: Any, split: str) -> Any:
    """Return the examples of one of TFDS's splits as a sequence, or None if the data set lacks it.

    Raises:
      DataError: the data was prepared in a format without random access.
    """
    if split not in builder.info.splits:
        return None
    try:
        return builder.as_data_source(split)
    except NotImplementedError as error:
        form = builder.info.file_format.value
        raise DataError(
            f"tfds:{name} in {builder.data_dir} is prepared as {form}, which has no random access; "
            + _ways_out(name, pathlib.Path(builder.data_dir))
        ) from error


def classes(builder: Any) -> tuple[str, ...]:
    """Return the names of the labels, in their order."""
    return tuple(builder.info.features["label"].names)


def _check_names(folder: pathlib.Path) -> None:
    """Refuse metadata that names classes outside TFDS's features, whose modules TFDS would import."""
    for path in sorted(folder.rglob("features.json")):
        for name in _class_names(values.parse(files.decode(files.read(path), str(path)), str(path)), str(path)):
            if "." in name and not name.startswith(OWN):
                raise DataError(f"{path} names the class {name!r}, whose module would run; expected {OWN}...")


def _class_names(tree: Any, where: str) -> Iterator[str]:
    """Yield the class names in a features.json at any depth, including JSON stored as text."""
    if isinstance(tree, list):
        for item in tree:
            yield from _class_names(item, where)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str):
                yield value
            inner = values.parse(value, where) if key == "content" and isinstance(value, str) and value else value
            yield from _class_names(inner, where)


def _check_features(builder: Any, name: str, needed: Collection[str]) -> None:
    features = builder.info.features
    if set(needed) - set(features):
        raise DataError(f"tfds:{name} has the features {sorted(features)}; expected {' and '.join(needed)}")
    if "image" in needed and features["image"].np_dtype != np.uint8:
        raise DataError(f"tfds:{name} has images of {features['image'].np_dtype}; expected uint8")


def _ways_out(name: str, folder: pathlib.Path | None) -> str:
    where = f" --data_dir={folder}" if folder else ""
    return (
        "prepare it once, on any machine, with `pip install tensorflow tensorflow-datasets` and "
        f"`tfds build {name} --file_format=array_record{where}`, or set config.data.dir or $JTASKS_DATA "
        "to the TFDS folder that holds it"
    )


def _record(source: Any, count: int, index: int) -> tuple[np.ndarray, int]:
    example = source[index]
    label = int(example["label"])
    if not 0 <= label < count:  # some test splits have -1
        raise DataError(f"the label is {label}; expected 0 to {count - 1}")
    return np.asarray(example["image"]), label
