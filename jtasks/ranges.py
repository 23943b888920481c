"""Allowed values of the fields of a config: a type, and an interval or a choice.

`config.FIELDS` has the fields of every config, `optim.ALLOWED` an optimizer's, a task's `defaults` its own; this
module has the ranges of the models' fields.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jtasks.errors import ConfigError


class Field(NamedTuple):
    """A field of a config.

    Attributes:
      kind: type of the value; a float field accepts an int. `object`: any type.
      allowed: an interval such as "[0, 1)", also for each number of a tuple; a tuple of choices; "regex"; or None
        for all values.
      default: value if the config does not set the field; a field with the default None may be None.
    """

    kind: type
    allowed: str | tuple[str, ...] | None = None
    default: Any = None


ACTIVATIONS = ("gelu_tanh", "gelu", "quick_gelu", "relu", "silu", "tanh")
NORMS = ("layer", "rms")
POOLS = ("mean", "token", "map")
TEXT_TOWERS = ("causal", "bidirectional", "bert")
POSITIONS = ("learned", "sinusoidal", "relative")
PAIR_LOSSES = ("softmax", "sigmoid")

MODEL = {
    "width": Field(int, "[1, 2e9]"),
    "depth": Field(int, "[1, 2e9]"),
    "heads": Field(int, "[1, 2e9]"),
    "patch": Field(int, "[1, 2e9]"),
    "mlp_dim": Field(int, "[0, 2e9]"),
    "vocab": Field(int, "[1, 2e9]"),
    "outputs": Field(int, "[1, 2e9]"),
    "max_length": Field(int, "[1, 2e9]"),
    "token_types": Field(int, "[1, 2e9]"),
    "classes": Field(int, "[0, 2e9]"),
    "labels": Field(int, "[0, 2e9]"),
    "features": Field(int, "[0, 2e9]"),
    "activation": Field(str, ACTIVATIONS),
    "norm": Field(str, NORMS),
    "pool": Field(str, POOLS),
    "epsilon": Field(float, "[0, 1]"),
    "dropout": Field(float, "[0, 1)"),
    "attention_dropout": Field(float, "[0, 1)"),
    "classifier_dropout": Field(float, "[0, 1)"),
    "norm_first": Field(bool),
    "patch_bias": Field(bool),
    "tied": Field(bool),
    "remat": Field(bool),
    "plain": Field(bool),
    "image_pool": Field(str, POOLS),
    "image_norm_first": Field(bool),
    "text_tower": Field(str, TEXT_TOWERS),
    "end": Field(int, "[-1, 2e9]"),
    "pad": Field(int, "[0, 2e9]"),
    "embed_dim": Field(int, "[1, 2e9]"),
    "loss": Field(str, PAIR_LOSSES),
    "target_vocab": Field(int, "[0, 2e9]"),
    "encoder_depth": Field(int, "[1, 2e9]"),
    "decoder_depth": Field(int, "[1, 2e9]"),
    "decoder_heads": Field(int, "[0, 2e9]"),
    "decoder_mlp_dim": Field(int, "[0, 2e9]"),
    "head_dim": Field(int, "[0, 2e9]"),
    "gated": Field(bool),
    "post_norm": Field(bool),
    "final_norm": Field(bool),
    "embed_norm": Field(bool),
    "bias": Field(bool),
    "positions": Field(str, POSITIONS),
    "buckets": Field(int, "[4, 2e9]"),
    "max_distance": Field(int, "[2, 2e9]"),
    "position_offset": Field(int, "[0, 2e9]"),
    "attention_scale": Field(float, "[0, inf)"),
    "embed_scale": Field(float, "[0, inf)"),
    "output_scale": Field(float, "[0, inf)"),
    "output_bias": Field(bool),
    "begin": Field(int, "[0, 2e9]"),
    "init_std": Field(float, "[0, inf)"),
    "activation_dropout": Field(float, "[0, 1)"),
}
TOWERS = ("image_", "text_")  # prefixes of the fields of a model with two towers
STACK = ("width", "depth", "heads", "mlp_dim", "activation", "epsilon", "dropout", "attention_dropout")  # those fields
MODEL |= {f"{tower}{name}": MODEL[name] for tower in TOWERS for name in STACK}

COUNTS = {"vocab", "max_length", "classes", "labels"}  # at least as large as in the data


def check(name: str, value: Any, field: Field) -> Any:
    """Check a value, and return it in the type of its field: an int becomes a float in a float field.

    Raises:
      ConfigError: the value has another type, or is not allowed.

    >>> check("config.ema", 0, Field(float, "[0, 1)"))
    0.0
    """
    kind, allowed = field.kind, field.allowed
    if value is None:
        return None
    value = value.item() if hasattr(value, "item") else value  # a NumPy scalar
    fits = isinstance(value, kind) or (kind is float and type(value) is int)
    if not fits or (isinstance(value, bool) and kind not in (bool, object)):
        raise ConfigError(f"{name} must be {kind.__name__}, not {type(value).__name__} ({format_value(value)})")
    if allowed == "regex":
        _check_regex(name, value)
    elif isinstance(allowed, tuple):
        if value not in allowed:
            raise ConfigError(
                f"{name} must be {_join_choices(allowed)}, not {format_value(value)}{did_you_mean(value, allowed)}"
            )
    elif allowed is not None:
        for number in value if isinstance(value, tuple) else (value,):
            _check_number(name, number, allowed)
    return float(value) if kind is float else value


def check_model(fields: Mapping[str, Any], prefix: str = "config.model.") -> None:
    """Check the fields of a model by name, except for fields without a value yet.

    Raises:
      ConfigError: a field has another type or is not allowed, or the heads do not divide the width.
    """
    for name in (name for name in MODEL if fields.get(name) is not None):
        check(f"{prefix}{name}", fields[name], MODEL[name])
    check_heads(fields, prefix)


def check_against_data(fields: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    """Raise ConfigError if a shipped task's model is too small for the ids, positions or classes of the data."""
    for name in COUNTS & needed.keys():
        if fields.get(name) is not None and fields[name] < needed[name]:
            raise ConfigError(
                f"config.model.{name}={fields[name]} must be at least {needed[name]}: the data has that many"
            )
    palette, colors = fields.get("palette") or needed.get("palette"), fields.get("num_colors")
    if palette and colors is not None and colors != len(palette):
        raise ConfigError(f"config.model.num_colors={colors} must be {len(palette)}, the colors of the palette")
    shape = fields.get("shape")
    if shape is not None and "shape" in needed and shape != needed["shape"]:
        raise ConfigError(
            f"config.model.shape={shape} must be {needed['shape']}, the data's: config.data.size changes it"
        )


def check_module(module: Any) -> None:
    """Check a Flax module's own fields like those of config.model."""
    check_model({field.name: getattr(module, field.name) for field in dataclasses.fields(module)}, prefix="")


def check_heads(fields: Mapping[str, Any], prefix: str = "config.model.") -> None:
    """Raise ConfigError if the heads do not divide the width, in any tower."""
    for tower in ("", *TOWERS):
        width = fields.get(f"{tower}width")
        for name in (f"{tower}heads", *(["decoder_heads"] if not tower else [])):
            heads = fields.get(name)
            if width and heads and width % heads and not fields.get("head_dim"):
                raise ConfigError(f"{prefix}{tower}width={width} must be divisible by {prefix}{name}={heads}")


def check_shapes(config: Mapping[str, Any]) -> None:
    """Raise ConfigError if fields of a shipped task contradict each other."""
    model, beam = config["model"], config.get("beam") or {}
    for name in ("name", "tokenizer"):
        if not config["data"].get(name, True):
            raise ConfigError(f"config.data.{name} is empty: give it as --config.data.{name}=VALUE")
    check_heads(model)
    palette = model.get("palette")
    if palette is not None and {len(c) if isinstance(c, tuple) else 0 for c in palette} not in ({1}, {3}):
        raise ConfigError(f"config.model.palette={format_value(palette)} must be a tuple of (level,) or of (r, g, b)")
    if len(model.get("shape") or (1, 1)) != 2:
        raise ConfigError(f"config.model.shape={format_value(model['shape'])} must be (height, width)")
    depth, layer = model.get("depth"), model.get("layer")
    if depth is not None and layer is not None and not -1 <= layer <= depth:
        raise ConfigError(f"config.model.layer={layer} must be in [-1, {depth}]: there are {depth} layers")
    if beam.get("min_len", 0) > beam.get("max_len", math.inf):
        raise ConfigError(f"config.beam.min_len={beam['min_len']} is above config.beam.max_len={beam['max_len']}")


def did_you_mean(name: Any, known: Collection[str], prefix: str = "", cutoff: float = 0.6) -> str:
    """Return ", did you mean ...?" with the nearest of the known names; "" if none is near.

    >>> did_you_mean("widht", ["width", "depth"])
    ', did you mean width?'
    """
    near = difflib.get_close_matches(str(name), [other for other in known if other], n=1, cutoff=cutoff)
    return f", did you mean {prefix}{near[0]}?" if near else ""


def format_value(value: Any) -> str:
    """Format a value on one line of an error, cut to 80 characters."""
    try:
        text = repr(value).replace("\n", " ")
    except ValueError:
        return "a number of thousands of digits"  # Python refuses to format these
    return text if len(text) <= 80 else text[:77] + "..."


def _check_number(name: str, value: Any, interval: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must hold numbers, not {format_value(value)}")
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = low < value or (interval[0] == "[" and value == low)
    below = value < high or (interval[-1] == "]" and value == high)
    if not (above and below and _is_finite(value)):
        raise ConfigError(f"{name} must be {_describe_interval(interval, value)}, not {format_value(value)}")


def _check_regex(name: str, value: Any) -> None:
    try:
        re.compile(value)
    except re.error as error:
        raise ConfigError(f"{name}={value!r} is not a regular expression: {error}") from error


def _describe_interval(interval: str, value: Any) -> str:
    low, high = interval[1:-1].split(", ")
    if low == "-inf":
        return "a finite number"
    if high not in ("inf", "2e9") or (high == "2e9" and 2e9 < value < math.inf):
        return f"in {interval}"
    return f"{'' if _is_finite(value) else 'finite and '}{'at least' if interval[0] == '[' else 'above'} {low}"


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def _join_choices(names: tuple[str, ...]) -> str:
    *rest, last = (name or "empty" for name in names)
    return f"{', '.join(rest)} or {last}" if rest else last
