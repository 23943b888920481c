"""Mixtures: training data of several sources in exact shares, `config.data.mix` of `config.data.sources`.

The rows of all batches are one endless stream. It repeats a window of as many rows as the whole weights add up to, so
every stretch of that length, wherever it begins, has each source exactly as often as its weight says. In a shorter
stretch the rows of a source are spread evenly: see `window`. Each source has its own permutation for each pass over it,
so no example of a source comes again before all its others have come, and the batch of step t is a function of (seed,
t), whatever the devices and the processes.

A task needs nothing for this: its functions are called once for each source, with that source's config.
"""

import dataclasses
import functools
import heapq
import json
import types
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from jtasks import ranges, variants
from jtasks.config import Config
from jtasks.console import warn
from jtasks.data import assets, pipeline
from jtasks.data.batch_plan import BatchPlan
from jtasks.data.shuffle import draws, example_seeds, order
from jtasks.errors import ConfigError, DataError

SOURCE = "source_id"  # entry of a training batch, int32 [b]: the number of the source, in the order of their names


class Column:
    """One array [n, ...] of the arrays of several sources; indexing copies the requested rows alone."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)])
        self.dtype = np.result_type(*(array.dtype for array in arrays))
        self.shape = (int(self.starts[-1]), *arrays[0].shape[1:])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        if not np.ndim(index):
            source = self.of(index)
            return self.arrays[source][index - self.starts[source]]
        rows, sources = np.empty((len(index), *self.shape[1:]), self.dtype), self.of(index)
        for source in np.unique(sources):
            here = sources == source
            rows[here] = self.arrays[source][index[here] - self.starts[source]]
        return rows

    def of(self, index: Any) -> Any:
        """Return the number of the source of a row, or of each of some rows."""
        return np.searchsorted(self.starts, index, side="right") - 1


class Arrays(dict[str, Column]):
    """The arrays of several sources; `parts` has those of each."""

    def __init__(self, parts: dict[str, Any]):
        self.parts = parts
        super().__init__({name: Column([part[name] for part in parts.values()]) for name in _entries(parts)})


class Rows(Sequence[Mapping[str, Any]]):
    """The examples of several sources, one after the other; `parts` has those of each."""

    def __init__(self, parts: dict[str, Any]):
        self.parts = parts
        self.starts = np.cumsum([0, *map(pipeline.size, parts.values())])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        source = int(np.searchsorted(self.starts, index, side="right")) - 1
        return pipeline.example([*self.parts.values()][source], int(index - self.starts[source]))


@dataclasses.dataclass(frozen=True, eq=False)
class MixturePlan(BatchPlan):
    """A `BatchPlan` of training over several sources; `n` is the number of examples of all of them.

    Attributes:
      sizes: number of examples of each source, by name.
      weights: rows of each source in a window, by name.
    """

    sizes: Mapping[str, int]
    weights: Mapping[str, int]

    @functools.cached_property
    def window(self) -> np.ndarray:
        """The number of the source of each row in a window."""
        return window([self.weights[name] for name in self.sizes])

    @functools.cached_property
    def turns(self) -> np.ndarray:
        """How many rows of the same source come before each row in its window."""
        return np.array([np.count_nonzero(self.window[:i] == source) for i, source in enumerate(self.window)])

    def _at(self, positions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        windows, places = np.divmod(positions, len(self.window))
        sources, indices = self.window[places], np.empty_like(positions)
        seeds, start = np.empty(positions.shape, np.uint32), 0
        for number, (name, size) in enumerate(self.sizes.items()):
            here = sources == number
            seed = source_seed(self.seed, name)
            epochs, own = order(seed, size, windows[here] * self.weights[name] + self.turns[places[here]])
            indices[here], seeds[here] = start + own, example_seeds(seed, epochs, own)
            start += size
        entries = {"mask": np.ones(len(positions), np.float32), "seed": seeds, SOURCE: sources.astype(np.int32)}
        return indices, entries

    def describe(self) -> str:
        """Describe the size of the batches and the shares of the sources."""
        shares = ", ".join(f"{name} {self.weights[name]}/{len(self.window)}" for name in self.sizes)
        return f"{super().describe()} ({shares})"


def window(weights: Sequence[int]) -> np.ndarray:
    """Return a cycle of sources in which source s comes `weights[s]` times, spread as evenly as possible.

    After any t rows of the repeated cycle, the count of source s differs from t * weights[s] / sum(weights) by less
    than 1. Row k of a source has to come in the slots from floor(k / share) up to ceil((k + 1) / share); taking the
    earliest deadline among the rows that may come meets all of these (Baruah et al. 1996, "Proportionate progress: a
    notion of fairness in resource allocation").

    >>> window([2, 1]).tolist(), window([1, 3, 2]).tolist()
    ([0, 1, 0], [1, 2, 1, 0, 2, 1])
    """
    total = sum(weights)
    ready: list[tuple[int, int, int]] = []  # deadline, slot from which it may come, source
    waiting = [(0, source, 0) for source in range(len(weights))]
    heapq.heapify(waiting)
    cycle = []
    for slot in range(total):
        while waiting and waiting[0][0] <= slot:
            begin, source, turn = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(turn + 1) * total // weights[source]), begin, source))
        *_, source = heapq.heappop(ready)
        cycle.append(source)
        turn = cycle.count(source)
        if turn < weights[source]:
            heapq.heappush(waiting, (turn * total // weights[source], source, turn))
    return np.array(cycle)


def plan(parts: Mapping[str, Any], config: Config, shares: tuple[int, ...]) -> MixturePlan:
    """Plan the batches of training over the examples of each source."""
    sizes = {name: pipeline.size(examples) for name, examples in parts.items()}
    weights = variants.weights(config.data.mix)
    return MixturePlan(
        sum(sizes.values()), config.seed, config.batch_size, True, sizes=sizes, weights=weights, shares=shares
    )


def parts(examples: Any) -> dict[str, Any]:
    """Return the examples of each source of a mixture, by name; {} for any other examples."""
    return examples.parts if isinstance(examples, Arrays | Rows) else {}


def join(parts: dict[str, Any], *, arrays: bool = True) -> Any:
    """Return the examples of all sources together, as arrays if all of them are and `arrays` allows it."""
    arrays = arrays and all(isinstance(examples, Mapping) for examples in parts.values())
    return Arrays(parts) if arrays else Rows(parts)


def head(examples: Any, count: int) -> Any:
    """Return about the first `count` examples, equally many of each source.

    >>> head(join({"a": {"x": np.arange(9)}, "b": {"x": np.arange(9) + 10}}), 4)["x"][:].tolist()
    [0, 1, 10, 11]
    """
    if own := parts(examples):
        return join({name: head(part, max(count // len(own), 1)) for name, part in own.items()})
    if isinstance(examples, Mapping):
        return {name: array[:count] for name, array in examples.items()}
    return [pipeline.read(examples, i) for i in range(min(count, pipeline.size(examples)))]


def source_seed(seed: int, name: str) -> int:
    """Return the seed of one source's permutations, which the other sources do not change."""
    return next(draws(seed, zlib.crc32(name.encode()))) >> 1


def over_sources(module: ModuleType) -> ModuleType:
    """Return a task whose data functions call those of `module` for each source of config.data.mix.

    If the config has no mixture, such as that of one of config.evals, the functions of `module` are called directly.
    """

    def dataset(split: str, config: Config) -> Any:
        splits = {name: _examples(module, split, own, name) for name, own in variants.sources(config).items()}
        if split == "train" and (missing := [name for name, examples in splits.items() if examples is None]):
            raise DataError(f"config.data.sources.{missing[0]} has no train split")
        there = {name: examples for name, examples in splits.items() if examples is not None}
        return join(there, arrays=not hasattr(module, "collate_fn")) if there else None

    def prepare(config: Config) -> None:
        for own in variants.sources(config).values():
            module.prepare(own)

    def model_args(config: Config) -> dict[str, Any]:
        return _merge_args({name: module.model_args(own) for name, own in variants.sources(config).items()})

    def own_assets(config: Config) -> Any:
        assets = {name: module.assets(own) for name, own in variants.sources(config).items()}
        (first, files), *others = assets.items()
        for name, other in others:
            if other != files:
                raise ConfigError(f"the sources {first} and {name} of config.data.sources have different assets()")
        return files

    mixed = types.ModuleType(module.__name__, module.__doc__)
    functions: dict[str, Callable[..., Any]] = {
        "dataset": dataset,
        "prepare": prepare,
        "model_args": model_args,
        "assets": own_assets,
    }
    own = {
        name: _if_mixed(function, getattr(module, name))
        for name, function in functions.items()
        if hasattr(module, name)
    }
    vars(mixed).update(vars(module) | own)
    return mixed


def _if_mixed(mixed: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `mixed` if its last argument, a config, has a mixture, else `plain`."""

    @functools.wraps(plain)
    def call(*arguments: Any) -> Any:
        return (mixed if arguments[-1].data.mix else plain)(*arguments)

    return call


def with_labels(config: Config, module: ModuleType, fields: Mapping[str, ranges.Field]) -> Config:
    """Return the config with the class names of all sources in config.data.labels, if the task has such a field.

    Names come in the order of their first appearance. `module` is the task itself, not its `over_sources`.
    """
    if "data.labels" not in fields or config.data.labels or not hasattr(module, "assets"):
        return config
    files = [module.assets(own) for own in variants.sources(config).values()]
    names = [name for each in files for name in json.loads(each.get(assets.LABELS, "[]"))]
    data = config.data.to_dict() | {"labels": tuple(dict.fromkeys(names))}
    return Config(config.to_dict() | {"data": data})


def _examples(module: ModuleType, split: str, config: Config, name: str) -> Any:
    try:
        examples = module.dataset(split, config)
        if examples is not None and pipeline.size(examples) == 0:
            raise DataError(f"the {split} split is empty; a split that does not exist must be None")
    except (ConfigError, DataError) as error:
        error.add_note(f"while config.data.sources.{name} was read")
        raise
    if config.data.skip_bad and isinstance(examples, Sequence):
        return pipeline.Tolerant(examples, config.data.skip_bad, warn)
    return examples


def _entries(parts: Mapping[str, Any]) -> list[str]:
    """Return the names of the arrays; raise DataError if the sources have other ones, or of other shapes."""
    kinds = {
        source: {name: f"{'text' if a.dtype.kind in 'OUS' else a.dtype}{list(a.shape[1:])}" for name, a in part.items()}
        for source, part in parts.items()
    }
    (first, known), *others = kinds.items()
    for source, own in others:
        names = [name for name in known | own if known.get(name) != own.get(name)]
        if names:
            raise DataError(
                f"the sources {first} and {source} cannot be mixed: {names[0]!r} is {known.get(names[0], 'absent')} in"
                f" one and {own.get(names[0], 'absent')} in the other; their examples need the same entries, types and"
                " shapes"
            )
    return list(known)


def _merge_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of model_args for all sources: the largest count, and otherwise what all agree on."""
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, values in args.items():
        if not isinstance(values, Mapping):
            return values
        for name, value in values.items():
            if name in merged and name in ranges.COUNTS:
                merged[name] = max(merged[name], value)
            elif name in merged and merged[name] != value:
                raise ConfigError(
                    f"the sources {origin[name]} and {source} ask for config.model.{name}="
                    f"{ranges.format_value(merged[name])} and {ranges.format_value(value)}: give it in the config"
                )
            else:
                merged[name], origin[name] = value, source
    return merged
