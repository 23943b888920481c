"""The loss that a task returns is to be the one that training takes the gradient of: the weighted sum of its terms."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, jaxprs_in_params

from jtasks.distributed import sharding
from jtasks.distributed.shares import count_microbatches
from jtasks.errors import ConfigError
from jtasks.metrics import TERM, Mean, terms, total
from jtasks.run import batch_gradient
from jtasks.run.job import Job

TOLERANCE = 1e-4  # relative; a returned loss may be summed in another order than its terms


def outputs(result: Any) -> list[Any]:
    """Return [loss, sum of the terms] of what a task's loss returned; [] for a result that breaks the contract."""
    well_formed = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
    if not well_formed or not all(isinstance(mean, Mean) for mean in result[1].values()):
        return []
    try:
        return [result[0], total(result[1])]
    except (KeyError, TypeError):
        return []


def is_sum(jaxpr: Any) -> bool:
    """Return whether the first two outputs of a closed jaxpr, those of `outputs`, are the same computation for sure."""
    first, second, *_ = _numbers(jaxpr.jaxpr, [object() for _ in jaxpr.jaxpr.invars])
    return first == second


def compare(job: Job, params: Any, batch: Any) -> None:
    """Raise ConfigError if the loss of the first microbatch is not the sum of its terms; compiles the loss once more.

    Args:
      job: the run's job.
      params: all parameters, the frozen ones too.
      batch: of the first step.
    """
    functions, rng = batch_gradient.functions(job.task, job.config), jax.random.key(0)
    whole = sharding.replicated_sharding(job.mesh)
    real = int(jax.jit(jnp.count_nonzero, out_shardings=whole)(batch["mask"]))
    # Without padding: a task trains by its terms even if the loss that it returns ignores the mask.
    rows = max(real // count_microbatches(job.config), 1)

    def both(params: Any, batch: Any) -> Any:
        (kept,) = jnp.nonzero(batch["mask"], size=real)
        part = jax.tree.map(lambda x: x[kept[:rows]], batch)
        if functions is None:
            result = job.task.loss_fn(params, part, rng, job.config)
        else:
            result = functions.loss(params, functions.embed(params, part, rng), part)
        return outputs(result), {name: mean.value for name, mean in terms(result[1]).items()}

    run = jax.jit(job.on_mesh(both), out_shardings=whole)
    (loss, expected), values = jax.device_get(run(params, batch))
    if np.isclose(loss, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        return
    name = "loss_fn" if functions is None else "batch_loss_fn"
    raise ConfigError(
        f"{name} returns the loss {loss:.6g}, but training takes the gradient of the terms in its metrics, which give"
        f" {expected:.6g}: {', '.join(f'{term} {value:.6g}' for term, value in values.items())}\n"
        f"-> return jtasks.metrics.total(metrics) as the loss; make what is missing a term, {TERM}"
    )


def _numbers(jaxpr: Any, inputs: list[Any]) -> list[Any]:
    """Return for each output a value that equals another one only if both are computed in the same way."""
    known: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return ("literal", float(atom.val)) if np.ndim(atom.val) == 0 else object()
        return known.setdefault(atom, object())  # a constant

    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        for variable, number in zip(equation.outvars, _outputs(equation, given), strict=False):
            known[variable] = number
    return [read(atom) for atom in jaxpr.outvars]


def _outputs(equation: Any, given: list[Any]) -> Iterator[Any]:
    """Yield the values of one equation's outputs; all but scalars are different from any other."""
    name, of_scalars = equation.primitive.name, all(not x.aval.shape for x in equation.outvars)
    if name in ("jit", "pjit"):
        inner = equation.params["jaxpr"].jaxpr
        yield from _numbers(inner, given)
    elif of_scalars and name in _NEUTRAL and (rest := [x for x in given if x != ("literal", _NEUTRAL[name])]) != given:
        yield rest[0] if rest else given[0]
    elif of_scalars and not any(True for _ in jaxprs_in_params(equation.params)):
        yield from ((name, str(equation.params), i, *given) for i in range(len(equation.outvars)))
    else:
        yield from (object() for _ in itertools.count())


_NEUTRAL: Mapping[str, float] = {"mul": 1.0, "add": 0.0}  # numbers that change no other
