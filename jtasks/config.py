"""Configs: defaults of the common fields, presets, command-line overrides, and the frozen result."""

import ast
import difflib
import inspect
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags
from ml_collections import config_flags
from ml_collections.config_dict import placeholder

from jtasks import optim, task
from jtasks.errors import ConfigError
from jtasks.interop import huggingface

if TYPE_CHECKING:  # ml_collections has no types of its own
    Config = Any
else:
    Config = ml_collections.FrozenConfigDict


def defaults(optimizer: str = "adamw") -> ml_collections.ConfigDict:
    """The fields that every config has, with their default values."""
    return ml_collections.ConfigDict(
        {
            "task": "",  # dotted module name, or the path of a .py file
            "seed": 0,
            "steps": 0,  # optimizer steps; or give epochs
            "epochs": 0.0,
            "batch_size": 64,  # examples a step, over all devices and microbatches
            "batch_tokens": 0,  # instead: tokens a step, in batches by length (see config.data.buckets); 0: off
            "accumulate": 1,  # microbatches a step
            "eval_every": 0,  # steps; 0: only at the end
            "save_every": 1000,  # steps; 0: only at the end
            "log_every": 50,
            "keep": 2,  # newest checkpoints kept
            "best": "",  # the checkpoint with the lowest (or "-split/name": highest) metric is kept too
            "report_metric": True,  # evaluate predictions too, by the task's score_fn, at the end and in --mode=eval
            "show_count": 8,  # examples that show_fn pictures at each evaluation; 0: none
            "precision": "float32",  # of the computation: float32 or bfloat16; parameters stay float32
            "ema": 0.0,  # decay of a moving average of the parameters, used to evaluate; 0: none
            "max_bad_steps": 10,  # stop after so many non-finite steps in a row
            "check": {"step": 0},  # of --mode=check: replay the batch of this step; 0: the conformance kit
            "init_from": "",  # a workdir or checkpoint to take parameters from, as far as they fit; or hf:FOLDER
            "data": {
                "dir": placeholder(str),  # None: $JTASKS_DATA, else the user's cache folder
                "threads": 16,  # that read ahead, where data is not in memory
                "workers": 0,  # processes that do so instead
                "allow_changes": False,  # go on with other data, or other fields here, than the run in the workdir had
                "skip_bad": 0,  # examples that may be replaced by others because they cannot be read
                "buckets": (),  # of config.batch_tokens: the lengths that batches are cut to, ascending
            },
            "model": {},
            "optim": {**optim.defaults(), "name": optimizer, **optim.arguments(optimizer)},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},  # devices along each axis; -1: all that are left
            "sharding": (),  # ((regex of parameters, how they are divided), ...): see jtasks/sharding.py
            "shares": None,  # microbatches of each device: None (all alike), (3, 1, ...), "auto"; see jtasks/hetero.py
        }
    )


def load(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read `FILE.py[:PRESET]`, fill in the defaults and apply `--config.a.b=value` overrides.

    Raises:
      ConfigError: the file, the preset, a field or a value is wrong; the message names the nearest right one.
    """
    user = _read(path)
    optimizer = user.get("optim", {})
    if not isinstance(optimizer, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f"config.optim must be a dict of fields, not {optimizer!r}")
    name = optimizer.get("name", "adamw")
    for override in overrides:
        if override.startswith("--config.optim.name="):
            name = override.partition("=")[2]
    config = defaults(name)
    for field in user:
        near = difflib.get_close_matches(field, config, n=1, cutoff=0.8)
        if field not in config and near:
            raise ConfigError(f"unknown field config.{field} in {path}, did you mean {near[0]}?")
    _merge(config, user, "config")
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        if any(o.startswith(f"--config.{given}=") for o in overrides):
            config[other] = type(config[other])(0)  # the command line's length of the run replaces the file's
    _override(config, overrides)
    if path.endswith(".json") and config.task.endswith(".py") and not pathlib.Path(config.task).is_file():
        raise ConfigError(f"{path} names the task {config.task}, which is not there: give --config.task=FILE.py")
    _validate(config)
    return Config(config)


def fill(config: Config, module: ModuleType) -> Config:
    """The config with the placeholders (None) of `config.model` filled from the task's `data_args`.

    Where `config.init_from` is a Hugging Face folder, those that the data leaves open come from its config.json.
    """
    values = module.data_args(config) if hasattr(module, "data_args") else {}
    if config.init_from.startswith(huggingface.PREFIX) and None in config.model.values():
        values = huggingface.completed(values, config.model, config.init_from.removeprefix(huggingface.PREFIX))
    full = ml_collections.ConfigDict(config)
    with full.unlocked():
        for name, value in values.items():
            if full.model.get(name) is None:
                full.model[name] = value
    if unset := [name for name in ("width", "depth", "heads") if name in full.model and full.model[name] is None]:
        raise ConfigError(f"config.model.{unset[0]} is not set: give it, or --config.init_from=hf:FOLDER, which has it")
    return Config(full) if values else config


def given(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of the named fields that are there: a task leaves the others to its model's defaults.

    >>> given({"width": 8, "epsilon": 1e-5}, "epsilon", "norm")
    {'epsilon': 1e-05}
    """
    return {name: fields[name] for name in names if name in fields}


def to_json(config: Config) -> dict[str, Any]:
    """Plain JSON data; tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def fields(config: Mapping[str, Any], prefix: str = "config") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all leaves."""
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from fields(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


def _read(path: str) -> ml_collections.ConfigDict:
    if path.endswith(".json"):
        return _read_json(pathlib.Path(path))
    file, _, preset = path.partition(":")
    if not pathlib.Path(file).is_file():
        here = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
        near = difflib.get_close_matches(file, here, n=1)
        raise ConfigError(f"no config file {file}" + (f", did you mean {near[0]}?" if near else ""))
    module = task.load_file(file)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise ConfigError(f"{file} has no get_config(): a config file defines it and returns a ConfigDict")
    if preset and not inspect.signature(get_config).parameters:
        raise ConfigError(f"{file} has no presets: get_config takes no argument, but {preset!r} was asked for")
    try:
        config = get_config(preset) if preset else get_config()
    except Exception as error:
        named = f" for preset {preset!r}" if preset else ""
        raise ConfigError(f"{file}: get_config failed{named}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"{file}: get_config must return a ml_collections.ConfigDict, not {type(config).__name__}")
    return config


def _read_json(path: pathlib.Path) -> ml_collections.ConfigDict:
    """A run's own config.json, whose lists were tuples."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give --config=FILE.py") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no config (no JSON object): give --config=FILE.py")
    return ml_collections.ConfigDict(_tuples(content))


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(child) for name, child in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _merge(config: ml_collections.ConfigDict, user: ml_collections.ConfigDict, prefix: str) -> None:
    """Lay the user's values over the defaults; values keep the defaults' types."""
    with config.unlocked():
        for name in user:
            # The reference keeps a placeholder's type; a plain None has none.
            value = None if user.get_type(name) is type(None) else user.get_ref(name)
            name_here = f"{prefix}.{name}"
            if name not in config:
                if prefix == "config.optim":
                    raise ConfigError(_unknown(name_here, config))
                config[name] = value
            elif isinstance(config[name], ml_collections.ConfigDict):
                if not isinstance(user[name], ml_collections.ConfigDict):
                    raise ConfigError(f"{name_here} must be a dict of fields, not {user[name]!r}")
                _merge(config[name], user[name], name_here)
            elif user[name] is not None:
                config[name] = _typed(user[name], config.get_type(name), name_here)


def _typed(value: Any, kind: type, name: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is type(None) or (isinstance(value, kind) and isinstance(value, bool) == (kind is bool)):
        return value
    raise ConfigError(f"{name} must be {kind.__name__}, not {type(value).__name__} ({value!r})")


def _override(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
    rest = []
    for override in overrides:
        name = override.partition("=")[0].removeprefix("--")
        *parents, last = name.split(".")[1:]
        node = config
        for depth, parent in enumerate(parents):
            if parent not in node or not isinstance(node[parent], ml_collections.ConfigDict):
                raise ConfigError(_unknown(".".join(["config", *parents[: depth + 1]]), node))
            node = node[parent]
        if last not in node:
            raise ConfigError(_unknown(name, node))
        if isinstance(node[last], ml_collections.ConfigDict):
            raise ConfigError(f"{name} is a dict of fields: set one of {name}.{{{','.join(node[last])}}}")
        if node.get_type(last) is type(None) or name == "config.shares":  # as sgd's momentum: a number, or none
            with config.unlocked():
                del node[last]  # and with it the type that a file's value gave it
                node[last] = _literal(override, number=parents == ["optim"])
        else:
            rest.append(override)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", *rest])
    try:
        values(["", *rest])
    except (flags.Error, ValueError, TypeError) as error:
        raise ConfigError(f"wrong value on the command line: {error}") from error


def _literal(override: str, *, number: bool) -> Any:
    text = override.partition("=")[2]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if number and not isinstance(value, int | float | None):
        raise ConfigError(f"{override}: expected a number or None")
    return value


def _unknown(name: str, node: ml_collections.ConfigDict) -> str:
    near = difflib.get_close_matches(name.rpartition(".")[2], list(node), n=1, cutoff=0.5)
    parent = name.rpartition(".")[0]
    return f"unknown field {name}, " + (
        f"did you mean {parent}.{near[0]}?" if near else f"{parent} has {', '.join(node) or 'no fields'}"
    )


def _validate(config: ml_collections.ConfigDict) -> None:
    if not config.task:
        raise ConfigError("config.task is empty: give a task module such as jtasks.tasks.igpt, or a .py file")
    if config.steps <= 0 and config.epochs <= 0:
        raise ConfigError("config.steps is 0 and so is config.epochs: give one of them")
    if config.steps > 0 and config.epochs > 0:
        raise ConfigError(f"config.steps={config.steps} and config.epochs={config.epochs}: give one of them, not both")
    for name in ("batch_size", "accumulate", "log_every", "max_bad_steps", "keep"):
        if config[name] < 1:
            raise ConfigError(f"config.{name} must be at least 1, not {config[name]}")
    for name in ("eval_every", "save_every"):
        if config[name] < 0:
            raise ConfigError(f"config.{name} must be 0 (only at the end) or more, not {config[name]}")
    if config.batch_tokens < 0:
        raise ConfigError(f"config.batch_tokens must be 0 (off) or more, not {config.batch_tokens}")
    if config.seed < 0:
        raise ConfigError(f"config.seed must be 0 or more, not {config.seed}")
    if config.precision not in ("float32", "bfloat16"):
        raise ConfigError(f"config.precision must be float32 or bfloat16, not {config.precision!r}")
    if not 0 <= config.ema < 1:
        raise ConfigError(f"config.ema must be in [0, 1), not {config.ema}")
