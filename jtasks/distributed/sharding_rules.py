"""Rules that shard parameters over a mesh.

A rule is a pair (regex, spec). The first rule whose regex matches a parameter's path by `re.search`, such as
`blocks/up/kernel`, shards the parameter. The rules of `config.sharding` come before RULES:

    config.sharding = (("head/kernel$", ("fsdp", "tensor?")), ("embedding$", "fsdp?"), ("norm", ()))

A spec has one entry per dimension: None, an axis, or a tuple of axes; further dimensions stay whole. An axis
that does not divide its dimension is an error, unless written with a question mark: `fsdp?` is then left out.
A single axis as the spec shards the largest dimension that the axis divides.
"""

import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from jax.sharding import Mesh, PartitionSpec

from jtasks.errors import ConfigError
from jtasks.schema import AXES

Spec = str | Sequence[Any]
Rules = Sequence[tuple[str, Spec]]

# Layers stacked along a leading axis by scan: gathered one layer at a time, other parameters before their first use.
STACKED = r"(^|/)blocks/"
RULES: Rules = (
    (r"/lora_[ab]/kernel$", ()),  # small: whole on each device
    (STACKED + r".*(query|key_value|up|gate)/kernel$", (None, "fsdp?", "tensor?")),  # by heads, by hidden units
    (STACKED + r".*(query|key_value|up|gate)/bias$", (None, ("tensor?", "fsdp?"))),
    (STACKED + r".*(output|down)/kernel$", (None, "tensor?", "fsdp?")),
    (STACKED, (None, "fsdp?")),
    (r"tokens/embedding$", ("tensor?", "fsdp?")),
    (r"head/kernel$", ("fsdp?", "tensor?")),
    (r"", "fsdp?"),
)


def check_form(rules: Any) -> None:
    """Raise ConfigError if config.sharding is malformed for any parameters."""
    for rule in rules:
        if not isinstance(rule, Sequence) or isinstance(rule, str) or len(rule) != 2 or not isinstance(rule[0], str):
            raise ConfigError(f"config.sharding must be a tuple of pairs (regex, spec), not {rule!r}")
        regex, spec = rule
        entries = (spec,) if isinstance(spec, str) else spec
        if not isinstance(entries, Sequence):
            raise ConfigError(f"config.sharding: the spec for {regex!r} must be an axis or a tuple, not {spec!r}")
        axes = [a for entry in entries for a in _axes(entry)]
        if unknown := [axis for axis in axes if str(axis).removesuffix("?") not in AXES]:
            raise ConfigError(
                f"config.sharding: {unknown[0]!r}, for {regex!r}, is not an axis; axes are {', '.join(AXES)}"
            )
        if len(set(plain := [axis.removesuffix("?") for axis in axes])) < len(plain):
            raise ConfigError(f"config.sharding: {spec!r}, for {regex!r}, has an axis twice")
        try:
            re.compile(regex)
        except re.error as error:
            raise ConfigError(f"config.sharding: {regex!r} is not a regular expression: {error}") from error


def _axes(entry: Any) -> Sequence[Any]:
    """Return the axes in an entry of a spec; an invalid entry counts as an axis."""
    return () if entry is None else entry if isinstance(entry, tuple | list) else (entry,)


def check(rules: Rules, names: Collection[str]) -> None:
    """Raise ConfigError if a rule is malformed or matches none of the parameters."""
    check_form(rules)
    for regex, _ in rules:
        if not any(re.search(regex, name) for name in names):
            some = ", ".join(list(names)[:8])
            raise ConfigError(f"config.sharding: {regex!r} matches no parameter; some paths are {some}")


def parameter_spec(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """Return the spec of a parameter by the first rule that matches its path; `rules` come before RULES."""
    regex, spec = next(rule for rule in (*rules, *_default_rules(shape)) if re.search(rule[0], name))
    if isinstance(spec, str):
        spec = _spec_of_largest(spec, shape, mesh)
    if len(spec) > len(shape):
        raise ConfigError(f"config.sharding: {tuple(spec)}, for {regex!r}, is longer than {name} {list(shape)}")
    entries: list[tuple[str, ...]] = []
    for dimension, entry in enumerate(spec):
        taken: list[str] = []
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            plain, candidate = axis.removesuffix("?"), [*taken, axis.removesuffix("?")]
            if shape[dimension] % math.prod(_size(mesh, a) for a in candidate) == 0:
                taken = candidate
            elif plain == axis:
                sizes = " x ".join(f"{a}={_size(mesh, a)}" for a in candidate)
                raise ConfigError(
                    f"config.sharding: {name} {list(shape)} cannot be divided by {sizes} in dimension {dimension}:"
                    f" change config.mesh or the size, or write {axis + '?'!r} to leave such a parameter whole"
                )
        entries.append(tuple(axis for axis in taken if _size(mesh, axis) > 1))
    return PartitionSpec(*(entry if len(entry) > 1 else entry[0] if entry else None for entry in entries))


def _default_rules(shape: tuple[int, ...]) -> Rules:
    """Return the RULES that fit this rank: a user's parameter may share a name with one of ours but be smaller."""
    return [(regex, spec) for regex, spec in RULES if isinstance(spec, str) or len(spec) <= len(shape)]


def _spec_of_largest(axis: str, shape: tuple[int, ...], mesh: Mesh) -> list[str | None]:
    """Return the spec for the largest dimension that `axis` divides; for the first dimension if it divides none."""
    size = _size(mesh, axis.removesuffix("?"))
    possible = [d for d, length in enumerate(shape) if length % size == 0] or list(range(len(shape)))[:1]
    chosen = max(possible, key=lambda d: shape[d], default=None)
    return [axis if d == chosen else None for d in range(len(shape))]


def _size(mesh: Mesh, axis: str) -> int:
    return mesh.shape.get(axis, 1)
