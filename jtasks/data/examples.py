"""Examples read one at a time, for data larger than memory."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, overload

import numpy as np

from jtasks.errors import DataError

Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """A random-access sequence of {"image": uint8 [h, w, c], "label"}; the label is an array of NumPy, or an int32.

    It pickles if `read` does, so that other processes can read ahead.
    """

    name: str
    read: Callable[[int], tuple[np.ndarray, int | np.ndarray]] = dataclasses.field(repr=False)
    rows: Sequence[int] | np.ndarray = dataclasses.field(repr=False)  # rows of the source, in order
    size: "int | Resize | None" = None

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> "Examples": ...

    def __getitem__(self, index: int | slice) -> "Example | Examples":
        if isinstance(index, slice):
            return self.take(self.rows[index])
        try:
            image, label = self.read(int(self.rows[index]))
        except DataError as error:
            raise DataError(f"example {index} of {self.name}: {error}") from error
        return {"image": fit(image, self.size), "label": np.array(label, np.int32) if isinstance(label, int) else label}

    def take(self, rows: Sequence[int] | np.ndarray) -> "Examples":
        """Return the source restricted to `rows`."""
        return dataclasses.replace(self, rows=rows)

    def resize(self, size: "int | Resize") -> "Examples":
        """Return the examples with each image resized to `size`."""
        return dataclasses.replace(self, size=size)


class Resize(NamedTuple):
    """Scaling and cropping of a picture as by an image processor of transformers."""

    filter: int  # PIL's number
    height: int  # 0: unchanged
    width: int  # 0: the shorter edge gets `height`, and the other one follows
    crop_height: int = 0  # around the center, with black beyond the picture; 0: no crop
    crop_width: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Return (height, width) of every picture; (0, 0) if they differ."""
        cropped = self.crop_height, self.crop_width
        return cropped if self.crop_height else (self.height, self.width) if self.width else (0, 0)


def fit(image: np.ndarray, size: "int | tuple[int, int] | Resize | None") -> np.ndarray:
    """Scale an image uint8 [h, w, c] and crop it around its center to a side, or height and width; None: unchanged.

    A Resize gives the same bits as transformers' processors with Pillow.
    """
    shape = (size, size) if isinstance(size, int) else size
    if shape is None or (not isinstance(shape, Resize) and image.shape[:2] == tuple(shape)):
        return image
    from PIL import Image, ImageOps

    gray = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if gray else image)
    if not isinstance(shape, Resize):
        fitted = ImageOps.fit(picture, (shape[1], shape[0]), Image.Resampling.BICUBIC)
        return np.array(fitted).reshape(*shape, -1)
    if shape.height:
        short, (width, height) = min(picture.size), picture.size
        edges = (shape.width, shape.height) if shape.width else [int(shape.height * x / short) for x in (width, height)]
        picture = picture.resize(edges, Image.Resampling(shape.filter))
    scaled = np.array(picture).reshape(picture.height, picture.width, -1)
    return _crop(_crop(scaled, 0, shape.crop_height), 1, shape.crop_width)


def _crop(image: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Crop one axis around its middle, padding with zeros if it is shorter; an odd zero comes first."""
    lacking = length - image.shape[axis]
    if not length or lacking <= 0:
        start = -lacking // 2 if length else 0
        return image.take(range(start, start + (length or image.shape[axis])), axis)
    return np.pad(image, [(-(-lacking // 2), lacking // 2) if i == axis else (0, 0) for i in range(3)])
