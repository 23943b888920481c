"""Maps of what each output token attended to among the source tokens, as pictures for people (Bahdanau et al. 2015)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

CELL, SIZE, GAP = 18, 13, 6  # pixels of a cell, of the letters, and between parts of the picture
LIGHT, DARK = np.array([245, 246, 250]), np.array([10, 40, 120])  # RGB of no attention and of all
MISSING = "\U0010fffe"  # no font has this character
# Files of fonts with many characters, which Pillow looks for where the system keeps its fonts.
FONTS = (
    *("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "DroidSansFallbackFull.ttf"),
    *("ipaexg.ttf", "wqy-zenhei.ttc", "Arial Unicode.ttf", "ArialUnicode.ttf", "Hiragino Sans GB.ttc"),
    *("msgothic.ttc", "msyh.ttc", "malgun.ttf", "arial.ttf"),
)


class Map(NamedTuple):
    """Attention of one output: `weights` [t, s], the s source tokens across and the t output tokens down."""

    weights: np.ndarray
    across: Sequence[str]
    down: Sequence[str]


def picture(maps: Sequence[Map]) -> np.ndarray:
    """Draw maps below each other, uint8 [h, w, 3]; dark blue is a weight of 1.

    A token with a character that no font of this machine has is written as its number, counted from 0.
    """
    font = _font("".join(token for each in maps for token in (*each.across, *each.down)))
    drawn = [_draw(each, font) for each in maps]
    height = sum(part.shape[0] + GAP for part in drawn) + GAP
    canvas = np.full((height, max(part.shape[1] for part in drawn) + 2 * GAP, 3), 255, np.uint8)
    top = GAP
    for part in drawn:
        canvas[top : top + part.shape[0], GAP : GAP + part.shape[1]] = part
        top += part.shape[0] + GAP
    return canvas


def listing(maps: Sequence[Map]) -> str:
    """List the tokens of maps with their numbers in `picture`."""
    lines = []
    for number, each in enumerate(maps):
        for name, tokens in (("source", each.across), ("output", each.down)):
            lines.append(f"{number} {name}: {' '.join(f'{i}:{token.strip()}' for i, token in enumerate(tokens))}")
    return "\n".join(lines)


def _draw(given: Map, font: Any) -> np.ndarray:
    """Draw one map: labels on the left, and on top from bottom to top."""
    strength = np.sqrt(np.clip(np.asarray(given.weights, np.float32), 0, 1))  # small weights show too
    cells = LIGHT + strength[..., None] * (DARK - LIGHT)
    cells = np.round(cells).astype(np.uint8).repeat(CELL, axis=0).repeat(CELL, axis=1)
    cells[::CELL], cells[:, ::CELL] = 255, 255
    across, down = (_labels(tokens, font) for tokens in (given.across, given.down))
    top, left = (max((label.shape[1] for label in labels), default=0) for labels in (across, down))
    canvas = np.full((top + GAP + cells.shape[0], left + GAP + cells.shape[1], 3), 255, np.uint8)
    canvas[top + GAP :, left + GAP :] = cells
    for column, label in enumerate(across):
        at = left + GAP + column * CELL
        canvas[top - label.shape[1] : top, at : at + CELL] = np.rot90(label)[..., None]
    for row, label in enumerate(down):
        at = top + GAP + row * CELL
        canvas[at : at + CELL, left - label.shape[1] : left] = label[..., None]
    return canvas


def _labels(tokens: Sequence[str], font: Any) -> list[np.ndarray]:
    """Return tokens as gray pictures uint8 [CELL, w]."""
    from PIL import Image, ImageDraw

    labels = []
    for number, token in enumerate(tokens):
        text = token.strip() if all(map(_drawable(font), token.strip())) else str(number)
        label = Image.new("L", (int(np.ceil(font.getlength(text))), CELL), 255)
        ImageDraw.Draw(label).text((0, CELL / 2), text, fill=0, font=font, anchor="lm")
        labels.append(np.asarray(label))
    return labels


def _font(text: str) -> Any:
    """Return the font that can draw the most characters of a text; Pillow's own if no other draws more."""
    from PIL import ImageFont

    fonts = [ImageFont.load_default(SIZE)]
    for name in FONTS:
        try:
            fonts.append(ImageFont.truetype(name, SIZE))
        except OSError:  # not on this machine
            continue
    return max(fonts, key=lambda font: sum(map(_drawable(font), set(text))))


def _drawable(font: Any) -> Any:
    """Return a function from a character to whether a font has it."""
    missing = bytes(font.getmask(MISSING))
    return lambda char: char.isspace() or bytes(font.getmask(char)) != missing
