"""Loggers: what gets the metrics, pictures and texts of a run besides metrics.jsonl, by `config.log.to`.

A logger is a function `(config, workdir, start)` that returns a context manager. On entering, the context manager
gives a function `write(step, split, values)`, where `values` maps a name to a number, a text, or a picture: uint8
[h, w] or [h, w, c]. Only the first process of a run logs. A logger of one's own in 7 lines::

    @contextlib.contextmanager
    def logger(config, workdir, start):
        with open(workdir / "losses.txt", "a") as file:
            def write(step, split, values):
                if "loss" in values:
                    print(step, split, values["loss"], file=file)
            yield write
"""

import contextlib
import importlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jtasks import python_files, ranges
from jtasks.config import Config
from jtasks.errors import ConfigError

Values = Mapping[str, float | str | np.ndarray]
Write = Callable[[int, str, Values], None]
Logger = Callable[[Config, pathlib.Path, int], contextlib.AbstractContextManager[Write]]

SHIPPED = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}  # the package that each needs
# tensorboardX imports these where they are installed, which takes 0.2 s of each start. The files here are local.
UNNEEDED = {"tensorboard": ("boto3", "google.cloud.storage")}


def find(names: Sequence[str]) -> dict[str, Logger]:
    """Return the loggers of `config.log.to` by name: a shipped one, `module:function` or `FILE.py:function`.

    Raises:
      ConfigError: there is no such logger, or a package that the logger needs is not installed.
    """
    return {name: _find(name) for name in names}


def known_id(path: pathlib.Path, start: int) -> str | None:
    """Return the id of a service's run that a resumed run continues; None for a fresh run."""
    return path.read_text().strip() or None if start and path.is_file() else None


def _find(name: str) -> Logger:
    if not isinstance(name, str):
        raise ConfigError(f"config.log.to must hold names of loggers, not {ranges.format_value(name)}")
    shipped = name in SHIPPED
    place, _, function = (f"{__name__}.{name}", "", "logger") if shipped else name.rpartition(":")
    if not place:
        near = ranges.did_you_mean(name, SHIPPED) or f": there are {', '.join(SHIPPED)}"
        raise ConfigError(
            f"config.log.to has no logger {name!r}{near}; your own is MODULE:FUNCTION or FILE.py:FUNCTION"
        )
    try:
        with _hidden(UNNEEDED.get(name, ())):
            importlib.import_module(SHIPPED.get(name, "jtasks"))
        module = python_files.load(place) if place.endswith(".py") else importlib.import_module(place)
    except ConfigError:
        raise
    except ImportError as error:
        hint = f": pip install 'jtasks[{name}]'" if shipped else ""
        raise ConfigError(f"config.log.to={name!r} cannot be imported ({error}){hint}") from error
    except Exception as error:
        raise ConfigError(f"config.log.to={name!r} cannot be imported: {type(error).__name__}: {error}") from error
    logger = getattr(module, function, None)
    if not callable(logger):
        raise ConfigError(f"config.log.to={name!r}: {place} has no function {function!r}")
    return logger


@contextlib.contextmanager
def _hidden(modules: Sequence[str]) -> Iterator[None]:
    """Let imports of modules that are not imported yet fail within the block, as if they were not installed."""
    hidden = [name for name in modules if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


class Loggers:
    """The open loggers of a run. A logger that fails warns once and gets nothing more; training goes on."""

    def __init__(self, loggers: Mapping[str, Callable[[], contextlib.AbstractContextManager[Write]]], warn: Any):
        self._loggers, self._warn = loggers, warn
        self._open: dict[str, tuple[contextlib.AbstractContextManager[Write], Write]] = {}

    def open(self) -> None:
        """Open all loggers."""
        for name, logger in self._loggers.items():
            with self._guard(name):
                context = logger()
                self._open[name] = context, context.__enter__()

    def write(self, step: int, split: str, values: Values) -> None:
        """Give the values to each logger."""
        for name, (_, write) in list(self._open.items()):
            with self._guard(name):
                write(step, split, values)

    def close(self, *error: Any) -> None:
        """Close all loggers; `error` is the exception that ended the run, as for `__exit__`."""
        for name, (context, _) in list(self._open.items()):
            with self._guard(name):
                del self._open[name]
                context.__exit__(*(error or (None, None, None)))

    @contextlib.contextmanager
    def _guard(self, name: str) -> Any:
        try:
            yield
        except (Exception, SystemExit) as error:
            context, _ = self._open.pop(name, (None, None))
            self._warn(
                f"logger {name} failed ({type(error).__name__}: {error}): it gets nothing more; training goes on"
            )
            if context is not None:
                with contextlib.suppress(Exception, SystemExit):
                    context.__exit__(type(error), error, error.__traceback__)
