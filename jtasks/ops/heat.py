"""Maps over a picture, such as attention to its patches, as heat on the picture for people."""

from collections.abc import Sequence

import numpy as np

from jtasks.errors import ConfigError

COLD, HOT = np.array([20, 20, 60]), np.array([255, 60, 0])  # RGB of no attention and of the most


def overlay(image: np.ndarray, heat: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Return an image uint8 [h, w, 3] colored by a map [rows, columns] of numbers that are not negative.

    The largest number of the map is red, 0 is dark. The map is scaled up to the image bilinearly.

    Args:
      image: uint8 [h, w, 1 or 3].
      heat: of each patch.
      strength: part of the color, the rest is the gray image.
    """
    from PIL import Image

    h, w, _ = image.shape
    scaled = Image.fromarray((heat / max(float(heat.max()), 1e-12)).astype(np.float32))
    weights = np.asarray(scaled.resize((w, h), Image.Resampling.BILINEAR))[..., None]
    gray = np.broadcast_to(image.mean(-1, keepdims=True), (h, w, 3))
    return np.round((1 - strength) * gray + strength * (COLD + weights * (HOT - COLD))).astype(np.uint8)


def row(
    image: np.ndarray, maps: np.ndarray, words: Sequence[str], shape: tuple[int, int]
) -> tuple[list[np.ndarray], list[tuple[str, str]]]:
    """Return a picture followed by the picture under the map of each word, and the texts below them, for `grid.grid`.

    Args:
      image: uint8 [h, w, 3].
      maps: [t, rows * columns], of at least as many tokens as words.
      words: texts of the first tokens.
      shape: rows and columns of a map.
    """
    heats = np.asarray(maps, np.float32)[: len(words)].reshape(-1, *shape)
    return [image, *(overlay(image, heat) for heat in heats)], [("", "black"), *((word, "black") for word in words)]


def check_layer(layer: int | None, depth: int) -> None:
    """Raise ConfigError if the decoder of this depth lacks the layer config.attention_layer."""
    if (layer or 0) >= depth:
        raise ConfigError(f"config.attention_layer={layer}: the decoder has {depth} layers, from 0")
