"""Claims about the maps of cross-attention, against a transformer in NumPy and its finite differences."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtasks import models

VOCAB, HEADS, SHAPE = 9, 2, (2, 3)
TOKENS = np.array([[2, 5, 6, 3], [2, 8, 3, 0]])
SEGMENT_IDS = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
ERF = np.vectorize(math.erf)


def model():
    depths = {"image_depth": 1, "text_depth": 2}
    towers = {"image_width": 8, "text_width": 8, "image_heads": HEADS, "text_heads": HEADS}
    return models.BLIP(vocab=VOCAB, max_length=12, patch=2, **towers, **depths)


def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 6, 3)), jnp.float32)


@functools.cache
def params():
    """Parameters of all methods, drawn so that every one of them shows."""
    inputs = images(), TOKENS[:, None]

    def both(module, images, tokens):
        return module.caption_loss(images, tokens), module.retrieve(images, tokens[:, 0], SEGMENT_IDS)

    shapes = jax.eval_shape(lambda: model().init(jax.random.key(0), *inputs, method=both)["params"])
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.8 * random.normal(size=x.shape)).astype(x.dtype), shapes)


@functools.cache
def states():
    """The picture's states."""
    return np.asarray(jax.jit(lambda: model().apply({"params": params()}, images(), method="encode_image"))())


MATCH = {"score": lambda logits: logits[:, 1], "tower": "text_encoder", "layer": 0, "shape": SHAPE, "method": "match"}
CAPTION = {
    "score": lambda loss: -loss[0][:, 0],
    "tower": "text_decoder",
    "layer": 1,
    "shape": SHAPE,
    "method": "caption_loss",
}


def maps(*inputs, **options):
    return np.asarray(jax.jit(lambda: models.grad_cam(model(), params(), *inputs, **options))())


@functools.cache
def match_maps():
    return maps(states(), TOKENS, SEGMENT_IDS, **MATCH)


@functools.cache
def caption_maps():
    return maps(images(), TOKENS[:, None], **CAPTION)


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def norm(x, layer):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-12) * layer["scale"] + layer["bias"]


def gelu(x):
    return 0.5 * x * (1 + ERF(x / math.sqrt(2)))


def softmax(scores):
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def heads(x, parts):
    """Split [b, t, heads * parts * d] into `parts` arrays [b, heads, t, d]."""
    return np.moveaxis(x.reshape(*x.shape[:2], HEADS, parts, -1), (3, 2), (0, 2))


def product(query, key):
    return query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])


def mix(weights, value, layer):
    mixed = np.moveaxis(weights @ value, 1, 2)
    return dense(mixed.reshape(*mixed.shape[:2], -1), layer)


def text(tower, tokens, mask, layer, given=None):
    """Return a tower's states, and the weights of a layer's cross-attention, which are `given` or its own."""
    own = jax.tree.map(lambda x: np.asarray(x, np.float64), params()[tower])
    x = norm(own["tokens"]["embedding"][tokens] + own["position"]["embedding"][: tokens.shape[1]], own["norm"])
    for i in range(2):
        block = jax.tree.map(lambda x, i=i: x[i], own["blocks"])
        query, key, value = heads(dense(x, block["attention"]["query_key_value"]), 3)
        inner = softmax(np.where(mask, product(query, key), -1e30))
        x = norm(x + mix(inner, value, block["attention"]["output"]), block["norm1"])
        (query,), (key, value) = (
            heads(dense(x, block["cross"]["query"]), 1),
            heads(dense(states().astype(np.float64), block["cross"]["key_value"]), 2),
        )
        weights = softmax(product(query, key))
        if i == layer:
            weights = given = weights if given is None else given
        x = norm(x + mix(weights, value, block["cross"]["output"]), block["cross_norm"])
        x = norm(x + dense(gelu(dense(x, block["up"])), block["down"]), block["norm2"])
    return x, given


def differences(score, weights):
    """Return the gradient [b, h, t, s] of `score(weights)` by central differences."""
    gradient, size = np.zeros_like(weights), 1e-5
    for index in np.ndindex(weights.shape):
        step = np.zeros_like(weights)
        step[index] = size
        gradient[index] = (score(weights + step) - score(weights - step)) / (2 * size)
    return gradient


def expected(weights, gradient):
    found = (weights * np.maximum(gradient, 0)).mean(1)[..., 1:]
    return found.reshape(*found.shape[:2], *SHAPE)


def alike(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.max())


def test_maps_of_matching_are_weights_times_the_positive_differences_of_the_logit():
    read = functools.partial(text, "text_encoder", TOKENS, (SEGMENT_IDS > 0)[:, None, None], 0)
    head = jax.tree.map(np.float64, params()["matcher"])
    _, weights = read()
    gradient = differences(lambda weights: dense(read(weights)[0][:, 0], head)[:, 1].sum(), weights)
    ours = match_maps()
    alike(ours, expected(weights, gradient))
    assert ours.shape == (2, 4, *SHAPE) and (ours[SEGMENT_IDS > 0].max((1, 2)) > 1e-4).all()
    assert (gradient < -1e-3).any() and not ours[1, 3].any()  # padding has no map


def test_the_map_of_a_captions_token_is_of_its_own_log_probability():
    inputs, labels = TOKENS[:, :-1], TOKENS[:, 1:]
    read = functools.partial(text, "text_decoder", inputs, np.tril(np.ones((3, 3), bool)), 1)
    own = jax.tree.map(np.float64, params()["text_decoder"])

    def score(weights, token):
        hidden = norm(gelu(dense(read(weights)[0], own["transform"])), own["transform_norm"])
        chances = softmax(hidden @ own["tokens"]["embedding"].T + own["output"]["bias"])
        return np.log(chances[np.arange(2), token, labels[:, token]]).sum()

    _, weights = read()
    each = [differences(functools.partial(score, token=i), weights)[:, :, i] for i in range(3)]
    ours = caption_maps()
    alike(ours, expected(weights, np.stack(each, axis=2)))
    assert (ours.max((2, 3)) > 1e-3).all()


def test_a_score_that_depends_on_nothing_has_zero_maps():
    assert not maps(states(), TOKENS, SEGMENT_IDS, **MATCH | {"score": lambda logits: 0 * logits[:, 1]}).any()


def test_maps_do_not_depend_on_padding():
    padded = np.concatenate([TOKENS, np.full((2, 3), 7)], axis=1)
    padded[1, 3] = 4
    ours = maps(states(), padded, np.pad(SEGMENT_IDS, ((0, 0), (0, 3))), **MATCH)
    np.testing.assert_allclose(ours[:, :4], match_maps(), atol=1e-7)
    assert not ours[:, 4:].any()
    longer = maps(images(), np.concatenate([TOKENS, np.full((2, 2), 7)], axis=1)[:, None], **CAPTION)
    np.testing.assert_allclose(longer[:, :3], caption_maps(), atol=1e-7)


@pytest.mark.parametrize("tower", ["text_encoder", "text_decoder"])
def test_weights_are_those_of_each_layer_and_head(tower):
    options = {name: (MATCH if tower == "text_encoder" else CAPTION)[name] for name in ("tower", "method")}
    inputs = (states(), TOKENS, SEGMENT_IDS) if tower == "text_encoder" else (images(), TOKENS[:, None])
    ours = jax.jit(lambda: models.cross_attention_weights(model(), params(), *inputs, **options))()
    tokens = TOKENS if tower == "text_encoder" else TOKENS[:, :-1]
    mask = (SEGMENT_IDS > 0)[:, None, None] if tower == "text_encoder" else np.tril(np.ones((3, 3), bool))
    theirs = np.stack([text(tower, tokens, mask, layer)[1] for layer in range(2)])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-6)


def test_parameters_and_a_training_step_know_nothing_of_maps():
    """Neither collection of the maps is there, and the weights do not leave the layers."""
    inputs = images(), TOKENS[:, None]
    variables = jax.eval_shape(lambda: model().init(jax.random.key(0), *inputs, method="caption_loss"))
    assert set(variables) == {"params"}

    def loss(params):
        return model().apply({"params": params}, *inputs, method="caption_loss")[0].sum()

    stacked = f"f32[2,2,{HEADS},3,7]"  # weights of both layers
    with_maps = jax.make_jaxpr(lambda: models.grad_cam(model(), params(), *inputs, **CAPTION))()
    assert stacked in str(with_maps) and stacked not in str(jax.make_jaxpr(loss)(params()))
