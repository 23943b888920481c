"""Examples read one at a time, for data that is larger than memory."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import overload

import numpy as np

from jtasks.errors import DataError

Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """A random-access sequence of {"image": uint8 [h, w, c], "label": int32 []}.

    It pickles whenever `read` does, so that other processes can read ahead.
    """

    name: str
    read: Callable[[int], tuple[np.ndarray, int]] = dataclasses.field(repr=False)
    rows: np.ndarray = dataclasses.field(repr=False)  # which rows of the source, in order
    size: int | None = None

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
        return {"image": fit(image, self.size), "label": np.array(label, np.int32)}

    def take(self, rows: np.ndarray) -> "Examples":
        """The same source with only these of its rows."""
        return dataclasses.replace(self, rows=rows)

    def fitted(self, size: int) -> "Examples":
        """The same examples, each image made [size, size, c] by `fit`."""
        return dataclasses.replace(self, size=size)


def fit(image: np.ndarray, size: int | None) -> np.ndarray:
    """An image uint8 [h, w, c] scaled and cropped around its centre to [size, size, c]; unchanged for None."""
    if size is None or image.shape[:2] == (size, size):
        return image
    from PIL import Image, ImageOps

    grey = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    fitted = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return np.array(fitted).reshape(size, size, -1)
