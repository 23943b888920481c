"""Fields of config.json that the model families share."""

from collections.abc import Mapping, Sequence
from typing import Any

from jtasks.errors import CheckpointError, ConfigError

# Hugging Face's names of each of our activations; exports write the first.
ACTIVATIONS = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
    "quick_gelu": ("quick_gelu",),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
    "tanh": ("tanh",),
}


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
