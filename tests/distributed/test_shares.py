"""Devices that are not alike: rows are dealt out without loss, shares are the best, and the gradient is exact."""

import dataclasses
import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from jtasks import cli
from jtasks import config as configs
from jtasks.data import buckets, pipeline
from jtasks.data.batch_plan import BatchPlan
from jtasks.distributed import sharding
from jtasks.distributed.shares import best_shares, layout, rows_of_microbatches, unequal
from jtasks.errors import ConfigError
from jtasks.metrics import Loss, total
from jtasks.run import autoshare, checkpoint, step
from jtasks.run.gradient import gradient_fn
from jtasks.run.job import Job

SHARES = st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any).map(tuple)

# Which rows of the batch are on which device


@given(examples=st.integers(1, 70), shares=SHARES)
def test_every_example_has_one_row_and_the_rest_is_padding(examples, shares):
    rows = layout(examples, shares)
    size = -(-examples // sum(shares))
    assert len(rows) == len(shares) * max(shares) * size
    assert sorted(rows[rows >= 0]) == list(range(examples))
    slabs = rows.reshape(len(shares), max(shares), size)
    if unequal(shares):
        assert all((slab[share:] == -1).all() for slab, share in zip(slabs, shares, strict=True))


@given(examples=st.integers(1, 70), shares=SHARES)
def test_microbatches_hold_what_as_many_on_one_device_would(examples, shares):
    rows = layout(examples, shares)
    alike = layout(examples, (sum(shares),))
    dealt = rows_of_microbatches(shares, len(rows))
    one = rows_of_microbatches((sum(shares),), len(alike))
    assert len(dealt) == (sum(shares) if unequal(shares) else shares[0])
    if unequal(shares):
        assert [rows[part].tolist() for part in dealt] == [alike[part].tolist() for part in one]
    else:
        assert sorted(rows[np.concatenate(dealt)]) == sorted(rows)


def test_a_plan_reads_the_same_examples_with_the_same_seeds_whatever_the_shares():
    plain = BatchPlan(23, 5, 8, shuffle=True)
    examples = {"x": np.arange(23)}
    for shares in ((1,) * 3, (2, 1), (0, 3, 1), (5,)):
        plan = dataclasses.replace(plain, shares=shares)
        for at in range(4):
            one, other = (pipeline.batch_at(examples, p, at) for p in (plain, plan))
            real = other["mask"] > 0
            assert sorted(zip(other["x"][real], other["seed"][real], strict=True)) == sorted(
                zip(one["x"], one["seed"], strict=True)
            )


@pytest.mark.parametrize("shares", [(2, 0, 1, 0, 0, 3, 0, 1), (1,) * 8])
@pytest.mark.parametrize("kind", ["arrays", "sequence"])
def test_batches_are_those_of_batch_at(shares, kind):
    rows = {"x": np.arange(50), "y": np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)}
    examples = rows if kind == "arrays" else [{k: v[i] for k, v in rows.items()} for i in range(50)]
    plan = BatchPlan(50, 1, 21, shuffle=True, shares=shares)
    batched = sharding.batch_sharding(tiny.mesh())
    for at, batch in enumerate(pipeline.batches(examples, plan, range(5), batched, threads=2)):
        expected = pipeline.batch_at(examples, plan, at)
        real = expected["mask"] > 0
        assert real.sum() == 21
        np.testing.assert_array_equal(batch["mask"], expected["mask"])
        for name in ("x", "y", "seed"):
            np.testing.assert_array_equal(np.asarray(batch[name])[real], expected[name][real])


def test_batches_by_length_are_dealt_out_too():
    lengths = np.random.default_rng(0).integers(1, 17, 60)
    plan = buckets.plan(lengths, 0, shuffle=True, tokens=96, buckets=(4, 16), padded=("t",), shares=(3, 0, 1))
    seen = []
    for at in range(plan.steps(1)):
        indices, entries = plan.at(plan.positions(at))
        assert len(indices) == plan.rows(at)
        seen += indices[entries["mask"] > 0].tolist()
    assert sorted(seen) == list(range(60))


# The best shares


def slowest(start, example, size, shares):
    return max(s * (a + size * b) for s, a, b in zip(shares, start, example, strict=True))


def brute_force(start, example, batch_size):
    """The shortest step of all shares of microbatches of all sizes."""
    found = []
    for size in range(1, -(-batch_size // len(start)) + 1):
        count = -(-batch_size // size)
        for shares in itertools.product(range(count + 1), repeat=len(start)):
            if sum(shares) == count:
                found.append(slowest(start, example, size, shares))
    return min(found)


SECONDS = st.floats(0.01, 10)


@settings(max_examples=60, deadline=None)
@given(devices=st.lists(st.tuples(st.floats(0, 3), SECONDS), min_size=1, max_size=3), batch_size=st.integers(1, 12))
def test_shares_are_the_best_of_all(devices, batch_size):
    start, example = np.array(devices).T
    shares, seconds = best_shares(start, example, batch_size, tolerance=0)
    size = next(m for m in range(batch_size, 0, -1) if -(-batch_size // m) == sum(shares))
    assert len(shares) == len(devices)
    assert seconds == pytest.approx(brute_force(start, example, batch_size))
    smallest = min(m for m in range(1, batch_size + 1) if -(-batch_size // m) == sum(shares))
    assert (
        slowest(start, example, smallest, shares)
        <= seconds * (1 + 1e-9)
        <= slowest(start, example, size, shares) * (1 + 1e-6)
    )


@given(devices=st.lists(st.tuples(st.floats(0, 3), SECONDS), min_size=1, max_size=6), batch_size=st.integers(1, 200))
def test_a_few_larger_microbatches_cost_no_more_than_is_tolerated(devices, batch_size):
    start, example = np.array(devices).T
    best, shortest = best_shares(start, example, batch_size, tolerance=0)
    shares, seconds = best_shares(start, example, batch_size, tolerance=0.1)
    assert seconds <= shortest * 1.1 * (1 + 1e-9)
    assert sum(shares) <= sum(best)


@pytest.mark.parametrize(
    ("example", "batch_size", "expected"),
    [((1, 3), 64, (3, 1)), ((1, 1), 64, (1, 1)), ((1, 1, 1), 64, (1, 1, 1)), ((1, 1000), 8, (2, 0)), ((2,), 7, (1,))],
)
def test_known_speeds_get_the_shares_one_would_give_by_hand(example, batch_size, expected):
    assert best_shares(np.zeros(len(example)), np.array(example, float), batch_size)[0] == expected


# The gradient


def loss_fn(params, batch, rng, config=None):
    """Two terms that count differently, with dropout."""
    hidden = jnp.tanh(batch["x"] @ params["kernel"])
    hidden = jnp.where(jax.random.bernoulli(rng, 0.8, hidden.shape), hidden / 0.8, 0.0)
    metrics = {
        "examples": Loss.of(jnp.square(hidden).sum(-1), batch["mask"]),
        "tokens": Loss.of(jnp.square(hidden - 1), batch["mask"][:, None] * batch["token_mask"], weight=0.3),
    }
    return total(metrics), metrics


def init(rng, batch, config):
    return {"kernel": jax.random.normal(rng, (4, 3))}


TASK = types.SimpleNamespace(init=init, loss_fn=loss_fn)
N = 40
EXAMPLES = {
    "x": np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32),
    "token_mask": (np.random.default_rng(1).random((N, 3)) < 0.4).astype(np.float32),
}
PARAMS = {"kernel": np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)}


def job(devices, **fields):
    config = configs.defaults()
    with config.unlocked():
        config.update({"task": "two terms", "batch_size": 24, **fields})
    return Job(TASK, configs.Config(config), tiny.mesh(devices))


def measured(job):
    """Gradient and metrics of a step's batch."""
    plan = job.plan(EXAMPLES, shuffle=True)
    measure = jax.jit(gradient_fn(job.task, job.config, job.mesh), out_shardings=sharding.replicated_sharding(job.mesh))
    return jax.device_get(measure(PARAMS, job.batch_at(EXAMPLES, plan, 3), jax.random.key(4)))


@pytest.mark.parametrize("shares", [(3, 1), (1, 2, 3, 4, 0, 0, 1, 2), (7, 6)])
def test_the_gradient_is_that_of_as_many_microbatches_on_one_device(shares):
    gradient, metrics = measured(job(len(shares), shares=shares))
    expected, means = measured(job(1, accumulate=sum(shares)))
    np.testing.assert_allclose(gradient["kernel"], expected["kernel"], rtol=2e-6, atol=1e-7)
    for name, mean in means.items():
        assert metrics[name].count == mean.count
        np.testing.assert_allclose(metrics[name].total, mean.total, rtol=1e-6)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_devices_loop_as_often_as_their_shares_say_and_sum_up_only_afterwards():
    made = job(4, shares=(3, 0, 2, 1))
    measure = jax.jit(gradient_fn(made.task, made.config, made.mesh))
    batch = made.batch_at(EXAMPLES, made.plan(EXAMPLES, shuffle=True), 0)
    jaxpr = jax.make_jaxpr(measure)(PARAMS, batch, jax.random.key(0)).jaxpr
    loops = [equation for equation in equations(jaxpr) if equation.primitive.name == "while"]
    inside = {inner.primitive.name for loop in loops for inner in equations(loop.params["body_jaxpr"].jaxpr)}
    everywhere = {equation.primitive.name for equation in equations(jaxpr)}
    assert len(loops) == 2  # counts, then gradients
    assert {"dot_general", "tanh"} <= inside
    assert {name for name in everywhere if "psum" in name or "all" in name}
    assert not {name for name in inside if "psum" in name or "all" in name}


def test_equal_shares_are_microbatches_on_all():
    gradient, _ = measured(job(4, shares=(2,) * 4))
    expected, _ = measured(job(4, accumulate=2))
    np.testing.assert_array_equal(gradient["kernel"], expected["kernel"])


def test_devices_that_do_not_divide_the_batch_get_padding():
    expected, _ = measured(job(1))
    for devices in (5, 7):
        gradient, _ = measured(job(devices))
        np.testing.assert_allclose(gradient["kernel"], expected["kernel"], rtol=2e-6, atol=1e-7)


def test_steps_with_shares_follow_those_of_one_device():
    ends = []
    for made in (job(1, accumulate=4), job(2, shares=(3, 1))):
        optimizer = optax.adam(0.01)
        run = step.make_train_step(TASK, made.config, optimizer, lambda _: 0.01, {"kernel": True}, made.mesh)
        run = jax.jit(run, out_shardings=sharding.replicated_sharding(made.mesh))
        state, plan = step.init_state(PARAMS, optimizer, ema=False), made.plan(EXAMPLES, shuffle=True)
        state = jax.device_put(state, sharding.replicated_sharding(made.mesh))
        for at in range(20):
            state, _ = run(state, made.batch_at(EXAMPLES, plan, at))
        ends.append(np.asarray(state.params["kernel"]))
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shares": (1, 2, 3)}, "has 3 numbers, but config.mesh.data has 8 devices"),
        ({"shares": (0,) * 8}, "not all of them 0"),
        ({"shares": (1, -1) * 4}, "whole numbers of at least 0"),
        ({"shares": (1.5,) * 8}, "whole numbers of at least 0"),
        ({"shares": (1, 2) * 4, "accumulate": 2}, "config.accumulate=2 must be 1"),
        ({"shares": "auto", "accumulate": 2}, "config.accumulate=2 must be 1"),
        ({"shares": "atuo"}, "must be a tuple of whole numbers, 'equal' or 'auto'"),
    ],
)
def test_shares_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        job(8, **fields).plan(EXAMPLES, shuffle=True)


@pytest.mark.parametrize("shares", [(3, 1), "auto"])
def test_unequal_shares_want_whole_parameters(shares):
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(ConfigError, match=r"config.mesh.fsdp and .tensor must be 1"):
        job(8, shares=shares)._replace(mesh=mesh).plan(EXAMPLES, shuffle=True)


@pytest.mark.parametrize("fields", [{"shares": (3, 1)}, {"shares": (2, 2)}, {"shares": "auto"}, {"accumulate": 2}])
def test_a_loss_that_mixes_examples_refuses_microbatches(fields):
    mixing = types.SimpleNamespace(**vars(TASK), MIXES_EXAMPLES=True)
    assert job(2)._replace(task=mixing).plan(EXAMPLES, shuffle=True).batch_size == 24
    with pytest.raises(ConfigError, match="mixes the examples of a batch"):
        job(2, **fields)._replace(task=mixing).plan(EXAMPLES, shuffle=True)


def test_a_loss_that_mixes_examples_refuses_padding():
    mixing = types.SimpleNamespace(**vars(TASK), MIXES_EXAMPLES=True)
    with pytest.raises(ConfigError, match=r"config\.batch_size=24 must be divisible by 5 devices"):
        job(5)._replace(task=mixing).plan(EXAMPLES, shuffle=True)


# Measured shares

LINEAR = """
import jax, jax.numpy as jnp, ml_collections, numpy as np
from jtasks.metrics import Mean
def get_config():
    config = ml_collections.ConfigDict()
    config.task, config.steps, config.batch_size = __file__, 6, 16
    return config
def dataset(split, config):
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(1)} if split == "train" else None
def init(rng, batch, config): return {"w": jnp.zeros(3)}
def eval_fn(params, batch, config):
    return {"loss": Mean.of(jnp.square(batch["x"] @ params["w"] - batch["y"]), batch["mask"])}
def loss_fn(params, batch, rng, config):
    metrics = eval_fn(params, batch, config)
    return metrics["loss"].value, metrics
"""


@pytest.fixture
def linear(tmp_path):
    path = tmp_path / "linear.py"
    path.write_text(LINEAR)
    return [f"--config={path}", f"--workdir={tmp_path / 'run'}"]


def test_measured_shares_are_told_recorded_used_again_and_measured_again_on_request(
    linear, tmp_path, capfd, monkeypatch
):
    speeds = np.array([1, 1, 1, 1, 1, 1, 1, 3.0])
    calls = []
    monkeypatch.setattr(autoshare, "time_devices", lambda *a: calls.append(a) or (np.zeros(8), speeds))
    run = [*linear, "--config.shares=auto"]
    assert cli.run([*run, "--config.steps=2"]) == 0
    record = json.loads((tmp_path / "run" / "shares.json").read_text())
    assert sorted(record["shares"]) == [0, 2, 2, 2, 2, 2, 3, 3]
    assert record["shares"][7] == 0
    assert record["seconds_an_example"] == speeds.tolist()
    assert "recorded in" in capfd.readouterr().err
    assert cli.run([*run, "--config.steps=4"]) == 0
    assert "as recorded in" in capfd.readouterr().err
    assert len(calls) == 1
    assert cli.run([*linear, "--config.shares=auto!", "--config.steps=6"]) == 0
    assert len(calls) == 2
    assert cli.run([linear[0], "--config.steps=6", f"--workdir={tmp_path / 'equal'}"]) == 0
    ends = [checkpoint.arrays(tmp_path / name / "checkpoints" / "6")["params/w"] for name in ("run", "equal")]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-5)


def test_a_record_of_other_devices_or_another_batch_is_not_used(tmp_path):
    auto = job(2, shares="auto")
    autoshare.record_shares(auto, tmp_path, (3, 1), np.zeros(2), np.ones(2))
    assert autoshare.load_shares(auto, tmp_path).config.shares == (3, 1)
    assert autoshare.load_shares(job(3, shares="auto"), tmp_path) is None
    assert autoshare.load_shares(job(2, shares="auto", batch_size=8), tmp_path) is None
    assert autoshare.load_shares(job(2), tmp_path) is None
    (tmp_path / "shares.json").write_text("{")
    assert autoshare.load_shares(auto, tmp_path) is None


def test_measuring_tells_the_seconds_of_each_device(monkeypatch):
    monkeypatch.setattr(autoshare, "SECONDS", 0.001)
    rows = pipeline.batch_at(EXAMPLES, BatchPlan(N, 0, 12, shuffle=True), 0)
    start, example = autoshare.time_devices(job(2, shares="auto"), rows, 12)
    assert start.shape == example.shape == (2,)
    assert (start >= 0).all()
    assert (example > 0).all()
    assert (start + 6 * example < 5).all()


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("--config.shares=3,1", "shares", (3, 1)),
        ("--config.shares=(0, 2)", "shares", (0, 2)),
        ("--config.shares=auto!", "shares", "auto!"),
        ("--config.shares=equal", "shares", "equal"),
        ("--config.shares=None", "shares", None),
        ("--config.sharding=(('up/kernel', (None, 'fsdp?')), ('norm', ()))", "sharding",
         (("up/kernel", (None, "fsdp?")), ("norm", ()))),
        ("--config.mesh.data=-1", "mesh", {"data": -1, "fsdp": 1, "tensor": 1}),
        ("--config.mesh.fsdp=2", "mesh", {"data": -1, "fsdp": 2, "tensor": 1}),
    ],
)  # fmt: skip
def test_fields_can_be_set_on_the_command_line(linear, override, field, value):
    found = configs.load(linear[0].partition("=")[2], [override])[field]
    assert (found.to_dict() if field == "mesh" else found) == value


def test_fields_can_be_set_in_a_file(tmp_path):
    path = tmp_path / "linear.py"
    lines = "    config.shares, config.sharding, config.mesh = (3, 1), (('w', 'fsdp'),), dict(fsdp=2)\n"
    lines += "    return config\n"
    path.write_text(LINEAR.replace("    return config\n", lines))
    config = configs.load(str(path))
    assert config.shares == (3, 1)
    assert config.sharding == (("w", "fsdp"),)
    assert config.mesh.to_dict() == {"data": -1, "fsdp": 2, "tensor": 1}
    assert configs.load(str(path), ["--config.shares=auto"]).shares == "auto"
    path = path.with_name("other.py")  # a file is read once a process
    path.write_text(LINEAR.replace("    return config\n", lines.replace("(3, 1), ((", '"auto", ((')))
    assert configs.load(str(path)).shares == "auto"
    assert configs.load(str(path), ["--config.shares=2,1"]).shares == (2, 1)
