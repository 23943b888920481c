"""Claims about jtasks.optim, against closed forms, numpy and optax itself applied layer by layer."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks import optim
from jtasks.errors import ConfigError

LISTED = ["adam", "adamw", "adadelta", "sgd", "lion", "adafactor", "lamb", "muon"]
OTHERS = ["rmsprop", "radam", "adabelief", "adan", "lars", "novograd", "yogi"]


def make_params():
    """An embedding, a stack of 3 scanned layers, a dense layer and a head of the same shape (fewer compilations)."""
    shapes = {
        "embed": {"embedding": (6, 4)},
        "blocks": {"kernel": (3, 3, 4), "bias": (3, 4)},
        "dense": {"kernel": (5, 4), "bias": (4,)},
        "head": {"kernel": (5, 4), "bias": (4,)},
    }
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: random.normal(size=shape).astype(np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


def make_grads(params):
    return jax.tree.map(lambda leaf: np.cos(3 * leaf) + 0.5 * leaf, params)


def first_updates(fields, params, grads, steps=10):
    transformation, _ = optim.optimizer(fields, steps, params)
    return transformation.update(grads, transformation.init(params), params)[0]


def by_path(tree):
    return dict(zip(optim.paths(tree), jax.tree.leaves(tree), strict=True))


def fairseq_polynomial(updates, lr, end, power, warmup, total):
    """The published formula after the warm-up, in Python's doubles."""
    if updates >= total:
        return end
    return (1 - (updates - warmup) / (total - warmup)) ** power * (lr - end) + end


# Schedules

NAMES = optim.ALLOWED["schedule"]


@settings(max_examples=40, deadline=None)
@given(
    total=st.integers(2, 500),
    part=st.floats(0, 0.99),
    lr=st.floats(1e-4, 1),
    end=st.floats(0, 0.1),
    power=st.floats(0.5, 3),
    extra=st.integers(0, 50),
    growth=st.sampled_from([2, 3]),
)
def test_every_schedule_equals_its_closed_form(total, part, lr, end, power, extra, growth):
    warmup = int(part * total)
    fields = {"lr": lr, "end_lr": end, "power": power, "warmup": warmup}
    after = {
        "constant": lambda t: lr,
        "linear": lambda t: float(np.interp(t, [warmup, total], [lr, end])),
        "cosine": lambda t: end + (lr - end) * math.cos(math.pi / 2 * min((t - warmup) / (total - warmup), 1)) ** 2,
        "polynomial": lambda t: fairseq_polynomial(t, lr, end, power, warmup, total),
        "rsqrt": lambda t: lr * math.sqrt(max(warmup, 1)) / math.sqrt(t + 1),
        "step": lambda t: lr * 0.5 ** sum(t >= milestone for milestone in (total // 2, total)),
        "wsd": lambda t: end + (lr - end) * min(max(total - t, 0) / cooldown, 1) ** power,
        "cosine_restarts": lambda t: end + (lr - end) * math.cos(math.pi / 2 * phase(t - warmup)) ** 2,
    }
    cooldown = max(min(round(0.3 * total), total - warmup), 1)
    fields |= {"milestones": (total // 2, total), "gamma": 0.5, "cooldown": 0.3, "cycle": 3, "cycle_growth": growth}

    def phase(passed):
        begin, length = 0, 3
        while begin + length <= passed and begin + length <= total - warmup:
            begin, length = begin + length, length * growth
        return min((passed - begin) / length, 1)

    counts = sorted(
        {0, warmup // 2, max(warmup - 1, 0), warmup, (warmup + total) // 2, total - 1, total, total + extra}
    )
    for name, value in after.items():
        rate = optim.schedule(fields | {"schedule": name}, total)
        held = value if name == "step" else lambda t: lr
        expected = [held(t) * (t + 1) / warmup if t < warmup else value(t) for t in counts]
        np.testing.assert_allclose(rate(np.array(counts)), expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_schedule_is_jittable_and_float32():
    for name in NAMES:
        rate = optim.schedule({"schedule": name, "warmup": 3, "lr": 1, "milestones": (5, 0.8)}, 10)
        inside = jax.jit(rate)(jnp.int32(7))
        assert inside.dtype == rate(7).dtype == jnp.float32
        np.testing.assert_allclose(inside, rate(7), rtol=1e-6)


def test_the_first_update_is_not_wasted_and_the_last_of_the_warmup_runs_at_the_peak():
    rate = optim.schedule({"lr": 0.4, "warmup": 4, "schedule": "cosine"}, 100)
    np.testing.assert_allclose([rate(t) for t in range(4)], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_fractional_warmup_is_that_part_of_the_total(name):
    fields = {"schedule": name, "decay_steps": 50, "milestones": (20, 0.9)}
    fraction, whole = (optim.schedule(fields | {"warmup": warmup}, 1000) for warmup in (0.1, 5))
    counts = range(0, 60, 3)
    assert [float(fraction(t)) for t in counts] == [float(whole(t)) for t in counts]
    assert float(whole(4)) == pytest.approx(1e-3)


def test_decay_steps_replace_the_length_of_the_run():
    rate = optim.schedule({"schedule": "linear", "decay_steps": 10, "end_lr": 1e-5}, 100)
    np.testing.assert_allclose([rate(10), rate(50)], [1e-5, 1e-5], rtol=1e-5)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "rsqrt", "polynomial", "cosine_restarts"])
def test_a_warmup_longer_than_the_schedule_is_cut_short_by_its_end(name):
    rate = optim.schedule({"schedule": name, "lr": 1.0, "warmup": 500}, 10)
    np.testing.assert_allclose([rate(count) for count in range(10)], np.arange(1, 11) / 500, rtol=1e-5)


def test_a_warmup_as_long_as_the_schedule_is_all_warmup():
    rate = optim.schedule({"schedule": "linear", "lr": 1.0, "warmup": 4}, 4)
    assert [float(rate(t)) for t in range(5)] == [0.25, 0.5, 0.75, 1.0, 0.0]


# Optimizers


@pytest.mark.parametrize("name", LISTED + OTHERS)
def test_optimizers_reduce_a_quadratic(name):
    params = {"dense": make_params()["dense"]}
    lr = {"adadelta": 10.0, "lars": 1.0}.get(name, 0.02)
    transformation, _ = optim.optimizer({"name": name, "lr": lr, "clip": 1.0}, 30, params)

    def loss_fn(params):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    @jax.jit
    def step(carry, _):
        params, state = carry
        updates, state = transformation.update(jax.grad(loss_fn)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    initial = (jax.tree.map(jnp.asarray, params), transformation.init(params))
    (trained, _), _ = jax.lax.scan(step, initial, length=30)
    assert float(loss_fn(trained)) < 0.98 * float(loss_fn(params))


def test_arguments_reach_the_optimizer_and_common_fields_are_not_among_them():
    assert optim.arguments("adamw") == {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0, "nesterov": False}
    assert {"momentum", "centered"} < set(optim.arguments("rmsprop"))
    for name in LISTED + OTHERS:
        assert not set(optim.arguments(name)) & set(optim.defaults())
    params = make_params()
    grads = make_grads(params)
    transformation, _ = optim.optimizer({"name": "sgd", "lr": 0.1, "momentum": 0.5}, 10, params)
    _, state = transformation.update(grads, transformation.init(params), params)
    updates, _ = transformation.update(grads, state, params)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -0.1 * 1.5 * g, rtol=1e-5), updates, grads)


def torch_rmsprop(params, gradients, *, lr, alpha=0.99, eps=1e-8, momentum=0.0, centered=False):
    """torch.optim.RMSprop as its documentation has it, in float64."""
    square = mean = buffer = np.zeros_like(params)
    for gradient in gradients:
        square = alpha * square + (1 - alpha) * gradient**2
        mean = alpha * mean + (1 - alpha) * gradient
        buffer = momentum * buffer + gradient / (np.sqrt(square - centered * mean**2) + eps)
        params = params - lr * buffer
    return params


def torch_radam(params, gradients, *, lr, b1=0.9, b2=0.999, eps=1e-8):
    """torch.optim.RAdam as its documentation has it (Liu et al. 2020), in float64."""
    first = second = np.zeros_like(params)
    longest = 2 / (1 - b2) - 1
    for t, gradient in enumerate(gradients, 1):
        first, second = b1 * first + (1 - b1) * gradient, b2 * second + (1 - b2) * gradient**2
        update = first / (1 - b1**t)
        length = longest - 2 * t * b2**t / (1 - b2**t)
        if length > 5:
            r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            update = update * np.sqrt(r) * np.sqrt(1 - b2**t) / (np.sqrt(second) + eps)
        params = params - lr * update
    return params


def distance_to_reference(fields, reference, dtype=np.float32, **options):
    """Largest difference of the change of 50 numbers in 60 steps, as a share of the largest change."""
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=50), random.normal(size=(60, 50))
    params = {"w": jnp.asarray(start, dtype)}
    transformation, _ = optim.optimizer({"lr": 0.01} | fields, 60, params)

    def step(carry, gradient):
        params, state = carry
        updates, state = transformation.update({"w": gradient}, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, transformation.init(params)), jnp.asarray(gradients, dtype))
    expected = reference(start, gradients, lr=0.01, **options)
    return np.abs(params["w"] - expected).max() / np.abs(expected - start).max()


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"centered": True}])
def test_rmsprop_with_eps_beside_the_root_is_torchs(options):
    fields = {"name": "rmsprop", "decay": 0.99, "eps_in_sqrt": False} | options
    assert distance_to_reference(fields, torch_rmsprop, **options) < 1e-5
    assert distance_to_reference(fields | {"decay": 0.9}, torch_rmsprop, **options) > 0.1
    assert optim.arguments("rmsprop")["decay"] == 0.9


def test_radam_is_torchs_but_for_the_rounding_of_its_rectification():
    assert distance_to_reference({"name": "radam"}, torch_radam) < 1e-3
    with jax.enable_x64(True):
        assert distance_to_reference({"name": "radam"}, torch_radam, np.float64) < 1e-6


def test_a_frozen_config_dict_a_dict_and_all_defaults_written_out_mean_the_same():
    params = make_params()
    fields = {"name": "lion", "lr": 0.1, "b1": 0.8, "weight_decay": 0.01}
    config = ml_collections.FrozenConfigDict(optim.defaults() | optim.arguments("lion") | fields)
    same = jax.tree.map(
        np.array_equal,
        first_updates(config, params, make_grads(params)),
        first_updates(fields, params, make_grads(params)),
    )
    assert all(jax.tree.leaves(same))


def test_the_schedule_drives_the_updates():
    params = make_params()
    grads = make_grads(params)
    fields = {"name": "sgd", "lr": 0.1, "warmup": 2, "schedule": "linear"}
    transformation, rate = optim.optimizer(fields, 4, params)
    state = transformation.init(params)
    for count in range(4):
        updates, state = transformation.update(grads, state, params)
        expected = -float(rate(count)) * grads["dense"]["kernel"]
        np.testing.assert_allclose(updates["dense"]["kernel"], expected, rtol=1e-5)


# Weight decay


def test_adamw_decay_is_decoupled():
    params = make_params()
    grads = make_grads(params)
    updates = first_updates({"lr": 0.1, "weight_decay": 0.3, "decay_mask": "kernel$"}, params, grads)
    for path, update in by_path(updates).items():
        p, g = by_path(params)[path], by_path(grads)[path]
        adam = g / (np.sqrt(g * g) + 1e-8)  # with bias correction, the first moments are g and g**2
        expected = -0.1 * (adam + (0.3 * p if path.endswith("kernel") else 0))
        np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-6, err_msg=path)


def test_sgd_decay_is_l2_added_to_the_clipped_gradient():
    params = make_params()
    grads = make_grads(params)
    norm = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    updates = first_updates({"name": "sgd", "lr": 0.1, "weight_decay": 0.3, "clip": 0.5}, params, grads)
    for path, update in by_path(updates).items():
        expected = -0.1 * (by_path(grads)[path] * 0.5 / norm + 0.3 * by_path(params)[path])
        np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", [*LISTED, "rmsprop", "lars", "adamaxw"])
def test_decay_touches_only_matched_parameters(name):
    params = make_params()
    grads = make_grads(params)
    plain = by_path(first_updates({"name": name, "lr": 0.1}, params, grads))
    # Decay strong enough to turn signs round: the first update of adam is the sign of what it is given.
    decayed = by_path(
        first_updates({"name": name, "lr": 0.1, "weight_decay": 9.0, "decay_mask": "^dense/"}, params, grads)
    )
    different = {path for path in plain if not np.allclose(plain[path], decayed[path], rtol=1e-6, atol=0)}
    assert different == {"dense/bias", "dense/kernel"}


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_decoupled_decay_is_the_learning_rate_times_weight_decay_times_the_parameter(name):
    params = make_params()
    grads = make_grads(params)
    fields = {"name": name, "lr": 0.1, "warmup": 4}  # the first rate is 0.025
    plain = first_updates(fields, params, grads)
    decayed = first_updates(fields | {"weight_decay": 0.4}, params, grads)
    difference = jax.tree.map(np.subtract, decayed, plain)
    jax.tree.map(lambda d, p: np.testing.assert_allclose(d, -0.01 * p, rtol=1e-3, atol=1e-6), difference, params)


@pytest.mark.parametrize("name", [*LISTED, "adamaxw", "novograd"])
def test_no_decay_when_it_is_0_whatever_optax_defaults_to(name):
    params = make_params()
    updates = first_updates({"name": name, "lr": 0.1}, params, jax.tree.map(np.zeros_like, params))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))


def test_an_optimizer_that_cannot_decay_a_part_says_so():
    params = make_params()
    fields = {"name": "novograd", "weight_decay": 0.1}
    optim.optimizer(fields, 10, params)
    optim.optimizer(fields | {"freeze": "^(?!dense)", "decay_mask": "^dense"}, 10, params)
    with pytest.raises(ConfigError, match=r"novograd decays all .* config\.optim\.decay_mask='kernel'"):
        optim.optimizer(fields | {"decay_mask": "kernel"}, 10, params)


# Freezing and clipping


@pytest.mark.parametrize("name", LISTED)
def test_frozen_parameters_get_updates_of_0_and_no_state(name):
    params = make_params()
    fields = {"name": name, "lr": 0.1, "freeze": "^(embed|blocks)/", "weight_decay": 0.1, "clip": 1.0}
    transformation, _ = optim.optimizer(fields, 10, params)
    state = transformation.init(params)
    updates, _ = jax.jit(transformation.update)(make_grads(params), state, params)
    for path, update in by_path(updates).items():
        assert np.any(update) != path.startswith(("embed", "blocks")), path
    frozen_shapes = {(6, 4), (3, 3, 4), (3, 4)}
    assert not frozen_shapes & {leaf.shape for leaf in jax.tree.leaves(state)}
    assert not [path for path in optim.paths(state) if "embed" in path or "blocks" in path]


def test_freezing_leaves_the_updates_of_the_others_as_they_were():
    params = make_params()
    fields = {"name": "adamw", "lr": 0.1, "weight_decay": 0.1, "decay_mask": "kernel"}
    free = by_path(first_updates(fields, params, make_grads(params)))
    frozen = by_path(first_updates(fields | {"freeze": "embed"}, params, make_grads(params)))
    for path in free:
        if path != "embed/embedding":
            np.testing.assert_array_equal(free[path], frozen[path])


def test_the_clipped_norm_is_that_of_trainable_gradients():
    params = make_params()
    grads = make_grads(params)
    grads["embed"]["embedding"] = grads["embed"]["embedding"] * 1e6
    updates = first_updates({"name": "sgd", "lr": 1.0, "clip": 0.5, "freeze": "^embed"}, params, grads)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.5, rel=1e-5)
    small = jax.tree.map(lambda g: 1e-3 * g, grads) | {"embed": grads["embed"]}
    untouched = first_updates({"name": "sgd", "lr": 1.0, "clip": 0.5, "freeze": "^embed"}, params, small)
    np.testing.assert_allclose(untouched["dense"]["kernel"], -small["dense"]["kernel"], rtol=1e-6)


# Muon


@pytest.mark.parametrize("freeze", ["", "^dense/"])
def test_muon_on_a_stack_is_muon_on_each_layer(freeze):
    params = make_params()
    grads = make_grads(params)
    fields = {"name": "muon", "lr": 0.1, "weight_decay": 0.2, "freeze": freeze}
    stacked = first_updates(fields, params, grads)["blocks"]["kernel"]
    for layer in range(3):
        kernel, gradient = params["blocks"]["kernel"][layer], grads["blocks"]["kernel"][layer]
        alone = optax.contrib.muon(0.1, weight_decay=0.2)
        expected, _ = alone.update({"w": gradient}, alone.init({"w": kernel}), {"w": kernel})
        np.testing.assert_allclose(stacked[layer], expected["w"], rtol=1e-3, atol=1e-5)


def test_muon_takes_hidden_kernels_and_leaves_the_rest_to_adam():
    params = make_params()
    grads = make_grads(params)
    updates = by_path(first_updates({"name": "muon", "lr": 0.1, "adam_learning_rate": 0.05}, params, grads))
    adam = by_path(first_updates({"name": "adam", "lr": 0.05, "nesterov": True}, params, grads))
    same = {path for path in updates if np.allclose(updates[path], adam[path], rtol=1e-4)}
    assert set(updates) - same == {"blocks/kernel", "dense/kernel"}
    singular = np.linalg.svd(updates["dense/kernel"], compute_uv=False)
    assert np.all((singular > 0.06) & (singular < 0.13))  # lr times roughly 1, by Newton-Schulz


def test_the_adam_rate_of_muon_follows_the_schedule():
    params = make_params()
    fields = {"name": "muon", "lr": 0.1, "warmup": 4}
    grads = make_grads(params)
    low, high = (first_updates(fields | {"adam_learning_rate": lr}, params, grads) for lr in (0.02, 0.04))
    np.testing.assert_allclose(high["head"]["kernel"], 2 * low["head"]["kernel"], rtol=1e-5)
    adam = first_updates({"name": "adam", "nesterov": True, "lr": 0.02, "warmup": 4}, params, grads)
    np.testing.assert_allclose(low["head"]["bias"], adam["head"]["bias"], rtol=1e-4)


# Masks and shapes


def test_paths_and_masks_follow_the_order_of_the_leaves():
    params = make_params()
    assert optim.paths(params)[:3] == ["blocks/bias", "blocks/kernel", "dense/bias"]
    assert by_path(optim.matching("^dense|bias$", params)) == {
        path: path.startswith("dense") or path.endswith("bias") for path in optim.paths(params)
    }
    assert all(jax.tree.leaves(optim.trainable({}, params)))
    assert optim.trainable({"freeze": "kernel"}, params)["head"] == {"kernel": False, "bias": True}


@pytest.mark.parametrize("name", LISTED)
def test_shapes_are_enough_to_make_an_optimizer(name):
    params = make_params()
    shapes = jax.eval_shape(lambda: params)
    fields = {"name": name, "weight_decay": 0.1, "decay_mask": "kernel", "freeze": "^embed"}
    transformation, _ = optim.optimizer(fields, 10, shapes)
    abstract = jax.eval_shape(transformation.init, shapes)
    concrete = transformation.init(params)
    assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, concrete)


# Errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adamm"}, r"unknown optimizer config\.optim\.name='adamm', did you mean .*adam.*available: .*muon"),
        ({"name": "lbfgs"}, r"unknown optimizer config\.optim\.name='lbfgs'.*available"),
        ({"widht": 1}, r"unknown field config\.optim\.widht; available: .*weight_decay"),
        ({"wieght_decay": 1}, r"unknown field config\.optim\.wieght_decay, did you mean weight_decay"),
        ({"name": "sgd", "b2": 0.9}, r"unknown field config\.optim\.b2.*available: .*momentum"),
        ({"schedule": "cosin"}, r"config\.optim\.schedule must be constant.*rsqrt.*'cosin', did you mean cosine\?"),
        ({"warmup": 5.5}, r"config\.optim\.warmup=5\.5 should be a whole number"),
        ({"warmup": -0.1}, r"config\.optim\.warmup must be at least 0, not -0\.1"),
        ({"lr": -1.0}, r"config\.optim\.lr must be at least 0, not -1\.0"),
        ({"lr": "fast"}, r"config\.optim\.lr must be float, not str \('fast'\)"),
        ({"end_lr": math.nan}, r"config\.optim\.end_lr must be finite and at least 0, not nan"),
        ({"power": 0, "schedule": "polynomial"}, r"config\.optim\.power must be above 0, not 0"),
        ({"decay_steps": -1}, r"config\.optim\.decay_steps must be at least 0, not -1"),
        ({"warmup": 1e30}, r"config\.optim\.warmup must be in \[0, 2e9\], not 1e\+30"),
        ({"weight_decay": -0.1}, r"config\.optim\.weight_decay must be at least 0"),
        ({"clip": -1}, r"config\.optim\.clip must be at least 0"),
        ({"freeze": "."}, r"config\.optim\.freeze='\.' matches every parameter"),
        ({"freeze": "encoder"}, r"config\.optim\.freeze='encoder' matches no parameter.*dense/kernel"),
        ({"decay_mask": "weight$"}, r"config\.optim\.decay_mask='weight\$' matches no parameter.*dense/kernel"),
        ({"decay_mask": ""}, r"config\.optim\.decay_mask=''"),
        ({"schedule": "step"}, r"config\.optim\.schedule=step needs config\.optim\.milestones"),
        ({"schedule": "step", "milestones": (9, 0.5)}, r"are the updates \[9, 5\], which must ascend"),
        ({"cooldown": 0}, r"config\.optim\.cooldown must be above 0"),
        ({"cycle": 1.5}, r"config\.optim\.cycle=1\.5 should be a whole number"),
        ({"factors": (("dense", 0),)}, r"config\.optim\.factors must be above 0, not 0"),
        ({"factors": ("dense", 2)}, r"config\.optim\.factors=\('dense', 2\) must be pairs"),
        ({"factors": (("none", 2),)}, r"config\.optim\.factors='none' matches no parameter"),
        ({"unfreeze": (("(", 2),)}, r"config\.optim\.unfreeze='\(' is not a regular expression"),
        ({"unfreeze": ((".", 2),)}, r"leaves nothing to train from the first update"),
        ({"freeze": "("}, r"config\.optim\.freeze='\(' is not a regular expression"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        optim.optimizer(fields, 10, make_params())


@pytest.mark.parametrize("lr", [0, 0.0])
def test_a_rate_of_0_changes_nothing(lr):
    params = make_params()
    for name in ("adamw", "muon"):
        updates = first_updates({"name": name, "lr": lr, "weight_decay": 0.1}, params, make_grads(params))
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))


# Layers of a stack


def stacked(depth=4):
    """A small encoder's parameters: embeddings, a stack, a norm of the embeddings and a head."""
    random = np.random.default_rng(2)
    shapes = {
        "tokens": {"embedding": (5, 3)},
        "norm": {"scale": (3,)},
        "blocks": {"up": {"kernel": (depth, 3, 6)}, "norm1": {"bias": (depth, 3)}},
        "classifier": {"kernel": (3, 2)},
    }
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: random.normal(size=shape).astype(np.float32), shapes, is_leaf=is_shape)


def trained_for(fields, params, steps=5, total=None):
    """Parameters after some steps of training."""
    transformation, _ = optim.optimizer(fields, total or steps, params)
    state, kept = transformation.init(params), optim.trainable(fields, params)

    @jax.jit
    def step(params, state):
        gradient = jax.tree.map(lambda p, train: (jnp.cos(3 * p) + 0.5 * p) * train, params, kept)
        updates, state = transformation.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return by_path(jax.device_get(params))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "adafactor", "lion"])
def test_frozen_layers_stay_as_they_are_to_the_bit_and_the_others_move(name):
    params = stacked()
    fields = {"name": name, "lr": 0.1, "weight_decay": 0.3, "freeze": "^(tokens|norm)/|^blocks/[0-1]/"}
    before, after = by_path(params), trained_for(fields, params)
    for path in ("tokens/embedding", "norm/scale"):
        np.testing.assert_array_equal(after[path], before[path])
    for path in ("blocks/up/kernel", "blocks/norm1/bias"):
        np.testing.assert_array_equal(after[path][:2], before[path][:2])
        assert (after[path][2:] != before[path][2:]).any(tuple(range(1, after[path].ndim))).all()
    assert (after["classifier/kernel"] != before["classifier/kernel"]).all()


def test_layers_above_frozen_ones_train_as_if_alone():
    params, fields = stacked(), {"name": "adamw", "lr": 0.1, "weight_decay": 0.3, "clip": 0.5}
    frozen = trained_for(fields | {"freeze": "^(tokens|norm)/|^blocks/[01]/"}, params)
    alone = {name: params[name] for name in ("blocks", "classifier")}
    alone["blocks"] = jax.tree.map(lambda x: x[2:], alone["blocks"])
    for path, expected in trained_for(fields, alone).items():
        found = frozen[path][2:] if path.startswith("blocks") else frozen[path]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_regex_of_paths_without_index_freezes_whole_stacks_as_before():
    params = stacked()
    found = by_path(optim.trainable({"freeze": "kernel$"}, params))
    assert found == {path: not path.endswith("kernel") for path in found}
    found = by_path(optim.trainable({"freeze": r"^blocks/\d+/up"}, params))
    assert found == {path: path != "blocks/up/kernel" for path in found}


def test_numbered_modules_are_no_stacks():
    params = {"blocks": {"0": {"kernel": np.ones((2, 3))}, "1": {"kernel": np.ones((2, 3))}}}
    assert by_path(optim.trainable({"freeze": "^blocks/1/"}, params)) == {
        "blocks/0/kernel": True,
        "blocks/1/kernel": False,
    }


def test_freezing_every_layer_one_by_one_is_freezing_all():
    with pytest.raises(ConfigError, match="nothing is left to train"):
        optim.trainable({"freeze": r"^blocks/\d/|tokens|norm|classifier"}, stacked())
    with pytest.raises(ConfigError, match="matches no parameter"):
        optim.trainable({"freeze": "^blocks/4/"}, stacked())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_layer_decay_is_a_learning_rate_of_its_own_for_each_layer_weight_decay_and_all(name):
    params, decay = stacked(), 0.8
    fields = {"name": name, "weight_decay": 0.3, "embeddings": "^(tokens|norm)/"}
    grads = make_grads(params)
    found = by_path(first_updates(fields | {"lr": 0.1, "layer_decay": decay}, params, grads))

    def at(power):
        return by_path(first_updates(fields | {"lr": 0.1 * decay**power}, params, grads))

    for path in ("tokens/embedding", "norm/scale"):
        np.testing.assert_allclose(found[path], at(5)[path], rtol=1e-5)
    for layer in range(4):
        for path in ("blocks/up/kernel", "blocks/norm1/bias"):
            np.testing.assert_allclose(found[path][layer], at(4 - layer)[path][layer], rtol=1e-5)
    np.testing.assert_allclose(found["classifier/kernel"], at(0)["classifier/kernel"], rtol=1e-5)


def test_layer_decay_and_frozen_layers_go_together():
    fields = {"lr": 0.1, "weight_decay": 0.1, "layer_decay": 0.5, "freeze": "^tokens|^blocks/0/"}
    params = stacked()
    updates = by_path(first_updates(fields, params, make_grads(params)))
    plain = by_path(first_updates({"lr": 0.1, "weight_decay": 0.1}, params, make_grads(params)))
    assert not updates["tokens/embedding"].any() and not updates["blocks/up/kernel"][0].any()
    np.testing.assert_allclose(updates["blocks/up/kernel"][1], plain["blocks/up/kernel"][1] / 8, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_a_factor_is_a_learning_rate_of_its_own_and_the_first_that_matches_counts(name):
    params, fields = stacked(), {"name": name, "weight_decay": 0.3, "lr": 0.1}
    pairs = ((r"^blocks/2/", 3.0), ("blocks", 0.5), ("tokens", 2))
    found = by_path(first_updates(fields | {"factors": pairs}, params, make_grads(params)))
    plain = by_path(first_updates(fields, params, make_grads(params)))
    factors = {"tokens/embedding": 2, "norm/scale": 1, "classifier/kernel": 1}
    for path, update in plain.items():
        layers = np.array([0.5, 0.5, 3, 0.5]).reshape(-1, *[1] * (update.ndim - 1))
        np.testing.assert_allclose(found[path], update * factors.get(path, layers), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_an_unfrozen_parameter_stays_to_the_bit_until_its_update_and_moves_from_there_on(name):
    params = stacked()
    fields = {"name": name, "lr": 0.1, "weight_decay": 0.3, "clip": 0.5}
    fields |= {"unfreeze": (("^blocks/[01]/", 3), ("tokens", 0.8))}
    before = by_path(params)
    for steps, moved in ((3, 0), (4, 1), (5, 2)):
        after = trained_for(fields, params, steps, total=5)
        assert np.array_equal(after["tokens/embedding"], before["tokens/embedding"]) == (moved < 2)
        assert np.array_equal(after["blocks/up/kernel"][:2], before["blocks/up/kernel"][:2]) == (moved < 1)
        assert (after["blocks/up/kernel"][2:] != before["blocks/up/kernel"][2:]).any()
    alone = trained_for(fields | {"unfreeze": (), "freeze": "^blocks/[01]/|tokens"}, params, 3)
    for path, value in trained_for(fields, params, 3, total=5).items():  # frozen ones do not count in the norm either
        np.testing.assert_allclose(value, alone[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_no_layer_decay_leaves_the_optimizers_state_as_it_was():
    one, two = (optim.optimizer(f, 10, stacked())[0].init(stacked()) for f in ({"lr": 1}, {"lr": 1, "layer_decay": 1}))
    assert jax.tree.structure(one) == jax.tree.structure(two)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], not 0.0"),
        ({"layer_decay": 1.5}, r"layer_decay must be in \(0, 1\], not 1.5"),
        ({"layer_decay": 0.9, "embeddings": "^words"}, r"embeddings='\^words' matches none"),
    ],
)
def test_a_layer_decay_that_cannot_be_says_why(fields, message):
    with pytest.raises(ConfigError, match=message):
        optim.optimizer(fields, 10, stacked())


def test_layer_decay_needs_a_stack():
    with pytest.raises(ConfigError, match="there is no stack"):
        optim.optimizer({"layer_decay": 0.9}, 10, {"tokens": {"embedding": np.ones((2, 2))}})
