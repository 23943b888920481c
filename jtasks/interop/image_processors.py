"""Image processors of transformers: how a picture becomes the model's pixels, from preprocessor_config.json."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jtasks.data.assets import PROCESSOR
from jtasks.data.examples import Resize
from jtasks.errors import CheckpointError
from jtasks.interop import files

WHOLE = "processor_config.json"  # holds the same fields as `image_processor`, and a tokenizer's
CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),  # of CLIP's training pictures (Radford et al. 2021)
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "resample": 3,
}
# Defaults of each class for absent fields.
USUAL: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": 2},
    "DeiT": {"size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
    "CLIP": {**CLIP, "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224},
    "Siglip": {"size": {"height": 224, "width": 224}, "resample": 3},
    "Blip": {**CLIP, "size": 384},
    "ImageGPT": {"size": 256, "resample": 2},
}
SHORT = ("CLIP", "Siglip")  # one number is the shorter edge
FAMILIES = {"clip": "CLIP", "siglip": "Siglip", "blip": "Blip", "imagegpt": "ImageGPT"}  # by model_type; others: ViT
KINDS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
FILTERS = range(6)  # PIL's numbers
UNKNOWN = ("do_flip_channel_order", "crop_pct", "pad_size")  # fields that these classes ignore and others use


def find(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """Return the file of a folder's image processor and its fields; None if there is none.

    Raises:
      CheckpointError: the file is no JSON object.
    """
    for name in (PROCESSOR, WHOLE):
        if (folder / name).exists():
            content = files.read_json(folder / name)
            fields = content if name == PROCESSOR else content.get("image_processor")
            if isinstance(fields, dict):
                return folder / name, fields
    return None


def model_fields(folder: pathlib.Path, family: str, shape: Sequence[int], channels: int) -> dict[str, Any]:
    """Return config.model's `mean`, `std`, `rescale` and `resize` by a folder's image processor.

    A folder without one gets the processor of its family; {} if the family has none.

    Args:
      folder: the folder.
      family: model_type of its config.json.
      shape: height and width of the pictures by config.json; they count if the processor has no sizes.
      channels: number of channels of the pictures.

    Raises:
      CheckpointError: the file has an unsupported value.
    """
    processor = find(folder)
    if processor is None and family not in FAMILIES:
        return {}
    path, fields = processor or (folder / PROCESSOR, {})
    resize = read(_sized(shape, family) | fields, family, path)
    return {**normalization(fields, family, channels, path), "resize": tuple(resize)}


def complete(processor: Mapping[str, Any], family: str, path: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """Return the class of an image processor, a key of USUAL, and its fields with the class's defaults.

    Args:
      processor: fields of the file at `path`; without a class they are those of the family's.
      family: model_type of the folder's config.json.
      path: for messages.

    Raises:
      CheckpointError: the class is unknown, or a field asks for what jtasks does not do.
    """
    usual = FAMILIES.get(family, "ViT")
    named = processor.get("image_processor_type") or processor.get("feature_extractor_type") or f"{usual}ImageProcessor"
    kind = next((kind for kind in USUAL if named in [kind + end for end in KINDS]), None)
    if kind is None:
        raise CheckpointError(f"{path}: image_processor_type is {named!r}, expected one of {', '.join(USUAL)}")
    given = {name: value for name, value in processor.items() if value is not None}
    fields = {"do_resize": True, "do_center_crop": False, **USUAL[kind], **given}
    for name in UNKNOWN:
        if fields.get(name):
            raise CheckpointError(f"{path}: {name} is {fields[name]!r}, which jtasks does not do")
    return kind, fields


def read(processor: Mapping[str, Any], family: str, path: pathlib.Path) -> Resize:
    """Return the scaling and cropping of an image processor; for the arguments and errors see `complete`."""
    kind, fields = complete(processor, family, path)
    off = [name for name in ("do_normalize", "do_color_quantize") if fields.get(name) is False]
    if kind == "ImageGPT" and off:
        raise CheckpointError(f"{path}: {off[0]} is False, but an ImageGPT reads the nearest of colors in [-1, 1]")
    if fields["resample"] not in FILTERS or isinstance(fields["resample"], bool):
        raise CheckpointError(f"{path}: resample is {fields['resample']!r}, expected 0 to 5, a filter of PIL")
    size = _size("size", fields, path, short=kind in SHORT) if fields["do_resize"] else (0, 0)
    crop = _size("crop_size", fields, path) if fields["do_center_crop"] else (0, 0)
    resize = Resize(fields["resample"], *size, *crop)
    if fields.get("do_pad") and resize.shape == (0, 0):  # the pictures of a batch have one size otherwise
        raise CheckpointError(f"{path}: do_pad is true for pictures of different sizes, which jtasks does not do")
    return resize


def normalization(processor: Mapping[str, Any], family: str, channels: int, path: pathlib.Path) -> dict[str, Any]:
    """Return config.model's `mean`, `std` and `rescale`; for the arguments see `complete`.

    Raises:
      CheckpointError: a value is invalid, or their number is not that of the image's channels.
    """
    _, fields = complete(processor, family, path)

    def numbers(name: str, usual: float, *, count: int, used: bool, otherwise: float) -> tuple[float, ...]:
        value = fields.get(name, usual) if used else otherwise
        values = tuple(value) if isinstance(value, list | tuple) else (value,) * count
        usable = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in values)
        if not usable or len(values) != count or (name != "image_mean" and not all(x > 0 for x in values)):
            raise CheckpointError(f"{path}: {name} is {value!r}, expected {count} numbers or one for all")
        return tuple(map(float, values))

    normalize, rescale = (fields.get(name) is not False for name in ("do_normalize", "do_rescale"))
    return {
        "mean": numbers("image_mean", 0.5, count=channels, used=normalize, otherwise=0.0),
        "std": numbers("image_std", 0.5, count=channels, used=normalize, otherwise=1.0),
        "rescale": numbers("rescale_factor", 1 / 255, count=1, used=rescale, otherwise=1.0)[0],
    }


def _sized(shape: Sequence[int], family: str) -> dict[str, Any]:
    """Return the fields of an image processor of a family that makes pictures of this height and width."""
    square = {"height": shape[0], "width": shape[1]}
    if FAMILIES.get(family) == "CLIP":
        return {"size": {"shortest_edge": min(shape)} if shape[0] == shape[1] else square, "crop_size": square}
    return {"size": square}


def _size(name: str, fields: Mapping[str, Any], path: pathlib.Path, *, short: bool = False) -> tuple[int, int]:
    """Return (height, width), or (the shorter edge, 0)."""
    value = fields.get(name)
    whole = {name: value} if isinstance(value, int) else value if isinstance(value, dict) else {}
    edges = tuple(whole[key] for key in ("height", "width") if key in whole)
    if set(whole) == {"shortest_edge"} or (set(whole) == {name} and short):
        edges = (*whole.values(), 0)
    elif set(whole) == {name}:
        edges = (value, value)
    right = len(edges) == 2 and all(isinstance(edge, int) and not isinstance(edge, bool) for edge in edges)
    if not right or edges[0] < 1 or (edges[1] < 1 and not (name == "size" and edges[1:] == (0,))):
        raise CheckpointError(f"{path}: {name} is {value!r}, expected a height and a width")
    return edges[0], edges[1]
