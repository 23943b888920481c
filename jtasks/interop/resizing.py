"""Image sizes of transformers' image processors, from preprocessor_config.json."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jtasks.data.examples import Resize
from jtasks.errors import CheckpointError

# Defaults of each class for absent fields; a file without a class has the first.
USUAL: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": 2},
    "DeiT": {"size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
    "CLIP": {"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True, "crop_size": 224},
    "ImageGPT": {"size": 256, "resample": 2},
}
KINDS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
FILTERS = range(6)  # PIL's numbers
UNKNOWN = ("do_pad", "do_flip_channel_order", "crop_pct")  # fields that these classes ignore and others use


def read(processor: Mapping[str, Any], path: pathlib.Path) -> Resize:
    """Return the sizes in the JSON object of the file at `path`; CheckpointError names an unsupported value."""
    named = processor.get("image_processor_type") or processor.get("feature_extractor_type") or "ViTImageProcessor"
    usual = next((fields for name, fields in USUAL.items() if named in [name + kind for kind in KINDS]), None)
    if usual is None:
        raise CheckpointError(f"{path}: image_processor_type is {named!r}, expected one of {', '.join(USUAL)}")
    fields = {
        "do_resize": True,
        "do_center_crop": False,
        **usual,
        **{k: x for k, x in processor.items() if x is not None},
    }
    for name in UNKNOWN:
        if fields.get(name):
            raise CheckpointError(f"{path}: {name} is {fields[name]!r}, which jtasks does not do")
    off = [name for name in ("do_normalize", "do_color_quantize") if fields.get(name) is False]
    if named.startswith("ImageGPT") and off:
        raise CheckpointError(f"{path}: {off[0]} is False, but an ImageGPT reads the nearest of colors in [-1, 1]")
    if fields["resample"] not in FILTERS or isinstance(fields["resample"], bool):
        raise CheckpointError(f"{path}: resample is {fields['resample']!r}, expected 0 to 5, a filter of PIL")
    size = _size("size", fields, path, short="CLIP" in named) if fields["do_resize"] else (0, 0)
    crop = _size("crop_size", fields, path) if fields["do_center_crop"] else (0, 0)
    return Resize(fields["resample"], *size, *crop)


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
