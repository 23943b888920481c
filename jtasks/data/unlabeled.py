"""Examples without labels, from what people hold: texts, pairs, rows of tables, paths, pictures, arrays."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jtasks.data import pictures, values
from jtasks.data.examples import Resize, fit
from jtasks.data.images import form
from jtasks.errors import DataError

LONGEST_PATH = 4096  # characters
PICTURES = (
    "image",
    "bytes",
    "path",
    "file",
    "file_name",
    "filename",
    "filepath",
    "image_path",
)  # names in a dict, best first
PICTURE = "a path, a PIL image, an array uint8 [h, w], [h, w, 1], [h, w, 3] or [h, w, 4], or a dict with one as 'image'"


def image_arrays(
    inputs: Sequence[Any],
    name: str,
    *,
    folder: str | None = None,
    size: int | None = None,
    resize: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Return pictures in the form of the images of a data set: {"image": uint8 [n, h, w, c]}.

    Pictures are decoded by `pictures.rgb`. They become gray if the data set is gray, and get its height and width.
    The levels of a picture file are scaled to those of the data set, such as 0 to 16; an array has these already.

    Args:
      inputs: each a path, the bytes of a file, a PIL image, an array (a fourth channel is alpha), or a dict with one of
        these as `image`, `bytes`, `path` or `file`.
      name: of the data set; `folder`, `size` and `resize` are as for `images.images`.
      shape: height and width of pictures without `size` and `resize`; None: those of the data set, if it has any.

    Raises:
      DataError: an input is none of these, or pictures differ in their size at the end.
    """
    height, width, channels, highest = form(name, folder)
    target = _target(size, resize, shape or ((height, width) if height and width else None))
    return {"image": _stack([_image(given, channels, highest, target) for given in inputs], channels)}


def pictures_rgb(
    inputs: Sequence[Any],
    *,
    size: int | None = None,
    resize: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
) -> np.ndarray:
    """Return pictures as `image_arrays` does, in color and with the levels 0 to 255: uint8 [n, h, w, 3]."""
    target = _target(size, resize, shape)
    return _stack([_image(given, 3, 255, target) for given in inputs], 3)


def picture_and_text(given: Any, names: Sequence[str], *, needed: bool) -> tuple[Any, str | None]:
    r"""Return the picture of an input, in a form for `pictures_rgb`, and its text.

    Args:
      given: a dict with the picture (see PICTURE) and the text; a pair of both; or a line `FILE<TAB>text`. Without
        `needed`, also a picture alone.
      names: entries that may hold the text, such as ("question", "text").
      needed: whether the input must have a text.

    Raises:
      DataError: the input is none of these, or the text is empty.

    >>> picture_and_text("cat.png\twhat is it?", ("question",), needed=True)
    ('cat.png', 'what is it?')
    """
    expected = f"a dict with 'image' and {names[0]!r}, a pair of both, or a line FILE<TAB>{names[0]}"
    picture, text = given, None
    if isinstance(given, Mapping):
        text = next((given[name] for name in names if given.get(name) is not None), None)
    elif isinstance(given, str) and "\t" in given:
        picture, text = given.split("\t", 1)
    elif isinstance(given, list | tuple):
        if len(given) != 2:
            raise DataError(f"{describe(given)}; expected {expected}")
        picture, text = given
    if text is None:
        if needed:
            raise DataError(f"{describe(given)} has no {names[0]}; expected {expected}")
        return picture, None
    return picture, values.content(text, f"the {names[0]}")


def picture_or_texts(given: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the picture of an input, for `pictures_rgb`, or None, and its texts; it has at least one of these.

    Args:
      given: a text; a picture; a pair (picture, text or texts); a line `FILE<TAB>text`; or a dict with a picture (see
        PICTURE), with `text`, `caption` or `captions`, or with both. A str that ends like a picture's name is a path.

    Raises:
      DataError: the input is none of these, or a text is empty.
    """
    expected = f"a text, a picture ({PICTURE}), a pair (picture, text), or a dict with 'text' or 'captions'"
    picture: Any = None
    texts: Any = ()
    if isinstance(given, Mapping):
        picture = given if any(given.get(name) is not None for name in PICTURES) else None
        texts = next((given[name] for name in ("captions", "caption", "text") if given.get(name) is not None), ())
        if picture is None and not len(texts):
            raise DataError(f"{describe(given)}; expected {expected}")
    elif isinstance(given, list | tuple):
        if len(given) != 2:
            raise DataError(f"{describe(given)}; expected {expected}")
        picture, texts = given
    elif isinstance(given, str) and pictures.is_picture(os.path.basename(given.partition("\t")[0])) and "\t" in given:
        picture, texts = given.split("\t", 1)
    else:
        text = isinstance(given, str) and not pictures.is_picture(os.path.basename(given))
        picture, texts = (None, given) if text else (given, ())
    texts = (texts,) if isinstance(texts, str) else texts
    if not isinstance(texts, Sequence) or isinstance(texts, bytes):
        raise DataError(f"{describe(texts)}; expected a text or several")
    return picture, tuple(values.content(text, "the text") for text in texts)


def text_pairs(
    inputs: Sequence[Any], text: str, text_pair: str, *, pairs: bool | None
) -> tuple[list[str], list[str | None]]:
    """Return the texts and the second texts of inputs, None for a text that stands alone.

    Args:
      inputs: each a text, a pair of texts, or a dict with the entries `text` and `text_pair`, which may have more.
      text: the entry of the text; a dict may call it "text" too.
      text_pair: the entry of the second text, or "text_pair".
      pairs: whether all inputs must be pairs (True), single texts (False), or may be either (None).

    Raises:
      DataError: an input is none of these, or has no text.
    """
    one, two = f"a text, or a dict with {text!r}", f"a pair of texts, or a dict with {text!r} and {text_pair!r}"
    either = f"a text, a pair of texts, or a dict with {text!r} and perhaps {text_pair!r}"
    expected = {True: two, False: one, None: either}[pairs]
    rows = [_texts(given, text, text_pair, expected, pairs) for given in inputs]
    return [row[0] for row in rows], [row[1] for row in rows]


def words(given: Any) -> tuple[str, list[str]]:
    """Return a text and its words: a text is split at white space, a list of words is joined by spaces.

    Args:
      given: a text, a list of words, or a dict with one of these as `text`, `words` or `tokens`.

    Raises:
      DataError: the input is none of these, or has no words.
    """
    expected = "a text, a list of words, or a dict with one of these as 'text' or 'words'"
    if isinstance(given, Mapping):
        given = entry(given, ("words", "tokens", "text"), expected)
    parts = given.split() if isinstance(given, str) else given
    if not isinstance(parts, list | tuple) or not all(isinstance(word, str) for word in parts):
        raise DataError(f"{describe(given)}; expected {expected}")
    checked = [values.content(values.text(word, "a word"), "a word") for word in parts]
    if not checked:
        raise DataError(f"{describe(given)} has no words; expected {expected}")
    return given if isinstance(given, str) else " ".join(checked), checked


def entry(given: Mapping[str, Any], names: Sequence[str], expected: str) -> Any:
    """Return the first entry of `names` that a dict has; DataError if it has none."""
    for name in names:
        if name in given:
            return given[name]
    raise DataError(f"{describe(given)}; expected {expected}")


def describe(given: Any) -> str:
    """Describe an input for a message: its type, and its value if that is short."""
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        return f"an array {given.dtype}{list(given.shape)}"
    if isinstance(given, Mapping):
        return f"a dict with {', '.join(map(repr, given)) or 'no entries'}"
    return f"{type(given).__name__} {given!r:.60}"


def _texts(given: Any, text: str, text_pair: str, expected: str, pairs: bool | None) -> tuple[str, str | None]:
    parts: list[Any]
    if isinstance(given, str):
        parts = [given]
    elif isinstance(given, Mapping):
        parts = [entry(given, (text, "text"), expected)]
        if pairs or (pairs is None and {text_pair, "text_pair"} & set(given)):
            parts.append(entry(given, (text_pair, "text_pair"), expected))
    elif isinstance(given, list | tuple):
        parts = list(given)
    else:
        raise DataError(f"{describe(given)}; expected {expected}")
    if len(parts) not in {True: (2,), False: (1,), None: (1, 2)}[pairs]:
        raise DataError(f"{describe(given)}; expected {expected}")
    for part in parts:
        if not isinstance(part, str):
            raise DataError(f"{describe(part)}; expected {expected}")
        values.text(part, "the text")
    if not any(part.strip() for part in parts):
        raise DataError(f"{'the text is' if len(parts) == 1 else 'both texts are'} empty; expected {expected}")
    return parts[0], (parts[1] if len(parts) == 2 else None)


def _target(size: int | None, resize: Sequence[int] | None, shape: Sequence[int] | None) -> Any:
    return Resize(*resize) if resize else size or (tuple(shape) if shape else None)


def _stack(images: Sequence[np.ndarray], channels: int) -> np.ndarray:
    if len(sizes := {image.shape for image in images}) > 1:
        raise DataError(f"pictures of the sizes {sorted(sizes)}; expected equal ones: set config.data.size")
    return np.stack(images) if images else np.zeros((0, 0, 0, channels), np.uint8)


def _image(given: Any, channels: int, highest: int, target: Any) -> np.ndarray:
    """Return one picture as uint8 [h, w, channels] with the levels 0 to `highest`."""
    from PIL import Image

    if isinstance(given, Mapping):
        given = _picture_of(given)
        if getattr(given, "shape", ())[:2] == (target.shape if isinstance(target, Resize) else None):
            target = None  # a row of the data set: resized already
    if isinstance(given, bytes):
        return _scaled(fit(_channels(pictures.decode_bytes(given, "bytes"), channels), target), highest)
    if isinstance(given, str | os.PathLike):
        if len(path := os.fspath(given)) > LONGEST_PATH:
            raise DataError(f"{describe(given)}; expected {PICTURE}")
        return _scaled(fit(_channels(pictures.decode(path), channels), target), highest)
    if isinstance(given, Image.Image):
        return _scaled(fit(_channels(_rgb(given), channels), target), highest)
    if not hasattr(given, "__array__"):
        raise DataError(f"{describe(given)}; expected {PICTURE}")
    array = np.asarray(given)
    array = array[:, :, None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise DataError(f"{describe(given)}; expected {PICTURE}")
    if array.max() > highest:
        raise DataError(
            f"{describe(given)} with the level {array.max()}; the data has 0 to {highest}: give a path or a PIL image,"
            " whose levels are scaled, or scale the array"
        )
    if array.shape[2] == 4:
        array = _rgb(Image.fromarray(array))
    return fit(_channels(array, channels), target)


def _picture_of(given: Mapping[str, Any]) -> Any:
    """Return the picture in a dict; the data sets of Hugging Face have {"image": {"bytes", "path"}}."""
    key = next((key for key in PICTURES if given.get(key) is not None), None)
    if key is None:
        raise DataError(f"{describe(given)}; expected {PICTURE}")
    return _picture_of(given[key]) if isinstance(given[key], Mapping) else given[key]


def _rgb(picture: Any) -> np.ndarray:
    try:
        return pictures.rgb(picture)
    except Exception as error:  # a picture that is not loaded yet can fail anywhere in a decoder
        raise DataError(f"cannot read {picture!r} ({error}); expected a picture") from error


def _channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return an image uint8 [h, w, 1 or 3] with 1 or 3 channels; gray is ITU-R 601-2 luma."""
    from PIL import Image

    if image.shape[2] == channels:
        return image
    if channels == 1:
        return np.array(Image.fromarray(image).convert("L"))[:, :, None]
    return np.repeat(image, channels, axis=2)


def _scaled(image: np.ndarray, highest: int) -> np.ndarray:
    """Scale the levels 0 to 255 to 0 to `highest`."""
    return image if highest == 255 else np.round(image * (highest / 255)).astype(np.uint8)
