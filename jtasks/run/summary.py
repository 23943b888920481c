"""The summary of a run before its first step: task, data, parameters, devices, cost, files."""

import collections
import math
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jtasks import storage
from jtasks.console import format_si
from jtasks.data.batch_plan import BatchPlan
from jtasks.distributed.shares import count_microbatches, unequal
from jtasks.run.job import Job
from jtasks.tree import leaf_name

Facts = list[tuple[str, str]]
Rows = list[tuple[str, ...]]  # name, shape or number of arrays, count, trained or frozen and axes of the mesh


def show(facts: Facts, params: Any, trainable: Any) -> None:
    """Print the facts and the parameters to stderr: tables on a terminal, plain lines in a log file.

    Args:
      facts: from `describe`.
      params: a tree of arrays or of `jax.ShapeDtypeStruct`.
      trainable: a tree like `params`, from `optim.trainable`.
    """
    rows = parameters(params, trainable)
    if sys.stderr is not None and sys.stderr.isatty():
        _tables(facts, rows)
    elif sys.stderr is not None:
        print(plain(facts, rows), file=sys.stderr, flush=True)


def describe(
    job: Job,
    plan: BatchPlan,
    sizes: Mapping[str, int | None],
    workdir: pathlib.Path,
    state: Any,
    flops: float | None,
    steps: tuple[int, int],
    adapter: Any = None,
) -> Facts:
    """Return names and values of the facts about a run before its first step.

    Args:
      job: the run's job.
      plan: the order of the training examples.
      sizes: number of examples of each split; None for a split that the task lacks.
      workdir: the run's folder.
      state: the arrays that devices keep from step to step; has `params`.
      flops: operations of a step over all devices and microbatches; None if unknown.
      steps: the step that the run resumes from (0 for a fresh run) and the step that it ends at.
      adapter: what the run trains beside its base, see `run.adapter`; None if it has no adapter.
    """
    config, shares = job.config, unequal(job.config.shares)
    accumulate = count_microbatches(config)
    microbatches = f" in {accumulate} microbatches" if accumulate > 1 else ""
    microbatches = f" in {', '.join(map(str, shares))} microbatches on the devices" if shares else microbatches
    splits = [f"{split} {size:,}" for split, size in sizes.items() if size is not None]
    return [
        ("task", config.task),
        ("config", storage.shown(str(workdir / "config.json"))),
        ("data", ", ".join(splits) or "none"),
        ("batch", f"{plan.describe()}{microbatches}, {config.precision}"),
        ("steps", _length(plan.epoch_steps if sizes.get("train") else 0, *steps)),
        ("FLOPs a step", format_si(flops) if flops else "unknown"),
        ("devices", count_devices(jax.devices())),
        ("mesh", " x ".join(f"{axis} {size}" for axis, size in job.mesh.shape.items()) or "none"),
        *([("adapter", adapter.describe(config))] if adapter else []),
        ("on a device", _memory(state.params, state)),
        ("files", storage.shown(f"{workdir}{os.sep}")),
    ]


def plain(facts: Facts, rows: Rows) -> str:
    """Format facts and parameter rows as aligned lines of plain text.

    >>> print(plain([("task", "mnist"), ("batch", "8")], [("dense", "[2, 3]", "6", "trained")]))
    task   mnist
    batch  8
    parameters
      dense  [2, 3]  6  trained
    """
    first = max(len(name) for name, _ in facts)
    name, shape, count, _ = (max(len(cell) for cell in column) for column in zip(*rows, strict=True))
    lines = [f"{fact:{first}}  {value}" for fact, value in facts]
    table = [f"  {row[0]:{name}}  {row[1]:{shape}}  {row[2]:>{count}}  {row[3]}" for row in rows]
    return "\n".join([*lines, "parameters", *table])


def parameters(params: Any, trainable: Any, limit: int = 24) -> Rows:
    """Return at most `limit` rows of parameters, and one row of totals.

    Numbered siblings are merged (`layer_*`) and deep paths cut only as far as `limit` requires. The last cell of
    sharded arrays names the axes of the mesh.

    >>> params = {f"layer_{i}": {"kernel": jax.ShapeDtypeStruct((4, 8), "float32")} for i in range(3)}
    >>> parameters(params, jax.tree.map(lambda _: True, params), limit=2)
    [('layer_*/kernel', '3 x [4, 8]', '96', 'trained'), ('total', '3 arrays', '96', 'trained')]
    """
    arrays = jax.tree_util.tree_leaves_with_path(params)
    names = [leaf_name(path) for path, _ in arrays]
    flags = jax.tree.leaves(trainable)
    shares = (float(np.mean(flag)) for flag in flags)
    leaves = [(n, array.shape, share, _axes(array)) for n, (_, array), share in zip(names, arrays, shares, strict=True)]
    _, _, count, state = _row("total", leaves)
    rows = [_row(name, group) for name, group in _group(leaves, limit).items()]
    return [*rows, ("total", f"{len(leaves)} arrays", count, state)]


def _group(leaves: list[Any], limit: int) -> dict[str, list[Any]]:
    for depth in range(max((name.count("/") + 1 for name, *_ in leaves), default=1), 0, -1):
        for digits in ("", r"\d+"):
            groups = collections.defaultdict(list)
            for leaf in leaves:
                path = "/".join(leaf[0].split("/")[:depth])
                groups[re.sub(digits, "*", path) if digits else path].append(leaf)
            if len(groups) <= limit:
                return groups
    names = list(groups)
    rest = [leaf for name in names[limit - 1 :] for leaf in groups[name]]
    return {name: groups[name] for name in names[: limit - 1]} | {f"... {len(names) - limit + 1} more": rest}


def _row(name: str, leaves: list[Any]) -> tuple[str, str, str, str]:
    shapes = {shape for _, shape, *_ in leaves}
    many = f"{len(leaves)} x " if len(leaves) > 1 else ""
    shape = f"{many}{list(*shapes)}" if len(shapes) == 1 else f"{len(leaves)} arrays"
    total = sum(math.prod(shape) for _, shape, *_ in leaves)
    trained = sum(round(math.prod(shape) * share) for _, shape, share, _ in leaves)
    state = "trained" if trained == total else f"{trained:,} trained" if trained else "frozen"
    divided = sorted({axes or "replicated" for *_, axes in leaves}) if any(axes for *_, axes in leaves) else []
    return name, shape, f"{total:,}", ", ".join([state, " or ".join(divided)] if divided else [state])


def _axes(array: Any) -> str:
    """Return the axes of the mesh that an array is sharded over, such as `fsdp x tensor`."""
    entries = getattr(getattr(array, "sharding", None), "spec", ())
    names = [name for entry in entries for name in (entry if isinstance(entry, tuple) else (entry,)) if name]
    return " x ".join(sorted(names))


def _memory(params: Any, state: Any) -> str:
    """Describe the bytes that one device keeps from step to step, and the total over devices."""

    def held(tree: Any) -> tuple[int, int]:
        parts, wholes = 0, 0
        for array in jax.tree.leaves(tree):
            sharding = getattr(array, "sharding", None)
            shape = sharding.shard_shape(array.shape) if sharding else array.shape
            parts += math.prod(shape) * array.dtype.itemsize
            wholes += math.prod(array.shape) * array.dtype.itemsize
        return parts, wholes

    def size(count: int) -> str:
        return f"{format_si(count)}{'' if count >= 1000 else ' '}B"

    def describe_bytes(part: int, whole: int, what: str) -> str:
        return f"{what} {size(part)}" + (f" of {size(whole)}" if part < whole else "")

    base = getattr(state, "base", None)
    (params_part, params_whole), (base_part, base_whole) = held(params), held(base)
    part, whole = (all_ - frozen for all_, frozen in zip(held(state), held(base), strict=True))
    facts = [describe_bytes(params_part, params_whole, "parameters")]
    if whole > params_whole:
        facts.append(describe_bytes(part - params_part, whole - params_whole, "optimizer state"))
    if base_whole:
        facts.append(describe_bytes(base_part, base_whole, "frozen parameters"))
    return ", ".join(facts)


def _length(epoch: float, start: int, steps: int) -> str:
    resumed = f"{start:,} to " if start else ""
    epochs = f" ({steps / epoch:.4g} epochs of {epoch:.4g} steps)" if epoch else ""
    return f"{resumed}{steps:,}{epochs}"


def count_devices(devices: Sequence[jax.Device]) -> str:
    """Describe devices by number and kind."""
    kinds = collections.Counter(device.device_kind for device in devices)
    hosts = len({device.process_index for device in devices})
    return ", ".join(f"{size} x {kind}" for kind, size in kinds.items()) + (f" on {hosts} hosts" if hosts > 1 else "")


def _tables(facts: Facts, rows: Rows) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True)
    overview = Table.grid(padding=(0, 2))
    for name, value in facts:
        overview.add_row(Text(name, "bold"), Text(value))  # Text: a path may look like markup
    table = Table("parameters", "shape", "count", "")
    table.columns[2].justify = "right"
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(overview, table)
