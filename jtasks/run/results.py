"""What a task's functions return and leave behind, held against the contract; a breach is a `Fault` with a hint."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jtasks.faults import require, some
from jtasks.metrics import F1, TERM, Loss, Mean
from jtasks.run import records
from jtasks.tree import by_name, leaf_name


def require_arrays(params: Any) -> None:
    """Raise a Fault unless the parameters, any pytree, are only arrays with distinct paths."""
    hint = (
        'return a pytree of arrays, such as model.init(rng, x)["params"]; nnx.to_pure_dict(nnx.state(model, nnx.Param))'
        " makes one of a Flax NNX module, equinox.partition(model, equinox.is_array)[0] of an Equinox module"
    )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    wrong = [
        f"{leaf_name(p) or 'it'} is {kind(x)}" for p, x in leaves if not hasattr(x, "shape") or not hasattr(x, "dtype")
    ]
    require(not wrong, f"init's result is {kind(params)}, in which {some(wrong)}", hint)
    require(bool(leaves), f"init's result is {kind(params)} without arrays", hint)
    names = [leaf_name(path) for path, _ in leaves]
    twice = sorted({path for path in names if names.count(path) > 1})
    require(not twice, f"init's result has {some(twice)} twice", "a / in a name looks like a level below: rename it")


def check_loss_result(name: str, result: Any) -> None:
    """Raise a Fault if the result of a loss function is no differentiable scalar with metrics."""
    hint = "return (loss, metrics): a scalar and a dict of jtasks.metrics.Mean"
    require(isinstance(result, tuple) and len(result) == 2, f"{name} returned {kind(result)}", hint)
    loss, metrics = result
    traced = hasattr(loss, "shape") and not isinstance(loss, np.ndarray | np.generic)
    detail = f"{name}'s loss is {kind(loss)}, so it has no gradient"
    require(traced, detail, "compute it with jax.numpy from params; no float(), .item() or numpy on the way")
    shape = f"{name}'s loss is {loss.dtype}{list(loss.shape)}, not a float32 scalar"
    require(loss.shape == () and loss.dtype == np.float32, shape, "return jtasks.metrics.total(metrics)")
    check_metrics(metrics, name)


def check_embeddings(embeddings: Any, rows: int) -> None:
    """Raise a Fault unless embed_fn returned float arrays of `rows` rows by name, as batch_loss_fn needs them."""
    hint = "return {name: float array [b, d]}, one row an example; what is no float is in the batch that the loss gets"
    named = isinstance(embeddings, Mapping) and bool(embeddings) and all(isinstance(name, str) for name in embeddings)
    require(named, f"embed_fn returned {kind(embeddings)}", hint)
    for name, value in embeddings.items():
        form = hasattr(value, "shape") and value.shape[:1] == (rows,) and jax.numpy.issubdtype(value.dtype, np.floating)
        require(form, f"embed_fn's {name!r} is {kind(value)}, for {rows} examples", hint)


def check_metric_name(name: str, function: str) -> None:
    """Raise a Fault if a metric or a score has a name that a record cannot hold, or that the library uses itself."""
    require(
        bool(name.strip()) and name.isprintable(),
        f"{function} calls a metric {name!r}",
        "give the metric a name of printable characters",
    )
    require(
        not records.OWN.fullmatch(name),
        f"{function} calls a metric {name!r}, which the library measures itself",
        "give the metric another name",
    )


def check_metrics(metrics: Any, function: str) -> None:
    """Raise a Fault if the metrics that a function returned break the contract."""
    require(
        isinstance(metrics, Mapping),
        f"{function}'s metrics are {kind(metrics)}",
        'return a dict of means: {"loss": Loss.of(values, batch["mask"])}',
    )
    for metric, mean in metrics.items():
        hint = f'write "{metric}": Mean.of(values [b], batch["mask"]), from jtasks.metrics: sums and counts, no means'
        require(isinstance(metric, str), f"{function} calls a metric {metric!r}, which is no text", hint)
        check_metric_name(metric, function)
        require(isinstance(mean, Mean), f"{function}'s metric {metric!r} is {kind(mean)}, not a Mean", hint)
        for part, number in (("total", mean.total), ("count", mean.count)):
            text = f"{function}'s metric {metric!r} has a {part} of shape {list(np.shape(number))}, not a scalar"
            require(np.shape(number) == () or isinstance(mean, F1), text, hint)
    require(
        "loss" in metrics or any(isinstance(mean, Loss) for mean in metrics.values()),
        f"{function}'s metrics have no term of the loss; they are {', '.join(metrics) or 'none'}",
        f"make each term of the loss {TERM}",
    )
    losses = [metric for metric, mean in metrics.items() if isinstance(mean, Loss)]
    require(
        not losses or "loss" not in metrics or "loss" in losses,
        f"{function}'s metric 'loss' is no Loss, but {some(losses)} {'are' if len(losses) > 1 else 'is'}",
        "leave it out: the metric loss is the sum of the terms",
    )


def require_unchanged(function: str, before: tuple[Any, Any], after: tuple[Any, Any]) -> None:
    """Raise a Fault if a function changed its arguments params and batch."""
    for argument, old, new in zip(("params", "batch"), before, after, strict=True):
        a, b = (by_name(t) for t in (old, new))
        changed = sorted(path for path in a.keys() | b.keys() if a.get(path) is not b.get(path))
        detail = f"{function} changes its argument {argument}: {some(changed)}"
        require(not changed, detail, f'work on a copy: {argument} = {argument} | {{"{(changed or [""])[0]}": ...}}')


def require_no_leak(task: ModuleType, function: str) -> None:
    """Raise a Fault if a traced function left arrays in its module."""
    kinds = (jax.core.Tracer, list, dict, tuple, Mean)
    held = {k: jax.tree.leaves(v) for k, v in vars(task).items() if isinstance(v, kinds) and not k.startswith("__")}
    leaked = [k for k, leaves in held.items() if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)]
    detail = f"{function} stores traced arrays in the module's variable {some(leaked)}"
    require(not leaked, detail, "return the arrays instead, for example among the metrics: a traced array has no value")


def kind(value: Any) -> str:
    """Describe an unexpected value by its type and shape."""
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" if shape is None else f"an array {value.dtype}{list(shape)}"
