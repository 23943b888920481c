"""A Hugging Face folder as fields of config.model: what its config.json and its image processor say."""

import pathlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from jtasks import storage
from jtasks.data import assets
from jtasks.data.examples import Resize
from jtasks.errors import CheckpointError, ConfigError
from jtasks.interop import bart, bert, blip, files, gpt2, image_processors, marian, settings, t5, two_towers, vit
from jtasks.ranges import TOWERS

SIZES = ("vocab", "outputs", "max_length", "token_types", "patch", "embed_dim")
STACK = ("width", "depth", "heads", "mlp_dim")
SIDES = ("encoder_depth", "decoder_depth", "decoder_heads", "decoder_mlp_dim", "buckets", "max_distance")
PAIRS = (t5, bart, marian)  # encoder-decoders


def model_fields(folder: str | pathlib.Path) -> dict[str, Any]:
    """Return the fields of config.model that describe the folder's model, from its config.json.

    Includes the fields that a task derives from its data: `num_colors` and `palette` of an ImageGPT (if its folder
    holds color clusters), `shape` of the images of a ViT, CLIP, SigLIP or BLIP.

    Raises:
      CheckpointError: there is no such folder, or its model is none of ours.
    """
    folder = storage.local(folder)
    config, fields = read(folder)
    family, processor = config["model_type"], image_processors.find(folder)
    if family == "imagegpt" and processor is not None:
        path, own = processor
        levels = np.asarray(own.get("clusters", ()), np.float64)
        if levels.shape == (fields["num_colors"], 3):
            fields["palette"] = tuple(tuple(float(x) for x in color) for color in (levels + 1) * 127.5)
            if "size" in own:
                fields["resize"] = tuple(image_processors.read(own, family, path))
    if "shape" in fields:
        channels = (config.get("vision_config") or config).get("num_channels", 3)
        fields |= image_processors.model_fields(folder, family, fields["shape"], channels)
    return fields


def class_names(folder: pathlib.Path) -> list[str] | None:
    """Return a folder's class names in the order of the classifier's rows; None if config.json has none."""
    return settings.class_names(files.read_config(folder))


def image_size(folder: str) -> int | None:
    """Return the width and height of the images of a folder's model; None if they differ, or without images."""
    height, width = read(storage.local(folder))[1].get("shape", (0, 1))
    return height if height == width else None


def complete(values: Mapping[str, Any], model: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return values for the placeholders (None) of config.model: the folder's, else `values` from the data.

    The folder's model may have more ids and positions than the data needs. The data sets the images' shape, and without
    a palette in the folder the number of colors.

    Raises:
      ConfigError: the data needs more ids or positions than the folder's model has, or pictures have another size.
    """
    asked = {name for name in {*model, *values} if model.get(name) is None}
    if not asked:
        return dict(values)
    theirs = model_fields(folder)
    for name in sorted({"vocab", "max_length"} & asked & set(values) & set(theirs)):
        if values[name] > theirs[name]:
            raise ConfigError(
                f"the data needs config.model.{name}={values[name]}, but the model in {folder} has {theirs[name]}"
            )
    shape = model.get("shape") or values.get("shape")
    if shape and "resize" in asked & set(theirs) and Resize(*theirs["resize"]).shape not in ((0, 0), tuple(shape)):
        made = "x".join(map(str, Resize(*theirs["resize"]).shape))
        raise ConfigError(
            f"{folder}/{assets.PROCESSOR} makes pictures of {made}, config.model.shape is {tuple(shape)}: set"
            " config.data.size, or size and crop_size of that file"
        )
    of_the_data = {"shape"} if "palette" in theirs else {"shape", "num_colors"}
    return {**values, **{name: value for name, value in theirs.items() if name in asked - of_the_data}}


def read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the folder's config.json and the fields of our model.

    As in transformers, weights that config.json ties stay separate if the files hold both and they differ. A folder
    without weights has a model too.

    Raises:
      CheckpointError: config.json lacks a field, has an odd one, or describes more weights than the files hold.
    """
    config = files.read_config(folder)
    family = family_of(config)
    where = files.where(folder) if files.has_weights(folder) else {}
    if family in PAIRS:
        config = family.resolve(config, where)
    for name, source in family.TIED:
        source = source if source in where else source.removeprefix(family.PREFIX)
        if config.get("tie_word_embeddings", True) and name in where and source in where:
            one, other = (files.read(where[key], key) for key in (name, source))
            config["tie_word_embeddings"] = bool(np.array_equal(one, other))
    try:
        fields = family.fields(config)
    except KeyError as error:
        raise CheckpointError(
            f"{folder / files.CONFIG} has no {error}, which a {config['model_type']} must have"
        ) from None
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{folder / files.CONFIG} has an odd value: {error}") from error
    towers = [tower for tower in ("", *TOWERS) if f"{tower}width" in fields]
    for name in (*SIZES, *SIDES, *(f"{tower}{name}" for tower in towers for name in STACK)):
        value = fields.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{folder / files.CONFIG}: {name} comes out as {value!r}, expected a whole number")
    numbers = (
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "classifier_dropout",
        *(f"{tower}epsilon" for tower in towers),
    )
    for name in numbers:
        if isinstance(value := fields.get(name, 0), bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{folder / files.CONFIG}: {name} comes out as {value!r}, expected a number")
    size = sum(file.stat().st_size for file in set(where.values()))
    for tower in towers:
        width, heads, mlp_dim = (fields[f"{tower}{name}"] for name in STACK if name != "depth")
        depth = fields[f"{tower}depth"] if f"{tower}depth" in fields else fields["encoder_depth"]
        table = 0 if tower == "image_" else width * fields.get("vocab", 0)
        uneven = width % heads and fields.get("positions") != "relative"  # T5's heads have a width of their own
        if (where and table + width * depth * mlp_dim > size) or uneven:
            raise CheckpointError(
                f"{folder / files.CONFIG} does not go with the weights beside it: {tower}width {width}, {tower}heads"
                f" {heads}, {tower}depth {depth}, and {size:,} bytes of weights"
            )
    return config, fields


def family_of(config: Mapping[str, Any]) -> ModuleType:
    """Return the module that converts the models of config.json's model_type; CheckpointError if there is none."""
    families = {
        "gpt2": gpt2,
        "imagegpt": gpt2,
        "bert": bert,
        "vit": vit,
        "clip": two_towers,
        "siglip": two_towers,
        "blip": blip,
        "t5": t5,
        "bart": bart,
        "marian": marian,
    }
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in families:
        raise CheckpointError(f"config.json says model_type={kind!r}; expected one of {', '.join(families)}")
    return families[kind]
