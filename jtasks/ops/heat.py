"""Maps over a picture, such as attention to its patches, as heat on the picture for people."""

import numpy as np

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
