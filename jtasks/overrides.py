"""Overrides on the command line, `--config.a.b=value`: values parsed by the type of their field."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections.config_dict import FieldReference, RequiredValueError

from jtasks.errors import ConfigError
from jtasks.ranges import Field, did_you_mean, format_value

BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def last_text(overrides: Sequence[str], name: str) -> str | None:
    """Return the text of the last override of a field; None if there is none."""
    texts = [text for key, _, text in (override.partition("=") for override in overrides) if key == f"--{name}"]
    return texts[-1] if texts else None


def apply(config: ml_collections.ConfigDict, overrides: Sequence[str], known: Mapping[str, Field]) -> None:
    """Set fields of an unlocked config; fields that refer to them follow.

    Args:
      config: the config, changed in place.
      overrides: `--config.a.b=value`, applied in order.
      known: types of fields by name; other fields keep their type.

    Raises:
      ConfigError: there is no such field, or the text does not fit its type.
    """
    for override in overrides:
        name, _, text = override.partition("=")
        name = name.removeprefix("--")
        if not name.startswith("config.") or "=" not in override:
            raise ConfigError(f"override {format_value(override)}: expected --config.NAME=VALUE")
        *groups, last = name.split(".")[1:]
        node, here = config, "config"
        for group in groups:
            node, here = _group(node, group, here, name), f"{here}.{group}"
        if last not in node:
            raise ConfigError(unknown(name, node))
        if isinstance(value(node, last), ml_collections.ConfigDict):
            own = (
                f"one of {name}.{{{','.join(node[last])}}}" if node[last] else f"{name} = dict(...) in the config file"
            )
            raise ConfigError(f"{name} is a dict of fields: set {own}")
        set_value(node, last, parse_value(text, _kind(node, last, name, known), override))


def parse_value(text: str, kind: type, override: str) -> Any:
    """Parse a text as a value of a type.

    >>> parse_value("1e-3", float, ""), parse_value("3,1", tuple, ""), parse_value("123", str, "")
    (0.001, (3, 1), '123')
    """
    if text == "None" and kind is not bool:
        return None
    if kind is str:
        return text
    try:
        if kind is bool:
            return BOOLS[text.lower()]
        if kind is float:
            return float(text)
        if kind is int:
            return _integer(text)
    except (KeyError, ValueError, TypeError, OverflowError):
        raise ConfigError(f"{override[:60]}: expected {kind.__name__}, not {format_value(text)}") from None
    read = _literal(text)
    if kind not in (tuple, list):
        return read
    if isinstance(read, str) and read == text and text:
        return tuple(part.strip() for part in text.split(","))
    return tuple(read) if isinstance(read, tuple | list) else () if read == "" else (read,)


def value(node: ml_collections.ConfigDict, name: str) -> Any:
    """Return the value of a field; None for a required field that is not set yet."""
    try:
        return node[name]
    except RequiredValueError:
        return None


def set_value(node: ml_collections.ConfigDict, name: str, new: Any) -> None:
    """Set a field to a value of any type; fields that refer to the field follow."""
    field = dict(node.items(preserve_field_references=True))[name]
    if isinstance(field, FieldReference):
        field.set(new, type_safe=False)
    else:
        del node[name]  # forget the type of the old value
        node[name] = new


def unknown(name: str, node: Mapping[str, Any]) -> str:
    """Return the message about a field that a group lacks."""
    group, _, last = name.rpartition(".")
    near = did_you_mean(last, list(node), f"{group}.", cutoff=0.5)
    there = ", ".join(node) or f"no fields: the config file gives it some, as in {group} = dict({last}=...)"
    return f"unknown field {name}" + (near or f", {group} has {there}")


def _group(node: ml_collections.ConfigDict, group: str, here: str, name: str) -> ml_collections.ConfigDict:
    if group not in node:
        raise ConfigError(unknown(f"{here}.{group}", node))
    inner = value(node, group)
    if not isinstance(inner, ml_collections.ConfigDict):
        raise ConfigError(f"unknown field {name}: {here}.{group} has no fields of its own, set it as a whole")
    return inner


def _kind(node: ml_collections.ConfigDict, last: str, name: str, known: Mapping[str, Field]) -> type:
    if (short := name.removeprefix("config.")) in known:
        return known[short].kind
    field = dict(node.items(preserve_field_references=True))[last]
    kind = field.get_type() if isinstance(field, FieldReference) else type(field)
    return float if kind is type(None) and name.startswith("config.optim.") else kind  # such as sgd's momentum


def _integer(text: str) -> int:
    read = _literal(text)
    number = float(text) if isinstance(read, str) else read  # such as 007, which is no literal
    if isinstance(number, bool) or number != int(number):
        raise ValueError(text)
    return int(number)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
