"""Meshes: what is divided how, that nothing is ever whole, and that losses do not notice."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import AxisType, Mesh, PartitionSpec

from jtasks import config as configs
from jtasks import models, optim
from jtasks.distributed import sharding
from jtasks.errors import ConfigError
from jtasks.metrics import Loss, total
from jtasks.run import evaluate, predict, step
from jtasks.run.job import Job
from jtasks.schema import AXES
from jtasks.tree import leaf_name


def mesh(data=1, fsdp=1, tensor=1):
    sizes = (data, fsdp, tensor)
    devices = np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# The mesh


@pytest.mark.parametrize(
    ("axes", "sizes"),
    [
        ({}, None),
        ({"data": -1}, (8, 1, 1)),
        ({"data": -1, "fsdp": 4}, (2, 4, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, (1, 4, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
    ],
)
def test_axes_that_are_not_given_are_1_and_one_may_take_what_is_left(axes, sizes):
    if sizes is None:
        with pytest.raises(ConfigError, match="asks for 1, but there are 8 devices"):
            sharding.make_mesh(axes)
    else:
        assert sharding.make_mesh(axes).devices.shape == sizes


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 3}, "asks for 3, but there are 8 devices"),
        ({"data": -1, "fsdp": 3}, "asks for a multiple of 3, but there are 8 devices"),
        ({"data": -1, "fsdp": -1}, "only one may be -1"),
        ({"data": 8, "tensor": 0}, "at least 1"),
        ({"data": -1, "model": 2}, "has the axis model; expected one of data, fsdp, tensor"),
    ],
)
def test_a_mesh_that_cannot_be_says_why(axes, message):
    with pytest.raises(ConfigError, match=message):
        sharding.make_mesh(axes)


def test_rows_of_a_batch_are_divided_over_data_and_fsdp_and_shared_along_tensor():
    batched = sharding.batch_sharding(mesh(2, 2, 2))
    assert sharding.num_batch_shards(mesh(2, 2, 2)) == 4
    placed = sharding.put({"x": np.arange(8)}, batched, np.arange(8), 8)["x"]
    assert sorted(s.data.tolist() for s in placed.addressable_shards) == sorted([[0, 1], [2, 3], [4, 5], [6, 7]] * 2)


# The rules


def specs(params, over, rules=()):
    found = sharding.shardings(params, params, over, rules)
    return {leaf_name(p): tuple(s.spec) for p, s in jax.tree_util.tree_leaves_with_path(found)}


@functools.cache
def shapes(kind):
    tokens = jnp.zeros((2, 8), jnp.int32)
    if kind == "gpt":
        model = models.GPT(vocab=32, outputs=32, max_length=8, width=16, depth=3, heads=4)
        return jax.eval_shape(lambda: model.init(jax.random.key(0), tokens)["params"])
    model = models.BERT(vocab=32, max_length=8, width=16, depth=3, heads=4)
    places = jnp.zeros((2, 3), jnp.int32)
    init = lambda: model.init(jax.random.key(0), tokens, tokens, tokens, places, places, method="pretrain")  # noqa: E731
    return jax.eval_shape(init)["params"]


BLOCKS = {
    "blocks/attention/query_key_value/kernel": (None, "fsdp", "tensor"),
    "blocks/attention/query_key_value/bias": (None, ("tensor", "fsdp")),
    "blocks/attention/output/kernel": (None, "tensor", "fsdp"),
    "blocks/attention/output/bias": (None, "fsdp"),
    "blocks/up/kernel": (None, "fsdp", "tensor"),
    "blocks/up/bias": (None, ("tensor", "fsdp")),
    "blocks/down/kernel": (None, "tensor", "fsdp"),
    "blocks/norm1/scale": (None, "fsdp"),
    "tokens/embedding": ("tensor", "fsdp"),
    "position/embedding": (None, "fsdp"),
}


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_transformers_are_divided_by_heads_hidden_units_and_vocabulary(kind):
    found = specs(shapes(kind), mesh(2, 2, 2))
    head = {"gpt": {"head/kernel": ("fsdp", "tensor")}, "bert": {"pooler/kernel": ("fsdp", None)}}[kind]
    expected = BLOCKS | head
    assert {name: found[name] for name in expected} == expected
    assert all("fsdp" in str(spec) for spec in found.values())  # every size here can be divided


def test_what_does_not_divide_stays_whole_by_the_shipped_rules():
    params = {"tokens": {"embedding": array(17, 6)}, "head": {"kernel": array(6, 17)}, "odd": array(7), "one": array()}
    found = specs(params, mesh(fsdp=2, tensor=4))
    assert found == {
        "tokens/embedding": (None, "fsdp"),
        "head/kernel": ("fsdp", None),
        "odd": (None,),
        "one": (),
    }


def test_any_other_parameter_is_divided_along_its_largest_axis_that_divides():
    params = {"dense": array(6, 9, 4), "convolution": array(3, 3, 32, 64), "head": {"kernel": array(8)}}
    found = specs(params, mesh(fsdp=4))
    assert found == {
        "dense": (None, None, "fsdp"),
        "convolution": (None, None, None, "fsdp"),
        "head/kernel": ("fsdp",),
    }


def test_rules_of_the_config_come_first_and_may_leave_a_parameter_whole():
    params = {"a": {"kernel": array(8, 6)}, "b": {"kernel": array(8, 6)}, "norm": array(8)}
    rules = (("a/kernel", (None, "tensor")), ("kernel", (("fsdp", "tensor?"),)), ("norm", ()))
    found = specs(params, mesh(fsdp=4, tensor=2), rules)
    assert found == {"a/kernel": (None, "tensor"), "b/kernel": (("fsdp", "tensor"),), "norm": ()}
    assert specs({"b": array(4)}, mesh(fsdp=4, tensor=2), (("b", (("fsdp", "tensor?"),)),)) == {"b": ("fsdp",)}
    assert specs({"b": array(4, 12)}, mesh(fsdp=4), (("b", "fsdp"),)) == {"b": (None, "fsdp")}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("kernel", ("fsdp",)),), r"a/kernel \[6, 8\] cannot be divided by fsdp=4 in dimension 0.*write 'fsdp\?'"),
        ((("kernel", (None, ("fsdp", "tensor"))),), r"a/kernel \[6, 8\]"),
        ((("odd", "fsdp"),), r"odd \[7\] cannot be divided by fsdp=4"),
        ((("kernel", (None, None, "fsdp")),), r"is longer than a/kernel \[6, 8\]"),
        ((("kernel", ("model",)),), "'model', for 'kernel', is not an axis; axes are data, fsdp, tensor"),
        ((("kernel", ("fsdp", "fsdp?")),), "has an axis twice"),
        ((("krenel", ("fsdp",)),), "'krenel' matches no parameter; some paths are a/kernel, odd"),
        ((("(", ("fsdp",)),), "is not a regular expression"),
        ((("kernel", 3),), "must be an axis or a tuple, not 3"),
        (("kernel",), "must be a tuple of pairs"),
    ],
)
def test_a_rule_that_cannot_hold_names_the_parameter_or_itself(rules, message):
    params = {"a": {"kernel": array(6, 8)}, "odd": array(7)}
    over = mesh(fsdp=4, tensor=2)
    if "('fsdp', 'tensor')" in str(rules):
        params["a"]["kernel"] = array(6, 4)
        message = message.replace("8", "4") + " cannot be divided by fsdp=4 x tensor=2 in dimension 1"
    with pytest.raises(ConfigError, match=message):
        sharding.shardings(params, params, over, rules)


@pytest.mark.parametrize("name", ["adamw", "muon", "adadelta", "sgd"])
@pytest.mark.parametrize("freeze", ["", "embedding"])
def test_moments_and_averages_are_divided_as_their_parameters(name, freeze):
    params, over = shapes("gpt"), mesh(fsdp=4, tensor=2)
    fields = {"name": name, "lr": 0.1, "freeze": freeze} | ({"momentum": 0.9} if name == "sgd" else {})
    optimizer, _ = optim.optimizer(fields, 10, params)
    state = jax.eval_shape(lambda p: step.init_state(p, optimizer, ema=True), params)
    found = sharding.shardings(state, params, over)
    of_params = specs(params, over)
    divided = 0
    for (path, leaf), where in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(found), strict=True):
        ends = [end for end in of_params if leaf_name(path).endswith(f"/{end}")]
        assert tuple(where.spec) == (of_params[max(ends, key=len)] if ends else ()), path
        assert ends or leaf.size <= 3  # counts and constants
        divided += bool(ends)
    assert divided > 2.5 * len(of_params)


# Losses and memory


def init(rng, batch, config):
    keys = jax.random.split(rng)
    return {"up": jax.random.normal(keys[0], (8, 32)) / 3, "down": jax.random.normal(keys[1], (32, 8)) / 6}


def loss_fn(params, batch, rng, config):
    hidden = jax.nn.relu(batch["x"] @ params["up"])
    hidden = jnp.where(jax.random.bernoulli(rng, 0.7, hidden.shape), hidden / 0.7, 0.0)
    metrics = {"loss": Loss.of(jnp.square(hidden @ params["down"] - batch["x"]), batch["mask"])}
    return metrics["loss"].value, metrics


AUTOENCODER = types.SimpleNamespace(init=init, loss_fn=loss_fn)
NUMBERS = {"x": np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)}


def generic(over, **fields):
    config = configs.defaults()
    with config.unlocked():
        config.update({"task": "autoencoder", "batch_size": 24, **fields})
    return Job(AUTOENCODER, configs.Config(config), over), NUMBERS


def shipped(name, over, **changes):
    made = tiny.job(name, 1, batch_size=16, **changes)
    return made._replace(mesh=over), tiny.digits(64)


def trained(job, examples, steps=20, ema=True):
    """The losses of some steps, the last state, and the compiled step, made as a run makes them."""
    config, plan = job.config, job.plan(examples, shuffle=True)
    batch = job.batch_at(examples, plan, 0)
    init = functools.partial(job.task.init, jax.random.key(0), config=config)
    params = jax.eval_shape(init, batch)
    optimizer, schedule = optim.optimizer(config.optim, steps, params)
    create = functools.partial(step.init_state, optimizer=optimizer, ema=ema)
    held = job.shardings(jax.eval_shape(create, params), params)
    born = jax.jit(init, out_shardings=held.params)(batch)
    state = jax.jit(create, out_shardings=held)(born)
    made = step.make_train_step(job.task, config, optimizer, schedule, optim.trainable(config.optim, params), job.mesh)
    run = jax.jit(made, donate_argnums=0, out_shardings=(held, sharding.replicated_sharding(job.mesh)))
    program, losses = run.lower(state, batch).compile(), []
    for at in range(steps):
        state, report = program(state, job.batch_at(examples, plan, at))
        losses.append(float(total(report.metrics)))
    for leaf, where in zip(jax.tree.leaves(state), jax.tree.leaves(held), strict=True):
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
        assert leaf.addressable_shards[0].data.shape == where.shard_shape(leaf.shape)
    return losses, state, program


@functools.cache
def alone():
    return trained(*generic(mesh()))[0]


@pytest.mark.parametrize(
    ("sizes", "fields"),
    [
        ((8, 1, 1), {}),
        ((1, 8, 1), {}),
        ((1, 1, 8), {"sharding": (("up", (None, "tensor")), ("down", ("tensor",)))}),
        ((2, 2, 2), {"sharding": (("up", ("fsdp", "tensor")), ("down", ("tensor", "fsdp")))}),
        ((3, 1, 1), {}),
    ],
)
def test_losses_do_not_depend_on_the_mesh_even_with_dropout(sizes, fields):
    np.testing.assert_allclose(trained(*generic(mesh(*sizes), **fields))[0], alone(), rtol=1e-5)


def test_nor_do_those_of_microbatches():
    ends = [trained(*generic(mesh(*sizes), accumulate=4))[0] for sizes in ((1, 1, 1), (2, 4, 1))]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-5)


@functools.cache
def curve(name, sizes):
    return trained(
        *shipped(name, mesh(*sizes), **({"model__dropout": 0.1} if name == "igpt" else {"model__dropout": True}))
    )


@pytest.mark.parametrize("sizes", [pytest.param((1, 8, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_losses_of_a_transformer_with_dropout_do_not_depend_on_the_mesh(sizes):
    np.testing.assert_allclose(curve("igpt", sizes)[0], curve("igpt", (1, 1, 1))[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *(("igpt", sizes) for sizes in [(8, 1, 1), (1, 1, 8), (2, 4, 1), (4, 1, 2)]),
        ("mnist", (8, 1, 1)),
        ("mnist", (2, 4, 1)),
    ],
)
def test_losses_of_the_tasks_on_more_meshes(name, sizes):
    np.testing.assert_allclose(curve(name, sizes)[0], curve(name, (1, 1, 1))[0], rtol=1e-5)


def test_memory_and_work_of_a_device_fall_with_fsdp():
    whole, divided = curve("igpt", (1, 1, 1))[2], curve("igpt", (1, 8, 1))[2]
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(curve("igpt", (1, 1, 1))[1]))
    held = sum(
        leaf.sharding.shard_shape(leaf.shape) and leaf.addressable_shards[0].data.nbytes
        for leaf in jax.tree.leaves(curve("igpt", (1, 8, 1))[1])
        if leaf.ndim
    )
    assert held < state / 8 * 1.2  # 18 colors cannot be divided by 8
    arguments = [program.memory_analysis().argument_size_in_bytes for program in (whole, divided)]
    batch = arguments[0] - state
    assert arguments[1] < state / 8 * 1.2 + batch
    work = [program.cost_analysis()["flops"] for program in (whole, divided)]
    assert work[1] < work[0] / 8 * 1.2  # else the compiler divided activations as it found the parameters


def test_evaluation_and_predictions_of_divided_parameters_are_the_same():
    found = []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        job, examples = shipped("classifier", mesh(*sizes))
        params = tiny.params("classifier")
        params = jax.device_put(params, job.shardings(params, params))
        means = evaluate.make(job)(params, examples)
        outputs = predict.make(job)(params, {k: v[:16] for k, v in examples.items()})
        found.append((means, [float(output["probability"]) for output in outputs]))
    for metric, value in found[0][0].items():
        assert found[1][0][metric] == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-4)


def test_activations_are_left_alone_outside_of_a_mesh():
    x = jnp.ones((3, 2))
    assert sharding.constrain_batch(x) is x
    assert sharding.on_mesh(None, (), optax.tree.norm) is optax.tree.norm
    assert sharding.on_mesh(mesh(), (), sharding.constrain_batch)(x) is x
    assert PartitionSpec() == sharding.replicated_sharding(mesh()).spec
