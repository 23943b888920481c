"""The contract: a task is a module of pure functions.

Required::

    dataset(split, config)                 arrays [n, ...] by name, or a sequence of examples; None: no such split
    init(rng, batch, config)               parameters, a dict of arrays
    loss_fn(params, batch, rng, config)    (loss, metrics); rng None: evaluation, without dropout and augmentation

In place of loss_fn, for a loss that compares the examples of a batch with each other::

    embed_fn(params, batch, rng, config)   {name: float [b, d...]}: features of each example, independent of the others
    batch_loss_fn(params, embeddings, batch, config)  (loss, metrics) of the whole batch, from its embeddings

Optional::

    eval_fn(params, batch, config)         metrics; by default those of loss_fn with rng None
    texts(config)                          the training texts, an iterator of str: the library trains a tokenizer on
                                           them if config.data.tokenizer asks for it, stores it and fills
                                           config.model.vocab; `data.tokenizers.of(config, texts)` returns it
    prepare(config)                        downloads, palettes: runs once, on one process
    defaults()                             {"group.field": default or ranges.Field}: the task's own fields of a config
    model_args(config)                     values for the fields of config.model that are None
    made_example(config)                   (values of model_args, {entry: array} of one example of a batch), from the
                                           config alone: lets --mode=plan do without data
    assets(config)                         {file name: text} that give the parameters their meaning: class names
    collate_fn(examples, config)           a batch from a list of examples, if stacking is not enough
    needs_partner(config)                  whether training batches have a second example for each under the names
                                           `partner_NAME`, drawn by its seed from the whole split: for Mixup
    lengths(examples, config)              tokens of each example, int [n], for config.batch_tokens, or int [n, k] of
                                           k kinds, such as source and target; by default the non-zero "segment_ids"
                                           [n, t], if SEQUENCE_KEYS has them
    examples(inputs, config)               examples without labels, in a form of `dataset`, from a list of what people
                                           hold: texts, pairs, dicts, paths, pictures, arrays; if an input may become
                                           several examples, their entry `input` [n] is its index in the list
    predict_fn(params, batch, rng, config) outputs, one row per example
    answers(examples, outputs, config)     [{name: text, number or list}, ...] for people, one dict per example, on the
                                           host, under other names than the outputs; a list, or `data.lazy.each`
    embed_fn(params, batch, rng, config)   {name: float32 [b, d]}: features of each example, independent of the others
                                           and of padding; rng None: without dropout
    score_fn(examples, outputs, config)    {name: number} over a whole split, on the host
    pair_fn(params, batch, rng, config)    outputs of examples that `rescore_fn` makes, one row per example
    rescore_fn(examples, outputs, predict, config)  more scores of a whole split, {name: number}, on the host: they need
                                           the parameters again. `predict` gives the outputs of pair_fn, in order, for
                                           examples made from the outputs, such as the likeliest pairs of a retrieval
    show_fn(examples, outputs, config)     {name: uint8 image or text} for people, on the host
    export_fn(examples, outputs, config)   {file name: text}, predictions in the field's own formats, on the host

`metrics` maps names to `jtasks.metrics.Mean`. The means that are a `Loss` are the terms of the loss (if none is, the
mean called `loss` is the only term), and `loss == metrics.total(metrics)`. Training stores the assets in the workdir,
and a resumed run must have equal assets. `score_fn` and `export_fn` run on the first process and get sequences over a
whole split, whose items are read on demand. `rescore_fn` runs on all processes, because all of them take part in
`predict`, so it may depend on its arguments alone; it needs score_fn and pair_fn beside it.

`examples` raises DataError for a bad input, with what was given and what was expected. The same row gives the same
arrays there as in `dataset`. The examples of one input are neighbors, and `answers` gives all of them the same answer.

The step embeds each microbatch, takes the loss of all embeddings once, and then differentiates each microbatch's
embed_fn, with the same rng (GradCache, Gao et al. 2021, arXiv:2101.06983). Rows with `mask` 0 hold anything, and their
order means nothing. By default loss_fn is batch_loss_fn on the embeddings of the batch.

Constants: `MIXES_EXAMPLES = True` for any other loss that compares examples, so that a batch cannot be split into
microbatches. `SEQUENCE_KEYS` names the entries of a batch whose last axis has the length of the longest example, which
batches by length cut shorter; if examples have several lengths, it has a tuple of names for each of these.
`HF_ARCHITECTURE` is the transformers class of the model, or a tuple of classes, for `--mode=export`.
"""

import importlib
import importlib.util
import inspect
import pathlib
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any, Protocol

import jax

from jtasks import python_files
from jtasks.errors import ConfigError
from jtasks.metrics import TERM, Mean
from jtasks.ranges import Field, did_you_mean, format_value
from jtasks.schema import FIELDS, GROUPS, Config
from jtasks.writing import check_name

Batch = dict[str, jax.Array]

REQUIRED = {
    "dataset": ("split", "config"),
    "init": ("rng", "batch", "config"),
    "loss_fn": ("params", "batch", "rng", "config"),
}
OPTIONAL = {
    "eval_fn": ("params", "batch", "config"),
    "texts": ("config",),
    "prepare": ("config",),
    "defaults": (),
    "model_args": ("config",),
    "made_example": ("config",),
    "collate_fn": ("examples", "config"),
    "examples": ("inputs", "config"),
    "predict_fn": ("params", "batch", "rng", "config"),
    "answers": ("examples", "outputs", "config"),
    "embed_fn": ("params", "batch", "rng", "config"),
    "batch_loss_fn": ("params", "embeddings", "batch", "config"),
    "score_fn": ("examples", "outputs", "config"),
    "pair_fn": ("params", "batch", "rng", "config"),
    "rescore_fn": ("examples", "outputs", "predict", "config"),
    "show_fn": ("examples", "outputs", "config"),
    "assets": ("config",),
    "export_fn": ("examples", "outputs", "config"),
    "lengths": ("examples", "config"),
    "needs_partner": ("config",),
}

# The fields of a task that has `texts`.
TOKENIZER = {
    "data.tokenizer": Field(str, None, "bpe:8000"),  # bytes, characters, a file, a folder, or what to train
    "data.lowercase": Field(bool, None, True),  # of a WordPiece tokenizer that is trained, or made from a vocabulary
}

FORMER = {
    "LOSSES": f"a term of the loss is {TERM}, among the metrics",
    "data_args": "the function that fills config.model is called model_args",
    "report_fn": "the function that returns predictions in the field's own formats is called export_fn",
    "PADDED": "SEQUENCE_KEYS names the entries of a batch that may be cut shorter",
    "HUGGINGFACE": "HF_ARCHITECTURE names the transformers class of the model",
}


class Task(Protocol):
    """The required functions of a task, for type checkers; a module with these functions is a task."""

    def dataset(self, split: str, config: Config) -> Any:
        """Return the examples of a split, or None."""

    def init(self, rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
        """Return the parameters."""

    def loss_fn(
        self, params: Any, batch: Batch, rng: jax.Array | None, config: Config
    ) -> tuple[jax.Array, dict[str, Mean]]:
        """Return the loss and the metrics."""


class MixingTask(Protocol):
    """The required functions of a task whose loss compares the examples of a batch with each other."""

    def dataset(self, split: str, config: Config) -> Any:
        """Return the examples of a split, or None."""

    def init(self, rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
        """Return the parameters."""

    def embed_fn(self, params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
        """Return the features of each example."""

    def batch_loss_fn(
        self, params: Any, embeddings: dict[str, jax.Array], batch: Batch, config: Config
    ) -> tuple[jax.Array, dict[str, Mean]]:
        """Return the loss and the metrics of the whole batch."""


def fields(task: Any) -> dict[str, Field]:
    """Return the config fields that a task declares in `defaults`, by dotted name.

    Raises:
      ConfigError: `defaults` does not return {name: default}, or a name that no field can have.
    """
    declared = task.defaults() if hasattr(task, "defaults") else {}
    if not isinstance(declared, Mapping):
        raise ConfigError(f'defaults must return {{"group.field": default}}, not {format_value(declared)}')
    for name in declared:
        _check_field_name(name)
    declared = (TOKENIZER if hasattr(task, "texts") else {}) | dict(declared)
    return {name: value if isinstance(value, Field) else _field(value) for name, value in declared.items()}


def _check_field_name(name: Any) -> None:
    parts = name.split(".") if isinstance(name, str) else []
    if not 0 < len(parts) <= 2 or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"defaults declares the field {name!r}: a name is FIELD or GROUP.FIELD")
    if name in FIELDS or name in GROUPS or parts[0] in FIELDS or parts[0] in {*GROUPS} - {"data", "model"}:
        raise ConfigError(
            f"defaults declares the field {name!r}, but config.{name} belongs to every config: set its value in"
            " get_config, or give the task's field another name"
        )


def _field(value: Any) -> Field:
    return Field(object if value is None else type(value), None, value)


def load(name: str) -> ModuleType:
    """Import a task by dotted module name or by the path of a .py file, and check its functions.

    Raises:
      ConfigError: there is no such module or file, its import fails, a required function is missing, or a
        function takes other arguments than in the contract.
    """
    module = python_files.load(name) if name.endswith(".py") else _import(name)
    validate(module, name)
    return module


def name_of(module: ModuleType) -> str:
    """Return the name by which `load` finds a task that is imported already: its dotted name, or its file.

    Raises:
      ConfigError: the module has neither, such as a module made in a notebook.
    """
    file = getattr(module, "__file__", None)
    try:
        spec = importlib.util.find_spec(module.__name__)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin == file and module.__name__ != "__main__":
        return module.__name__
    if not file:
        raise ConfigError(f"config.task is a module without a file, {module.__name__}: write the task to a .py file")
    return file


def missing(members: Collection[str]) -> list[str]:
    """Return the required functions that are not among the names; loss_fn may be embed_fn with batch_loss_fn."""
    absent = [function for function in REQUIRED if function not in members]
    return absent if "batch_loss_fn" not in members else [function for function in absent if function != "loss_fn"]


def loss_fn(task: ModuleType) -> Callable[..., tuple[jax.Array, dict[str, Mean]]]:
    """Return a task's loss_fn, by default batch_loss_fn on the features that embed_fn gives the batch."""

    def loss(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
        return task.batch_loss_fn(params, task.embed_fn(params, batch, rng, config), batch, config)

    return getattr(task, "loss_fn", None) or loss


def eval_fn(task: ModuleType) -> Callable[..., dict[str, Mean]]:
    """Return a task's eval_fn, by default a function that returns the metrics of loss_fn without randomness."""

    def evaluate(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
        return loss_fn(task)(params, batch, None, config)[1]

    return getattr(task, "eval_fn", None) or evaluate


def sequence_keys(task: Any) -> tuple[tuple[str, ...], ...]:
    """Return the names in a task's SEQUENCE_KEYS for each length that its examples have; () without the constant."""
    keys = tuple(getattr(task, "SEQUENCE_KEYS", ()))
    return (keys,) if keys and isinstance(keys[0], str) else tuple(map(tuple, keys))


def check_texts(texts: Any, function: str) -> dict[str, str]:
    """Return the texts that a function returned; raise ConfigError if they are not {file name: text}."""
    if not isinstance(texts, Mapping) or not all(isinstance(text, str) for text in texts.values()):
        raise ConfigError(f"{function} must return {{file name: text}}, not {format_value(texts)}")
    for name in texts:
        check_name(name, function)
    return dict(texts)


def exists(name: str) -> bool:
    """Return whether a module or a .py file of this name exists."""
    try:
        return pathlib.Path(name).is_file() if name.endswith(".py") else importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _import(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"config.task={name!r} is neither a dotted module name nor the path of a .py file")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise ConfigError(f"task {name!r} cannot be imported: {error}") from error
        shipped = sorted(p.stem for p in (pathlib.Path(__file__).parent / "tasks").glob("[a-z]*.py"))
        near = did_you_mean(name.rpartition(".")[2], shipped, "jtasks.tasks.")
        hint = near or f"; there are jtasks.tasks.{{{','.join(shipped)}}};"
        raise ConfigError(f"no task module {name!r}{hint} or give the path of a .py file") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"task {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def validate(module: ModuleType, name: str) -> None:
    """Raise ConfigError unless a module has the contract's functions with the contract's arguments."""
    absent = missing([f for f in (*REQUIRED, *OPTIONAL) if getattr(module, f, None) is not None])
    if absent:
        listed = "; ".join(f"{function}({', '.join(REQUIRED[function])})" for function in absent)
        raise ConfigError(f"task {name} lacks {listed} (see jtasks/task.py for the contract)")
    if hasattr(module, "batch_loss_fn") and not hasattr(module, "embed_fn"):
        raise ConfigError(
            f"task {name}: batch_loss_fn needs embed_fn(params, batch, rng, config), whose result it gets"
        )
    if hasattr(module, "rescore_fn") and (lacks := [f for f in ("score_fn", "pair_fn") if not hasattr(module, f)]):
        raise ConfigError(f"task {name}: rescore_fn needs {lacks[0]}({', '.join(OPTIONAL[lacks[0]])}) beside it")
    if hasattr(module, "batch_loss_fn") and getattr(module, "MIXES_EXAMPLES", False):
        raise ConfigError(f"task {name}: a loss by batch_loss_fn can be split into microbatches: remove MIXES_EXAMPLES")
    for function, arguments in (REQUIRED | OPTIONAL).items():
        _validate_function(getattr(module, function, None), function, arguments, name)
    for former, now in FORMER.items():
        if hasattr(module, former):
            raise ConfigError(f"task {name}: {former} has no meaning any more: {now}")
    architectures = getattr(module, "HF_ARCHITECTURE", "")
    if not all(
        isinstance(each, str) for each in (architectures if isinstance(architectures, tuple) else [architectures])
    ):
        raise ConfigError(f"task {name}: HF_ARCHITECTURE must be the name of a class of transformers, or several")
    if hasattr(module, "lengths") and not getattr(module, "SEQUENCE_KEYS", ()):
        raise ConfigError(f"task {name}: lengths needs SEQUENCE_KEYS, the names of the entries to cut")


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
