"""Grids of small pictures for people."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[tuple[str, int]] = (), least: int = 64) -> np.ndarray:
    """Arrange rows of equal-sized uint8 images [h, w, 1 or 3] in one uint8 image [H, W, 3].

    Args:
      rows: images of each row.
      titles: (text, columns) pairs written above the columns from left to right.
      least: enlarge images to this many pixels a side.
    """
    from PIL import Image, ImageDraw

    h, w, _ = rows[0][0].shape
    scale = max(1, -(-least // max(h, w)))
    gap, header = 4, 16 if titles else 0
    columns = max(len(row) for row in rows)
    size = (gap + columns * (w * scale + gap), header + gap + len(rows) * (h * scale + gap))
    canvas = Image.new("RGB", size, "white")
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            picture = Image.fromarray(np.broadcast_to(image, (h, w, 3)).astype(np.uint8))
            corner = (gap + j * (w * scale + gap), header + gap + i * (h * scale + gap))
            canvas.paste(picture.resize((w * scale, h * scale), Image.Resampling.NEAREST), corner)
    draw, column = ImageDraw.Draw(canvas), 0
    for text, span in titles:
        draw.text((gap + column * (w * scale + gap), 3), text, fill="black")
        column += span
    return np.asarray(canvas)


def labeled(examples: Iterable[Any], outputs: Iterable[Any], names: Sequence[str]) -> str:
    """Describe classified examples, one per line: predicted class, its probability and true class.

    Args:
      examples: have the true class as `label`, if known.
      outputs: have the predicted class as `label`, and its `probability`.
      names: names of the classes.
    """
    lines = []
    for example, output in zip(examples, outputs, strict=True):
        predicted = f"{names[int(output['label'])]} ({output['probability']:.3f})"
        true = f", truly {names[int(example['label'])]}" if "label" in example else ""
        lines.append(predicted + true)
    return "\n".join(lines)
