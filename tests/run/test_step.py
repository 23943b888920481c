"""Claims about jtasks.run.step: the gradient is that of the whole batch, and a bad step changes nothing."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jtasks import config as configs
from jtasks import optim, task
from jtasks.distributed import sharding
from jtasks.metrics import Loss, Mean, total
from jtasks.run import flops, step
from jtasks.run.gradient import exact_gradient

B, T = 64, 3


def two_terms(params, batch, rng):
    """A term over examples and one over tokens, which count differently."""
    hidden = jnp.tanh(batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"][None])
    tokens = jnp.square(hidden[:, None] * batch["t"][..., None] - 1).sum(-1)
    metrics = {
        "examples": Loss.of(jnp.square(hidden).sum(-1), batch["mask"]),
        "tokens": Loss.of(tokens, batch["mask"][:, None] * batch["token_mask"], weight=0.3),
        "other": Mean.of(hidden[:, 0], batch["mask"]),
    }
    return total(metrics), metrics


def make_params():
    random = np.random.default_rng(0)
    kernel, bias = random.normal(size=(4, 5)), random.normal(size=5)
    return {"dense": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}}


def make_batch(seed=0):
    random = np.random.default_rng(seed)
    return {
        "x": random.normal(size=(B, 4)).astype(np.float32),
        "t": random.normal(size=(B, T)).astype(np.float32),
        "mask": np.ones(B, np.float32),
        "token_mask": (random.random((B, T)) < np.linspace(0.05, 1, B)[:, None]).astype(np.float32),
        "seed": np.arange(B, dtype=np.uint32),
    }


def padded(batch, mask):
    """The batch where `mask` is 0 filled with what must not matter."""
    rows = np.asarray(mask) == 0
    return batch | {
        "mask": np.asarray(mask, np.float32),
        "x": np.where(rows[:, None], 1e3, batch["x"]).astype(np.float32),
        "token_mask": np.where(rows[:, None], 1, batch["token_mask"]).astype(np.float32),
    }


whole_gradient = jax.jit(jax.value_and_grad(two_terms, has_aux=True))


@functools.cache
def exact(microbatches, devices=1):
    """exact_gradient of the two terms, jitted over some devices."""
    mesh = tiny.mesh(devices)
    out = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(lambda p, b, r: exact_gradient(two_terms, p, b, r, microbatches=microbatches), out_shardings=out)
    return lambda params, batch: jitted(
        jax.device_put(params, out), jax.device_put(batch, sharding.batch_sharding(mesh)), jax.device_put(RNG, out)
    )


RNG = jax.random.key(7)


def close(found, expected, tolerance=1e-5):
    found, expected = jax.device_get((found, expected))
    norm = float(optax.tree.norm(expected))
    assert float(optax.tree.norm(jax.tree.map(np.subtract, found, expected))) <= tolerance * norm + 1e-12


# The exact gradient


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("microbatches", [1, 2, 4, 8])
def test_the_gradient_is_that_of_the_whole_batch(microbatches, devices):
    params = make_params()
    batch = padded(make_batch(), np.arange(B) % 5 != 0)
    (loss, metrics), expected = whole_gradient(params, batch, RNG)
    gradient, found = exact(microbatches, devices)(params, batch)
    close(gradient, expected)
    for name, mean in metrics.items():
        np.testing.assert_allclose(found[name].total, mean.total, rtol=1e-5)
        assert float(found[name].count) == float(mean.count)
    np.testing.assert_allclose(total(found), loss, rtol=1e-5)


def test_a_mean_of_the_microbatches_gradients_would_be_wrong():
    params, batch = make_params(), make_batch()
    parts = [jax.tree.map(lambda x, i=i: x[i::4], batch) for i in range(4)]
    parts[0]["token_mask"][:] = 0
    batch["token_mask"][0::4] = 0
    mean = jax.tree.map(lambda *g: sum(g) / 4, *[whole_gradient(params, part, RNG)[1] for part in parts])
    expected = whole_gradient(params, batch, RNG)[1]
    close(exact(4)(params, batch)[0], expected)
    with pytest.raises(AssertionError):
        close(mean, expected, 1e-2)


@settings(max_examples=30, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=B, max_size=B), seed=st.integers(0, 1000))
def test_padding_anywhere_changes_nothing(mask, seed):
    params, batch = make_params(), padded(make_batch(seed), mask)
    close(exact(4)(params, batch)[0], whole_gradient(params, batch, RNG)[1], 2e-5)


def test_a_batch_of_padding_alone_has_a_zero_gradient():
    gradient, _ = exact(4)(make_params(), padded(make_batch(), np.zeros(B)))
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def masked_tokens(params, batch, rng):
    """Counts that depend on rng, as when tokens are masked at random."""
    chosen = jax.random.bernoulli(rng, 0.4, batch["t"].shape)
    error = jnp.square(batch["t"] - (batch["x"] @ params["kernel"]))
    metrics = {"loss": Mean.of(error, chosen * batch["mask"][:, None])}
    return metrics["loss"].value, metrics


@pytest.mark.parametrize("microbatches", [2, 4])
def test_counts_may_depend_on_rng(microbatches):
    params, batch = {"kernel": jnp.ones((4, T))}, make_batch()

    def loss(params):
        parts = [jax.tree.map(lambda x, i=i: x[i::microbatches], batch) for i in range(microbatches)]
        means = [masked_tokens(params, p, jax.random.fold_in(RNG, i))[1]["loss"] for i, p in enumerate(parts)]
        return sum(mean.total for mean in means) / sum(mean.count for mean in means)

    gradient, metrics = jax.jit(lambda p: exact_gradient(masked_tokens, p, batch, RNG, microbatches=microbatches))(
        params
    )
    value, expected = jax.value_and_grad(loss)(params)
    close(gradient, expected)
    np.testing.assert_allclose(metrics["loss"].value, value, rtol=1e-5)
    assert 0.3 < float(metrics["loss"].count) / (B * T) < 0.5


@pytest.mark.parametrize("name", ["igpt", "classifier"])
def test_the_counts_pass_holds_no_second_forward(name):
    config, module = tiny.config(name), task.load(f"jtasks.tasks.{tiny.module(name)}")
    params, batch = tiny.params(name), tiny.batch(16)

    def gradient(microbatches):
        return lambda params: exact_gradient(
            lambda p, b, r: module.loss_fn(p, b, r, config), params, batch, RNG,
            microbatches=microbatches,
        )  # fmt: skip

    once, four = flops.count(gradient(1), params), flops.count(gradient(4), params)
    assert once > 1e6
    assert abs(four - once) <= 1e-6 * once


def test_the_compiled_counts_pass_holds_no_matrix_product():
    params, batch = make_params(), make_batch()

    def products(microbatches):
        jitted = jax.jit(lambda p, b: exact_gradient(two_terms, p, b, RNG, microbatches=microbatches))
        text = jitted.lower(params, batch).compile().as_text()
        return text.count(" dot(")

    assert products(1) > 0
    assert products(4) == products(1)


# The step


def with_sqrt(params, batch, rng, config):
    """Its gradient is NaN at 0 while the loss is finite; `rows` tells the rng apart."""
    prediction = batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"][None]
    error = jnp.sqrt(jnp.square(prediction * batch["scale"][:, None]).sum(-1)) + 0.1 * jnp.square(prediction).sum(-1)
    draw = jax.random.uniform(rng)
    metrics = {"loss": Mean.of(error, batch["mask"]), "draw": Mean(draw, 1.0), "square": Mean(draw**2, 1.0)}
    return metrics["loss"].value, metrics


TASK = types.SimpleNamespace(loss_fn=with_sqrt)


def good_batch():
    return make_batch() | {"scale": np.ones(B, np.float32)}


def bad_batch(kind):
    batch = good_batch()
    if kind == "loss":
        batch["x"][3, 1] = np.nan
    else:
        batch["scale"][3] = 0  # the square root's slope at 0
    return batch


@functools.cache
def made(accumulate=1, ema=0.0, freeze="", name="adamw", devices=1):
    """The jitted step, and a function that makes its first state."""
    full = configs.defaults(name)
    full.accumulate, full.ema = accumulate, ema
    full.optim.lr, full.optim.weight_decay, full.optim.freeze = 0.1, 0.1, freeze
    config = configs.Config(full)
    optimizer, schedule = optim.optimizer(config.optim, 100, make_params())
    trainable = optim.trainable(config.optim, make_params())
    mesh = tiny.mesh(devices)
    replicated = sharding.replicated_sharding(mesh)
    run = step.make_train_step(TASK, config, optimizer, schedule, trainable, mesh)
    jitted = jax.jit(run, donate_argnums=0, out_shardings=replicated)
    create = jax.jit(functools.partial(step.init_state, optimizer=optimizer, ema=ema > 0), out_shardings=replicated)
    return jitted, lambda: create(make_params())


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(jax.device_get(tree))]


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_bad_step_changes_nothing_and_is_counted_until_a_good_one(kind, accumulate):
    run, create = made(accumulate, ema=0.9)
    state, report = run(create(), good_batch())
    assert int(report.nonfinite_steps) == 0
    before = bits((state.params, state.opt_state, state.ema_params))
    for count in (1, 2):
        state, report = run(state, bad_batch(kind))
        loss_is_finite = np.isfinite(float(report.metrics["loss"].total))
        assert loss_is_finite == (kind == "gradient") and not np.isfinite(float(report.gradient_norm))
        assert bits((state.params, state.opt_state, state.ema_params)) == before
        assert int(state.step) == 1 + count
        assert int(state.nonfinite_steps) == int(report.nonfinite_steps) == count
    state, report = run(state, good_batch())
    assert int(state.nonfinite_steps) == int(report.nonfinite_steps) == 0 and int(state.step) == 4
    after = bits((state.params, state.opt_state, state.ema_params))
    assert all(a != b for a, b in zip(after, before, strict=True))


def test_a_step_is_that_of_the_optimizer_on_the_whole_gradient():
    run, create = made(4)
    optimizer, schedule = optim.optimizer({"lr": 0.1, "weight_decay": 0.1}, 100, make_params())
    params, batch = make_params(), good_batch()
    state = create()
    opt_state = optimizer.init(params)
    for now in range(3):
        gradient = jax.grad(lambda p: with_sqrt(p, batch, RNG, None)[0])(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        state, report = run(state, batch)
        np.testing.assert_allclose(report.gradient_norm, optax.tree.norm(gradient), rtol=1e-5)
        np.testing.assert_allclose(report.learning_rate, schedule(now), rtol=1e-6)
    close(state.params, params, 1e-4)


def test_the_average_is_an_exponential_one_and_what_is_evaluated():
    run, create = made(ema=0.9)
    state = create()
    average = jax.device_get(state.params)
    for seed in range(4):
        state, _ = run(state, good_batch() | {"x": make_batch(seed)["x"]})
        average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * np.asarray(p), average, state.params)
    close(state.ema_params, average, 1e-6)
    assert state.eval_params is state.ema_params
    plain = made()[1]()
    assert plain.ema_params is None and plain.eval_params is plain.params


def test_frozen_parameters_keep_their_bits():
    run, create = made(freeze="kernel$")
    state = create()
    before = jax.device_get(state.params["dense"])
    for _ in range(3):
        state, _ = run(state, good_batch())
    assert np.asarray(state.params["dense"]["kernel"]).tobytes() == before["kernel"].tobytes()
    assert np.abs(np.asarray(state.params["dense"]["bias"]) - before["bias"]).min() > 1e-3


def test_a_nan_in_the_gradient_of_frozen_parameters_alone_does_no_harm():
    def loss_fn(params, batch, rng, config):
        frozen = jnp.sqrt(jnp.square(params["frozen"] * 0.0)).sum()  # 0, with a NaN for its gradient
        mean = Mean.of(jnp.square(params["free"]) + frozen + 0 * batch["mask"], batch["mask"])
        return mean.value, {"loss": mean}

    params = {"frozen": jnp.ones(3), "free": jnp.ones(1)}
    optimizer = optax.sgd(0.1)
    run = step.make_train_step(
        types.SimpleNamespace(loss_fn=loss_fn), configs.Config(configs.defaults()), optimizer, lambda _: 0.1,
        {"frozen": False, "free": True}, tiny.mesh(1),
    )  # fmt: skip
    state, report = jax.jit(run)(step.init_state(params, optimizer, ema=False), {"mask": jnp.ones(2)})
    assert int(report.nonfinite_steps) == 0
    np.testing.assert_array_equal(state.params["frozen"], params["frozen"])
    np.testing.assert_allclose(state.params["free"], [0.8], rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_each_microbatch_of_each_step_has_its_own_rng(accumulate):
    run, create = made(accumulate)
    state, seen = create(), []
    for now in range(3):
        state, report = run(state, good_batch())
        here = jax.random.fold_in(jax.random.key(0), now)
        draws = np.array([jax.random.uniform(jax.random.fold_in(here, i)) for i in range(accumulate)])
        np.testing.assert_allclose(report.metrics["draw"].total, draws.sum(), rtol=1e-5)
        np.testing.assert_allclose(report.metrics["square"].total, np.square(draws).sum(), rtol=1e-5)
        seen += list(draws)
    assert len(set(seen)) == 3 * accumulate


@pytest.mark.parametrize("devices", [1, 8])
def test_the_step_compiles_once(devices):
    run, create = made(accumulate=2, devices=devices)
    state, mesh = create(), tiny.mesh(devices)
    for seed in range(5):
        batch = jax.device_put(good_batch() | {"x": make_batch(seed)["x"]}, sharding.batch_sharding(mesh))
        state, _ = run(state, batch)
    assert int(state.step) == 5
    assert run._cache_size() == 1


def test_devices_change_a_step_by_rounding_only():
    states = []
    for devices in (1, 8):
        run, create = made(accumulate=2, devices=devices)
        state = create()
        for _ in range(3):
            state, _ = run(state, jax.device_put(good_batch(), sharding.batch_sharding(tiny.mesh(devices))))
        states.append(state.params)
    close(states[1], states[0], 1e-4)
