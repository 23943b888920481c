"""Labeled images by the name of their data set."""

import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jtasks.data import cifar10, digits, mnist, picture_labels, picture_tables, pictures, targets, tfds
from jtasks.data.examples import Examples, Resize, fit
from jtasks.data.files import data_folder
from jtasks.data.targets import Target
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import Field

Data = dict[str, np.ndarray] | Examples

NAMES = ("mnist", "cifar10", "digits", "folder:PATH", "hf:NAME", "shards:PATH", "tfds:NAME")
SPLITS = ("train", "valid", "test")
SINGLE = Target()  # one class a picture

# Fields of config.data that select images, for a task's `defaults`.
FIELDS = {
    "data.name": Field(str),  # one of NAMES
    "data.size": Field(int, "[1, 2e9]"),  # scale and crop images to this width and height; None: unchanged
    "data.labels": Field(tuple, None, ()),  # names of the classes in order; (): those of the data set
}

# Height, width (None: any), channels and highest level of the images of a data set.
FORMS: dict[str, tuple[int | None, int | None, int, int]] = {
    "mnist": (28, 28, 1, 255),
    "cifar10": (32, 32, 3, 255),
    "digits": (8, 8, 1, 16),
    "folder": (None, None, 3, 255),
    "hf": (None, None, 3, 255),
}


def images(
    name: str,
    split: str,
    *,
    folder: str | None = None,
    seed: int = 0,
    valid: float = 0.1,
    size: int | None = None,
    resize: Sequence[int] | None = None,
    target: Target = SINGLE,
) -> Data | None:
    """Return the examples of one split of a data set of labeled images.

    If the data has no valid split, the fraction `valid` of train, chosen by `seed`, becomes valid; 90/10 is the split
    of Chen et al. 2020, "Generative Pretraining from Pixels".

    Args:
      name: `mnist`, `cifar10`, `digits`, `folder:PATH`, `hf:NAME` or `shards:PATH` (see `picture_tables`), `tfds:NAME`.
      split: `train`, `valid` or `test`.
      folder: data folder (config.data.dir); None uses $JTASKS_DATA or the user's cache folder.
      seed: decides which examples of train become valid, and nothing else.
      valid: fraction of train that becomes valid, in [0, 1); 0 gives none.
      size: scale and crop every image around its center to this width and height.
      resize: fields of an `examples.Resize`, used instead of `size`, to resize like an image processor of transformers.
      target: what the labels are. Data with one class a picture can have them too: several as one, numbers by name.

    Returns:
      {"image": uint8 [n, h, w, c], "label": int32 [n], uint8 [n, classes] of 0 and 1, or float32 [n]}, or for files
      read one at a time a picklable sequence of such examples; None for a split that the data lacks.

    Raises:
      ConfigError: an argument has another value.
      DataError: the data is absent and cannot be downloaded, is corrupt, or has no train split.
    """
    _check_arguments(split, seed, valid, size)
    read, _ = _source(name, folder, target)
    own = None if split == "test" else read("valid")
    if split == "test" or (split == "train" and own is not None):
        data = read(split)
    else:
        data = own if own is not None else _part(read("train"), split, seed, valid)
    if data is None and split == "train":
        raise DataError(
            f"{name} has no train split, from which the sizes of the model and the classes follow: a folder of pictures"
            " has train/CLASS/ beside test/CLASS/"
        )
    return _resize(data, Resize(*resize) if resize else size)


def form(name: str, folder: str | None = None) -> tuple[int | None, int | None, int, int]:
    """Return height, width (None: any), number of channels and highest level of a data set's images.

    Raises:
      ConfigError: there is no data set of that name.
      DataError: a data set of TFDS is absent, whose metadata has these.
    """
    kind, _, rest = str(name).partition(":")
    if kind == "tfds" and rest:
        return (*_builder(rest, folder).info.features["image"].shape, 255)
    if kind not in FORMS:
        raise ConfigError(f"unknown data set {name!r} for config.data.name{_nearest(str(name), NAMES)}")
    return FORMS[kind]


def for_display(images: Iterable[np.ndarray], name: str) -> list[np.ndarray]:
    """Return images of a data set with the levels 0 to 255, for people to look at; stored digits have 0 to 16."""
    *_, highest = FORMS.get(str(name).partition(":")[0], (255,))
    return [np.round(np.asarray(image) * (255 / highest)).astype(np.uint8) for image in images]


def class_names(name: str, *, folder: str | None = None, target: Target = SINGLE) -> tuple[str, ...]:
    """Return the names of a data set's classes in the order of their labels; for a regression, the name of its column.

    Raises:
      ConfigError: there is no data set of that name, the names of `target` do not fit (see `targets.table`), or there
        are no two classes to choose from.
      DataError: the data holds the names and is absent.
    """
    known = _source(name, folder, target)[1]()
    if target.problem == targets.NUMBER:
        return (target.column or "label",)
    targets.table(known, target, name)
    names = target.names or known
    if target.problem == targets.SINGLE and len(names) < 2:
        raise ConfigError(f"config.data.name={name} has the classes {list(names)}; expected at least two")
    return names


def split_rows(count: int, split: str, seed: int, valid: float) -> np.ndarray:
    """Return the sorted rows of train or valid when `seed` splits `count` examples.

    The raw stream of a bit generator never changes between numpy versions. The stream of `Generator.permutation` may
    (NEP 19), and a resumed run would then train on its own valid examples.
    """
    order = np.argsort(np.random.Philox(seed).random_raw(count), kind="stable")
    held = min(round(count * valid), count - 1)
    return np.sort(order[:held] if split == "valid" else order[held:])


def _source(
    name: str, folder: str | None, target: Target
) -> tuple[Callable[[str], Data | None], Callable[[], tuple[str, ...]]]:
    """Return functions that read a split of the named data set and list its classes."""
    root = data_folder(folder)
    kind, _, rest = str(name).partition(":")
    arrays: dict[str, tuple[Callable[[str], Data | None], tuple[str, ...]]] = {
        "mnist": (functools.partial(mnist.read, root), mnist.CLASSES),
        "cifar10": (functools.partial(cifar10.read, root), cifar10.CLASSES),
        "digits": (digits.read, digits.CLASSES),
    }
    if name in arrays:
        read, known = arrays[name]
        return lambda split: _relabel(read(split), known, target, name), lambda: known
    if kind == "folder" and rest:
        place = pictures.locate(rest, root)
        splits, classes = picture_labels.read(name, place, target) or pictures.read(place, name, target)
        return splits.get, lambda: classes
    if kind in ("hf", "shards") and rest:
        table = name if kind == "hf" else rest
        return (
            lambda split: picture_tables.read(table, split, root, target),
            lambda: picture_tables.classes(table, root, target),
        )
    if kind == "tfds" and rest:
        builder = _builder(rest, folder)
        return (
            lambda split: _relabel(tfds.read(rest, builder, split), tfds.classes(builder), target, name),
            lambda: tfds.classes(builder),
        )
    raise ConfigError(f"unknown data set {name!r} for config.data.name{_nearest(str(name), NAMES)}")


def _relabel(data: Data | None, classes: Sequence[str], target: Target, name: str) -> Data | None:
    """Return data with one class a picture with the labels that `target` wants."""
    if data is None or target == SINGLE:
        return data
    table = targets.table(classes, target, name)
    if isinstance(data, Examples):
        return dataclasses.replace(data, read=functools.partial(_read_relabeled, data.read, table))
    return {**data, "label": table[data["label"]]}


def _read_relabeled(read: Callable[[int], Any], table: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    image, label = read(index)
    return image, table[label]


def _builder(name: str, folder: str | None) -> Any:
    root = data_folder(folder)
    folders: list[pathlib.Path | None] = [root] if folder else [root, None]
    return tfds.prepared_builder(name, folders)


def _part(data: Data | None, split: str, seed: int, valid: float) -> Data | None:
    """Return the fraction of train that `split` gets."""
    if data is None:
        return None
    count = len(data) if isinstance(data, Examples) else len(data["label"])
    rows = split_rows(count, split, seed, valid)
    if not len(rows):
        return None
    return data.take(rows) if isinstance(data, Examples) else {key: value[rows] for key, value in data.items()}


def _resize(data: Data | None, size: int | Resize | None) -> Data | None:
    if data is None or size is None:
        return data
    if isinstance(data, Examples):
        return data.resize(size)
    return {**data, "image": np.stack([fit(image, size) for image in data["image"]])}


def _check_arguments(split: str, seed: int, valid: float, size: int | None) -> None:
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}{_nearest(split, SPLITS)}")
    if not 0 <= valid < 1:
        raise ConfigError(f"the share of train that becomes valid is {valid}; expected at least 0 and less than 1")
    if seed < 0:
        raise ConfigError(f"the seed that splits train and valid is {seed}; expected 0 or more")
    if size is not None and size < 1:
        raise ConfigError(f"the size of images is {size}; expected 1 or more, or None to leave them as they are")


def _nearest(word: str, choices: Iterable[str]) -> str:
    """Format the end of a message about an unknown word: the choices, and the nearest one."""
    kinds = {choice.partition(":")[0]: choice for choice in choices}
    near = difflib.get_close_matches(word.partition(":")[0], kinds, n=1, cutoff=0.5)
    hint = f", did you mean {kinds[near[0]]!r}?" if near else ""
    return f"; expected one of {', '.join(kinds.values())}{hint}"
