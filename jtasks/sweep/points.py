"""The points of a sweep: values for some fields of a config, from flags or from a file."""

import ast
import hashlib
import inspect
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from jtasks import config as configs
from jtasks import python_files
from jtasks.config import Config
from jtasks.errors import ConfigError
from jtasks.ranges import format_value

FLAG = "--sweep."
MOST = 10_000  # runs of a sweep, so that an endless iterator is an error
LONGEST = 120  # characters of a run's name; a file name may have 255 bytes

Point = Mapping[str, Any]  # {"optim.lr": 0.001}: values of fields, by name without "config."
Search = Generator[Point, dict[str, float], None]  # yields points, and is sent the metrics of each
Load = Callable[[Sequence[str]], Config]  # overrides -> config


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: name of its folder, such as `lr=0.001,seed=0`.
      values: the values of its fields, as JSON data.
      overrides: `--config.NAME=VALUE` for each field.
      digest: hash of the whole config.
      error: why no config has these values; "" if one has.
    """

    name: str
    values: dict[str, Any]
    overrides: tuple[str, ...]
    digest: str
    error: str


def grid(words: Sequence[str]) -> list[Point]:
    """Return every combination of the values of `--sweep.NAME=VALUE,VALUE`, the last field varying fastest.

    A text in square brackets is read as a Python list, for values that hold commas.

    Raises:
      ConfigError: a field has no value or is given twice.

    >>> grid(["--sweep.optim.lr=1e-3,3e-4", "--sweep.data.buckets=[(8, 16)]"])
    [{'optim.lr': '1e-3', 'data.buckets': '(8, 16)'}, {'optim.lr': '3e-4', 'data.buckets': '(8, 16)'}]
    """
    axes: dict[str, list[str]] = {}
    for word in words:
        name, _, text = word.removeprefix(FLAG).partition("=")
        if name in axes:
            raise ConfigError(f"{FLAG}{name} is given twice: give all its values at once, {FLAG}{name}=A,B,C")
        axes[name] = _split(text, f"{FLAG}{name}")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def read(path: str, config: Config) -> list[Point] | Search:
    """Call the function of a sweep file: `sweep(config)` gives all points, `search(config)` chooses them by results.

    `sweep` returns or yields {field: value}. `search` is a generator that yields {field: value} and is sent the
    metrics of that run, {} if the run failed. Both must be pure functions of the config, with random numbers from
    config.seed, so that a sweep can be resumed.

    Raises:
      ConfigError: the file has neither or both, or the function fails or gives something else.
    """
    module = python_files.load(path)
    functions = [name for name in ("sweep", "search") if callable(getattr(module, name, None))]
    if len(functions) != 1:
        raise ConfigError(f"{path} must have one function sweep(config) or search(config), not {len(functions)}")
    function = getattr(module, functions[0])
    if functions == ["search"]:
        if not inspect.isgeneratorfunction(function):
            raise ConfigError(f"{path}: search must be a generator: metrics = yield {{field: value}}")
        return _checked(function(config), path)
    try:
        points = list(itertools.islice(function(config), MOST + 1))
    except Exception as error:
        raise ConfigError(f"{path}: sweep failed: {type(error).__name__}: {error}") from error
    if not points or len(points) > MOST:
        raise ConfigError(f"{path}: sweep gave {f'more than {MOST}' if points else 'no'} points")
    return [_check(point, path) for point in points]


def make_run(point: Point, load: Load) -> Run:
    """Return the run of a point; `Run.error` says what is wrong with its values."""
    overrides = tuple(f"--config.{name}={_text(value, name)}" for name, value in point.items())
    try:
        config = load(overrides)
    except ConfigError as error:
        texts = {name: _text(value, name) for name, value in point.items()}
        return Run(_name(texts, texts), texts, overrides, "", str(error))
    fields = {name.removeprefix("config."): value for name, value in configs.fields(config)}
    values = {name: fields[name] for name in point}
    digest = hashlib.sha256(json.dumps(configs.to_json(config)).encode()).hexdigest()
    return Run(_name(values, fields), values, overrides, digest, "")


def make_runs(points: Sequence[Point], load: Load) -> list[Run]:
    """Return the runs of all points, each once.

    Raises:
      ConfigError: a value fits no point that has it, such as one of an unknown field.
    """
    runs = [make_run(point, load) for point in points]
    fits = {pair for run, point in zip(runs, points, strict=True) if not run.error for pair in _pairs(point)}
    for run, point in zip(runs, points, strict=True):
        if run.error and not _pairs(point) <= fits:
            raise ConfigError(run.error)
    return list({run.name: run for run in runs}.values())


def _pairs(point: Point) -> set[tuple[str, str]]:
    return {(name, _text(value, name)) for name, value in point.items()}


def _split(text: str, flag: str) -> list[str]:
    """Return the values of a flag as texts."""
    values: list[Any]
    if text.strip().startswith("["):
        try:
            values = [_text(value, flag) for value in ast.literal_eval(text.strip())]
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ConfigError(
                f"{flag}={format_value(text)} is not a Python list: write {flag}=[VALUE, VALUE]"
            ) from None
    else:
        values = [value.strip() for value in text.split(",")]
    if not values or ("" in values and not text.strip().startswith("[")):
        raise ConfigError(f"{flag}={text} has an empty value: write {flag}=A,B,C, and [''] for an empty text")
    return values


def _text(value: Any, name: str) -> str:
    """Return a value as an override writes it."""
    value = configs.plain(value, name)
    return value if isinstance(value, str) else repr(value)


def _checked(search: Search, path: str) -> Search:
    """Yield the points of a search, each checked."""
    metrics: Any = None
    for _ in range(MOST):
        try:
            point = search.send(metrics)
        except StopIteration:
            return
        except Exception as error:
            raise ConfigError(f"{path}: search failed: {type(error).__name__}: {error}") from error
        metrics = yield _check(point, path)
    raise ConfigError(f"{path}: search gave {MOST} points and did not end")


def _check(point: Any, path: str) -> Point:
    if not isinstance(point, Mapping) or not point or not all(isinstance(name, str) and name for name in point):
        raise ConfigError(f'{path} must give points such as {{"optim.lr": 0.001}}, not {format_value(point)}')
    return {name.removeprefix("config."): value for name, value in point.items()}


def _name(values: Mapping[str, Any], fields: Iterable[str]) -> str:
    """Return the name of a run's folder: each field by its shortest clear name, odd characters as %XX.

    >>> _name({"optim.lr": 0.001, "data.name": "a/b"}, ["optim.lr", "optim.name", "data.name"])
    'lr=0.001,data.name=a%2Fb'
    """
    text = ",".join(f"{_short(name, fields)}={_quote(value)}" for name, value in values.items())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _short(name: str, fields: Iterable[str]) -> str:
    parts = name.split(".")
    suffixes = [".".join(parts[i:]) for i in range(len(parts) - 1, 0, -1)]
    return next((s for s in suffixes if sum(f".{other}".endswith(f".{s}") for other in fields) == 1), name)


def _quote(value: Any) -> str:
    if isinstance(value, str):
        return quote(value, safe="")
    return quote(repr(value).replace(" ", ""), safe="(),+")
