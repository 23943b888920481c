"""Checks that the same seed gives the same data, parameters, losses and predictions."""

import inspect
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jtasks.config import Config
from jtasks.data import pipeline
from jtasks.data.lazy import Lazy
from jtasks.faults import Fault, author_files, require, some
from jtasks.metrics import Mean
from jtasks.testing import people
from jtasks.testing.result import Skip
from jtasks.testing.subject import Subject, clear_traces, key, pick, unequal, value, variables
from jtasks.tree import leaf_name

IMPURE = re.compile(
    r"^(?!.*jax\.random).*(?:\b(?:np|numpy|onp)\.random\.(?!default_rng\(\S)|(?<![.\w])random\.\w+\(|\btime\.\w+\("
    r"|\bglobal\s+\w|\b(?:urandom|uuid4|now)\()"
)
CONSTANT_KEY = re.compile(r"random\.(?:key|PRNGKey)\(\s*\d+\s*\)")


def same_seed(subject: Subject) -> str:
    """Check that every function gives equal results when called, and traced, a second time."""
    _check_data(subject)
    _check_params(subject)
    _check_function(subject, "loss_fn", subject.measurement(subject.config), subject.measure, key(0))
    _check_function(subject, "eval_fn", subject.evaluation(), subject.evaluate)
    again = jax.device_get(subject.measure(subject.params, subject.batch, key(0)))
    _compare(subject, "loss_fn", subject.first, again, "than at the very first call")
    _check_dropout(subject)
    return "data, parameters, loss_fn and eval_fn, each twice"


def predictions(subject: Subject) -> str:
    """Check that predictions are equal when repeated, and that no example's prediction depends on other rows."""
    task, config = subject.task, subject.config
    if not hasattr(task, "predict_fn"):
        raise Skip("the task has no predict_fn")
    batch, b = subject.batch, len(subject.batch["mask"])
    outputs = jax.device_get(subject.predict(subject.params, batch, key(0)))
    again = jax.device_get(subject.predict(subject.params, batch, key(0)))
    _compare(subject, "predict_fn", outputs, again, "when called again with the same rng")
    retraced = subject.prediction()
    if not _same_program(subject, retraced, subject.predict, key(0)):
        again = jax.device_get(retraced(subject.params, batch, key(0)))
        _compare(subject, "predict_fn", outputs, again, "when traced again with the same rng")
    rows, half = np.arange(b), b // 2
    neighbors = np.where(rows < half, rows, 0)
    hint = (
        "treat each row alone: draw per example, jax.vmap over jax.random.key(seed) for batch['seed'] (see"
        " jtasks.ops.augment.keys), not from rng in the shape of the batch; no statistics over the batch"
    )
    for indices, how in ((neighbors, "beside other examples"), (rows[::-1], "at another place of the batch")):
        moved = jax.device_get(subject.predict(subject.params, pick(batch, indices), key(0)))
        mine = jax.tree.map(lambda x, i=indices: x[i], outputs)
        differing = unequal(mine, moved, tolerance=1e-4)
        require(not differing, f"predict_fn's {some(differing)} of an example changes {how}", hint)
    return (
        f"{some(leaf_name(p) or 'output' for p, _ in jax.tree_util.tree_leaves_with_path(outputs))}"
        + _check_host_functions(subject, outputs, config)
    )


def _check_dropout(subject: Subject) -> None:
    """Check that active dropout changes with rng."""
    fields = [field for field in subject.dropout if "dropout" in field.rpartition(".")[2]]
    if not fields or subject.random:
        return
    one, other = (jax.device_get(subject.measure(subject.perturbed, subject.batch, key(seed))) for seed in (0, 1))
    require(
        bool(unequal(one, other)),
        f"{some(fields)} is on, but loss_fn gives the same numbers for every rng",
        "draw dropout from the argument rng of loss_fn, not from a key of its own: jax.random.key(0) in it draws the"
        " same mask at every step" + _suspects(subject.task, CONSTANT_KEY),
    )


def _check_host_functions(subject: Subject, outputs: Any, config: Config) -> str:
    """Call score_fn, export_fn and show_fn on predictions of the first batch; returns a text for the result."""
    task, count = subject.task, len(subject.batch["mask"])
    indices, _ = subject.plan.at(np.arange(count))
    examples = [pipeline.read(subject.examples, int(i)) for i in indices]
    rows = [jax.tree.map(lambda x, i=i: x[i], outputs) for i in range(count)]
    split = (Lazy(range(count), examples.__getitem__), Lazy(range(count), rows.__getitem__))
    summary = people.answers(subject, *split)
    if hasattr(task, "score_fn"):
        scores = [task.score_fn(*split, config) for _ in range(2)]
        hint = 'return a dict of finite numbers, such as {"bleu": 12.3}, that the arguments alone decide'
        require(isinstance(scores[0], Mapping), f"score_fn returned a {type(scores[0]).__name__}", hint)
        for score, number in scores[0].items():
            text = f"score_fn's {score!r} is {number!r}"
            require(_is_number(number), text, hint)
            again = scores[1].get(score)
            require(
                _is_number(again) and float(number) == float(again), f"{text}, and {again!r} when called again", hint
            )
        summary += f"; scores {some(scores[0])}"
    if hasattr(task, "export_fn"):
        reports = task.export_fn(*split, config)
        texts = isinstance(reports, Mapping) and all(isinstance(text, str) for text in reports.values())
        require(texts, f"export_fn returned a {type(reports).__name__}", "return {file name: text}")
        summary += f"; reports {some(reports)}"
    if hasattr(task, "show_fn"):
        shown = task.show_fn(examples[:4], rows[:4], config)
        require(
            isinstance(shown, Mapping), f"show_fn returned a {type(shown).__name__}", "return {name: image or text}"
        )
        for what, content in shown.items():
            picture = getattr(content, "dtype", None) == np.uint8 and content.ndim in (2, 3)
            hint = "return uint8 images [h, w] or [h, w, c], or text"
            require(isinstance(content, str) or picture, f"show_fn's {what!r} is a {type(content).__name__}", hint)
        summary += f"; shows {some(shown)}"
    return summary


def _is_number(value: Any) -> bool:
    array = np.asarray(value)
    return array.ndim == 0 and array.dtype.kind in "biuf" and bool(np.isfinite(array))


def _check_data(subject: Subject) -> None:
    reloaded = subject.job.require("train")
    counts = pipeline.size(subject.examples), pipeline.size(reloaded)
    hint = "make dataset(split, config) a pure function; draw with np.random.default_rng(config.seed)" + _suspects(
        subject.task
    )
    require(
        counts[0] == counts[1], f"dataset('train') has {counts[0]} examples, and {counts[1]} when called again", hint
    )
    if isinstance(reloaded, Mapping) and isinstance(subject.examples, Mapping):
        old: Mapping[str, Any] = subject.examples
        differing = [k for k in old if k not in reloaded or not _identical(old[k], reloaded[k])]
        differing += [k for k in reloaded if k not in old]
        require(not differing, f"dataset('train') returns other values of {some(differing)} when called again", hint)
    for what, examples in (("read again", subject.examples), ("dataset is called again", reloaded)):
        batch = subject.job.batch_at(examples, subject.plan, 0)
        differing = unequal(subject.batch, batch)
        source = "collate_fn" if hasattr(subject.task, "collate_fn") else "dataset"
        subject.impure |= bool(differing)
        require(
            not differing,
            f"{source}: {some(differing)} of the same batch differs when {what}",
            "reading an example must not draw random numbers or keep state: draw on the device, from batch['seed']"
            + _suspects(subject.task),
        )


def _check_params(subject: Subject) -> None:
    task, config = subject.task, subject.config

    def initialize(seed: int) -> Any:
        return jax.jit(lambda rng, batch: task.init(rng, batch, config))(key(seed), subject.batch)

    differing = unequal(subject.params, initialize(config.seed))
    hint = "draw every parameter from the argument rng" + _suspects(task)
    require(not differing, f"init gives other values of {some(differing)} for the same rng", hint)
    varied = [leaf_name(p) for p, x in jax.tree_util.tree_leaves_with_path(subject.params) if np.ptp(x) > 0]
    if varied and not unequal(subject.params, initialize(config.seed + 1)):
        raise Fault(f"init ignores rng: {some(varied)} are the same for every seed", hint)


def _check_function(subject: Subject, function: str, retraced: Any, known: Any, *rng: jax.Array) -> None:
    arguments = (subject.params, subject.batch, *rng)
    expected = jax.device_get(known(*arguments))
    _compare(
        subject, function, expected, jax.device_get(known(*arguments)), "when called again with the same arguments"
    )
    clear_traces(subject.task)  # functions jitted inside the task would not be traced again
    if not _same_program(subject, retraced, known, *rng):
        actual = jax.device_get(retraced(*arguments))
        _compare(subject, function, expected, actual, "when traced again, as in another run of the program")


def _same_program(subject: Subject, retraced: Any, known: Any, *rng: jax.Array) -> bool:
    """Return whether a new trace gives the same program, so that compiling can be skipped."""
    arguments = (subject.params, subject.batch, *rng)
    return retraced.lower(*arguments).as_text() == known.lower(*arguments).as_text()


def _compare(subject: Subject, function: str, a: Any, b: Any, when: str) -> None:
    # Scatters on accelerators add in any order.
    differing = unequal(a, b, tolerance=0.0 if jax.default_backend() == "cpu" else 1e-5)
    if not differing:
        return
    subject.impure = True
    old, new = (dict(_means(tree)) for tree in (a, b))
    numbers = [f"{k} {old[k]:.8g}, then {new[k]:.8g}" for k in old if k in new and old[k] != new[k]]
    now = variables(subject.task)
    changed = [f"{k} = {now[k][:40]}" for k in now if subject.globals_.get(k) != now[k]]
    state = f"; module variables that changed meanwhile: {some(changed)}" if changed else ""
    raise Fault(
        f"{function} gives other numbers {when}: {some(numbers or differing)}{state}",
        "a pure function of its arguments keeps no state and draws from rng or batch['seed'] alone"
        + _suspects(subject.task),
    )


def _means(tree: Any) -> Iterator[tuple[str, float]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Mean))
    yield from ((leaf_name(path[-1:]), value(leaf)) for path, leaf in leaves if isinstance(leaf, Mean))


def _identical(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype == object and a.shape == b.shape:  # entries that stay on the host: texts, lists, arrays of any length
        pairs = zip(a.flat, b.flat, strict=True)
        return all(_identical(x, y) if isinstance(x, np.ndarray) else bool(x == y) for x, y in pairs)
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")


def _suspects(task: ModuleType, pattern: re.Pattern[str] = IMPURE) -> str:
    lines = [f"{file}:{number}: {line.strip()}" for file, number, line in _lines(task) if pattern.search(line)]
    return "\nlook at " + "\nlook at ".join(lines[:4]) if lines else ""


def _lines(task: ModuleType) -> Iterator[tuple[str, int, str]]:
    """Yield file, number and text of the source lines of the task's own functions."""
    functions = [f for f in vars(task).values() if callable(f) and inspect.isfunction(inspect.unwrap(f))]
    files = author_files(task)
    for function in functions:
        code = inspect.unwrap(function)
        own = code.__code__.co_filename in files
        try:
            lines, start = inspect.getsourcelines(code) if own else ([], 0)
        except (OSError, TypeError):
            continue
        for number, line in enumerate(lines, start):
            yield code.__code__.co_filename, number, line
