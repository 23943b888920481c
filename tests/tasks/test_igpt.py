"""Claims about the shipped tasks, and about one of a user's own."""

import functools

import jax
import ml_collections
import numpy as np
import optax
import pytest
import tiny

from jtasks import config as configs
from jtasks import models, optim, task
from jtasks.data import pipeline
from jtasks.distributed import sharding
from jtasks.metrics import Loss
from jtasks.ops import palette
from jtasks.run import job, step

RNG = jax.random.key(0)
TASKS = pytest.mark.parametrize("name", tiny.TASKS)
ROTATION = str(tiny.ROOT / "tests" / "data_tasks" / "rotation.py")


def module(name):
    return task.load(f"jtasks.tasks.{tiny.module(name)}")


def terms_of(metrics):
    return [mean for mean in metrics.values() if isinstance(mean, Loss)]


@functools.cache
def losses(name):
    """value_and_grad of the task's loss as it stands, config static."""
    return jax.jit(jax.value_and_grad(module(name).loss_fn, has_aux=True), static_argnames="config")


@functools.cache
def evaluated(name):
    return jax.jit(module(name).eval_fn, static_argnames="config")


@TASKS
def test_the_loss_is_the_sum_of_its_terms_and_differentiable_under_jit(name):
    params = tiny.params(name)
    (loss, metrics), gradient = losses(name)(params, tiny.batch(8), RNG, config=tiny.config(name))
    assert loss.shape == () and np.isfinite(loss)
    terms = terms_of(metrics)
    np.testing.assert_allclose(loss, sum(t.weight * float(t.total) / float(t.count) for t in terms), rtol=1e-6)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(gradient))


@TASKS
def test_evaluation_has_the_loss_terms_among_its_metrics(name):
    metrics = evaluated(name)(tiny.params(name), tiny.batch(8), config=tiny.config(name))
    assert len(terms_of(metrics)) == (2 if name == "classifier" else 1)


@TASKS
def test_padding_changes_nothing(name):
    params, config, real = tiny.params(name), tiny.config(name), tiny.batch(8)
    junk = {key: np.full((8, *value.shape[1:]), 9, value.dtype) for key, value in real.items()} | {"mask": np.zeros(8)}
    both = {key: np.concatenate([real[key], junk[key]]).astype(real[key].dtype) for key in real}
    shuffled = {key: value[np.random.default_rng(0).permutation(16)] for key, value in both.items()}
    (loss, metrics), gradient = losses(name)(params, real, RNG, config=config)
    evaluation = evaluated(name)(params, real, config=config)
    (other_loss, other), other_gradient = losses(name)(params, shuffled, RNG, config=config)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    for one, two in ((metrics, other), (evaluation, evaluated(name)(params, shuffled, config=config))):
        for key in one:
            assert float(one[key].count) == float(two[key].count)
            np.testing.assert_allclose(one[key].total, two[key].total, rtol=1e-5)
    difference = optax.tree.norm(jax.tree.map(np.subtract, gradient, other_gradient))
    assert difference < 1e-4 * optax.tree.norm(gradient)


@TASKS
def test_the_number_of_examples_does_not_scale_the_loss(name):
    twice = {key: np.concatenate([value, value]) for key, value in tiny.batch(8).items()}
    (loss, _), _ = losses(name)(tiny.params(name), tiny.batch(8), RNG, config=tiny.config(name))
    (other, _), _ = losses(name)(tiny.params(name), twice, RNG, config=tiny.config(name))
    np.testing.assert_allclose(other, loss, rtol=1e-5)


@TASKS
def test_a_fresh_model_is_as_good_as_guessing(name):
    config = tiny.config(name)
    params = jax.jit(module(name).init, static_argnames="config")(RNG, tiny.batch(8), config=config)
    metrics = jax.device_get(evaluated(name)(params, tiny.batch(64), config=config))
    guess = {"mnist": ("loss", 10), "igpt": ("loss", 17), "classifier": ("classification", 10)}[name]
    np.testing.assert_allclose(metrics[guess[0]].total / metrics[guess[0]].count, np.log(guess[1]), rtol=0.3)


@pytest.mark.parametrize("name", ["igpt", "classifier"])
def test_bits_are_nats_over_log_2(name):
    metrics = evaluated(name)(tiny.params(name), tiny.batch(8), config=tiny.config(name))
    nats = metrics["loss" if name == "igpt" else "generation"].value
    np.testing.assert_allclose(metrics["bits"].value, nats / np.log(2), rtol=1e-6)


def test_mnist_drops_out_in_training_only():
    config = tiny.config("mnist", model__dropout=True)
    params, batch = tiny.params("mnist"), tiny.batch(8)
    (one, _), _ = losses("mnist")(params, batch, jax.random.key(1), config=config)
    (two, _), _ = losses("mnist")(params, batch, jax.random.key(2), config=config)
    assert float(one) != float(two)
    (off, _), _ = losses("mnist")(params, batch, RNG, config=tiny.config("mnist"))
    np.testing.assert_allclose(evaluated("mnist")(params, batch, config=config)["loss"].value, off, rtol=1e-5)


@pytest.mark.parametrize("name", ["mnist", "classifier"])
def test_a_predicted_class_is_the_likeliest_and_accuracy_counts_it(name):
    config, params, batch = tiny.config(name), tiny.params(name), tiny.batch(32)
    outputs = jax.jit(module(name).predict_fn, static_argnames="config")(params, batch, RNG, config=config)
    assert outputs["label"].shape == outputs["probability"].shape == (32,)
    assert ((outputs["probability"] >= 0.1) & (outputs["probability"] <= 1)).all()
    metrics = evaluated(name)(params, batch, config=config)
    assert float(metrics["accuracy"].total) == (np.asarray(outputs["label"]) == batch["label"]).sum()


@functools.cache
def completed(**sampling):
    config = tiny.config("igpt", **{f"sample__{key}": value for key, value in sampling.items()})
    run = jax.jit(module("igpt").predict_fn, static_argnames="config")
    return np.asarray(run(tiny.params("igpt"), tiny.batch(6), RNG, config=config)["tokens"])


@pytest.mark.parametrize("given", [0.0, 0.25, 0.5])
def test_igpt_keeps_the_given_part_and_completes_the_rest_in_range(given):
    tokens, kept = completed(given=given, count=3), round(8 * given) * 8
    original = np.asarray(palette.nearest(tiny.batch(6)["image"], tiny.GRAYS))
    assert tokens.shape == (6, 3, 64) and tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens[:, :, :kept], np.broadcast_to(original[:, None, :kept], (6, 3, kept)))
    assert tokens.min() >= 0 and tokens.max() < 17
    assert len(np.unique(tokens.reshape(18, -1), axis=0)) == 18  # samples differ from each other


def test_igpt_completes_with_what_the_model_thinks_likeliest():
    tokens = completed(count=1, temperature=0.0)[:, 0]
    config, params = tiny.config("igpt"), tiny.params("igpt")
    model = models.GPT(vocab=18, outputs=17, max_length=64, **tiny.GPT)
    assert config.model.num_colors == 17
    logits = jax.jit(model.apply)({"params": params}, models.shift_right(tokens, 17))
    best = np.asarray(logits).argmax(-1)
    assert (best[:, 32:] == tokens[:, 32:]).mean() > 0.99


def test_a_classifier_has_the_parameters_of_igpt_and_a_classifier():
    shapes = {
        name: {path: leaf.shape for path, leaf in zip(optim.paths(p), jax.tree.leaves(p), strict=True)}
        for name in ("igpt", "classifier")
        for p in [tiny.params(name)]
    }
    more = dict(shapes["classifier"].items() - shapes["igpt"].items())
    assert shapes["igpt"].items() <= shapes["classifier"].items()
    assert more == {"classifier/kernel": (16, 10), "classifier/bias": (10,)}


def test_a_classifier_generates_as_igpt_does():
    params = {name: leaf for name, leaf in tiny.params("classifier").items() if name != "classifier"}
    nats = evaluated("igpt")(params, tiny.batch(8), config=tiny.config("igpt"))["loss"]
    joint = evaluated("classifier")(tiny.params("classifier"), tiny.batch(8), config=tiny.config("classifier"))
    np.testing.assert_allclose(joint["generation"].value, nats.value, rtol=1e-5)
    assert joint["generation"].weight == 0.5  # config.generation


def test_the_probe_trains_the_classifier_alone(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    probe = configs.load("configs/igpt_cifar_probe.py")
    trainable = optim.trainable(probe.optim, tiny.params("classifier"))
    trained = [path for path, train in zip(optim.paths(trainable), jax.tree.leaves(trainable), strict=True) if train]
    assert trained == ["classifier/bias", "classifier/kernel"]
    assert probe.generation == 0 and probe.model.layer == probe.model.depth // 2


def test_the_probe_reads_its_layer_and_no_later_one():
    config = tiny.config("classifier", model__layer=1, generation=0.0)
    _, gradient = losses("classifier")(tiny.params("classifier"), tiny.batch(8), RNG, config=config)
    up = np.abs(gradient["blocks"]["up"]["kernel"]).max((1, 2))
    assert up[0] > 0 and up[1] == 0


def test_palette_and_sizes_come_from_the_data(tmp_path):
    for name in ("igpt", "classifier"):
        empty = dict.fromkeys(("model__palette", "model__num_colors", "model__shape", "model__positions"))
        config = tiny.config(name, **empty, data__dir=str(tmp_path), data__num_colors=0)
        found = job.prepare(config).config.model
        assert (found.palette, found.num_colors, found.shape, found.max_length) == (tiny.GRAYS, 17, (8, 8), 64)
    assert job.prepare(tiny.config("mnist", model__classes=None)).config.model.classes == 10


def train(prepared, steps):
    """The library's step over the pipeline's batches; the losses."""
    config, mesh = prepared.config, prepared.mesh
    examples = prepared.require("train")
    plan = prepared.plan(examples, shuffle=True)
    params = jax.jit(lambda batch: prepared.task.init(RNG, batch, config))(prepared.batch_at(examples, plan, 0))
    optimizer, schedule = optim.optimizer(config.optim, steps, params)
    trainable = optim.trainable(config.optim, params)
    run = jax.jit(step.make_train_step(prepared.task, config, optimizer, schedule, trainable, mesh))
    state, found = step.init_state(params, optimizer, ema=False), []
    for batch in pipeline.batches(examples, plan, range(steps), sharding.batch_sharding(mesh)):
        state, report = run(state, batch)
        found.append(float(report.metrics["loss"].value))
    return found


def test_a_task_in_a_file_of_the_users_own_trains():
    config = configs.load(ROTATION)
    prepared = job.prepare(config)
    found = train(prepared, config.steps)
    assert len(found) == 5 and np.isfinite(found).all()
    np.testing.assert_allclose(found[0], np.log(4), rtol=0.3)


def test_the_users_task_turns_each_image_by_its_own_key():
    batch = tiny.batch(40)
    images, turns = jax.jit(task.load(ROTATION).rotated)(batch)
    assert set(np.asarray(turns).tolist()) == {0, 1, 2, 3}
    for image, turned, k in zip(batch["image"], images, turns, strict=True):
        np.testing.assert_allclose(turned, np.rot90(image, int(k)) / 8 - 1, atol=1e-6)


def test_a_config_with_an_unknown_data_set_says_so():
    with pytest.raises(configs.ConfigError, match="unknown data set 'digit'"):
        job.prepare(tiny.config("mnist", data=ml_collections.ConfigDict({"name": "digit", "dir": None})))
