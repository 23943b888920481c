"""The fields of `config.optim`: those of every optimizer, and the further ones of each optax alias."""

import functools
import inspect
import re
from collections.abc import Callable, Collection
from typing import Any

import optax
import optax.contrib

from jtasks.errors import ConfigError
from jtasks.ranges import Field, check, did_you_mean, format_value

# Allowed values of fields that are not a number of at least 0.
ALLOWED: dict[str, str | tuple[str, ...]] = {
    "schedule": ("constant", "linear", "cosine", "cosine_restarts", "rsqrt", "polynomial", "step", "wsd"),
    **dict.fromkeys(("warmup", "decay_steps"), "[0, 2e9]"),
    "power": "(0, inf)",
    "milestones": "(0, 2e9]",
    "gamma": "(0, inf)",
    "cycle": "(0, 2e9]",
    "cycle_growth": "[1, inf)",
    "cooldown": "(0, 2e9]",
    "layer_decay": "(0, 1]",
    **dict.fromkeys(("decay_mask", "freeze", "embeddings"), "regex"),
    **dict.fromkeys(("b1", "b2", "b3", "beta3", "adam_b1", "adam_b2", "decay", "momentum", "rho"), "[0, 1)"),
    **dict.fromkeys(("beta", "decay_rate"), "[0, 1]"),
    **dict.fromkeys(("ns_steps", "rank", "update_proj_gap"), "[1, 2e9]"),
    "preconditioning": ("frobenius", "spectral", "aol", "schatten"),
}


def defaults() -> dict[str, Any]:
    """Return the fields that every `config.optim` has, with their default values.

    >>> defaults()["name"], defaults()["schedule"]
    ('adamw', 'constant')
    """
    return {
        "name": "adamw",
        "lr": 1e-3,  # the peak, reached at the last update of the warm-up
        "schedule": "constant",  # or linear, cosine, cosine_restarts, rsqrt, polynomial, step, wsd
        "warmup": 0.0,  # updates; below 1: a fraction of the schedule's total
        "end_lr": 0.0,  # absolute end value of linear, cosine and polynomial
        "power": 1.0,  # of polynomial and of the decay of wsd
        "milestones": (),  # of step: updates, or below 1 fractions of the schedule's total, ascending
        "gamma": 0.1,  # of step: factor of the learning rate at each milestone
        "cycle": 0.25,  # of cosine_restarts: updates of the first cycle; below 1: a fraction of those after warm-up
        "cycle_growth": 1.0,  # of cosine_restarts: ratio of the lengths of successive cycles
        "cooldown": 0.2,  # of wsd: updates of the decay at the end; below 1: a fraction of the schedule's total
        "decay_steps": 0,  # all updates of the schedule, warm-up included; 0: updates of the run
        "weight_decay": 0.0,
        "decay_mask": ".*",  # regex (re.search) of the parameters with weight decay
        "freeze": "",  # regex of the parameters to freeze, single layers as blocks/INDEX/...; "": none
        "unfreeze": (),  # ((regex, updates), ...): parameters change after this many updates; below 1: a fraction
        "factors": (),  # ((regex, factor), ...) of the learning rate; the first that matches a parameter counts
        "layer_decay": 1.0,  # factor of the learning rate from each layer to the one before; 1: the same for all
        "embeddings": "",  # of layer_decay: regex of the parameters before the layers; "": names in jtasks.models
        "clip": 0.0,  # largest global norm of the gradient; 0: no clipping
    }


def arguments(name: str) -> dict[str, Any]:
    """Return the further fields of `config.optim` for optimizer `name`: optax's scalar arguments and their defaults.

    Omits what other fields set (learning rate, weight decay), masks, dtypes and functions.

    torch's RMSprop(alpha=0.99) is rmsprop with decay=0.99 and eps_in_sqrt=False: optax adds eps to the mean square,
    torch to its root. radam is torch's, but optax computes the rectification's 1 - b2**t in float32: in the first
    dozen steps an update is up to 1 % off.

    Raises:
      ConfigError: there is no such optimizer.

    >>> arguments("lion")
    {'b1': 0.9, 'b2': 0.99}
    """
    other_fields = re.compile(r"^learning_rate$|weight_decay|mask|dtype|dimension_numbers|^base_optimizer$")
    known = factories()
    _require(known, name, f"optimizer config.optim.name={name!r}")
    values = {field: parameter.default for field, parameter in inspect.signature(known[name]).parameters.items()}
    scalars = {field: value for field, value in values.items() if isinstance(value, bool | int | float | str | None)}
    return {field: value for field, value in scalars.items() if not other_fields.search(field)}


@functools.cache
def factories() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Return optax's optimizers by name that need only a learning rate, which may be a schedule."""
    # lbfgs, momo and sophia need the loss inside the update, rprop and sm3 take no schedule, schedule_free evaluates
    # other parameters than it trains, and optax deprecates the last two.
    unsuited = re.compile(
        r"_.*|scale_by_.*|lbfgs|momo|momo_adam|sophia|rprop|sm3|schedule_free.*|noisy_sgd|optimistic_adam"
    )
    optimizers: dict[str, Callable[..., optax.GradientTransformation]] = {}
    for name, function in {**vars(optax.contrib), **vars(optax)}.items():
        if inspect.isfunction(function) and not unsuited.fullmatch(name):
            parameters = inspect.signature(function).parameters
            required = {field for field, parameter in parameters.items() if parameter.default is parameter.empty}
            if "learning_rate" in parameters and required <= {"learning_rate"}:
                optimizers[name] = function
    return optimizers


def resolve_fields(optim: Any) -> dict[str, Any]:
    """Return all common fields of `config.optim` and the given further ones.

    Raises:
      ConfigError: a field is unknown, or its value is not allowed.
    """
    given = optim.to_dict() if hasattr(optim, "to_dict") else dict(optim)
    fields = defaults() | given
    known = defaults() | arguments(fields["name"])
    for name, value in fields.items():
        _require(known, name, f"field config.optim.{name}")
        kind = float if known[name] is None else type(known[name])
        allowed = ALLOWED.get(name, "[0, inf)" if kind in (int, float) else None)
        value = known[name] if value is None else value
        fields[name] = check(f"config.optim.{name}", value, Field(kind, allowed))
    for name in ("warmup", "cycle", "cooldown"):
        _check_span(f"config.optim.{name}", fields[name])
    for span in fields["milestones"]:
        _check_span("config.optim.milestones", span)
    if fields["schedule"] == "step" and not fields["milestones"]:
        raise ConfigError("config.optim.schedule=step needs config.optim.milestones, such as (0.5, 0.75)")
    for name, interval in (("unfreeze", "(0, 2e9]"), ("factors", "(0, inf)")):
        _check_pairs(f"config.optim.{name}", fields[name], interval)
    for _, begin in fields["unfreeze"]:
        _check_span("config.optim.unfreeze", begin)
    return fields


def updates(span: float, total: int) -> int:
    """Return a number of updates that is given as such or, below 1, as a fraction of a total.

    >>> updates(100, 1000), updates(0.25, 1000)
    (100, 250)
    """
    return int(span) if span >= 1 else round(span * total)


def _check_span(name: str, span: float) -> None:
    if span >= 1 and span != int(span):
        raise ConfigError(f"{name}={span} should be a whole number of updates or a fraction below 1")


def _check_pairs(name: str, pairs: tuple[Any, ...], interval: str) -> None:
    """Raise ConfigError unless a field holds pairs of a regex and a number."""
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str) or not pair[0]:
            raise ConfigError(f"{name}={format_value(pairs)} must be pairs, such as (('^encoder/', 0.1),)")
        check(name, pair[0], Field(str, "regex"))
        check(name, pair[1], Field(float, interval))


def _require(known: Collection[str], name: str, what: str) -> None:
    if name not in list(known):
        hint = did_you_mean(name, known) or ";"
        raise ConfigError(f"unknown {what}{hint} available: {', '.join(sorted(known))}")
