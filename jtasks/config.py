"""Configs: common fields, presets, command-line overrides, and the frozen result."""

import contextlib
import copy
import functools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import ml_collections
from ml_collections.config_dict import FieldReference, RequiredValueError, placeholder

from jtasks import config_files, optim, ranges, task, variants
from jtasks import overrides as overrides_
from jtasks.distributed import sharding_rules, shares
from jtasks.errors import ConfigError
from jtasks.ranges import Field
from jtasks.schema import FIELDS, GROUPS, STRICT

if TYPE_CHECKING:  # ml_collections has no types of its own
    from jtasks.schema import Config
else:
    Config = ml_collections.FrozenConfigDict

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def defaults(optimizer: str = "adamw", own: dict[str, Field] | None = None) -> ml_collections.ConfigDict:
    """Return the fields of every config, and a task's `own` fields, with their default values."""
    groups = {name.partition(".")[0] for name in own or {} if "." in name}
    config = ml_collections.ConfigDict()
    for group in (*GROUPS, *sorted(groups - set(GROUPS))):
        *above, own_name = group.split(".")
        _node(config, above)[own_name] = {}
    for name, field in (FIELDS | (own or {})).items():
        *above, last = name.split(".")
        empty = placeholder(field.kind) if field.kind is not object else None
        _node(config, above)[last] = empty if field.default is None else field.default
    config.optim = {**optim.defaults(), "name": optimizer, **optim.arguments(optimizer)}
    return config


def load(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read `FILE.py[:PRESET]`, or a shipped config by name (`igpt_cifar:xxs`), and `freeze` it with the overrides.

    Raises:
      ConfigError: the file, the preset, a field or a value is wrong; the message names the nearest right one.
    """
    config = freeze(config_files.read(path), overrides, path)
    if path.endswith(".json") and config.task.endswith(".py") and not pathlib.Path(config.task).is_file():
        raise ConfigError(f"{path} names the task {config.task}, which is not there: give --config.task=FILE.py")
    return config


def freeze(config: Mapping[str, Any] | Config, overrides: Sequence[str] = (), path: str = "the config") -> Config:
    """Return a complete, checked and frozen config: defaults filled in, overrides applied, references resolved.

    Args:
      config: a ConfigDict, which is not changed, or any mapping; a frozen config comes back equal. The task in a
        dict may be a module.
      overrides: `--config.a.b=value`; the last value of a field counts, and fields that refer to the field follow.
      path: origin of the config, for messages.

    Raises:
      ConfigError: a field or a value is wrong; the message names the nearest right one.
    """
    given: Any = config
    if isinstance(given, str):
        raise ConfigError(f"the config is the text {given!r}: give a dict, or jtasks.config.load({given!r})")
    if isinstance(config, Mapping) and isinstance(module := config.get("task"), ModuleType):
        config = {**config, "task": task.name_of(module)}
    try:
        tree = copy.deepcopy(ml_collections.ConfigDict(config))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} holds what no config can: {error}") from error
    with tree.unlocked(), _refuse_recursion(path):
        own = _own_fields(tree, overrides)
        _merge(tree, defaults(_optimizer(tree, overrides), own), "config", path, frozenset(own))
        variants.fill(tree.evals)
        overrides_.apply(tree, overrides, FIELDS | own)
        for length, other in (("steps", "epochs"), ("epochs", "steps")):
            texts = [overrides_.last_text(overrides, f"config.{name}") for name in (length, other)]
            if texts[0] and not texts[1]:
                overrides_.set_value(tree, other, FIELDS[other].default)  # the command line's replaces the file's
    with _refuse_recursion(path):
        fields = plain(tree, "config")
    _check(fields, FIELDS | own)
    return Config(fields)


@contextlib.contextmanager
def _refuse_recursion(path: str) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise ConfigError(f"{path} holds a dict or a list that holds itself, or is nested too deeply") from None


def to_json(config: Config) -> dict[str, Any]:
    """Return the config as JSON data; tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def fields(config: Mapping[str, Any], prefix: str = "config") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of all leaves."""
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from fields(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


def _optimizer(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> str:
    """Return the name of the optimizer, which determines the fields of config.optim."""
    group = overrides_.value(config, "optim") if "optim" in config else {}
    if not isinstance(group, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f"config.optim must be a dict of fields, not {ranges.format_value(group)}")
    of_file = overrides_.value(group, "name") if "name" in group else None
    return overrides_.last_text(overrides, "config.optim.name") or of_file or "adamw"


def _own_fields(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> dict[str, Field]:
    """Return the fields that the config's task declares; {} for a task that does not exist, which `prepare` reports."""
    name = overrides_.last_text(overrides, "config.task") or (
        overrides_.value(config, "task") if "task" in config else ""
    )
    return task.fields(task.load(name)) if isinstance(name, str) and task.exists(name) else {}


def _merge(config: Any, under: Any, prefix: str, path: str, own: frozenset[str] = frozenset()) -> None:
    """Fill a config with the defaults; its fields may be references, or required and not set yet.

    A config may have additional fields, such as fields that others refer to, unless the name of one resembles a
    default field that the config leaves out.
    """
    checked = prefix in ("config", "config.data") or any(f"config.{name}".startswith(f"{prefix}.") for name in own)
    known = [name for name in under if prefix == "config" or name not in config]
    cutoff = 0.8 if prefix == "config" else 0.75
    for name in (name for name in config if name not in under):
        if prefix in STRICT:
            raise ConfigError(overrides_.unknown(f"{prefix}.{name}", under))
        groups = [other for other in known if isinstance(under[other], ml_collections.ConfigDict)]
        same = groups if isinstance(overrides_.value(config, name), ml_collections.ConfigDict) else {*known} - {*groups}
        near = checked and ranges.did_you_mean(name, sorted(same), f"{prefix}.", cutoff)
        if near:
            raise ConfigError(f"unknown field {prefix}.{name} in {path}{near}")
    for name, default in under.items(preserve_field_references=True):
        here = f"{prefix}.{name}"
        if name not in config:
            config[name] = default
        elif isinstance(default, ml_collections.ConfigDict):
            if not isinstance(inner := overrides_.value(config, name), ml_collections.ConfigDict):
                raise ConfigError(f"{here} must be a dict of fields, not {ranges.format_value(inner)}")
            _merge(inner, default, here, path, own)


def plain(value: Any, name: str) -> Any:
    """Return a value as JSON data, with tuples for lists and references resolved."""
    if isinstance(value, FieldReference):
        return plain(_resolve(value, name), name)
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        items = value.items(True) if isinstance(value, ml_collections.ConfigDict) else value.items()
        return {_key(key, name): plain(inner, f"{name}.{key}") for key, inner in items}
    if hasattr(value, "tolist"):  # numbers and arrays of NumPy and JAX
        value = value.tolist()
    if isinstance(value, list | tuple):
        parts = tuple(plain(part, f"{name}[{i}]") for i, part in enumerate(value))
        if any(isinstance(part, dict) for part in parts):
            raise ConfigError(f"{name} has a dict in a list, which no config can hold: give it a name of its own")
        return parts
    if value is None:
        return None
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return _check_printable(kind(value), name)
    raise ConfigError(
        f"{name} is a {type(value).__name__} ({ranges.format_value(value)}), which JSON does not have:"
        " give numbers, texts, True, False, None, or lists and dicts of these"
    )


def _resolve(reference: FieldReference, name: str) -> Any:
    try:
        return reference.get()
    except RequiredValueError:
        raise ConfigError(f"{name} is required and not set: give it as --{name}=VALUE or in the config file") from None
    except RecursionError:  # told by `_refuse_recursion`
        raise
    except Exception as error:
        raise ConfigError(f"{name} follows from other fields, but {type(error).__name__}: {error}") from error


def _key(key: Any, name: str) -> str:
    if not isinstance(key, str) or not key or "." in key or not key.isprintable():
        raise ConfigError(f"{name} has the field {key!r}: a field's name is a text without dots")
    return key


def _check_printable(value: Any, name: str) -> Any:
    if isinstance(value, str) and CONTROL.search(value):
        raise ConfigError(f"{name}={ranges.format_value(value)} has a control character in it")
    if isinstance(value, int) and value.bit_length() > 1024:
        raise ConfigError(f"{name} is a number of more than 300 digits")
    if value != value:
        raise ConfigError(f"{name} is nan: give a number, or None")
    return value


def _node(config: Any, groups: Sequence[str]) -> Any:
    """Return the group of fields at a path of names."""
    return functools.reduce(lambda node, group: node[group], groups, config)


def _check(config: dict[str, Any], table: Mapping[str, Field]) -> None:
    """Check all fields of a plain config, and replace None by the default, except in config.model."""
    for name, field in table.items():
        *groups, last = name.split(".")
        node = config.get(groups[0]) if groups else config
        if isinstance(node, dict) and last in node:
            default = None if groups == ["model"] else field.default
            node[last] = ranges.check(f"config.{name}", default if node[last] is None else node[last], field)
    config["optim"] = optim.resolve_fields(config["optim"])
    _check_length(config)
    _check_batches(config)
    _check_adapter(config)
    sharding_rules.check_form(config["sharding"])
    shares.check_form(config["shares"], config["accumulate"])
    variants.complete(config, table)
    _check_metrics(config)
    if len(table) > len(FIELDS):
        ranges.check_shapes(config)


def _check_metrics(config: Mapping[str, Any]) -> None:
    """Check the fields that name a metric of an evaluation."""
    evals, every = config["evals"], config["eval_every"]
    metrics = {"best": config["best"], "stop.metric": config["stop"]["metric"]}
    for field, metric in (metrics | {"plateau.metric": config["plateau"]["metric"]}).items():
        name, _, rest = metric.partition("/")
        names = ("valid", "test", *evals) if field == "best" else ("valid", *evals)
        if metric and (name not in names or not rest):
            mode = field.replace("metric", "mode").replace("best", "best_mode")
            raise ConfigError(
                f"config.{field}={metric!r} must be {' or '.join(f'{name}/METRIC' for name in names)}; if higher is"
                f" better, with config.{mode}=max"
            )
        if metric and field != "best" and not (every or evals.get(name, {}).get("every")):
            raise ConfigError(f"config.{field}={metric} needs evaluations on the way: give config.eval_every")


def _check_length(config: Mapping[str, Any]) -> None:
    steps, epochs = config["steps"], config["epochs"]
    if not config["task"]:
        raise ConfigError("config.task is empty: give a task module such as jtasks.tasks.igpt, or a .py file")
    if not steps and not epochs:
        raise ConfigError("config.steps is 0 and so is config.epochs: give one of them")
    if steps and epochs:
        raise ConfigError(f"config.steps={steps} and config.epochs={epochs}: give one of them, not both")


def _check_adapter(config: Mapping[str, Any]) -> None:
    """Refuse an adapter without a base, and fields of an adapter without its kind."""
    fields = config["adapter"]
    usual = {name: FIELDS[f"adapter.{name}"].default for name in fields}
    if not fields["kind"] and (idle := [name for name in fields if fields[name] != usual[name]]):
        raise ConfigError(
            f"config.adapter.{idle[0]}={ranges.format_value(fields[idle[0]])} has no effect without"
            ' config.adapter.kind="lora"'
        )
    if fields["kind"] and not config["init_from"]:
        raise ConfigError(
            f"config.adapter.kind={fields['kind']!r} trains additions to parameters that do not change: give"
            " those, config.init_from=RUN or config.init_from=hf:NAME"
        )


def _check_batches(config: Mapping[str, Any]) -> None:
    accumulate, size, buckets = config["accumulate"], config["batch_size"], config["data"]["buckets"]
    if accumulate > size and not config["batch_tokens"]:
        raise ConfigError(f"config.accumulate={accumulate} must be at most config.batch_size={size}")
    if any(type(length) is not int for length in buckets) or list(buckets) != sorted(set(buckets)):
        raise ConfigError(
            f"config.data.buckets={ranges.format_value(buckets)} must be whole numbers in ascending order"
        )
    sizes = list(config["mesh"].values())
    if 0 in sizes or sizes.count(-1) > 1:
        raise ConfigError(
            f"config.mesh={config['mesh']}: each size must be at least 1, and only one may be -1, for all that remain"
        )
