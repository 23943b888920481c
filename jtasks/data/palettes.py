"""Palettes: fitted to the training images by k-means, stored beside the data (Chen et al. 2020, 3.1)."""

import io
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from jtasks.data import pipeline
from jtasks.data.files import array, data_folder, places, store
from jtasks.data.pipeline import Examples
from jtasks.data.shuffle import permuted
from jtasks.errors import ConfigError, DataError
from jtasks.ops.palette import Palette


def fit(images: np.ndarray, colors: int, seed: int = 0, pixels: int = 2_000_000) -> np.ndarray:
    """A palette [colors, c] float32 with little squared distance to the pixels of images [n, h, w, c], dark to light.

    Fitted to a random sample of `pixels`.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    flat = images.reshape(-1, images.shape[-1])
    if len(flat) > pixels:
        flat = flat[permuted(np.arange(pixels), len(flat), seed)]
    distinct, counts = np.unique(flat, axis=0, return_counts=True)
    if len(distinct) < colors:
        raise DataError(f"config.data.num_colors={colors}, but the images hold only {len(distinct)} different colors")
    if len(distinct) <= 1024:  # gray levels: few enough for exact iterations over all of them
        means = KMeans(colors, random_state=seed, n_init=20)
    else:
        means = MiniBatchKMeans(colors, random_state=seed, n_init=3, batch_size=16_384, max_iter=20)
    means.fit(distinct.astype(np.float32), sample_weight=counts.astype(np.float32))
    centers = means.cluster_centers_.astype(np.float32)
    return centers[np.lexsort([*centers.T, centers.sum(1)])]


def levels(images: np.ndarray) -> np.ndarray:
    """The palette [colors, 1] of gray images taken as they are: all levels from 0 to the highest."""
    if images.shape[-1] != 1:
        raise DataError("config.data.num_colors=0 takes gray levels as they are, but these images have color")
    return np.arange(int(images.max()) + 1, dtype=np.float32)[:, None]


def prepare(read: Callable[[], Examples], options: Any, seed: int) -> None:
    """Fit the palette that `options` (config.data) ask for to the images that `read` gives, unless it is there."""
    if palette_path(options, seed).exists() or options.palette:
        return
    examples = read()
    n = pipeline.size(examples)
    rows = np.sort(permuted(np.arange(min(n, 10_000)), n, seed))
    images = pipeline.fetch(examples, rows, None)["image"]
    palette = fit(images, options.num_colors, seed) if options.num_colors else levels(images)
    content = io.BytesIO()
    np.save(content, palette)
    store(_places(options, seed), content.getvalue(), "palette")


def model_args(examples: Examples, options: Any, seed: int) -> dict[str, Any]:
    """The palette, and what a model's sizes follow from: number of colors, image shape (h, w), positions.

    `resize`, how images come to that shape, is that of a Hugging Face folder, if the model is from one.
    """
    h, w, channels = pipeline.example(examples, 0)["image"].shape
    palette = load(palette_path(options, seed), channels)
    return {"palette": palette, "num_colors": len(palette), "shape": (h, w), "positions": h * w, "resize": None}


def palette_path(options: Any, seed: int) -> pathlib.Path:
    """The palette file that config.data names, or the place beside the data of a fitted one."""
    if options.palette:
        return pathlib.Path(options.palette)
    paths = _places(options, seed)
    return next((path for path in paths if path.exists()), paths[0])


def _places(options: Any, seed: int) -> list[pathlib.Path]:
    source = re.sub(r"\W+", "-", options.name)
    name = f"{source}-{options.size or 'full'}-{options.num_colors}-seed{seed}.npy"
    return places(data_folder(options.dir), "palettes", name)


def load(path: pathlib.Path, channels: int) -> Palette:
    """Read a palette [colors, channels] in pixel units from a .npy file or a run's palette.json, as a hashable tuple.

    Raises:
      ConfigError: it is absent.
      DataError: it is neither of these, or of another shape.
    """
    if not path.exists():
        raise ConfigError(f"no palette at {path}: give another --config.data.palette, or none to fit one to the data")
    expected = f"expected .npy or palette.json of finite numbers [colors, {channels}]"
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else array(path)
        palette = np.asarray(content, np.float32)
    except (DataError, OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"palette {path} cannot be read ({error}): {expected}") from None
    if palette.ndim != 2 or palette.shape[1] != channels or not len(palette) or not np.isfinite(palette).all():
        raise DataError(f"palette {path} has shape {list(palette.shape)}, or values that are not finite: {expected}")
    return tuple(tuple(float(x) for x in color) for color in palette)
