"""Grids of small pictures for people."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

COLUMNS = 8  # classified pictures in a row
WIDEST = 160  # pixels of a caption
GAP, LINE = 4, 16  # pixels between pictures, and of a line of text


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[tuple[str, int]] = (),
    captions: Sequence[Sequence[tuple[str, str]]] = (),
    least: int = 64,
) -> np.ndarray:
    """Arrange rows of equal-sized uint8 images [h, w, 1 or 3] in one uint8 image [H, W, 3].

    Args:
      rows: images of each row.
      titles: (text, columns) pairs written above the columns from left to right.
      captions: (text, color) written below each image.
      least: enlarge images to this many pixels a side.
    """
    from PIL import Image, ImageDraw

    h, w, _ = rows[0][0].shape
    scale = max(1, -(-least // max(h, w)))
    texts = [[(_cut(text), color) for text, color in row] for row in captions]
    header, footer = LINE * bool(titles), LINE * bool(captions)
    widest = max((_width(text) for row in texts for text, _ in row), default=0)
    across, down = max(w * scale, widest) + GAP, h * scale + footer + GAP
    columns = max(len(row) for row in rows)
    width = max([GAP + columns * across, *(2 * GAP + _width(text) for text, _ in titles[:1])])
    canvas = Image.new("RGB", (width, header + GAP + len(rows) * down), "white")
    draw, column = ImageDraw.Draw(canvas), 0
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            picture = Image.fromarray(np.broadcast_to(image, (h, w, 3)).astype(np.uint8))
            left, top = GAP + j * across, header + GAP + i * down
            canvas.paste(picture.resize((w * scale, h * scale), Image.Resampling.NEAREST), (left, top))
            if texts:
                text, color = texts[i][j]
                draw.text((left, top + h * scale + 1), text, fill=color)
    for text, span in titles:
        draw.text((GAP + column * across, 3), text, fill="black")
        column += span
    return np.asarray(canvas)


def captioned(images: Sequence[np.ndarray], captions: Sequence[tuple[str, str]], title: str = "") -> np.ndarray:
    """Arrange images in rows of COLUMNS, each above its caption (text, color); `title` is above the first column."""
    rows = [slice(i, i + COLUMNS) for i in range(0, len(images), COLUMNS)]
    titles = [(title, 1)] if title else []
    return grid([images[row] for row in rows], titles, [captions[row] for row in rows])


def show_classes(
    images: Sequence[np.ndarray],
    examples: Iterable[Mapping[str, Any]],
    outputs: Iterable[Mapping[str, Any]],
    names: Sequence[str],
) -> dict[str, np.ndarray | str]:
    """Return what show_fn returns for classified images: `images` with captions, and `labels` with probabilities.

    A caption is `predicted / true`, green if they are equal and red if not; without a true class, it is `predicted`.

    Args:
      images: uint8 [h, w, 1 or 3], one per example.
      examples: have the true class as `label`, if known.
      outputs: have the predicted class as `label`, and its `probability`.
      names: names of the classes.
    """
    answers = []
    for example, output in zip(examples, outputs, strict=True):
        predicted, true = names[int(output["label"])], names[int(example["label"])] if "label" in example else None
        right = true is None or int(example["label"]) == int(output["label"])
        answers.append((predicted, f"{predicted} ({output['probability']:.3f})", true, right))
    return show_answers(images, answers)


def show_answers(
    images: Sequence[np.ndarray], answers: Sequence[tuple[str, str, str | None, bool]]
) -> dict[str, np.ndarray | str]:
    """Return what show_fn returns for pictures with answers: `images` with captions, and `labels`, a line for each.

    Args:
      images: uint8 [h, w, 1 or 3].
      answers: of each image the answer, short for the caption and with more for the line; the true answer, None if it
        is not known; and whether the two are equal.
    """
    captions = [
        (short if true is None else f"{short} / {true}", "black" if true is None else "green" if right else "red")
        for short, _, true, right in answers
    ]
    lines = [line if true is None else f"{line}, truly {true}" for _, line, true, _ in answers]
    known = any(true is not None for *_, true, _ in answers)
    picture = captioned(images, captions, "predicted / true" if known else "predicted")
    return {"images": picture, "labels": "\n".join(lines)}


def _width(text: str) -> int:
    """Return the width of a text in Pillow's default font, in pixels."""
    from PIL import ImageFont

    return int(np.ceil(ImageFont.load_default().getlength(text)))


def _cut(text: str) -> str:
    """Return a text on one line, cut to the width of a caption."""
    text = " ".join(text.split())
    short = text
    while _width(short) > WIDEST:
        text = text[:-1]
        short = f"{text}..."
    return short
