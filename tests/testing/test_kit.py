"""The kit passes every good task, and each check catches faults planted for it."""

import dataclasses
import random
import time
from types import ModuleType
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx
from jax.experimental.custom_partitioning import custom_partitioning

from jtasks import config, testing
from jtasks.data.batch_plan import BatchPlan
from jtasks.metrics import Mean
from jtasks.ops import augment

SHAPE = "the functions have the contract's shape"
SUM = "loss is the sum of its terms"
COUNTS = "counts do not depend on parameters"
PADDING = "padding changes nothing"
ACCUMULATION = "accumulation agrees"
MESHES = "meshes agree"
EVALUATION = "evaluation does not depend on batch size"
GRADIENTS = "gradients are finite and reach every parameter"
COMPILES = "nothing recompiles after step 1"
OVERFITS = "one batch can be overfitted"
RESUMES = "save and resume agree bit for bit"
SEED = "same seed, same numbers"
PREDICTIONS = "predictions are deterministic given rng"


# A good task: two linear layers tell four kinds of noisy points apart.


def dataset(split, config):
    if split == "valid":
        return None
    draw = np.random.default_rng([config.seed, split == "test"])
    label = draw.integers(0, 4, 60).astype(np.int32)
    point = np.eye(4, 6, dtype=np.float32)[label] * 2 + draw.normal(size=(60, 6)).astype(np.float32)
    return {"point": point, "label": label}


def init(rng, batch, config):
    first, second = jax.random.split(rng)
    return {
        "hidden": {"kernel": 0.4 * jax.random.normal(first, (6, 16)), "bias": jnp.zeros(16)},
        "head": {"kernel": 0.3 * jax.random.normal(second, (16, 4))},
    }


def logits(params, points):
    return jnp.tanh(points @ params["hidden"]["kernel"] + params["hidden"]["bias"][None]) @ params["head"]["kernel"]


def cross_entropy(params, batch):
    log = jax.nn.log_softmax(logits(params, batch["point"]))
    return -jnp.take_along_axis(log, batch["label"][:, None], 1)[:, 0]


def eval_fn(params, batch, config):
    correct = logits(params, batch["point"]).argmax(-1) == batch["label"]
    return {"loss": Mean.of(cross_entropy(params, batch), batch["mask"]), "accuracy": Mean.of(correct, batch["mask"])}


def loss_fn(params, batch, rng, config):
    metrics = eval_fn(params, batch, config)
    return metrics["loss"].value, metrics


def predict_fn(params, batch, rng, config):
    out = logits(params, batch["point"])
    return {"label": out.argmax(-1), "drawn": jax.vmap(jax.random.categorical)(augment.keys(batch["seed"]), out)}


GOOD = {f.__name__: f for f in (dataset, init, loss_fn, eval_fn, predict_fn)}


def module(**changes: Any) -> ModuleType:
    made = ModuleType("planted")
    vars(made).update({name: f for name, f in (GOOD | changes).items() if f is not None})
    return made


def settings(**optim: Any) -> ml_collections.ConfigDict:
    made = ml_collections.ConfigDict({"task": "planted", "seed": 5, "steps": 50, "batch_size": 32, "model": {}})
    made.optim = {"name": "adamw", "lr": 1e-2, **optim}
    return made


def outcome(task: ModuleType | str, config: Any = None) -> dict[str, testing.Result]:
    results = testing.check(task, settings() if config is None else config)
    return {result.name: result for result in results}


def failed(results: dict[str, testing.Result]) -> set[str]:
    return {name for name, result in results.items() if result.passed is False}


def loss_of(values_to_metrics: Any) -> dict[str, Any]:
    """loss_fn and eval_fn from (params, batch, rng) -> metrics."""

    def broken_loss(params, batch, rng, config):
        metrics = values_to_metrics(params, batch, rng)
        return metrics["loss"].value, metrics

    return {"loss_fn": broken_loss, values_to_metrics.__name__: values_to_metrics}


def test_a_good_task_passes():
    results = outcome(module())
    assert {name for name, result in results.items() if result.passed} == set(results), testing.table(
        list(results.values())
    )


TINY = ("model.width=16", "model.depth=1", "model.heads=2")


@pytest.mark.parametrize(
    ("file", "overrides"),
    [
        pytest.param("configs/mnist.py", ["task=jtasks.tasks.mnist", "data.name=digits"], marks=pytest.mark.slow),
        pytest.param("configs/igpt_digits.py", [*TINY, "sample.count=2"], marks=pytest.mark.slow),
        pytest.param(
            "configs/igpt_cifar_classify.py",
            [*TINY, "data.name=digits", "data.num_colors=0", "data.crop=1"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_shipped_tasks_pass(file, overrides):
    results = testing.run(config.load(file, [f"--config.{o}" for o in overrides]))
    assert not failed({r.name: r for r in results}), testing.table(results)
    assert [r.name for r in results if r.passed is None] == []


def vector_loss(params, batch, rng, config):
    return cross_entropy(params, batch), eval_fn(params, batch, config)


def detached_loss(params, batch, rng, config):
    metrics = eval_fn(params, batch, config)
    return 1.0, metrics


def array_metrics(params, batch, config):
    return {"loss": cross_entropy(params, batch).mean()}


def mutating_loss(params, batch, rng, config):
    batch["point"] = batch["point"] * 2
    return loss_fn(params, batch, rng, config)


def branching_loss(params, batch, rng, config):
    metrics = eval_fn(params, batch, config)
    if metrics["loss"].value > 100:
        return metrics["loss"].value * 0, metrics
    return metrics["loss"].value, metrics


def misnamed_entry(params, batch, config):
    return eval_fn(params, batch | {"point": batch["points"]}, config)


def swapped(batch, params, rng, config):
    return loss_fn(params, batch, rng, config)


KEPT: list[Any] = []


def leaking_loss(params, batch, rng, config):
    KEPT.append(params["head"]["kernel"] * 2)
    return loss_fn(params, batch, rng, config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss_fn": None}, "loss_fn(params, batch, rng, config)"),
        ({"loss_fn": swapped}, "another order"),
        ({"loss_fn": lambda params, batch, config: 0}, "loss_fn(params, batch, config) must take"),
        ({"loss_fn": vector_loss}, "float32[16]"),
        ({"loss_fn": detached_loss}, "float"),
        ({"loss_fn": lambda params, batch, rng, config: eval_fn(params, batch, config)}, "loss_fn returned a dict"),
        ({"loss_fn": mutating_loss}, "changes its argument batch: point"),
        ({"loss_fn": branching_loss}, "if metrics["),
        ({"loss_fn": leaking_loss, "KEPT": KEPT}, "variable KEPT"),
        ({"eval_fn": misnamed_entry}, "eval_fn raised KeyError: 'points'"),
        ({"eval_fn": array_metrics}, "metric 'loss' is an array float32[], not a Mean"),
        ({"LOSSES": ("loss", "penalty")}, "a term of the loss is a Loss.of"),
        ({"init": lambda rng, batch, config: {}}, "a dict without arrays"),
        ({"init": lambda rng, batch, config: init(rng, batch, config) | {"n": jnp.int32(3)}}, "n is int32"),
        ({"init": lambda rng, batch, config: init(rng, batch, config) | {"n": 3.0}}, "n is a float"),
        ({"init": lambda rng, batch, config: {"x": jnp.zeros(len(batch["mask"]))}}, "depend on the batch size: x"),
        ({"dataset": lambda split, config: iter([])}, "dataset('train', config) returned a list_iterator"),
        ({"dataset": lambda split, config: {"point": np.ones((3, 6)), "label": np.ones(4)}}, "unequal lengths"),
        ({"dataset": lambda split, config: dataset("train", config) | {"mask": np.ones(60)}}, "'mask'"),
        ({"predict_fn": lambda params, batch, rng, config: jnp.float32(1)}, "has shape []"),
        ({"predict_fn": lambda params, batch, rng, config: undefined}, "name 'undefined' is not defined"),  # noqa: F821
        ({"collate_fn": lambda examples, config: {"point": np.ones((3, 6))}}, "collate_fn of 5 examples: 'point'"),
    ],
)
def test_a_wrong_shape_is_told(changes, words):
    KEPT.clear()
    results = outcome(module(**changes))
    assert failed(results) == {SHAPE}
    assert words in results[SHAPE].detail and results[SHAPE].hint
    assert all(result.passed is None for name, result in results.items() if name != SHAPE)


def test_an_exception_names_function_and_line():
    results = outcome(module(eval_fn=misnamed_entry))
    assert "test_kit.py" in results[SHAPE].detail and 'batch["points"]' in results[SHAPE].detail


def test_a_misspelled_function_is_noted():
    def predict(params, batch, rng, config):
        return None

    predict.__module__ = "planted"
    results = outcome(module(predict=predict, predict_fn=None, MIXES_EXAMPLE=True))
    assert "did you mean predict_fn?" in results[SHAPE].detail
    assert "did you mean MIXES_EXAMPLES?" in results[SHAPE].detail
    assert results[PREDICTIONS].passed is None


# One planted fault each: what is replaced, the checks that fail, and words of the first one's message.


def unmasked_loss(params, batch, rng, config):
    return cross_entropy(params, batch).mean(), eval_fn(params, batch, config)


def weighted_loss(params, batch, rng, config):
    metrics = eval_fn(params, batch, config)
    return metrics["loss"].value + 0.1 * jnp.square(params["head"]["kernel"]).sum(), metrics


def stopped_terms(params, batch, rng, config):
    metrics = eval_fn(params, batch, config)
    loss = metrics["loss"]
    return loss.value, metrics | {"loss": Mean(jax.lax.stop_gradient(loss.total), loss.count)}


def confident(params, batch, rng):
    values = cross_entropy(params, batch)
    return {"loss": Mean.of(values, batch["mask"] * (values > 0.3))}


def barely_dependent(params, batch, rng):
    mean = Mean.of(cross_entropy(params, batch), batch["mask"])
    return {"loss": Mean(mean.total, mean.count + (params["head"]["kernel"].max() > 1e6))}


def no_mask(params, batch, rng):
    return {"loss": Mean.of(cross_entropy(params, batch))}


def count_without_mask(params, batch, rng):
    values = cross_entropy(params, batch) * batch["mask"]
    return {"loss": Mean(values.sum(), values.shape[0])}


def metric_without_mask(params, batch, rng):
    good = eval_fn(params, batch, None)
    return good | {"accuracy": Mean.of(logits(params, batch["point"]).argmax(-1) == batch["label"])}


def normalized(batch, mask):
    points, weight = batch["point"], mask[:, None] / mask.sum()
    mean = (points * weight).sum(0)
    return batch | {
        "point": (points - mean[None]) / jnp.sqrt(1e-3 + (jnp.square(points - mean[None]) * weight).sum(0))[None]
    }


def batch_norm(params, batch, rng):
    return eval_fn(params, normalized(batch, jnp.ones_like(batch["mask"])), None)


def masked_batch_norm(params, batch, rng):
    return eval_fn(params, normalized(batch, batch["mask"] + 1e-9), None)


def mean_of_means(params, batch, rng):
    return {"loss": Mean(Mean.of(cross_entropy(params, batch), batch["mask"]).value, 1.0)}


def nan_when_empty(params, batch, rng):
    mean = Mean.of(cross_entropy(params, batch), batch["mask"])
    return {"loss": Mean(mean.total / mean.count * mean.count, mean.count)}


def contrastive(params, batch, rng):
    features = logits(params, batch["point"])
    same = features @ jnp.eye(4)[batch["label"]].T - 1e9 * (1 - batch["mask"][None])
    return {"loss": Mean.of(-jnp.diagonal(jax.nn.log_softmax(same)), batch["mask"])}


def by_position(params, batch, config):
    good = eval_fn(params, batch, config)
    weight = jnp.arange(len(batch["mask"])) + 1.0
    return good | {"loss": Mean.of(cross_entropy(params, batch) * weight, batch["mask"])}


def eval_of_means(params, batch, config):
    good = eval_fn(params, batch, config)
    return good | {"accuracy": Mean(good["accuracy"].value, 1)}


def eval_batch_norm(params, batch, config):
    return masked_batch_norm(params, batch, None)


def unused(rng, batch, config):
    return init(rng, batch, config) | {"spare": {"kernel": jax.random.normal(rng, (3,))}}


def stopped_hidden(params, batch, rng):
    return eval_fn(params | {"hidden": jax.lax.stop_gradient(params["hidden"])}, batch, None)


def root_of_zero(params, batch, rng):
    values = cross_entropy(params, batch) + jnp.sqrt(0 * params["head"]["kernel"].sum())
    return {"loss": Mean.of(values, batch["mask"])}


def log_of_zero(params, batch, rng):
    values = cross_entropy(params, batch) + jnp.log(params["hidden"]["bias"] ** 2).sum()
    return {"loss": Mean.of(values, batch["mask"])}


def ragged(examples, config):
    batch = {name: np.stack([row[name] for row in examples]) for name in examples[0]}
    return batch | {"tail": np.zeros((len(examples), 1 + int(examples[0]["label"])), np.float32)}


def retyped(examples, config):
    batch = {name: np.stack([row[name] for row in examples]) for name in examples[0]}
    return batch | {"label": batch["label"].astype(np.int8 if batch["label"][0] else np.int32)}


def weakly_typed(rng, batch, config):
    params = init(rng, batch, config)
    return params | {"hidden": params["hidden"] | {"bias": jnp.full(16, 0.0)}}


def maximised(params, batch, rng):
    good = eval_fn(params, batch, None)
    return good | {"loss": Mean(-good["loss"].total, good["loss"].count)}


def labels_from_rng(params, batch, rng):
    labels = jax.random.randint(rng, batch["label"].shape, 0, 4)
    return {"loss": Mean.of(cross_entropy(params, batch | {"label": labels}), batch["mask"])}


def blind(params, batch, rng):
    return eval_fn(params, batch | {"point": jnp.ones_like(batch["point"])}, None)


def numpy_noise(params, batch, rng):
    return eval_fn(params, batch | {"point": batch["point"] + np.random.normal()}, None)


def python_noise(params, batch, rng):
    return eval_fn(params, batch | {"point": batch["point"] * (1 + 0.01 * random.random())}, None)


def clock(params, batch, rng):
    return eval_fn(params, batch | {"point": batch["point"] * (time.time() % 7)}, None)


CALLS = [0]


def counting(params, batch, rng):
    CALLS[0] += 1
    return eval_fn(params, batch | {"point": batch["point"] * (1 + 0.1 * CALLS[0])}, None)


@jax.jit
def jitted_noise(x):
    return x + np.random.normal()


def hidden_noise(params, batch, config):
    return eval_fn(params, batch | {"point": jitted_noise(batch["point"])}, config)


def noisy_dataset(split, config):
    return None if split == "valid" else {**dataset(split, config), "point": np.random.normal(size=(60, 6)).astype("f")}


def noisy_collate(examples, config):
    points = np.stack([row["point"] for row in examples]) + np.random.normal(size=(len(examples), 6))
    return {"point": points.astype(np.float32), "label": np.stack([row["label"] for row in examples])}


def curriculum(examples, config):
    CALLS[0] += 1
    points = np.stack([row["point"] for row in examples]) * np.float32(1 + CALLS[0])
    return {"point": points, "label": np.stack([row["label"] for row in examples])}


def seedless(rng, batch, config):
    return init(jax.random.key(0), batch, config)


def drawn_from_rng(params, batch, rng, config):
    return jax.random.categorical(rng, logits(params, batch["point"]))


def predicted_with_statistics(params, batch, rng, config):
    return logits(params, normalized(batch, jnp.ones_like(batch["mask"]))["point"])


def predicted_with_numpy(params, batch, rng, config):
    return logits(params, batch["point"]) + np.random.normal()


@custom_partitioning
def local_sum(x):
    return x.sum()


def local_partition(mesh, arguments, result):
    whole = jax.NamedSharding(mesh, jax.P())
    return mesh, local_sum.fun, whole, (jax.NamedSharding(mesh, jax.P("data")),)


local_sum.def_partition(local_partition, sharding_rule="i -> ", propagate_user_sharding=None)


def summed_a_device(params, batch, rng):
    """A partitioning rule of one's own that forgets the sum over devices."""
    weight = jax.lax.stop_gradient(local_sum(batch["mask"] * jnp.square(batch["point"]).sum(1)) * 0 + 1)
    total = local_sum(batch["mask"])
    good = eval_fn(params, batch, None)
    return good | {"rows": Mean(total * weight, batch["mask"].sum())}


@pytest.mark.parametrize(
    ("changes", "checks", "words"),
    [
        ({"loss_fn": unmasked_loss}, {SUM}, "on a padded batch the loss is"),
        ({"loss_fn": weighted_loss}, {SUM}, "on a whole batch the loss is"),
        # Training sees no gradient at all, so these two fail as well.
        ({"loss_fn": stopped_terms}, {SUM, GRADIENTS, OVERFITS}, "gradient of the loss and that of its terms"),
        (
            loss_of(lambda p, b, r: eval_fn(p, b, None) | {"loss": Mean(jnp.float32(3), 1)}),
            {GRADIENTS, OVERFITS},
            "3 of 3",
        ),
        (loss_of(confident), {COUNTS}, "the count of 'loss' is"),
        (loss_of(barely_dependent), {COUNTS}, "the count of 'loss' is"),
        (loss_of(no_mask), {PADDING}, "the total of 'loss' goes from"),
        (loss_of(count_without_mask), {PADDING}, "the count of 'loss' is 11 for 11 examples alone, 16 with 5"),
        (loss_of(metric_without_mask), {PADDING}, "the total of 'accuracy' goes from"),
        (loss_of(batch_norm), {PADDING, ACCUMULATION}, "goes from"),
        (loss_of(nan_when_empty), {PADDING, ACCUMULATION}, "every row is padding"),
        (loss_of(masked_batch_norm), {ACCUMULATION}, "rows act on each other"),
        (loss_of(mean_of_means), {ACCUMULATION}, "mean of means"),
        (loss_of(contrastive), {ACCUMULATION}, "MIXES_EXAMPLES = True"),
        ({"eval_fn": by_position}, {EVALUATION}, "'loss' over 29 examples is"),
        ({"eval_fn": eval_of_means}, {EVALUATION}, "'accuracy' over 29 examples is"),
        ({"eval_fn": eval_batch_norm}, {EVALUATION}, "in batches of"),
        ({"init": unused}, {GRADIENTS}, "spare/kernel"),
        (loss_of(stopped_hidden), {GRADIENTS}, "hidden/bias, hidden/kernel"),
        (loss_of(root_of_zero), {GRADIENTS}, "jnp.sqrt(0"),
        (loss_of(log_of_zero), {GRADIENTS}, "jnp.log(params"),
        ({"collate_fn": ragged}, {COMPILES}, "'tail' is float32[16,"),
        ({"collate_fn": retyped}, {COMPILES}, "'label' is int"),
        (loss_of(summed_a_device), {MESHES}, "on one device"),
        ({"init": weakly_typed}, {COMPILES}, "hidden/bias: float32[16] (weak) -> float32[16]"),
        (loss_of(maximised), {OVERFITS}, "'accuracy' fell from"),
        (loss_of(labels_from_rng), {OVERFITS}, "the loss on 8 examples went from"),
        (loss_of(blind), {OVERFITS}, "the loss on 8 examples went from"),
        (loss_of(numpy_noise), {SEED, RESUMES}, "loss_fn gives other numbers when traced again"),
        (loss_of(python_noise), {SEED, RESUMES}, "random.random()"),
        (loss_of(clock), {SEED, RESUMES}, "time.time()"),
        (loss_of(counting) | {"CALLS": CALLS}, {SEED, RESUMES}, "CALLS = "),
        ({"eval_fn": hidden_noise, "jitted_noise": jitted_noise}, {SEED}, "eval_fn gives other numbers"),
        ({"dataset": noisy_dataset}, {SEED}, "other values of point when called again"),
        ({"collate_fn": noisy_collate}, {SEED, RESUMES}, "collate_fn: point of the same batch differs"),
        ({"collate_fn": curriculum}, {SEED, RESUMES}, "collate_fn: point of the same batch differs"),
        ({"init": seedless}, {SEED}, "init ignores rng"),
        ({"predict_fn": drawn_from_rng}, {PREDICTIONS}, "output of an example changes"),
        ({"predict_fn": predicted_with_statistics}, {PREDICTIONS}, "changes beside other examples"),
        ({"predict_fn": predicted_with_numpy}, {PREDICTIONS}, "when traced again with the same rng"),
        ({"score_fn": lambda examples, outputs, config: {"bleu": float("nan")}}, {PREDICTIONS}, "'bleu' is nan"),
    ],
)
def test_a_planted_fault_is_caught_by_its_check(changes, checks, words):
    results = outcome(module(**changes))
    assert failed(results) == checks, testing.table(list(results.values()))
    texts = [results[name].detail + results[name].hint for name in checks]
    assert any(words in text for text in texts), texts
    assert all(results[name].hint for name in checks)


# Kinds of faults and of good tasks that other tests do not plant.


def with_split(split, change):
    """dataset with a valid and test split like train, of which one is changed."""

    def split_dataset(name, config):
        made = dataset("train", config)
        return change(made) if name == split else made

    return {"dataset": split_dataset}


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d | {"point": d["point"][:, :5]}, "'point' is ('float32', (5,)), in train ('float32', (6,))"),
        (lambda d: {"point": d["point"]}, "'label' is absent"),
        (lambda d: d | {"point": d["point"].astype(np.uint8)}, "'point' is ('uint8', (6,))"),
        (lambda d: d | {"label": d["label"][:, None]}, "'label' is ('int32', (1,))"),
    ],
)
def test_another_split_of_another_form_is_told(split, change, words):
    results = outcome(module(**with_split(split, change)))
    assert failed(results) == {SHAPE}
    assert split in results[SHAPE].detail and words in results[SHAPE].detail, results[SHAPE].detail


def test_splits_may_be_smaller_and_have_more_entries():
    results = outcome(module(**with_split("valid", lambda d: {k: v[:3] for k, v in d.items()} | {"id": np.arange(3)})))
    assert not failed(results)


def by_devices(params, batch, rng):
    good = eval_fn(params, batch, None)
    return good | {"loss": Mean(good["loss"].total * len(jax.devices()), good["loss"].count)}


def eval_by_devices(params, batch, config):
    good = eval_fn(params, batch, config)
    return good | {"loss": Mean(good["loss"].total / jax.device_count(), good["loss"].count)}


def without_labels(examples, config):
    kept = [row for row in examples if row["label"]]
    kept = (kept * len(examples))[: len(examples)]
    return {name: np.stack([row[name] for row in kept]) for name in kept[0]}


def label_of_nothing(examples, outputs, config):
    return {
        "accuracy": np.mean(
            [output["class"] == example["label"] for example, output in zip(examples, outputs, strict=True)]
        )
    }


def far_labels(split, config):
    made = dataset(split, config)
    return None if made is None else made | {"label": made["label"] * 2}


def constant_dropout(params, batch, rng, config):
    kept = jax.random.bernoulli(jax.random.key(0), 0.9, batch["point"].shape)
    metrics = eval_fn(params, batch | {"point": batch["point"] * kept}, config)
    return metrics["loss"].value, metrics


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        (loss_of(by_devices), MESHES, "where jax.devices() lists one device"),
        ({"eval_fn": eval_by_devices}, MESHES, "eval_fn's 'loss' is"),
        ({"collate_fn": without_labels}, SHAPE, "leave none out, repeat none"),
        ({"score_fn": label_of_nothing}, PREDICTIONS, "what predict_fn gave for that row"),
        ({"score_fn": lambda examples, outputs, config: {"bleu": "high"}}, PREDICTIONS, "'bleu' is 'high'"),
        ({"score_fn": lambda examples, outputs, config: {"bleu": None}}, PREDICTIONS, "'bleu' is None"),
        ({"export_fn": lambda examples, outputs, config: ["text"]}, PREDICTIONS, "export_fn returned a list"),
        ({"dataset": far_labels}, GRADIENTS, "labels and tokens must be numbers from 0"),
    ],
)
def test_further_faults_have_hints_that_fit(changes, check, words):
    results = outcome(module(**changes))
    assert check in failed(results)
    assert words in results[check].detail + results[check].hint, results[check]


def test_dropout_with_a_key_of_its_own_is_told():
    made = settings()
    made.model.dropout = 0.1
    results = outcome(module(loss_fn=constant_dropout), made)
    assert "the same numbers for every rng" in results[SEED].detail
    assert "jax.random.key(0), 0.9" in results[SEED].hint


def test_without_batches_of_one_shape_gradients_are_not_judged():
    sizes = iter(range(1, 1000))

    def growing(examples, config):
        return ragged([examples[0] | {"label": next(sizes)}, *examples[1:]], config)

    assert outcome(module(collate_fn=growing))[GRADIENTS].passed is None


def test_an_accuracy_that_a_contrastive_loss_does_not_train_is_no_fault():
    def falling(params, batch, rng):
        good = contrastive(params, batch, rng)
        low = jnp.broadcast_to(jnp.abs(params["head"]["kernel"]).sum() < 9.5, batch["mask"].shape)
        return good | {"accuracy": Mean.of(low, batch["mask"])}

    def evaluate(params, batch, config):
        return falling(params, batch, None)

    assert not failed(outcome(module(**loss_of(falling), eval_fn=evaluate, MIXES_EXAMPLES=True)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Weights:
    """Parameters as a class, as Equinox has them."""

    hidden: dict[str, Any]
    head: dict[str, Any]


TREES = {
    "dataclass": (lambda d: Weights(**d), vars),
    "nnx": (lambda d: nnx.State(jax.tree.map(nnx.Param, d)), nnx.to_pure_dict),
    "list": (lambda d: [d["hidden"], d["head"]], lambda p: {"hidden": p[0], "head": p[1]}),
    "FrozenDict": (flax.core.freeze, flax.core.unfreeze),
}


@pytest.mark.parametrize("kind", TREES)
def test_parameters_may_be_any_pytree(kind):
    wrap, unwrap = TREES[kind]
    changes = {
        "init": lambda rng, batch, config: wrap(init(rng, batch, config)),
        "loss_fn": lambda params, batch, rng, config: loss_fn(unwrap(params), batch, rng, config),
        "eval_fn": lambda params, batch, config: eval_fn(unwrap(params), batch, config),
        "predict_fn": lambda params, batch, rng, config: predict_fn(unwrap(params), batch, rng, config),
    }
    results = outcome(module(**changes))
    assert not failed(results), testing.table(list(results.values()))


def test_a_module_that_is_no_pytree_of_arrays_names_the_conversion():
    results = outcome(module(init=lambda rng, batch, config: Weights(hidden={"activation": jnp.tanh}, head={})))
    assert failed(results) == {SHAPE}
    assert "nnx.to_pure_dict" in results[SHAPE].hint and "equinox.partition" in results[SHAPE].hint


def test_skipped_comparisons_name_what_they_need():
    results = outcome(module(**loss_of(python_noise)))
    assert results[PADDING].passed is None and SEED in results[PADDING].detail


def test_declared_mixing_is_no_fault():
    results = outcome(module(**loss_of(contrastive), MIXES_EXAMPLES=True))
    assert not failed(results)
    assert results[ACCUMULATION].passed is None and "MIXES_EXAMPLES" in results[ACCUMULATION].detail


def test_frozen_parameters_are_named():
    results = outcome(module(**loss_of(stopped_hidden)), settings(freeze="hidden"))
    assert results[GRADIENTS].passed and "frozen: hidden/bias, hidden/kernel" in results[GRADIENTS].detail


def test_a_task_that_cannot_be_imported_is_a_failed_check():
    results = outcome("jtasks.tasks.mnits")
    assert "did you mean jtasks.tasks.mnist?" in results[SHAPE].detail


def test_the_table_shows_hints_below_failures():
    text = testing.table([testing.Result("good", True, "1"), testing.Result("bad", False, "2", "mend it")])
    assert text.splitlines() == [
        "pass  good: 1",
        "FAIL  bad: 2",
        "      -> mend it",
        "1 passed, 1 failed, 0 skipped",
    ]


PLANTED = """
import jax.numpy as jnp
import numpy as np
from jtasks.metrics import Mean

def dataset(split, config):
    return {"x": np.where(np.arange(32) == 20, -1, 1 + np.arange(32)).astype("f")} if split == "train" else None

def init(rng, batch, config):
    return {"w": jnp.ones(())}

def eval_fn(params, batch, config):
    logarithm = jnp.log(batch["x"] * params["w"])
    return {"loss": Mean.of(jnp.square(logarithm), batch["mask"])}

def loss_fn(params, batch, rng, config):
    metrics = eval_fn(params, batch, config)
    return metrics["loss"].value, metrics
"""


@pytest.mark.parametrize("accumulate", [1, 2])
def test_replay_names_the_examples_and_the_line(tmp_path, accumulate):
    file = tmp_path / "planted.py"
    file.write_text(PLANTED)
    made = config.defaults()
    made.task, made.steps, made.batch_size, made.accumulate = str(file), 4, 16, accumulate
    bad = [20 in config_order(made, step) for step in (1, 2)].index(True) + 1
    text = testing.replay(config.Config(made), tmp_path / "run", bad)
    assert str(config_order(made, bad)) in text
    assert "not finite in metrics: loss/total" in text and "not finite in gradient: w" in text
    assert "logarithm = jnp.log(" in text
    if bad == 2:
        assert "1 steps of training" in text
    else:
        assert "everything is finite" not in text


def config_order(made, step):
    indices, _ = BatchPlan(32, made.seed, 16, shuffle=True).at(np.arange(16) + 16 * (step - 1))
    return indices.tolist()
