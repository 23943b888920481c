"""Fields of config.json that the model families share."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jtasks.errors import CheckpointError, ConfigError
from jtasks.interop import files

# Hugging Face's names of each of our activations; exports write the first.
ACTIVATIONS = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
    "quick_gelu": ("quick_gelu",),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
    "tanh": ("tanh",),
}

# Ids of an encoder-decoder, by their names in config.model and in config.json.
MARKS = {"begin": "decoder_start_token_id", "end": "eos_token_id", "pad": "pad_token_id"}


def activation(theirs: str) -> str:
    """Return our name of an activation function; CheckpointError if it is unknown."""
    for ours, names in ACTIVATIONS.items():
        if theirs in names:
            return ours
    known = ", ".join(name for names in ACTIVATIONS.values() for name in names)
    raise CheckpointError(f"config.json asks for the activation {theirs!r}; our models have {known}")


def activation_out(ours: str) -> str:
    """Return Hugging Face's name of an activation function."""
    return ACTIVATIONS[ours][0]


def encoder_out(blocks: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return Hugging Face's fields of the layers of a BERT or ViT with the parameters `blocks`."""
    return {
        "num_hidden_layers": blocks["up"]["kernel"].shape[0],
        "num_attention_heads": require_field(model, "heads"),
        "intermediate_size": blocks["up"]["kernel"].shape[-1],
        "hidden_act": activation_out(require_field(model, "activation")),
        "layer_norm_eps": require_field(model, "epsilon"),
        "hidden_dropout_prob": model.get("dropout", 0.0),
        "attention_probs_dropout_prob": model.get("attention_dropout", 0.0),
    }


def tower(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of config.model of the tower `image` or `text`, from Hugging Face's fields of its layers."""
    return {
        f"{name}_width": config["hidden_size"],
        f"{name}_depth": config["num_hidden_layers"],
        f"{name}_heads": config["num_attention_heads"],
        f"{name}_mlp_dim": config["intermediate_size"],
        f"{name}_activation": activation(config["hidden_act"]),
        f"{name}_epsilon": config["layer_norm_eps"],
    }


def tower_out(name: str, blocks: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return Hugging Face's fields of a tower with the parameters `blocks`, without dropout."""
    own = {field: require_field(model, f"{name}_{field}") for field in ("heads", "activation", "epsilon")}
    layers = {field: value for field, value in encoder_out(blocks, own).items() if "dropout" not in field}
    if layers["hidden_act"] == "gelu_new":
        layers["hidden_act"] = "gelu_pytorch_tanh"  # SigLIP's name
    return {**layers, "hidden_size": blocks["norm1"]["scale"].shape[-1]}


def architecture(config: Mapping[str, Any]) -> str:
    """Return the class that wrote the folder; "" if config.json does not say."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def refuse(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raise CheckpointError if config.json requires something that our model lacks."""
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"config.json says {name}={config[name]!r}; our model has {value!r} only")


def require_values(model: Mapping[str, Any], needed: Mapping[str, Any], architecture: str) -> None:
    """Raise CheckpointError if fields of config.model are not what an architecture has; absent fields are."""
    for name, value in needed.items():
        here = model.get(name)
        if here is not None and not (np.isclose(here, value, atol=0) if isinstance(value, float) else here == value):
            raise CheckpointError(
                f"{architecture} of Hugging Face cannot have config.model.{name}={here!r}: expected {value!r}"
            )


def require_copies(where: Mapping[str, pathlib.Path], name: str, copies: Sequence[str], prefix: str = "") -> None:
    """Raise CheckpointError if tensors that should repeat the tensor `name` differ; absent tensors do not.

    The names may lack their prefix, as in a folder without heads.
    """
    names = {full: next((each for each in (full, full.removeprefix(prefix)) if each in where), "") for full in copies}
    source = next((each for each in (name, name.removeprefix(prefix)) if each in where), "")
    for copy in filter(None, names.values()):
        if source and not are_equal(where, copy, source):
            raise CheckpointError(f"{copy} differs from {source}: our model has one embedding for both")


def are_equal(where: Mapping[str, pathlib.Path], one: str, other: str) -> bool:
    """Return whether two tensors are equal bit for bit."""
    return bool(np.array_equal(files.read(where[one], one), files.read(where[other], other)))


def marks(config: Mapping[str, Any]) -> dict[str, int]:
    """Return config.model's ids that begin and end a target, and of padding.

    Raises:
      CheckpointError: config.json has no such ids.
    """
    end, pad = config.get("eos_token_id"), config.get("pad_token_id")
    end = end[0] if isinstance(end, list) and end else end
    begin = config.get("decoder_start_token_id")
    ids: dict[str, Any] = {"begin": pad if begin is None else begin, "end": end, "pad": pad}
    for name, value in ids.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"config.json gives the id {value!r} as {MARKS[name]}, expected a whole number")
    return ids


def marks_out(model: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids that begin and end a target, and of padding, by their names in transformers."""
    return {theirs: require_field(model, ours) for ours, theirs in MARKS.items()}


def patch(config: Mapping[str, Any]) -> int:
    """Return the side of square patches; CheckpointError if they are not square."""
    size = config["patch_size"]
    height, width = (size, size) if isinstance(size, int) else (size[0], size[1])
    if height != width:
        raise CheckpointError(f"config.json says patch_size={size}; our patches are square")
    return height


def require_field(model: Mapping[str, Any], name: str) -> Any:
    """Return a field of config.model that the parameters do not reveal; ConfigError if it is missing."""
    if model.get(name) is None:
        raise ConfigError(f"the export needs config.model.{name}, which this config does not have: give it there")
    return model[name]


def class_names(config: Mapping[str, Any]) -> list[str] | None:
    """Return the class names in the order of their numbers, from id2label; None without id2label.

    Raises:
      CheckpointError: id2label does not number its classes from 0.
    """
    names = config.get("id2label")
    if names is None:
        return None
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        raise CheckpointError(f"config.json has id2label={str(names)[:100]}: expected a name for each of 0, 1, ...")
    return [str(names[str(i)]) for i in range(len(names))]


def labels(names: Sequence[str]) -> dict[str, Any]:
    """Return the fields that name the classes."""
    numbers = {name: i for i, name in enumerate(names)}
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": numbers}


def default_names(count: int) -> list[str]:
    """Return names for unnamed classes."""
    return [f"LABEL_{i}" for i in range(count)]
