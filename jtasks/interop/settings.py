"""What the model families share in reading and writing config.json."""

from collections.abc import Mapping
from typing import Any

from jtasks.errors import CheckpointError, ConfigError

# Hugging Face's names of each of ours; the first is written.
ACTIVATIONS = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
    "quick_gelu": ("quick_gelu",),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
    "tanh": ("tanh",),
}


def activation(theirs: str) -> str:
    """Our name of an activation function."""
    for ours, names in ACTIVATIONS.items():
        if theirs in names:
            return ours
    known = ", ".join(name for names in ACTIVATIONS.values() for name in names)
    raise CheckpointError(f"config.json asks for the activation {theirs!r}; our models have {known}")


def activation_out(ours: str) -> str:
    """Their name of an activation function."""
    return ACTIVATIONS[ours][0]


def architecture(config: Mapping[str, Any]) -> str:
    """The class that wrote the folder; "" where it does not say."""
    return (config.get("architectures") or [""])[0]


def refuse(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """CheckpointError where config.json asks for something that our model does not do."""
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"config.json says {name}={config[name]!r}; our model has {value!r} only")


def needed(model: Mapping[str, Any], name: str) -> Any:
    """A field of config.model that the parameters do not tell."""
    if model.get(name) is None:
        raise ConfigError(f"the export needs config.model.{name}, which this config does not have: give it there")
    return model[name]


def labels(count: int) -> dict[str, Any]:
    """The entries that say how many classes there are."""
    names = {i: f"LABEL_{i}" for i in range(count)}
    return {"id2label": {str(i): name for i, name in names.items()}, "label2id": {v: k for k, v in names.items()}}
