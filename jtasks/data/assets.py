"""Files beside the parameters that give the parameters meaning: class names, palette, image processor."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jtasks.data.examples import Resize

BICUBIC = 3  # PIL's number of the filter that scales pictures (see data/examples.py)
LABELS, PALETTE, PROCESSOR = "labels.json", "palette.json", "preprocessor_config.json"


def labels(names: Sequence[str]) -> dict[str, str]:
    """Return the file of class names, in the order of their numbers, for a task's `assets`."""
    return {LABELS: _text([str(name) for name in names])}


def palette_files(model: Mapping[str, Any]) -> dict[str, str]:
    """Return the file of the palette in pixel units and, for three channels, ImageGPT's image processor."""
    colors, (height, width) = model["palette"], model["shape"]
    files = {PALETTE: _text(colors)}
    if len(colors[0]) == 3:
        files[PROCESSOR] = _text(
            {
                "image_processor_type": "ImageGPTImageProcessor",
                "size": {"height": height, "width": width},
                "do_resize": True,
                **({"resample": model["resize"][0]} if model.get("resize") else {}),
                "do_normalize": True,
                "do_color_quantize": True,
                "clusters": (np.asarray(colors, np.float64) / 127.5 - 1).tolist(),
            }
        )
    return files


def image_processor(
    mean: Sequence[float],
    std: Sequence[float],
    rescale: float,
    shape: Sequence[int] | None = None,
    resize: Sequence[int] | None = None,
) -> dict[str, str]:
    """Return transformers' preprocessor_config.json for inputs (pixel * rescale - mean) / std, channel by channel."""
    usual = Resize(BICUBIC, shape[0], shape[1]) if shape else None
    size = _sizes(given) if (given := Resize(*resize) if resize else usual) else {}
    scaling = {"do_rescale": True, "rescale_factor": rescale, "do_normalize": True}
    numbers = {"image_mean": list(mean), "image_std": list(std), "do_convert_rgb": len(mean) == 3}
    return {PROCESSOR: _text({"image_processor_type": "ViTImageProcessor", **size} | scaling | numbers)}


def _sizes(resize: Resize) -> dict[str, Any]:
    """Return the fields of preprocessor_config.json that scale and crop pictures."""
    square = {"height": resize.height, "width": resize.width}
    crop = {"do_center_crop": True, "crop_size": {"height": resize.crop_height, "width": resize.crop_width}}
    kind = ("DeiT" if resize.width else "CLIP") if resize.crop_height else "ViT"
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": bool(resize.height),
        **({"size": square if resize.width else {"shortest_edge": resize.height}} if resize.height else {}),
        "resample": resize.filter,
        **(crop if resize.crop_height else {}),
    }


def read(path: pathlib.Path) -> Any:
    """Read a JSON file; None if the file is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def _text(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
