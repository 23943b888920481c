"""Checks that a task's functions have the contract's shape; each function is called once, or only traced."""

import contextlib
import difflib
import inspect
import io
import itertools
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jtasks import task as tasks
from jtasks.config import Config
from jtasks.data import mixture, pipeline
from jtasks.distributed import sharding
from jtasks.faults import CONTRACT, Fault, explain, require, some
from jtasks.run import plan
from jtasks.run.job import SPLITS, Job, fill, make_files
from jtasks.run.preflight import check_loss
from jtasks.run.results import check_metrics, kind, require_arrays, require_no_leak, require_unchanged
from jtasks.testing.subject import Subject, Tree, key, mesh_of, pick, same, small, unequal, variables
from jtasks.tree import leaf_name

CONSTANTS = ("MIXES_EXAMPLES", "SEQUENCE_KEYS", "HF_ARCHITECTURE")
NICKNAMES = {
    "predict": "predict_fn",
    "collate": "collate_fn",
    "score": "score_fn",
    "show": "show_fn",
    "embed": "embed_fn",
}


def subject(task: ModuleType | str, config: Any) -> tuple[Subject, str]:
    """Prepare the task for the other checks; returns the subject and a text, or raises a Fault for a wrong shape."""
    name = task if isinstance(task, str) else task.__name__
    module = tasks.load(task) if isinstance(task, str) else task
    tasks.validate(module, name)
    for function, arguments in (tasks.REQUIRED | tasks.OPTIONAL).items():
        _check_order(module, function, arguments)
    before = variables(module)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        made = small(config, module)
        job = _prepare(mixture.over_sources(module) if made.data.mix else module, made)
        splits = _check_datasets(job)
        _check_collate(job, splits["train"])
        tested = Subject(job, splits["train"], None, before)
        tested.params = _init_params(tested)
        check_loss(tested.task, tested.config, tested.params, tested.batch)
        _check_evaluation(tested)
        _check_predictions(tested)
        _check_other_splits(tested, splits)
        _check_made_example(tested)
    notes = _misspellings(module)
    if printed.getvalue().strip():
        line = printed.getvalue().strip().splitlines()[0][:60]
        notes.append(
            f"the task prints to stdout ({line!r}), which belongs to the result; use jax.debug.print or stderr"
        )
    functions = ", ".join(f for f in CONTRACT if hasattr(module, f))
    return tested, "; ".join([functions, *(f"NOTE: {note}" for note in notes)])


def _check_order(module: ModuleType, function: str, arguments: tuple[str, ...]) -> None:
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
    jitted = function in ("init", "loss_fn", "eval_fn", "predict_fn", "embed_fn", "batch_loss_fn", "pair_fn")
    require(
        not jitted or "config" in inspect.signature(getattr(module, function)).parameters,
        f"{function}({', '.join(given)}) has no argument named config",
        f"write it as {wanted}, so that jax.jit({function}, static_argnames='config') works",
    )


def _misspellings(module: ModuleType) -> list[str]:
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


def _prepare(module: ModuleType, config: Config) -> Job:
    _check_texts(module, config)
    make_files(config, module)
    if hasattr(module, "model_args"):
        values = module.model_args(config)
        require(
            isinstance(values, dict) and all(isinstance(k, str) for k in values),
            f"model_args returned {kind(values)}",
            'return a dict of values for the placeholders of config.model, such as {"classes": 10}',
        )
        for field, value in values.items():
            hint = "configs are static arguments of jit: return numbers, strings or (nested) tuples of them"
            require(_hashable(value), f"model_args returned {field!r} as {kind(value)}, which cannot be hashed", hint)
    return Job(module, fill(config, module), mesh_of(jax.local_devices()[:1]))


def _check_texts(module: ModuleType, config: Config) -> None:
    """Check that the training texts are texts, and equal when read again."""
    if not hasattr(module, "texts"):
        return
    hint = "return an iterator of the texts of the train split (str), or None if there are none to train a tokenizer on"
    reads: list[list[Any]] = []
    for _ in range(2):
        texts = module.texts(config)
        if texts is None:
            return
        listed = isinstance(texts, Iterable) and not isinstance(texts, str)
        require(listed, f"texts(config) returned {kind(texts)}", hint)
        reads.append(list(itertools.islice(texts, 100)))
    first, again = reads
    wrong = [f"number {i} is {kind(text)}" for i, text in enumerate(first) if not isinstance(text, str)]
    require(not wrong, f"texts(config): {some(wrong)}", hint)
    require(bool(first), "texts(config) gives no text", hint)
    require(first == again, "texts(config) gives other texts the second time", "draw nothing, or from config.seed")


def _hashable(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_hashable(v) for v in value)
    try:
        hash(value)
    except TypeError:
        return isinstance(value, dict)
    return True


def _check_datasets(job: Job) -> dict[str, pipeline.Examples]:
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


def _check_collate(job: Job, examples: pipeline.Examples) -> None:
    if not hasattr(job.task, "collate_fn"):
        return
    for count in (5, 1):
        batch = job.task.collate_fn(
            [pipeline.read(examples, i % pipeline.size(examples)) for i in range(count)], job.config
        )
        hint = "return a dict of arrays [b, ...], a row an example, in the order of the examples"
        require(isinstance(batch, Mapping), f"collate_fn returned {kind(batch)}", hint)
        shapes = {k: np.shape(v) for k, v in batch.items()}
        wrong = [f"{k!r} has shape {s}" for k, s in shapes.items() if not s or s[0] != count]
        require(not wrong, f"collate_fn of {count} examples: {some(wrong)}", hint)
    if not getattr(job.task, "MIXES_EXAMPLES", False):
        _check_collate_order(job, [pipeline.read(examples, i) for i in range(min(64, pipeline.size(examples)))])


def _check_collate_order(job: Job, examples: list[Mapping[str, Any]]) -> None:
    """Check that reversed examples give a reversed batch, unless equal examples give varying batches."""
    rows, again, backwards = (job.task.collate_fn(list(x), job.config) for x in (examples, examples, examples[::-1]))
    if unequal(rows, again):
        return  # another check reports this
    pairs = {k: (np.asarray(rows[k])[::-1], np.asarray(backwards[k])) for k in rows.keys() & backwards.keys()}
    # Another check reports types that depend on the examples.
    wrong = sorted(k for k, (a, b) in pairs.items() if _entry(a) == _entry(b) and not same(a, b))
    require(
        not wrong,
        f"collate_fn of {len(examples)} examples backwards does not give the rows of {some(wrong)} backwards",
        "row i of the batch is example i: leave none out, repeat none and sort none here; filter in dataset",
    )


def _init_params(subject: Subject) -> Tree:
    """Initialize the parameters as training does: jitted, from the first batch."""
    task, config = subject.task, subject.config

    def init(rng: jax.Array, batch: Any) -> Tree:
        params = task.init(rng, dict(batch), config)
        require_arrays(params)
        return jax.tree.map(lambda x: x, params)

    shapes = jax.eval_shape(init, key(config.seed), subject.batch)
    wrong = [
        f"{leaf_name(path)} is {leaf.dtype}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if leaf.dtype != np.float32
    ]
    hint = "parameters are float32 arrays; constants and counters belong in the code, other types in the model"
    require(not wrong, f"init's parameters: {some(wrong)}", hint)
    few = jax.eval_shape(init, key(config.seed), pick(subject.batch, np.arange(5)))
    paths = [leaf_name(p) for p, leaf in jax.tree_util.tree_leaves_with_path(shapes)]
    leaves = zip(paths, jax.tree.leaves(shapes), jax.tree.leaves(few), strict=False)
    resized = [f"{p} is {list(a.shape)} or {list(b.shape)}" for p, a, b in leaves if a.shape != b.shape]
    detail = f"init's shapes depend on the batch size: {some(resized)}, for {len(subject.batch['mask'])} or 5 examples"
    require(not resized, detail, "take sizes from config and from the other axes of the batch")
    return jax.jit(init, out_shardings=sharding.replicated_sharding(subject.job.mesh))(key(config.seed), subject.batch)


def _check_evaluation(subject: Subject) -> None:
    task, config, evaluate = subject.task, subject.config, tasks.eval_fn(subject.task)
    results: list[Any] = []

    def eval_fn(params: Tree, batch: Any) -> Any:
        mine = jax.tree.map(lambda x: x, params), dict(batch)
        results.append(evaluate(*mine, config))
        require_unchanged("eval_fn", (params, batch), mine)
        return [leaf for leaf in jax.tree.leaves(results[-1]) if hasattr(leaf, "dtype")]

    jax.eval_shape(eval_fn, subject.params, subject.batch)
    require_no_leak(task, "eval_fn")
    check_metrics(results[0], "eval_fn")


def _check_predictions(subject: Subject) -> None:
    if not hasattr(subject.task, "predict_fn"):
        return
    for count in (len(subject.batch["mask"]), 5):
        batch = pick(subject.batch, np.arange(count))
        outputs = jax.eval_shape(
            lambda p, b: subject.task.predict_fn(p, dict(b), key(0), subject.config), subject.params, batch
        )
        require_no_leak(subject.task, "predict_fn")
        leaves = [
            (leaf_name(path) or "output", leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(outputs)
        ]
        hint = "return outputs, such as a dict of arrays, each with one row an example: [b, ...]"
        require(bool(leaves), "predict_fn returned nothing", hint)
        wrong = [f"{path} has shape {list(shape)}" for path, shape in leaves if shape[:1] != (count,)]
        require(not wrong, f"predict_fn of {count} examples: {some(wrong)}", hint)


def _check_other_splits(subject: Subject, splits: dict[str, pipeline.Examples]) -> None:
    """Check that batches of the other splits have train's entries and types, and can be evaluated and predicted."""
    for split, examples in splits.items():
        if split == "train":
            continue
        batch = subject.job.batch_at(examples, subject.job.plan(examples, shuffle=False), 0)
        pairs = {k: (_entry(subject.batch.get(k)), _entry(batch.get(k))) for k in subject.batch | batch}
        differences = [f"{k!r} is {b or 'absent'}, in train {a or 'absent'}" for k, (a, b) in pairs.items() if a != b]
        hint = "give every split the entries, types and shapes of train"
        retyped = [k for k, (a, b) in pairs.items() if a and b and (a[0], len(a[1])) != (b[0], len(b[1]))]
        if retyped and _has_steady_types(subject):
            raise Fault(f"dataset({split!r}, config): {some(differences)}", hint)
        evaluate, predict = tasks.eval_fn(subject.task), getattr(subject.task, "predict_fn", None)
        for function, rest in ((evaluate, (subject.config,)), (predict, (key(0), subject.config))):
            if function is None:
                continue
            try:
                jax.eval_shape(lambda p, b, f=function, r=rest: f(p, dict(b), *r), subject.params, batch)
            except Exception as error:
                if not differences:
                    raise
                raise Fault(
                    f"dataset({split!r}, config): {some(differences)}; {explain(error, subject.task)}", hint
                ) from error


def _check_made_example(subject: Subject) -> None:
    """Check that a made example has the entries and types of the data, and gives parameters of the same shapes."""
    if not hasattr(subject.task, "made_example"):
        return
    job, example = plan.without_data(subject.config, subject.task, subject.job.mesh)
    hint = "give it the entries of dataset or collate_fn: one example, in their types, and the values of model_args"
    data = {name: array for name, array in subject.batch.items() if not name.startswith(pipeline.PARTNER)}
    entries: dict[str, Any] = {
        name: jax.ShapeDtypeStruct((len(data["mask"]), *array.shape), array.dtype) for name, array in example.items()
    }
    entries |= {name: data[name] for name in ("mask", "seed")}
    forms = [{k: f"{x.dtype} of {x.ndim - 1} axes" for k, x in each.items()} for each in (entries, data)]
    pairs = {k: [each.get(k, "absent") for each in forms] for k in entries | data}
    wrong = [f"{k!r} is {made}, in a batch {real}" for k, (made, real) in pairs.items() if made != real]
    require(not wrong, f"made_example: {some(sorted(wrong))}", hint)
    params = jax.eval_shape(lambda batch: job.task.init(key(0), batch, job.config), entries)
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (params, subject.params)]
    require(shapes[0] == shapes[1], "made_example gives parameters of other shapes than the data", hint)


def _has_steady_types(subject: Subject) -> bool:
    """Return whether train's own first batches have equal types; another check reports if not."""
    batches = [subject.job.batch_at(subject.examples, subject.plan, index) for index in range(4)]
    return all({k: _entry(x) for k, x in b.items()} == {k: _entry(x) for k, x in batches[0].items()} for b in batches)


def _entry(array: Any) -> tuple[str, tuple[int, ...]] | None:
    """Return an entry's type, and its shape without the batch axis."""
    return None if array is None else (str(array.dtype), array.shape[1:])
