"""Claims about jtasks.models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtasks import models
from jtasks.models import blocks

VOCAB, T = 7, 12


@functools.cache
def gpt(**options):
    fields = {"vocab": VOCAB, "outputs": VOCAB - 1, "max_length": T, "width": 16, "depth": 2, "heads": 2} | options
    return models.GPT(**fields)


def drawn(model, *args, **options):
    """Parameters of a model's shapes, drawn so far from zero that every one of them shows in the output."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **options))
    random = np.random.default_rng(0)

    def draw(path, leaf):
        return (("scale" in str(path[-1])) + 0.3 * random.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def gpt_params():
    return drawn(gpt(classes=3), tokens(), method="classify")


def params_without_classifier():
    params = dict(gpt_params()["params"])
    del params["classifier"]
    return {"params": params}


def tokens(b=2, t=T, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB - 1, (b, t)), jnp.int32)


full = jax.jit(lambda params, tokens: gpt().apply(params, tokens))


def images(b=2, h=8, w=8, c=1):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (b, h, w, c)), jnp.float32)


# GPT


def test_shifted_inputs_start_with_the_start_token_and_lose_the_last():
    np.testing.assert_array_equal(models.shift_right(jnp.array([[1, 2, 3], [4, 5, 6]]), 9), [[9, 1, 2], [9, 4, 5]])


def test_a_token_changes_no_logits_before_its_own_position():
    params, before = params_without_classifier(), tokens()
    logits = np.asarray(full(params, before))
    assert logits.shape == (2, T, VOCAB - 1) and logits.dtype == np.float32
    for i in (0, 5, T - 1):
        changed = np.asarray(full(params, before.at[:, i].set((before[:, i] + 1) % (VOCAB - 1))))
        np.testing.assert_array_equal(changed[:, :i], logits[:, :i])
        assert (np.abs(changed[:, i:] - logits[:, i:]).max(-1) > 1e-4).all()


def test_with_shifted_inputs_no_token_sees_itself():
    params, before = params_without_classifier(), tokens()
    logits = np.asarray(full(params, models.shift_right(before, VOCAB - 1)))
    changed = np.asarray(full(params, models.shift_right(before.at[:, 4].set((before[:, 4] + 1) % 6), VOCAB - 1)))
    np.testing.assert_array_equal(changed[:, :5], logits[:, :5])
    assert not np.array_equal(changed[:, 5], logits[:, 5])


@pytest.mark.parametrize("prefill", [1, 5, T])
def test_decoding_with_a_cache_equals_the_full_pass(prefill):
    params, model = params_without_classifier(), gpt()
    expected = np.asarray(full(params, tokens()))
    read = jax.jit(lambda p, t: model.apply(p, t, length=T + 1 - prefill, method="prefill"))
    extend = jax.jit(lambda p, t, c: model.apply(p, t, c, method="extend"))
    logits, cache = read(params, tokens()[:, :prefill])
    np.testing.assert_allclose(logits, expected[:, prefill - 1], atol=2e-5)
    for position in range(prefill, T):
        logits, cache = extend(params, tokens()[:, position : position + 1], cache)
        np.testing.assert_allclose(logits[:, 0], expected[:, position], atol=2e-5)


def test_sequences_of_a_batch_do_not_see_each_other():
    params = params_without_classifier()
    np.testing.assert_allclose(full(params, tokens())[:1], full(params, tokens()[:1]), atol=2e-5)


def test_a_shorter_sequence_has_the_logits_of_a_prefix():
    params = params_without_classifier()
    np.testing.assert_allclose(full(params, tokens()[:, :5]), full(params, tokens())[:, :5], atol=2e-5)


def test_remat_changes_neither_value_nor_gradient():
    def loss(model):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.square(model.apply(p, tokens())))))

    params = params_without_classifier()
    (value, gradient), (other, other_gradient) = loss(gpt())(params), loss(gpt(remat=True))(params)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_remat_recomputes_each_layer_in_the_backward_pass():
    params = params_without_classifier()
    texts = [
        jax.jit(jax.grad(lambda p, m=model: m.apply(p, tokens()).sum())).lower(params).as_text()
        for model in (gpt(), gpt(remat=True))
    ]
    assert texts[1].count("dot_general") > texts[0].count("dot_general")


def test_dropout_acts_only_when_it_is_not_deterministic():
    params, model = params_without_classifier(), gpt(dropout=0.5)
    run = jax.jit(lambda key: model.apply(params, tokens(), deterministic=False, rngs={"dropout": key}))
    np.testing.assert_allclose(jax.jit(model.apply)(params, tokens()), full(params, tokens()), atol=2e-5)
    one, same, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other) and not np.allclose(one, full(params, tokens()))
    never = jax.jit(lambda: gpt().apply(params, tokens(), deterministic=False))()
    np.testing.assert_allclose(never, full(params, tokens()), atol=2e-5)


def test_bfloat16_is_the_type_of_the_computation_and_not_of_the_parameters():
    model = gpt(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens())
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    params = params_without_classifier()
    text = jax.jit(model.apply).lower(params, tokens()).as_text()
    assert "bf16" in text
    logits, expected = jax.jit(model.apply)(params, tokens()), full(params, tokens())
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()
    _, cache = jax.eval_shape(lambda p, t: model.apply(p, t, length=1, method="prefill"), params, tokens())
    assert cache["key"][0].dtype == jnp.bfloat16


def test_features_are_one_a_layer_and_the_classifier_reads_the_chosen_one():
    params, model = gpt_params(), gpt(classes=3)

    classify = jax.jit(lambda layer: model.apply(params, tokens(), layer, method="classify"))

    logits, classes = classify(-1)
    np.testing.assert_allclose(logits, full(params_without_classifier(), tokens()), atol=2e-5)
    assert classes.shape == (2, 3)
    np.testing.assert_allclose(classes, classify(2)[1], atol=1e-6)
    assert not np.allclose(classes, classify(0)[1]) and not np.allclose(classify(1)[1], classify(0)[1])
    # Layer 0's features are the layer-normed embeddings, whatever the blocks do.
    p = jax.tree.map(np.asarray, params["params"])
    x = p["tokens"]["embedding"][np.asarray(tokens())] + p["position"]["embedding"][None]
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    features = (normed * p["blocks"]["norm1"]["scale"][0] + p["blocks"]["norm1"]["bias"][0]).mean(1)
    expected = features @ p["classifier"]["kernel"] + p["classifier"]["bias"]
    np.testing.assert_allclose(classify(0)[1], expected, atol=1e-4)


def test_a_gpt_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="13 tokens, but the model has 12 positions"):
        gpt().apply(params_without_classifier(), tokens(t=T + 1))
    with pytest.raises(ValueError, match="width=16 must be divisible by heads=3"):
        gpt(heads=3).init(jax.random.key(0), tokens())


# Blocks


@pytest.mark.parametrize("causal", [True, False])
def test_a_block_whose_output_projections_are_zero_is_the_identity(causal):
    block = blocks.Block(width=8, heads=2, causal=causal, depth=1)
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (2, 5, 8)), jnp.float32)
    params = drawn(block, x, None, None, True)["params"]
    apply = jax.jit(lambda params: block.apply({"params": params}, x, None, None, True)[0])
    y = apply(params)
    assert np.abs(y - x).max() > 0.1
    for projection in (params["attention"]["output"], params["down"]):
        projection |= jax.tree.map(np.zeros_like, projection)
    np.testing.assert_array_equal(apply(params), x)


def test_layers_start_different_and_their_outputs_smaller_with_depth():
    model = gpt(depth=4, width=64)
    blocks = jax.jit(model.init)(jax.random.key(0), tokens())["params"]["blocks"]
    up, down = np.asarray(blocks["up"]["kernel"]), np.asarray(blocks["down"]["kernel"])
    assert up.shape == (4, 64, 256) and not np.allclose(up[0], up[1])
    np.testing.assert_allclose([up.std(), down.std()], [0.02, 0.02 / np.sqrt(2 * 4)], rtol=0.05)


def test_the_program_does_not_grow_with_depth():
    def length(depth):
        model = gpt(depth=depth)
        shapes = jax.eval_shape(model.init, jax.random.key(0), tokens())
        gradient = jax.jit(jax.grad(lambda p: model.apply(p, tokens()).sum()))
        return len(gradient.lower(shapes).as_text())

    assert length(16) < 1.02 * length(2)


# Images


def test_a_vit_gives_float32_logits_and_sees_all_of_the_image():
    model = models.ViT(classes=4, width=16, depth=2, heads=2, patch=4)
    params = drawn(model, images())
    apply = jax.jit(model.apply)
    logits = apply(params, images())
    assert logits.shape == (2, 4) and logits.dtype == jnp.float32
    for corner in ((0, 0), (0, 7), (7, 0), (7, 7)):
        assert not np.allclose(apply(params, images().at[:, corner[0], corner[1]].add(1.0)), logits, atol=2e-5)
    bfloat16 = models.ViT(classes=4, width=16, depth=2, heads=2, patch=4, dtype=jnp.bfloat16)
    assert jax.eval_shape(bfloat16.apply, params, images()).dtype == jnp.float32


def test_a_vit_without_positions_ignores_the_order_of_patches_and_not_within():
    model = models.ViT(classes=4, width=16, depth=1, heads=2, patch=4)
    params = drawn(model, images())["params"]
    apply = jax.jit(model.apply)

    def swapped(x):
        return jnp.concatenate([x[:, :, 4:], x[:, :, :4]], axis=2)

    mirrored = images()[:, :, ::-1]
    assert not np.allclose(apply({"params": params}, images()), apply({"params": params}, swapped(images())), atol=1e-4)
    params["position"] = jnp.zeros_like(params["position"])
    logits = apply({"params": params}, images())
    np.testing.assert_allclose(logits, apply({"params": params}, swapped(images())), atol=2e-5)
    assert not np.allclose(logits, apply({"params": params}, mirrored), atol=1e-4)


def test_a_vit_refuses_images_that_do_not_divide_into_patches():
    model = models.ViT(classes=4, width=16, depth=1, heads=2, patch=3)
    with pytest.raises(ValueError, match="images 8x8 are not divisible into patches 3x3"):
        model.init(jax.random.key(0), images())


@pytest.mark.parametrize(("h", "c"), [(28, 1), (8, 3)])
def test_a_convnet_has_the_shapes_of_the_classic_network(h, c):
    model = models.ConvNet(classes=5)
    params = jax.eval_shape(model.init, jax.random.key(0), images(h=h, w=h, c=c))["params"]
    side = (h - 4) // 2
    assert {name: params[name]["kernel"].shape for name in params} == {
        "conv1": (3, 3, c, 32),
        "conv2": (3, 3, 32, 64),
        "dense1": (side * side * 64, 128),
        "dense2": (128, 5),
    }
    if h == 28:
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_199_882 - 5 * 129  # ten classes: the published


def test_a_convnet_drops_out_only_when_told_to():
    model = models.ConvNet(classes=5)
    params = drawn(model, images())
    rngs = {"dropout": jax.random.key(1)}
    logits = jax.jit(model.apply)(params, images())
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    assert not np.allclose(jax.jit(lambda: model.apply(params, images(), deterministic=False, rngs=rngs))(), logits)
    never = models.ConvNet(classes=5, dropout=False)
    np.testing.assert_allclose(jax.jit(lambda: never.apply(params, images(), deterministic=False))(), logits, rtol=1e-5)
