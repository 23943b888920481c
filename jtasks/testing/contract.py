"""Do the functions have the contract's shape? Each is called once, abstractly where that is enough."""

import contextlib
import difflib
import inspect
import io
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jtasks import task as tasks
from jtasks.config import Config
from jtasks.data import pipeline
from jtasks.distributed import sharding
from jtasks.faults import CONTRACT, Fault, explained, require, some
from jtasks.run.job import SPLITS, Job, fill
from jtasks.run.preflight import check_loss, check_metrics, kind, require_arrays, require_no_leak, require_unchanged
from jtasks.testing.subject import Subject, Tree, key, mesh_of, pick, same, small, unequal, variables
from jtasks.tree import leaf_name

CONSTANTS = ("MIXES_EXAMPLES", "SEQUENCE_KEYS", "HF_ARCHITECTURE")
NICKNAMES = {"predict": "predict_fn", "collate": "collate_fn", "score": "score_fn", "show": "show_fn"}


def subject(task: ModuleType | str, config: Any) -> tuple[Subject, str]:
    """The task made ready for the other checks, and what was found; Fault where its shape is wrong."""
    name = task if isinstance(task, str) else task.__name__
    module = tasks.load(task) if isinstance(task, str) else task
    tasks.validate(module, name)
    for function, arguments in (tasks.REQUIRED | tasks.OPTIONAL).items():
        _ordered(module, function, arguments)
    before = variables(module)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        job = _prepared(module, small(config, module))
        splits = _datasets(job)
        _collated(job, splits["train"])
        made = Subject(job, splits["train"], None, before)
        made.params = _params(made)
        check_loss(made.task, made.config, made.params, made.batch)
        _evaluation(made)
        _predictions(made)
        _other_splits(made, splits)
    notes = _misspelled(module)
    if printed.getvalue().strip():
        line = printed.getvalue().strip().splitlines()[0][:60]
        notes.append(
            f"the task prints to stdout ({line!r}), which belongs to the result; use jax.debug.print or stderr"
        )
    found = ", ".join(f for f in CONTRACT if hasattr(module, f))
    return made, "; ".join([found, *(f"NOTE: {note}" for note in notes)])


def _ordered(module: ModuleType, function: str, arguments: tuple[str, ...]) -> None:
    if not hasattr(module, function):
        return
    given = list(inspect.signature(getattr(module, function)).parameters)[: len(arguments)]
    wanted = f"{function}({', '.join(arguments)})"
    swapped = [g for g, a in zip(given, arguments, strict=False) if g != a and g in arguments]
    require(
        not swapped,
        f"{function}({', '.join(given)}) takes its arguments in another order",
        f"write it as {wanted}: the library passes them by position",
    )
    jitted = function in ("init", "loss_fn", "eval_fn", "predict_fn")
    require(
        not jitted or "config" in inspect.signature(getattr(module, function)).parameters,
        f"{function}({', '.join(given)}) has no argument named config",
        f"write it as {wanted}, so that jax.jit({function}, static_argnames='config') works",
    )


def _misspelled(module: ModuleType) -> list[str]:
    notes = []
    for given, member in vars(module).items():
        own = inspect.isfunction(member) and member.__module__ == module.__name__
        known = CONTRACT if own else CONSTANTS if given.isupper() and not inspect.ismodule(member) else ()
        if given in known or given.startswith("_"):
            continue
        near = NICKNAMES.get(given) if own else None
        near = near or next(iter(difflib.get_close_matches(given, known, n=1, cutoff=0.8)), None)
        if near and not hasattr(module, near):
            notes.append(f"{given} is not of the contract, did you mean {near}?")
    return notes


def _prepared(module: ModuleType, config: Config) -> Job:
    if hasattr(module, "prepare"):
        module.prepare(config)
    if hasattr(module, "model_args"):
        found = module.model_args(config)
        require(
            isinstance(found, dict) and all(isinstance(k, str) for k in found),
            f"model_args returned {kind(found)}",
            'return a dict of values for the placeholders of config.model, such as {"classes": 10}',
        )
        for field, value in found.items():
            hint = "configs are static arguments of jit: return numbers, strings or (nested) tuples of them"
            require(_hashable(value), f"model_args returned {field!r} as {kind(value)}, which cannot be hashed", hint)
    return Job(module, fill(config, module), mesh_of(jax.local_devices()[:1]))


def _hashable(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_hashable(v) for v in value)
    try:
        hash(value)
    except TypeError:
        return isinstance(value, dict)
    return True


def _datasets(job: Job) -> dict[str, pipeline.Examples]:
    splits: dict[str, pipeline.Examples] = {}
    for split in SPLITS:
        examples = job.task.dataset(split, job.config)
        call = f"dataset({split!r}, config)"
        if split == "train":
            require(examples is not None, f"{call} returned None", "every task needs a train split")
        if examples is None:
            continue
        hint = "return a dict of arrays [n, ...], a sequence of example dicts with len() and [i], or None"
        if isinstance(examples, Mapping):
            lists = [f"{k!r} is {kind(v)}" for k, v in examples.items() if not hasattr(v, "shape") or not v.shape]
            require(not lists, f"{call}: {some(lists)}", hint + "; np.asarray makes arrays of lists")
            lengths = {k: len(v) for k, v in examples.items()}
            require(len(set(lengths.values())) == 1, f"{call}: unequal lengths {lengths}", hint)
        else:
            sequence = hasattr(examples, "__len__") and hasattr(examples, "__getitem__")
            require(sequence and not isinstance(examples, str), f"{call} returned {kind(examples)}", hint)
            row = examples[0] if len(examples) else {}
            require(isinstance(row, Mapping), f"{call}[0] is {kind(row)}, not a dict", hint)
        require(pipeline.size(examples) > 0, f"{call} is empty", "return None for a split that does not exist")
        taken = {"mask", "seed"} & set(pipeline.example(examples, 0))
        require(not taken, f"{call} has entries {sorted(taken)}, which the library adds itself", "rename them")
        splits[split] = examples
    return splits


def _collated(job: Job, examples: pipeline.Examples) -> None:
    if not hasattr(job.task, "collate_fn"):
        return
    for count in (5, 1):
        found = job.task.collate_fn(
            [pipeline.read(examples, i % pipeline.size(examples)) for i in range(count)], job.config
        )
        hint = "return a dict of arrays [b, ...], a row an example, in the order of the examples"
        require(isinstance(found, Mapping), f"collate_fn returned {kind(found)}", hint)
        shapes = {k: np.shape(v) for k, v in found.items()}
        wrong = [f"{k!r} has shape {s}" for k, s in shapes.items() if not s or s[0] != count]
        require(not wrong, f"collate_fn of {count} examples: {some(wrong)}", hint)
    if not getattr(job.task, "MIXES_EXAMPLES", False):
        _collated_in_order(job, [pipeline.read(examples, i) for i in range(min(64, pipeline.size(examples)))])


def _collated_in_order(job: Job, examples: list[Mapping[str, Any]]) -> None:
    """The examples backwards give the batch backwards, unless the same examples give another batch each time."""
    rows, again, backwards = (job.task.collate_fn(list(x), job.config) for x in (examples, examples, examples[::-1]))
    if unequal(rows, again):
        return  # told by another check
    pairs = {k: (np.asarray(rows[k])[::-1], np.asarray(backwards[k])) for k in rows.keys() & backwards.keys()}
    # Types that depend on the examples are told by another check.
    wrong = sorted(k for k, (a, b) in pairs.items() if _entry(a) == _entry(b) and not same(a, b))
    require(
        not wrong,
        f"collate_fn of {len(examples)} examples backwards does not give the rows of {some(wrong)} backwards",
        "row i of the batch is example i: leave none out, repeat none and sort none here; filter in dataset",
    )


def _params(made: Subject) -> Tree:
    """Initialised as training does it: jitted, from the first batch."""
    task, config = made.task, made.config
    kept: list[Tree] = []

    def init(rng: jax.Array, batch: Any) -> Tree:
        kept.append(task.init(rng, dict(batch), config))
        require_arrays(kept[-1])
        return jax.tree.map(lambda x: x, kept[-1])

    shapes = jax.eval_shape(init, key(config.seed), made.batch)
    wrong = [
        f"{leaf_name(path)} is {leaf.dtype}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if leaf.dtype != np.float32
    ]
    hint = "parameters are float32 arrays; constants and counters belong into the code, other types into the model"
    require(not wrong, f"init's parameters: {some(wrong)}", hint)
    few = jax.eval_shape(init, key(config.seed), pick(made.batch, np.arange(5)))
    paths = [leaf_name(p) for p, leaf in jax.tree_util.tree_leaves_with_path(shapes)]
    leaves = zip(paths, jax.tree.leaves(shapes), jax.tree.leaves(few), strict=False)
    resized = [f"{p} is {list(a.shape)} or {list(b.shape)}" for p, a, b in leaves if a.shape != b.shape]
    detail = f"init's shapes depend on the batch size: {some(resized)}, for {len(made.batch['mask'])} or 5 examples"
    require(not resized, detail, "take sizes from config and from the other axes of the batch")
    return jax.jit(init, out_shardings=sharding.replicated(made.job.mesh))(key(config.seed), made.batch)


def _evaluation(made: Subject) -> None:
    task, config, evaluate = made.task, made.config, tasks.eval_fn(made.task)
    kept: list[Any] = []

    def eval_fn(params: Tree, batch: Any) -> Any:
        mine = jax.tree.map(lambda x: x, params), dict(batch)
        kept.append(evaluate(*mine, config))
        require_unchanged("eval_fn", (params, batch), mine)
        return [leaf for leaf in jax.tree.leaves(kept[-1]) if hasattr(leaf, "dtype")]

    jax.eval_shape(eval_fn, made.params, made.batch)
    require_no_leak(task, "eval_fn")
    check_metrics(kept[0], "eval_fn")


def _predictions(made: Subject) -> None:
    if not hasattr(made.task, "predict_fn"):
        return
    for count in (len(made.batch["mask"]), 5):
        batch = pick(made.batch, np.arange(count))
        found = jax.eval_shape(lambda p, b: made.task.predict_fn(p, dict(b), key(0), made.config), made.params, batch)
        require_no_leak(made.task, "predict_fn")
        leaves = [
            (leaf_name(path) or "output", leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(found)
        ]
        hint = "return outputs, such as a dict of arrays, each with one row an example: [b, ...]"
        require(bool(leaves), "predict_fn returned nothing", hint)
        wrong = [f"{path} has shape {list(shape)}" for path, shape in leaves if shape[:1] != (count,)]
        require(not wrong, f"predict_fn of {count} examples: {some(wrong)}", hint)


def _other_splits(made: Subject, splits: dict[str, pipeline.Examples]) -> None:
    """The other splits' batches have the entries of train's, of their types, and can be evaluated and predicted."""
    for split, examples in splits.items():
        if split == "train":
            continue
        batch = made.job.batch_at(examples, made.job.plan(examples, shuffle=False), 0)
        pairs = {k: (_entry(made.batch.get(k)), _entry(batch.get(k))) for k in made.batch | batch}
        told = [f"{k!r} is {b or 'absent'}, in train {a or 'absent'}" for k, (a, b) in pairs.items() if a != b]
        hint = "give every split the entries, types and shapes of train"
        retyped = [k for k, (a, b) in pairs.items() if a and b and (a[0], len(a[1])) != (b[0], len(b[1]))]
        if retyped and _steady(made):
            raise Fault(f"dataset({split!r}, config): {some(told)}", hint)
        evaluate, predict = tasks.eval_fn(made.task), getattr(made.task, "predict_fn", None)
        for function, rest in ((evaluate, (made.config,)), (predict, (key(0), made.config))):
            if function is None:
                continue
            try:
                jax.eval_shape(lambda p, b, f=function, r=rest: f(p, dict(b), *r), made.params, batch)
            except Exception as error:
                if not told:
                    raise
                raise Fault(f"dataset({split!r}, config): {some(told)}; {explained(error, made.task)}", hint) from error


def _steady(made: Subject) -> bool:
    """Whether train's own first batches are of one type; another check tells where they are not."""
    batches = [made.job.batch_at(made.examples, made.plan, index) for index in range(4)]
    return all({k: _entry(x) for k, x in b.items()} == {k: _entry(x) for k, x in batches[0].items()} for b in batches)


def _entry(array: Any) -> tuple[str, tuple[int, ...]] | None:
    """An entry's type, and its shape without the batch's axis."""
    return None if array is None else (str(array.dtype), array.shape[1:])
