"""Claims about losses that compare the examples of a batch: loss and gradient are those of the whole, however split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from data_tasks import pairs
from jax.sharding import AxisType

from jtasks import config as configs
from jtasks.data import pipeline
from jtasks.distributed import sharding
from jtasks.metrics import total
from jtasks.run.gradient import gradient_fn
from jtasks.run.job import Job

RNG = jax.random.key(4)
N = 40  # examples of the step's batch: 16 microbatches pad it, and so do shares


@functools.cache
def job(sizes=(1,), model=(), **fields):
    config = configs.defaults()
    with config.unlocked():
        config.update(pairs.get_config())
        config.update({"batch_size": N, **fields})
        config.model.update(dict(model))
    axes = ("data", "fsdp", "tensor")[: len(sizes)]
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = jax.make_mesh(sizes, axes, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)
    return Job(pairs, configs.Config(config), mesh)


EXAMPLES = pairs.dataset("train", None)


@functools.cache
def params(loss):
    return jax.device_get(pairs.init(jax.random.key(0), EXAMPLES, job(model=(("loss", loss),)).config))


def measured(made):
    """Gradient and metrics of a step's batch."""
    plan = made.plan(EXAMPLES, shuffle=True)
    measure = jax.jit(gradient_fn(pairs, made.config, made.mesh), out_shardings=sharding.replicated_sharding(made.mesh))
    tree = params(made.config.model.loss)
    held = jax.device_put(tree, made.shardings(tree, tree))
    return jax.device_get(measure(held, made.batch_at(EXAMPLES, plan, 1), RNG))


def softmax(logits, params):
    return (optax.softmax_cross_entropy(logits, jnp.eye(N)) + optax.softmax_cross_entropy(logits.T, jnp.eye(N))) / 2


def sigmoid(logits, params):
    return -jax.nn.log_sigmoid((2 * jnp.eye(N) - 1) * (logits + params["bias"])).sum(1)


@functools.cache
def expected(loss="softmax", dropout=0.0, parts=1):
    """What plain JAX says of the whole batch, embedded in so many parts, each with the dropout of its rng."""
    made = job(model=(("dropout", dropout),))
    batch = pipeline.batch_at(EXAMPLES, made.plan(EXAMPLES, shuffle=True), 1)
    rows = np.arange(N).reshape(-1, parts).T

    def loss_fn(params):
        features = {"image": jnp.zeros((N, 8)), "text": jnp.zeros((N, 8))}
        for number, part in enumerate(rows):
            own = {name: jnp.asarray(x)[part] for name, x in batch.items()}
            made_features = pairs.embed_fn(params, own, jax.random.fold_in(RNG, number), made.config)
            features = {name: x.at[part].set(made_features[name]) for name, x in features.items()}
        logits = jnp.exp(params["scale"]) * features["image"] @ features["text"].T
        nats = {
            "softmax": lambda: softmax(logits, params),
            "sigmoid": lambda: sigmoid(logits, params),
            "own": lambda: pairs.of_triplets(features["image"], features["text"], jnp.ones(N)),
        }[loss]()
        sizes = jnp.square(features["image"]).sum(-1) * batch["weight"]
        return nats.mean() + 0.1 * sizes.sum() / batch["weight"].sum()

    return jax.device_get(jax.jit(jax.value_and_grad(loss_fn))(params(loss)))


def check(made, reference, tolerance=1e-5):
    gradient, metrics = measured(made)
    loss, expected_gradient = reference
    np.testing.assert_allclose(total(metrics), loss, rtol=tolerance)
    norm = float(optax.tree.norm(expected_gradient))
    for name, leaf in expected_gradient.items():
        assert float(np.linalg.norm(gradient[name] - leaf)) <= tolerance * norm, name
    assert {float(mean.count) for name, mean in metrics.items() if name != "size"} == {N}


def slow(*arguments):
    return pytest.param(*arguments, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("devices", "accumulate"),
    [(8, 16), *(slow(*case) for case in [(8, 1), (1, 1), (1, 4), (1, 16), (2, 1), (2, 4), (2, 16), (8, 4)])],
)
def test_loss_and_gradient_are_those_of_the_whole_batch(devices, accumulate):
    check(job((devices,), accumulate=accumulate), expected())


@pytest.mark.parametrize("shares", [slow((5, 2, 1, 0)), slow((3, 1)), slow((0, 2, 1, 3, 0, 0, 1, 2))])
def test_so_they_are_where_devices_take_unequal_shares(shares):
    check(job((len(shares),), shares=shares), expected())


@pytest.mark.parametrize(("sizes", "accumulate"), [slow((2, 4, 1), 1), ((2, 2, 2), 4), slow((1, 8, 1), 4)])
def test_so_they_are_where_parameters_are_sharded(sizes, accumulate):
    check(job(sizes, accumulate=accumulate), expected())


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "own"])
@pytest.mark.parametrize("fields", [{}, {"accumulate": 4}, {"shares": (1, 2)}])
def test_so_are_other_losses(loss, fields):
    check(job((2,), model=(("loss", loss),), **fields), expected(loss))


@pytest.mark.parametrize("fields", [{"shares": (3, 1)}, slow({"accumulate": 4})])
def test_both_passes_draw_the_same_dropout(fields):
    check(job((2,), model=(("dropout", 0.5),), **fields), expected(dropout=0.5, parts=4))
