"""Variants of config.data: the data of further evaluations, `config.evals`, and the sources of a mixture.

    config.evals = dict(movies=dict(data=dict(valid="movies.tsv"), every=500, best="accuracy", best_mode="max"))
    config.data.mix = dict(web=2, books=1)
    config.data.sources = dict(web=dict(files="web.txt"), books=dict(files="books.txt"))

A field of config.data that a variant does not name has its value in config.data.
"""

import fractions
import math
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from jtasks import ranges
from jtasks.errors import ConfigError
from jtasks.ranges import Field
from jtasks.schema import Config

SPLITS = ("train", "valid", "test")
EVAL = {  # the fields of one evaluation of config.evals
    "data": Field(object, None, {}),  # fields of config.data with other values
    "split": Field(str, SPLITS, "valid"),  # which the task's dataset is asked for
    "every": Field(int, "[0, inf)", 0),  # steps; 0: config.eval_every
    "best": Field(str, None, ""),  # such as "accuracy": keep the checkpoint with the best value of this metric too
    "best_mode": Field(str, ("min", "max"), "min"),
}
# Fields of config.data that give the parameters their meaning, and with them those that are for the whole run.
MEANING = ("tokenizer", "target_tokenizer", "lowercase", "labels")
OF_RUN = (*MEANING, "threads", "workers", "skip_bad", "allow_changes", "buckets", "mix", "sources")
LONGEST_WINDOW = 10_000  # of a mixture, in examples


def fill(evals: Any) -> None:
    """Give each evaluation of an unlocked config.evals all its fields, so that overrides can set them."""
    for given in evals.values():
        if isinstance(given, ml_collections.ConfigDict):
            for name in EVAL.keys() - given.keys():
                given[name] = EVAL[name].default


def complete(config: dict[str, Any], table: Mapping[str, Field]) -> None:
    """Check both kinds of variants in a plain config, and fill config.evals with defaults.

    Args:
      config: the config, changed in place.
      table: the fields of every config and of the task, by dotted name.

    Raises:
      ConfigError: a name, a field or a value is wrong.
    """
    known = {name.removeprefix("data."): field for name, field in table.items() if name.startswith("data.")}
    known = {name: known.get(name, Field(object)) for name in {**known, **config["data"]} if name not in OF_RUN}
    for name, given in config["evals"].items():
        here = f"config.evals.{name}"
        _check_name(name, here)
        fields = _fields(given, here, EVAL)
        fields = {field: ranges.check(f"{here}.{field}", fields[field], EVAL[field]) for field in EVAL}
        fields["data"] = _fields(fields["data"], f"{here}.data", known, fill=False)
        config["evals"][name] = fields
    data = config["data"]
    if data["mix"] or data["sources"]:
        weights(data["mix"])
        if config["batch_tokens"]:
            raise ConfigError(
                f"config.batch_tokens={config['batch_tokens']} and config.data.mix exclude each other: batches by"
                " length have no exact shares; give config.batch_size, or pack the texts"
            )
        names = {**data["mix"], **data["sources"]}
        if missing := [name for name in names if name not in data["sources"]]:
            raise ConfigError(
                f"config.data.mix has {missing[0]!r}, but config.data.sources has not: give its fields, such as"
                f" config.data.sources.{missing[0]} = dict(...)"
            )
        if missing := [name for name in names if name not in data["mix"]]:
            raise ConfigError(f"config.data.sources.{missing[0]} has no weight: give it in config.data.mix")
        for name in names:
            here = f"config.data.sources.{name}"
            _check_name(name, here)
            data["sources"][name] = _fields(data["sources"][name], here, known, fill=False)


def with_data(config: Config, fields: Mapping[str, Any]) -> Config:
    """Return the config of a variant: other values of some fields of config.data, and no mixture.

    >>> import ml_collections
    >>> config = ml_collections.FrozenConfigDict({"data": {"train": "a.txt", "length": 8, "mix": {"a": 1}}})
    >>> with_data(config, {"train": "b.txt"}).to_dict()
    {'data': {'length': 8, 'mix': {}, 'sources': {}, 'train': 'b.txt'}}
    """
    data = config.data.to_dict() | dict(fields) | {"mix": {}, "sources": {}}
    return type(config)(config.to_dict() | {"data": data})


def sources(config: Config) -> dict[str, Config]:
    """Return the config of each source of a mixture, {} if there is none; from any of these, the same ones again.

    >>> import ml_collections
    >>> data = {"train": "", "n": 8, "mix": {"a": 1, "b": 2}, "sources": {"a": {"train": "a.txt"}, "b": {"n": 9}}}
    >>> own = sources(ml_collections.FrozenConfigDict({"data": data}))
    >>> own["a"].data.train, own["b"].data.n, sources(own["a"]) == own
    ('a.txt', 9, True)
    """
    data = config.data.to_dict()
    given = data.get("sources", {})
    named = {name: data[name] for fields in given.values() for name in fields}
    whole = {source: named | given[source] for source in sorted(given)}
    tree = config.to_dict()
    return {name: type(config)(tree | {"data": data | own | {"sources": whole}}) for name, own in whole.items()}


def weights(mix: Mapping[str, Any]) -> dict[str, int]:
    """Return the weights of a mixture as the smallest whole numbers in the same proportion.

    Raises:
      ConfigError: a weight is not a positive number, or their common window is too long.

    >>> weights({"a": 0.5, "b": 1, "c": 0.25})
    {'a': 2, 'b': 4, 'c': 1}
    """
    for name, weight in mix.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight < math.inf:
            raise ConfigError(
                f"config.data.mix.{name} must be a weight above 0, not {ranges.format_value(weight)}: a source without"
                " a share is left out"
            )
    parts = {name: fractions.Fraction(str(weight)) for name, weight in mix.items()}
    scale = math.lcm(*(part.denominator for part in parts.values()))
    whole = {name: int(part * scale) for name, part in parts.items()}
    common = math.gcd(*whole.values())
    whole = {name: number // common for name, number in whole.items()}
    if sum(whole.values()) > LONGEST_WINDOW:
        raise ConfigError(
            f"config.data.mix={dict(mix)} has exact shares only over {sum(whole.values()):,} examples, more than"
            f" {LONGEST_WINDOW:,}: give rounder weights"
        )
    return whole


def _check_name(name: str, here: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII) or name in SPLITS or name == "last":
        raise ConfigError(
            f"{here}: a name has letters, digits, - and _, and is not the name of a split ({', '.join(SPLITS)})"
        )


def _fields(given: Any, here: str, known: Mapping[str, Field], *, fill: bool = True) -> dict[str, Any]:
    """Return a group of fields after checking their names and values, with the defaults of the others if asked to."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{here} must be a dict of fields, not {ranges.format_value(given)}")
    for name in given:
        if name not in known:
            of_run = f": config.data.{name} is the same for the whole run" if name in OF_RUN and not fill else ""
            near = of_run or ranges.did_you_mean(name, known, f"{here}.", 0.5) or f", there are {', '.join(known)}"
            raise ConfigError(f"unknown field {here}.{name}{near}")
    values = {name: ranges.check(f"{here}.{name}", value, known[name]) for name, value in given.items()}
    usual = {name: field.default for name, field in known.items()} if fill else {}
    return usual | {name: value for name, value in values.items() if value is not None or not fill}
