"""Claims about jtasks.models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtasks import models
from jtasks.models import attention, blocks, layers, vocabulary

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


# Attention


def plain_attention(query, key, value, causal, segment_ids=None):
    """In numpy, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    seen = np.tril(np.ones(scores.shape[-2:], bool)) if causal else np.ones(scores.shape[-2:], bool)
    seen = np.broadcast_to(seen, scores.shape)
    if segment_ids is not None:
        seen = seen & (segment_ids[:, None, :, None] == segment_ids[:, None, None])
    scores = np.where(seen, scores, -1e300)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def three(t):
    random = np.random.default_rng(t)
    return [jnp.asarray(random.normal(size=(2, 3, t, 4)), jnp.float32) for _ in range(3)]


def packed(t):
    """Segments of two rows: three texts and padding; one text and padding."""
    first = np.repeat([1, 2, 3, 0], [t // 4, t // 3, t // 4, t - t // 4 - t // 3 - t // 4])
    second = np.repeat([1, 0], [t - t // 5, t // 5])
    return np.stack([first, second]).astype(np.int32)


def test_attention_equals_numpy():
    np.testing.assert_allclose(attention.attention(*three(9)), plain_attention(*three(9), causal=False), atol=2e-5)


LENGTHS = pytest.mark.parametrize("t", [7, 16, 29])  # the last two in blocks of 8, one a whole number of them
CAUSAL = pytest.mark.parametrize("causal", [True, False])


@LENGTHS
@CAUSAL
def test_blockwise_attention_equals_the_plain_one(t, causal, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 8)
    found = jax.jit(functools.partial(attention.self_attention, causal=causal))(*three(t))
    np.testing.assert_allclose(found, plain_attention(*three(t), causal=causal), atol=1e-5)


@LENGTHS
@CAUSAL
def test_blockwise_attention_stays_inside_its_segment(t, causal, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 8)
    segment_ids = packed(t)
    found = jax.jit(functools.partial(attention.self_attention, causal=causal))(*three(t), segment_ids=segment_ids)
    expected = plain_attention(*three(t), causal=causal, segment_ids=segment_ids)
    text = (segment_ids > 0)[:, None, :, None]
    np.testing.assert_allclose(np.where(text, found, 0), np.where(text, expected, 0), atol=1e-5)
    assert np.isfinite(found).all()  # padding too


@CAUSAL
@pytest.mark.parametrize("segmented", [True, False])
def test_blockwise_attention_has_the_plain_gradient(causal, segmented, monkeypatch):
    t = 21  # short of three blocks of 8
    segment_ids = jnp.asarray(packed(t)) if segmented else None
    text = jnp.ones((2, t)) if segment_ids is None else segment_ids > 0

    def gradient():
        def loss(x):
            mixed = attention.self_attention(*x, causal=causal, segment_ids=segment_ids)
            return jnp.sum(jnp.sin(mixed) * text[:, None, :, None])

        return jax.jit(jax.grad(loss))(three(t))

    plain = gradient()
    monkeypatch.setattr(attention, "BLOCK", 8)
    for one, other in zip(gradient(), plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert np.abs(one).max() > 0.01


def test_padding_looks_at_all_of_the_text_and_nothing_looks_at_padding():
    segment_ids = jnp.asarray([[1, 1, 2, 0, 0]])
    seen = attention.attention_mask(5, False, segment_ids)[0, 0].astype(int)
    np.testing.assert_array_equal(
        seen, [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    )
    causal = attention.attention_mask(5, True, segment_ids)[0, 0].astype(int)
    np.testing.assert_array_equal(causal, np.tril(np.ones((5, 5), int)) * seen)
    assert attention.attention_mask(5, False, None) is None


def test_dropped_attention_is_the_plain_one_on_average():
    query, key, value = three(6)
    dropped = jax.jit(
        jax.vmap(lambda rng: attention.attention_with_dropout(query, key, value, None, rng, 0.3)),
    )(jax.random.split(jax.random.key(0), 300))
    assert not np.allclose(dropped[0], dropped[1])
    np.testing.assert_allclose(dropped.mean(0), plain_attention(query, key, value, causal=False), atol=0.2)


@CAUSAL
def test_the_shipped_block_is_used_for_long_sequences(causal):
    t = 2 * attention.BLOCK + 3
    query, key, value = three(t)
    run = jax.jit(functools.partial(attention.self_attention, causal=causal))
    np.testing.assert_allclose(run(query, key, value), plain_attention(query, key, value, causal=causal), atol=1e-5)
    assert f"{t}x{t}x" not in run.lower(query, key, value).as_text()  # the whole scores are never there


# The loss over a vocabulary


@pytest.mark.parametrize("rows", [64, 24, 5])  # all 24 rows at once, exactly one block, blocks with padding
@pytest.mark.parametrize("biased", [True, False])
def test_the_loss_over_a_vocabulary_is_the_plain_cross_entropy_with_its_gradient(rows, biased):
    random = np.random.default_rng(0)
    hidden, table = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((4, 6, 8), (31, 8)))
    bias = jnp.asarray(random.normal(size=31), jnp.float32) if biased else None
    labels = jnp.asarray(random.integers(0, 31, (4, 6)))
    weights = jnp.asarray(random.uniform(size=(4, 6)), jnp.float32)

    def logits(hidden, table, bias):
        return hidden @ table.T + (jnp.zeros((1, 1, 31)) if bias is None else bias[None, None])

    def plain(*args):
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits(*args), labels) * weights)

    def ours(*args):
        return jnp.sum(vocabulary.vocabulary_loss(*args[:2], labels, args[2], rows=rows)[0] * weights)

    which = (0, 1, 2) if biased else (0, 1)
    found = jax.jit(jax.value_and_grad(ours, which))(hidden, table, bias)
    expected = jax.jit(jax.value_and_grad(plain, which))(hidden, table, bias)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), found, expected)
    nats, correct = vocabulary.vocabulary_loss(hidden, table, labels, bias, rows=rows)
    assert nats.shape == correct.shape == (4, 6)
    np.testing.assert_array_equal(correct, logits(hidden, table, bias).argmax(-1) == labels)


@pytest.mark.parametrize("rows", [2, 1024])
def test_of_equally_likely_ids_the_first_is_the_likeliest(rows):
    logits = jnp.array([[1.0, 3, 3], [1, 3, 3], [0, 0, 0], [0, 0, 0], [2, 1, 2], [jnp.nan, 0, 1]])
    labels = jnp.array([1, 2, 0, 2, 0, 2])
    correct = vocabulary.vocabulary_loss(logits, jnp.eye(3), labels, rows=rows)[1]
    np.testing.assert_array_equal(correct, [True, False, True, False, True, False])


def test_the_loss_over_a_vocabulary_never_holds_all_logits():
    hidden, table, labels = jnp.zeros((50, 8)), jnp.zeros((31, 8)), jnp.zeros(50, jnp.int32)
    gradient = jax.grad(lambda h, t: vocabulary.vocabulary_loss(h, t, labels, rows=10)[0].sum(), (0, 1))
    assert "50x31x" not in jax.jit(gradient).lower(hidden, table).as_text()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_form_for_tpus_of_the_loss_over_a_vocabulary_is_the_plain_one(smoothing, dtype, tolerance):
    random = np.random.default_rng(0)
    hidden, table = (jnp.asarray(random.normal(size=shape), dtype) for shape in ((24, 8), (131, 8)))
    labels = jnp.asarray(random.integers(0, 131, 24)).at[:3].set(jnp.array([0, 130, 1]))
    weights = jnp.asarray(random.uniform(size=24), jnp.float32)

    def loss(function, hidden, table):
        nats, correct = function(layers.vocabulary_logits(hidden, table), labels, smoothing)
        return jnp.sum(nats * weights), (nats, correct)

    def both(function):
        return jax.jit(jax.value_and_grad(lambda h, t: loss(function, h, t), (0, 1), has_aux=True))(hidden, table)

    found, expected = both(vocabulary.cross_entropy_on_tpu), both(vocabulary.cross_entropy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)
    forms = vocabulary.cross_entropy_on_tpu, vocabulary.cross_entropy
    ours, plain = (jax.jvp(lambda h, f=f: loss(f, h, table)[0], (hidden,), (jnp.ones_like(hidden),))[1] for f in forms)
    np.testing.assert_allclose(ours, plain, rtol=tolerance)


def test_devices_along_tensor_reduce_their_own_part_of_a_vocabulary():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32)), jnp.float32).at[:, 20].set(3)
    labels = jnp.array([20, 3, 31, 25])
    mesh = jax.make_mesh((1, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "tensor"))
    with jax.set_mesh(mesh):
        reduce = jax.jit(lambda logits: vocabulary.cross_entropy_on_tpu(logits, labels, 0.1))
        found, text = reduce(jax.device_put(logits, where)), reduce.lower(jax.device_put(logits, where)).as_text()
    assert "tensor<4x2x16xf32>" in text
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, vocabulary.cross_entropy(logits, labels, 0.1)
    )


def test_the_form_for_tpus_knows_the_first_of_equal_ids_impossible_ones_and_large_numbers():
    logits = jnp.array([[1.0, 3, 3], [1, 3, 3], [0, 0, 0], [0, 0, 0], [2, 1, 2], [-jnp.inf, 0, 1], [-3e38, 3e38, 0]])
    labels = jnp.array([1, 2, 0, 2, 0, 2, 1])
    nats, correct = jax.jit(vocabulary.cross_entropy_on_tpu)(logits, labels)
    expected, also = vocabulary.cross_entropy(logits, labels)
    np.testing.assert_allclose(nats, expected, rtol=1e-6)
    np.testing.assert_array_equal(correct, also)


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
