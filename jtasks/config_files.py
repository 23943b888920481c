"""Read the file of a config: `FILE.py[:PRESET]`, a shipped config by name, or a run's config.json."""

import inspect
import json
import pathlib
import traceback
from typing import Any

import ml_collections

from jtasks import python_files, ranges, shipped
from jtasks.errors import ConfigError


def read(path: str) -> Any:
    """Return the ConfigDict of `FILE.py[:PRESET]` or of a shipped config by name, or the dict of a run's config.json.

    Raises:
      ConfigError: there is no such file or preset, the file fails, or it returns something else.
    """
    if path.endswith(".json"):
        return _read_json(path)
    name, _, preset = path.partition(":")
    file = str(shipped.paths().get(name, name))
    if pathlib.Path(file).is_dir():
        raise ConfigError(f"{file} is a folder: give a config file, such as {file}/NAME.py")
    if not pathlib.Path(file).is_file():
        raise ConfigError(_absent_message(file))
    module = python_files.load(file)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise ConfigError(f"{file} has no get_config(): a config file defines it and returns a ConfigDict")
    if preset and not inspect.signature(get_config).parameters:
        raise ConfigError(f"{file} has no presets: get_config takes no argument, but {preset!r} was asked for")
    try:
        config = get_config(preset) if preset else get_config()
    except (Exception, SystemExit) as error:
        named = f" for preset {preset!r}" if preset else ""
        message = f"{file}: get_config failed{named}: {type(error).__name__}: {error}"
        raise ConfigError(message + (_presets_message(error) if preset else "")) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"{file}: get_config must return a ml_collections.ConfigDict, not {type(config).__name__}")
    return config


def _absent_message(file: str) -> str:
    """Return the message for a config that does not exist."""
    path = pathlib.Path(file)
    if file == path.stem:
        return (
            f"no config {file!r}: give FILE.py or a shipped config, nearest first: {', '.join(shipped.nearest(file))}"
        )
    here = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
    hint = ranges.did_you_mean(file, here) or ranges.did_you_mean(path.stem, shipped.paths(), "--config=")
    return f"no config file {file}{hint}"


def _presets_message(error: BaseException) -> str:
    """Return a list of the PRESETS of the config file that raised the error, for its message; "" if there are none."""
    there = [
        frame.f_globals["PRESETS"]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if "PRESETS" in frame.f_globals
    ]
    return f"; the presets are {', '.join(map(str, there[-1]))}" if there else ""


def _read_json(file: str) -> dict[str, Any]:
    """Read a run's own config.json."""
    try:
        config = json.loads(pathlib.Path(file).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): give --config=FILE.py") from error
    if not isinstance(config, dict) or not config:
        raise ConfigError(f"{file} is no config (no JSON object with fields): give --config=FILE.py")
    return config
