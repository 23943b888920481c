"""Maps over a picture, such as those of `models.grad_cam`, as heat on the picture for people."""

from collections.abc import Sequence

import numpy as np

from jtasks.errors import ConfigError
from jtasks.ops import grid

COLD, HOT = np.array([20, 20, 60]), np.array([255, 60, 0])  # RGB of no attention and of the most
STRENGTH = 0.6  # share of these colors in a map; the rest is the gray image


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return an image uint8 [h, w, 3] colored by a map [rows, columns] of numbers that are not negative.

    The largest number of the map is red, 0 is dark. The map is scaled up to the image bilinearly.

    Args:
      image: uint8 [h, w, 1 or 3].
      heat: of each patch.
    """
    from PIL import Image

    h, w, _ = image.shape
    scaled = Image.fromarray((heat / max(float(heat.max()), 1e-12)).astype(np.float32))
    weights = np.asarray(scaled.resize((w, h), Image.Resampling.BILINEAR))[..., None]
    gray = np.broadcast_to(image.mean(-1, keepdims=True), (h, w, 3))
    return np.round((1 - STRENGTH) * gray + STRENGTH * (COLD + weights * (HOT - COLD))).astype(np.uint8)


def show(
    images: Sequence[np.ndarray], maps: Sequence[np.ndarray], words: Sequence[Sequence[str]], texts: Sequence[str]
) -> np.ndarray:
    """Return a picture with a row for each text: the image, the image under the words' mean map, and under each map.

    Args:
      images: uint8 [h, w, 3].
      maps: of each image [t, rows, columns], a map of each word of its text.
      words: of each image the t words, which stand below their maps.
      texts: of each image what stands below the mean, such as the whole text.
    """
    rows, captions = [], []
    for image, own, named, text in zip(images, maps, words, texts, strict=True):
        heats = [np.mean(own, axis=0), *own] if len(named) else []
        rows.append([image, *(overlay(image, heat) for heat in heats)])
        captions.append([("", "black"), *((word, "black") for word in [text, *named][: len(heats)])])
    return grid.grid(rows, captions=captions, least=96)


def check_layer(layer: int, depth: int) -> None:
    """Raise ConfigError if a text encoder or decoder of this depth lacks the layer config.attention_layer."""
    if layer >= depth:
        raise ConfigError(
            f"config.attention_layer={layer}: config.model.text_depth={depth} has the layers 0 to {depth - 1}"
        )
