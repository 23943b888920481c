"""Folders of pictures, one subfolder a class."""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from jtasks.data.examples import Examples
from jtasks.errors import DataError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
SPLITS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
LAYOUT = "expected FOLDER/CLASS/picture.jpg, or FOLDER/{train,valid,test}/CLASS/picture.jpg"


def read(path: str, root: pathlib.Path) -> tuple[dict[str, Examples], tuple[str, ...]]:
    """The splits of a folder of pictures by name, and its classes in the order of their labels.

    The order is that of the sorted names of classes and files. A class is any folder with a picture;
    all splits share one list of classes. Without folders for splits, all pictures are train.

    Args:
      path: the folder; a relative one is looked for in the working directory, then in `root`.
      root: the folder of data.

    Raises:
      DataError: if there is no such folder, or a split without pictures.
    """
    folder = _locate(path, root)
    found = {split: _pictures(place) for split, place in _split_folders(folder).items()}
    for split, by_class in found.items():
        if not by_class:
            raise DataError(f"no pictures for {split} in {folder}; {LAYOUT}, with the suffixes {sorted(SUFFIXES)}")
    classes = tuple(sorted({name for by_class in found.values() for name in by_class}))
    return {split: _examples(f"folder:{path}", by_class, classes) for split, by_class in found.items()}, classes


def _locate(path: str, root: pathlib.Path) -> pathlib.Path:
    places = (pathlib.Path(path).expanduser(), root / path)
    for place in places:
        if place.is_dir():
            return place
    raise DataError(f"no folder of pictures at {' or '.join(str(place.absolute()) for place in places)}; {LAYOUT}")


def _split_folders(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Where each split lies: a folder called train that holds no folders is a class."""
    choices = {split: [folder / name for name in names] for split, names in SPLITS.items()}
    places = {split: next(filter(_subfolders, paths), None) for split, paths in choices.items()}
    return {split: place for split, place in places.items() if place} or {"train": folder}


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: pathlib.Path) -> dict[str, list[str]]:
    """The sorted pictures of every class that has any; hidden files are other programs' notes."""
    by_class = {}
    for place in _subfolders(folder):
        pictures = [
            str(path) for path in place.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        ]
        if pictures:
            by_class[place.name] = sorted(pictures)
    return by_class


def _examples(name: str, by_class: dict[str, list[str]], classes: Sequence[str]) -> Examples:
    paths = [path for pictures in by_class.values() for path in pictures]
    labels = np.repeat([classes.index(key) for key in by_class], [len(pictures) for pictures in by_class.values()])
    return Examples(name, functools.partial(_decode, paths, labels), np.arange(len(paths)))


def _decode(paths: Sequence[str], labels: np.ndarray, index: int) -> tuple[np.ndarray, int]:
    """One picture as RGB [h, w, 3], whatever it is stored as, and its label."""
    from PIL import Image

    try:
        with Image.open(paths[index]) as picture:
            return np.array(picture.convert("RGB")), int(labels[index])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"cannot decode {paths[index]} ({error}); expected a picture: replace it or delete it"
        ) from error
