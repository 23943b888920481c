"""Folders of pictures with one subfolder per class."""

import filecmp
import functools
import io
import mimetypes
import os
import pathlib
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

import numpy as np

from jtasks import storage
from jtasks.console import say_once
from jtasks.data import targets
from jtasks.data.examples import Examples
from jtasks.data.targets import Target
from jtasks.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of these suffixes; other Pillow formats are riskier
PIXELS = 1 << 27  # the largest cameras have 100 million; decoding takes some 12 bytes per pixel
BITS_PER_SAMPLE, PHOTOMETRIC, MIN_IS_WHITE, ORIENTATION = 258, 262, 0, 274  # TIFF tags, a value, an EXIF tag
SAMPLE_FORMAT, SIGNED = 339, 2  # another TIFF tag, and a value
SPLITS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
LAYOUT = "expected FOLDER/CLASS/picture.jpg, or FOLDER/{train,valid,test}/CLASS/picture.jpg"


def read(folder: pathlib.Path, name: str, target: Target) -> tuple[dict[str, Examples], tuple[str, ...]]:
    """Return the splits of a folder of pictures by name, and its classes in the order of their labels.

    Names of classes and files are sorted. A class is any folder with a picture; all splits share one list of classes.
    Without folders for splits, all pictures are train. With several classes a picture, equal files of one name in the
    folders of several classes are one picture, which has all of these.

    Args:
      folder: the folder.
      name: of the data, for messages.
      target: what the labels are; see `targets.table`.

    Raises:
      DataError: a split has no pictures.
    """
    pictures = {split: _pictures(place) for split, place in _split_folders(folder).items()}
    for split, by_class in pictures.items():
        if not by_class:
            raise DataError(f"no pictures for {split} in {folder}; {LAYOUT}, with the suffixes {sorted(SUFFIXES)}")
    classes = tuple(sorted({name for by_class in pictures.values() for name in by_class}))
    if unseen := [name for name in classes if name not in pictures["train"]] if "train" in pictures else []:
        say_once(f"WARNING: {name} has no picture for train of the class {', '.join(map(repr, unseen))}")
    table = targets.table(classes, target, name)
    return {split: _examples(name, by_class, classes, table, target) for split, by_class in pictures.items()}, classes


def locate(path: str, root: pathlib.Path) -> pathlib.Path:
    """Return the folder of pictures: a relative path is searched for in the working directory, then in `root`.

    Raises:
      ConfigError: there is no such folder.
    """
    places = (storage.local(path), root / path)
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(f"no folder of pictures at {' or '.join(str(place.absolute()) for place in places)}; {LAYOUT}")


def _split_folders(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the folder of each split; a folder `train` without subfolders is a class."""
    choices = {split: [folder / name for name in names] for split, names in SPLITS.items()}
    places = {split: next(filter(_subfolders, paths), None) for split, paths in choices.items()}
    return {split: place for split, place in places.items() if place} or {"train": folder}


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: pathlib.Path) -> dict[str, list[str]]:
    """Return the sorted pictures of every class that has any, without hidden files."""
    by_class = {}
    for place in _subfolders(folder):
        with os.scandir(place) as entries:  # scandir reports file types without a stat for each file
            shown = [entry for entry in entries if not entry.name.startswith(".")]
        pictures = [entry for entry in shown if is_picture(entry.name)]
        if odd := [entry.path for entry in pictures if not entry.is_file()]:
            raise DataError(f"{min(odd)} is not a regular file; expected a picture: delete it or give it another name")
        other = min((entry.path for entry in shown if _is_other_picture(entry.name)), default="")
        if other:
            say_once(f"WARNING: {other} is passed over: a picture ends in one of {', '.join(sorted(SUFFIXES))}")
        if pictures:
            by_class[place.name] = sorted(entry.path for entry in pictures)
    return by_class


def is_picture(name: str) -> bool:
    """Return whether a file is a picture by its name, and not hidden."""
    return pathlib.PurePath(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def _is_other_picture(name: str) -> bool:
    """Return whether a file is a picture of a kind that is not read."""
    kind = mimetypes.guess_type(name, strict=False)[0] or ""
    return kind.startswith("image/") and not is_picture(name)


def _examples(
    name: str, by_class: dict[str, list[str]], classes: Sequence[str], table: np.ndarray, target: Target
) -> Examples:
    paths = [path for pictures in by_class.values() for path in pictures]
    labels = table[np.repeat([classes.index(key) for key in by_class], [len(own) for own in by_class.values()])]
    if target.problem == targets.MULTI:
        owners = _owners(paths)
        for row, owner in enumerate(owners):
            labels[owner] |= labels[row]
        first = np.unique(owners)
        paths, labels = [paths[row] for row in first], labels[first]
    return Examples(name, functools.partial(_decode, paths, labels), np.arange(len(paths)))


def _owners(paths: Sequence[str]) -> np.ndarray:
    """Return for each file the number of the first one with its name and its bytes."""
    owners, known = np.arange(len(paths)), dict[str, list[int]]()
    for row, path in enumerate(paths):
        same = known.setdefault(os.path.basename(path), [])
        owner = next((other for other in same if filecmp.cmp(paths[other], path, shallow=False)), None)
        if owner is None:
            same.append(row)
        else:
            owners[row] = owner
    return owners


def _decode(paths: Sequence[str], labels: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode one picture; return it with its label."""
    return decode(paths[index]), labels[index]


def decode(path: str) -> np.ndarray:
    """Decode a picture file as `rgb` does.

    Raises:
      DataError: the file is damaged, not one of FORMATS, or refused by `rgb`.
    """
    try:
        # Given a path, Pillow would map a TIFF before it rotates it.
        with open(path, "rb") as file:
            return _decode_file(file, path)
    except (OSError, ValueError) as error:  # ValueError: the path holds a zero byte or half a surrogate pair
        raise _damaged(path, error) from error


def decode_bytes(content: bytes, where: str) -> np.ndarray:
    """Decode the bytes of a picture file as `decode` does; `where` names the picture in messages."""
    return _decode_file(io.BytesIO(content), where)


def _decode_file(file: IO[bytes], where: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as stored:  # other formats, such as EPS, run other programs
            return rgb(stored)
    except Exception as error:  # damaged bytes can fail anywhere in a decoder
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> DataError:
    from PIL import UnidentifiedImageError

    unknown = f"cannot identify it as one of {', '.join(FORMATS)}"
    reason = unknown if isinstance(error, UnidentifiedImageError) else error  # Pillow's text names a Python object
    return DataError(f"cannot decode {where} ({reason}); expected a picture: replace it or delete it")


def rgb(stored: "Image") -> np.ndarray:
    """Convert a picture to what a viewer shows: uint8 RGB [h, w, 3].

    Applies the EXIF orientation. Transparent pixels become white. The upper 8 of 16 bits are kept. Gray, palettes,
    CMYK, YCbCr and Lab become RGB; color profiles are not applied. Of several frames or pages the first is decoded.

    Raises:
      ValueError: the picture is larger than PIXELS, or of numbers without 8-bit meaning (floats, signed integers,
        32-bit integers); damaged bytes may raise any other exception.
    """
    from PIL import Image, ImageOps

    if stored.width * stored.height > PIXELS:
        raise ValueError(f"{stored.width} x {stored.height} pixels are more than {PIXELS:,}")
    transparent = stored.has_transparency_data
    picture = ImageOps.exif_transpose(_eight_bits(stored))
    if transparent:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))


def _eight_bits(picture: "Image") -> "Image":
    """Scale 16-bit gray levels to 8 bits; other pictures stay as they are."""
    from PIL import Image

    tags = getattr(picture, "tag_v2", {})
    if SIGNED in tags.get(SAMPLE_FORMAT, ()):
        raise ValueError("signed integers have no meaning in 8 bits")
    sixteen = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
    if picture.mode in ("I", "F") and not sixteen:
        raise ValueError(f"{'floats' if picture.mode == 'F' else 'integers of 32 bits'} have no meaning in 8 bits")
    if not sixteen:
        return picture
    picture.load()  # which rotates a TIFF and drops its orientation
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    levels = np.array(picture).astype(np.int32)
    clear = picture.info.get("transparency")
    gray = (levels >> (bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == MIN_IS_WHITE:
        gray = 255 - gray
    alpha = np.where(levels == clear, 0, 255).astype(np.uint8)
    layers = [gray] if clear is None else [gray, alpha]
    scaled = Image.merge(("L", "LA")[len(layers) - 1], [Image.fromarray(layer) for layer in layers])
    scaled.getexif()[ORIENTATION] = picture.getexif().get(ORIENTATION, 1)
    return scaled
