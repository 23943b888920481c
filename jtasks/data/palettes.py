"""Palettes, fitted to the training images by k-means and stored beside the data (Chen et al. 2020, 3.1)."""

import io
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from jtasks import storage
from jtasks.data import pipeline
from jtasks.data.files import array, data_folder, places, store
from jtasks.data.pipeline import Examples
from jtasks.data.shuffle import permute
from jtasks.errors import ConfigError, DataError
from jtasks.ops.palette import Palette


def fit(images: np.ndarray, colors: int, seed: int = 0, pixels: int = 2_000_000) -> np.ndarray:
    """Fit a palette [colors, c] float32, from dark to light, to images [n, h, w, c] by k-means.

    Args:
      images: uint8 or float.
      colors: number of colors.
      seed: seed of the sample and of k-means.
      pixels: number of pixels to sample.

    Raises:
      DataError: the images have fewer distinct colors.
    """
    from sklearn.cluster import KMeans

    flat = images.reshape(-1, images.shape[-1])
    if len(flat) > pixels:
        flat = flat[permute(np.arange(pixels), len(flat), seed)]
    distinct, counts = _count(flat)
    if len(distinct) < colors:
        raise DataError(f"config.data.num_colors={colors}, but the images hold only {len(distinct)} different colors")
    if len(distinct) <= 1024:  # gray levels: few enough for exact k-means
        means = KMeans(colors, random_state=seed, n_init=20)
    else:
        distinct, counts = _merge(distinct, counts, least=16 * colors)
        means = KMeans(colors, random_state=seed, n_init=1, max_iter=50)
    means.fit(distinct.astype(np.float32), sample_weight=counts.astype(np.float32))
    centers = means.cluster_centers_.astype(np.float32)
    return centers[np.lexsort([*centers.T, centers.sum(1)])]


def _count(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct rows of pixels [n, c], and how many pixels have each."""
    if flat.dtype != np.uint8:
        return np.unique(flat, axis=0, return_counts=True)
    shifts = 8 * np.arange(flat.shape[1])[::-1]  # sorted as rows are: by the first channel first
    packed = sum(flat[:, c].astype(np.int64) << shift for c, shift in enumerate(shifts))
    numbers, counts = np.unique(packed, return_counts=True)
    return numbers[:, None] >> shifts & 255, counts


def _merge(colors: np.ndarray, counts: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of the colors [n, c] in each cell of a grid, and their counts.

    The grid has as few of 32, 64, ... 256 steps a channel as leave `least` cells, so that k-means has little to read;
    the colors return as they are if none does.
    """
    low, high = colors.min(axis=0), colors.max(axis=0)
    for steps in (32, 64, 128, 256):
        places = np.floor((colors - low) / np.maximum(high - low, 1e-9) * (steps - 1e-6)).astype(np.int64)
        numbers = places @ 256 ** np.arange(colors.shape[1])
        _, cells = np.unique(numbers, return_inverse=True)
        sums = np.bincount(cells, counts)
        if len(sums) >= least:
            means = [np.bincount(cells, counts * channel) / sums for channel in colors.T]
            return np.stack(means, axis=1), sums
    return colors, counts


def levels(images: np.ndarray) -> np.ndarray:
    """Return the palette [colors, 1] of all gray levels from 0 to the images' highest."""
    if images.shape[-1] != 1:
        raise DataError("config.data.num_colors=0 takes gray levels as they are, but these images have color")
    return np.arange(int(images.max()) + 1, dtype=np.float32)[:, None]


def prepare(read: Callable[[], Examples], options: Any, seed: int) -> None:
    """Fit the palette of `options` (config.data) to the images that `read` returns, unless it is stored already."""
    if palette_path(options, seed).exists() or options.palette:
        return
    examples = read()
    n = pipeline.size(examples)
    rows = np.sort(permute(np.arange(min(n, 10_000)), n, seed))
    images = pipeline.fetch(examples, rows, None)["image"]
    palette = fit(images, options.num_colors, seed) if options.num_colors else levels(images)
    content = io.BytesIO()
    np.save(content, palette)
    store(_places(options, seed), content.getvalue(), "palette")


def model_args(examples: Examples, options: Any, seed: int) -> dict[str, Any]:
    """Return the palette and model sizes: number of colors, image shape (h, w), max_length.

    `resize`, how images reach that shape, is None; a Hugging Face folder can set it.
    """
    h, w, channels = pipeline.example(examples, 0)["image"].shape
    palette = load(palette_path(options, seed), channels)
    return {"palette": palette, "num_colors": len(palette), "shape": (h, w), "max_length": h * w, "resize": None}


def palette_path(options: Any, seed: int) -> pathlib.Path:
    """Return the palette file of config.data, or the place of a fitted one beside the data."""
    if options.palette:
        return storage.local(options.palette)
    paths = _places(options, seed)
    return next((path for path in paths if path.exists()), paths[0])


def _places(options: Any, seed: int) -> list[pathlib.Path]:
    source = re.sub(r"\W+", "-", options.name)
    name = f"{source}-{options.size or 'full'}-{options.num_colors}-seed{seed}.npy"
    return places(data_folder(options.dir), "palettes", name)


def load(path: pathlib.Path, channels: int) -> Palette:
    """Read a palette [colors, channels] in pixel units from a .npy file or a run's palette.json, as a hashable tuple.

    Raises:
      ConfigError: the file is absent.
      DataError: the file is neither of these, or has another shape.
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
