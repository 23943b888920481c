"""Execute the .py file of a config, of a task or of a logger."""

import hashlib
import importlib.util
import inspect
import pathlib
import sys
from types import ModuleType

from jtasks.errors import ConfigError


def load(path: str) -> ModuleType:
    """Execute a .py file as a module; a process executes each file once.

    Raises:
      ConfigError: there is no such file, or it cannot be executed; the message names the line.
    """
    file = pathlib.Path(path).resolve()
    if not file.is_file():
        raise ConfigError(f"no such file: {file}")
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    import cloudpickle

    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not Python: a config or a task is a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution, like the import system: dataclasses and pickle look the module up
    cloudpickle.register_pickle_by_value(module)  # grain's workers cannot import the module by this name
    parent = str(file.parent.parent)
    sys.path.insert(0, parent)  # a config may build on its neighbors: from configs import igpt_cifar
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules[name]
        raise ConfigError(f"{_error_place(error, file)}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(parent)
    return module


def _error_place(error: BaseException, file: pathlib.Path) -> str:
    """Return the file and, if the error has one, the line at fault."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f"{file}, line {lines[-1]}" if lines else str(file)
