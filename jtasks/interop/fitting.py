"""Whether a Hugging Face folder's model is the run's: fields of config.model, names and shapes of parameters."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jtasks.errors import ConfigError
from jtasks.ranges import TOWERS

# Fields of config.model that depend on the task, not on the weights; all others must agree.
FREE = ("dropout", "attention_dropout", "activation_dropout", "classifier_dropout")
# Hyperparameters that cannot be inferred from parameter shapes.
UNSEEN = tuple(f"{tower}{name}" for tower in ("", *TOWERS) for name in ("heads", "activation", "norm", "epsilon"))


def require_same_fields(
    fields: Mapping[str, Any], model: Mapping[str, Any], folder: str, warn: Callable[[str], None]
) -> None:
    """Raise ConfigError if config.model is not the folder's model; `warn` of fields that cannot be compared."""
    resolved = {name: model[name] for name in model}
    for tower in ("", *TOWERS):
        if resolved.get(f"{tower}mlp_dim") == 0:
            resolved[f"{tower}mlp_dim"] = 4 * resolved[f"{tower}width"]
    for name in ("heads", "mlp_dim"):  # 0: the decoder's is the encoder's
        if resolved.get(f"decoder_{name}") == 0:
            resolved[f"decoder_{name}"] = resolved[name]
    if resolved.get("head_dim") == 0 and fields.get("head_dim"):
        resolved["head_dim"] = resolved["width"] // resolved["heads"]
    hints = {"shape": " (config.data.size scales the images)"}
    different = [
        f"config.model.{name} is {resolved[name]!r}, there {value!r}{hints.get(name, '')}"
        for name, value in fields.items()
        if name in resolved and name not in FREE and not _equal(resolved[name], value)
    ]
    if different:
        raise ConfigError(
            f"config.model is not the model in {folder}:\n  "
            + "\n  ".join(different)
            + "\nset them to the model's values, or to None, which takes these"
        )
    for name in UNSEEN:
        if name in fields and name not in resolved:
            warn(f"config.model has no {name}; the weights in {folder} are for {name}={fields[name]!r}")


def alike(one: Any, other: Any) -> bool:
    """Return whether numbers, or nested lists of numbers, are equal except for rounding."""
    try:
        first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    except (ValueError, TypeError):
        return False
    return first.shape == second.shape and bool(np.allclose(first, second, rtol=1e-6, atol=1e-5 * first.ndim))


def differences(
    theirs: Mapping[str, np.ndarray], wanted: Mapping[str, Any], heads: set[str], fields: Mapping[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Return differences that are errors, and parameters to leave as initialized, by name with the reason."""
    problems, left = [], {}
    for name, leaf in wanted.items():
        ours = f"{name} {list(leaf.shape)}"
        if name not in theirs:
            left[name] = f"{ours}: not there"
            if name == "head/kernel" and fields.get("tied"):
                problems.append(f"{ours}: there the head is the input embedding; set config.model.tied=True")
        elif theirs[name].shape != leaf.shape:
            left[name] = f"{ours}: there it is {list(theirs[name].shape)}"
            if name not in heads:
                problems.append(left[name])
    # A kernel without its bias is half a head.
    halves = {name.rpartition("/")[0] for name in left if name in heads}
    for name in wanted:
        if name not in left and name in heads and name.rpartition("/")[0] in halves:
            left[name] = f"{name} {list(wanted[name].shape)}: its other part does not fit"
    modules = {name.rpartition("/")[0] for name in wanted if name not in left}
    for name in theirs:
        if name not in wanted and (name not in heads or name.rpartition("/")[0] in modules):
            problems.append(f"{name} {list(theirs[name].shape)} is there, and this model has no place for it")
    missing = [text for name, text in left.items() if name not in theirs and name.rpartition("/")[0] in modules]
    return problems + missing, left


def merge_layers(names: list[str]) -> list[str]:
    """Merge names that differ only in the number of the layer."""
    counts: dict[str, int] = {}
    for name in names:
        general = re.sub(r"\.\d+\.", ".*.", name)
        counts[general] = counts.get(general, 0) + 1
    return [name if count == 1 else f"{name} ({count} layers)" for name, count in counts.items()]


def _equal(one: Any, other: Any) -> bool:
    return alike(one, other) if isinstance(one, float | tuple) else bool(one == other)
