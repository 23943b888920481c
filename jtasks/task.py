"""The contract: a task is a module of pure functions.

Required: `dataset(split, config)`, `init(rng, batch, config)`, `loss_fn(params, batch, rng, config)`,
`eval_fn(params, batch, config)`. Optional: `prepare(config)`, `data_args(config)`,
`collate_fn(examples, config)`, `predict_fn(params, batch, rng, config)`,
`score_fn(examples, outputs, config)`, `show_fn(examples, outputs, config)`, `report_fn(examples, outputs, config)`,
`assets(config)`, `lengths(examples, config)`, and the constants `LOSSES` (names in the metrics whose means add up to
the loss), `MIXES_EXAMPLES`, `PADDED` and `HUGGINGFACE` (the transformers class that its model is, for `--mode=export`).

`assets` gives what a run cannot be understood without, {file name: text}, such as its tokenizer: training stores it
in the workdir, and a resumed run must have the same. `score_fn` and `report_fn` run on the first process and get
sequences over a whole split, each item of which is read when it is asked for. `report_fn` gives the predictions in the
formats of the field, {file name: text}, which `--mode=predict` writes. `lengths`, the number of tokens of each
example of a dataset, int [n], and `PADDED`, the names of a batch's entries whose last axis is that length, let
`config.batch_tokens` make batches of like lengths and cut those entries shorter.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from jtasks.errors import ConfigError
from jtasks.ranges import shown
from jtasks.writing import check_name

REQUIRED = {
    "dataset": ("split", "config"),
    "init": ("rng", "batch", "config"),
    "loss_fn": ("params", "batch", "rng", "config"),
    "eval_fn": ("params", "batch", "config"),
}
OPTIONAL = {
    "prepare": ("config",),
    "data_args": ("config",),
    "collate_fn": ("examples", "config"),
    "predict_fn": ("params", "batch", "rng", "config"),
    "score_fn": ("examples", "outputs", "config"),
    "show_fn": ("examples", "outputs", "config"),
    "assets": ("config",),
    "report_fn": ("examples", "outputs", "config"),
    "lengths": ("examples", "config"),
}


def load(name: str) -> ModuleType:
    """Import a task by dotted module name or by the path of a .py file, and check its functions.

    Raises:
      ConfigError: no such module or file, an error while it was imported, a required function is
        missing, or a function takes other arguments than the contract says.
    """
    module = load_file(name) if name.endswith(".py") else _import(name)
    validate(module, name)
    return module


def losses(task: ModuleType) -> tuple[str, ...]:
    """Names of the metrics whose means add up to the loss."""
    return tuple(getattr(task, "LOSSES", ("loss",)))


def assets(task: ModuleType, config: Any) -> dict[str, str]:
    """Return the task's assets, {} where it has none; ConfigError where they are no {file name: text}."""
    texts = task.assets(config) if hasattr(task, "assets") else {}
    if not isinstance(texts, Mapping) or not all(isinstance(text, str) for text in texts.values()):
        raise ConfigError(f"assets of {config.task} must return {{file name: text}}, not {shown(texts)}")
    for name in texts:
        check_name(name, f"assets of {config.task}")
    return dict(texts)


def load_file(path: str) -> ModuleType:
    """Execute a .py file as a module; the same file is executed once a process."""
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
    sys.modules[name] = module  # before execution, as the import system does: dataclasses and pickle look it up
    cloudpickle.register_pickle_by_value(module)  # grain's workers cannot import it by this name
    beside = str(file.parent.parent)
    sys.path.insert(0, beside)  # a config may build on its neighbours: from configs import igpt_cifar
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules[name]
        raise ConfigError(f"{_where(error, file)}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(beside)
    return module


def _import(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"config.task={name!r} is neither a dotted module name nor the path of a .py file")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise ConfigError(f"task {name!r} cannot be imported: {error}") from error
        shipped = sorted(p.stem for p in (pathlib.Path(__file__).parent / "tasks").glob("[a-z]*.py"))
        near = difflib.get_close_matches(name.rpartition(".")[2], shipped, n=1)
        hint = f"did you mean jtasks.tasks.{near[0]}?" if near else f"tasks here: jtasks.tasks.{{{','.join(shipped)}}};"
        raise ConfigError(f"no task module {name!r}: {hint} or give the path of a .py file") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"task {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def _where(error: BaseException, file: pathlib.Path) -> str:
    """The file and line at fault, as far as the error tells."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f"{file}, line {lines[-1]}" if lines else str(file)


def validate(module: ModuleType, name: str) -> None:
    """Check that a module has the contract's functions with its arguments; ConfigError says what is amiss."""
    missing = [f"{f}({', '.join(arguments)})" for f, arguments in REQUIRED.items() if getattr(module, f, None) is None]
    if missing:
        raise ConfigError(f"task {name} lacks {'; '.join(missing)} (see jtasks/task.py for the contract)")
    for function, arguments in (REQUIRED | OPTIONAL).items():
        _validate_function(getattr(module, function, None), function, arguments, name)
    terms = getattr(module, "LOSSES", ("loss",))
    if not isinstance(terms, tuple | list) or not terms or not all(isinstance(term, str) for term in terms):
        raise ConfigError(f'task {name}: LOSSES must be a tuple of metric names such as ("loss",), not {terms!r}')
    if not isinstance(getattr(module, "HUGGINGFACE", ""), str):
        raise ConfigError(f"task {name}: HUGGINGFACE must be the name of a class of transformers")
    if hasattr(module, "lengths") and not getattr(module, "PADDED", ()):
        raise ConfigError(f"task {name}: lengths needs PADDED, the names of the entries to cut")


def _validate_function(function: object, name: str, arguments: tuple[str, ...], task: str) -> None:
    if function is None:
        return
    if not callable(function):
        raise ConfigError(f"task {task}: {name} must be a function, not {type(function).__name__}")
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments)
    except TypeError:
        raise ConfigError(
            f"task {task}: {name}{signature} must take ({', '.join(arguments)}); see jtasks/task.py"
        ) from None
