"""The list of checks, and the functions that run them."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax

from jtasks.config import Config
from jtasks.errors import ConfigError, DataError
from jtasks.faults import Fault, explain, raised_in
from jtasks.testing import contract, determinism, exactness, padding, people, splitting, training
from jtasks.testing.result import Result, Skip
from jtasks.testing.subject import Subject

SHAPE = "the functions have the contract's shape"
SEED = "same seed, same numbers"
# These compare numbers of different programs, which means nothing if one program gives varying numbers.
COMPARISONS = (
    exactness.loss_is_the_sum,
    padding.padding_is_nothing,
    exactness.accumulation_agrees,
    splitting.batch_loss_agrees,
    exactness.meshes_agree,
    exactness.evaluation_agrees,
    padding.lengths_are_true,
)
CHECKS: dict[str, Callable[[Subject], str]] = {
    SEED: determinism.same_seed,
    "loss is the sum of its terms": exactness.loss_is_the_sum,
    "counts do not depend on parameters": exactness.counts_are_constant,
    "padding changes nothing": padding.padding_is_nothing,
    "accumulation agrees": exactness.accumulation_agrees,
    "a loss of the whole batch does not depend on its split": splitting.batch_loss_agrees,
    "meshes agree": exactness.meshes_agree,
    "evaluation does not depend on batch size": exactness.evaluation_agrees,
    "examples are as long as lengths says": padding.lengths_are_true,
    "gradients are finite and reach every parameter": training.gradients_reach,
    training.COMPILES: training.nothing_recompiles,
    "one batch can be overfitted": training.overfits,
    "save and resume agree bit for bit": training.resumes_exactly,
    "predictions are deterministic given rng": determinism.predictions,
    "rows of the dataset are inputs": people.inputs,
    "features are those of each example alone": people.features,
}


def check(task: ModuleType | str, config: Any) -> list[Result]:
    """Check a task against the contract; a broken task raises nothing.

    Args:
      task: the module, or a name or path as in `config.task`.
      config: from `jtasks.config.load`, or a ConfigDict made by hand, which may lack the common fields. The checks
        always use small batches, float32 and no accumulation.

    Returns:
      One result per check, always in the same order; `table` formats them. If the functions do not have the
      contract's shape, the other checks are skipped.
    """
    module = None if isinstance(task, str) else task
    made: list[Subject] = []

    def shape() -> str:
        subject, detail = contract.subject(task, config)
        made.append(subject)
        return detail

    with jax.default_matmul_precision("highest"):
        results = [_result(SHAPE, shape, module)]
        if not made:
            return results + [Result(name, None, f"needs {SHAPE!r}") for name in CHECKS]
        (subject,) = made
        checks = [(name, functools.partial(_run_check, function, subject)) for name, function in CHECKS.items()]
        return results + [_result(name, function, subject.task) for name, function in checks]


def run(config: Config) -> list[Result]:
    """Check the task that a config names, for `--mode=check`."""
    return check(config.task, config)


def _run_check(function: Callable[[Subject], str], subject: Subject) -> str:
    if subject.impure and function in COMPARISONS:
        raise Skip(f"needs {SEED!r}")
    return function(subject)


def _result(name: str, function: Callable[[], str], task: ModuleType | None) -> Result:
    try:
        return Result(name, True, function())
    except Skip as skip:
        return Result(name, None, str(skip))
    except Fault as fault:
        return Result(name, False, fault.detail, fault.hint)
    except (ConfigError, DataError) as error:
        if error.__cause__ is None:
            return Result(name, False, str(error), "see jtasks/task.py for the contract")
        return Result(name, False, explain(error, task), "see jtasks/task.py for the contract")
    except Exception as error:
        return Result(name, False, explain(error, task), hint(error, task))


HOST = ("defaults", "dataset", "texts", "prepare", "model_args", "collate_fn", "assets", "lengths", "examples")


def hint(error: BaseException, task: ModuleType | None) -> str:
    """Return advice on an error in a function of the task."""
    text = f"{type(error).__name__} {error}"
    if "UnexpectedTracer" in text:
        return "a traced array was stored outside of the function (a module variable, a list): return it instead"
    if "Tracer" in type(error).__name__ or "Concretization" in type(error).__name__:
        return (
            "the function is jitted: no if, float(), int(), bool(), .item() or numpy on arrays; jnp.where, jax.lax.cond"
        )
    function = raised_in(error, task)
    if function in ("score_fn", "show_fn", "export_fn", "answers"):
        return (
            f"{function}(examples, outputs, config) gets the dicts of dataset, before collate_fn, and for each of them"
            " what predict_fn gave for that row; it runs on the host, and its result must be what jtasks/task.py says"
        )
    if function == "rescore_fn":
        return (
            "rescore_fn(examples, outputs, predict, config) runs on the host; predict gives what pair_fn returns for"
            " each of the examples that it gets, and the result is {name: number}"
        )
    if function in HOST:
        return f"{function} runs on the host, before training; jtasks/task.py says what it gets and must return"
    if isinstance(error, KeyError) and function == "batch_loss_fn":
        return "embeddings has what embed_fn returned; batch the entries of dataset (or collate_fn), and mask and seed"
    if isinstance(error, KeyError):
        return "a batch holds the entries of dataset (or collate_fn), without text, and mask and seed"
    return "the exception arose in the line above; the function must run under jax.jit"
