"""Claims about models.TwoTowers and the vision transformer's ways to pool."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtasks import models
from jtasks.errors import ConfigError

IMAGE = {"patch": 4, "image_width": 16, "image_depth": 1, "image_heads": 2}
TEXT = {"vocab": 12, "max_length": 8, "text_width": 8, "text_depth": 1, "text_heads": 2, "embed_dim": 16}
END, PAD = 9, 0
FORMS = {
    "clip": {"text_tower": "causal", "end": END, "image_norm_first": True, "patch_bias": False},
    "siglip": {"text_tower": "bidirectional", "image_pool": "map", "loss": "sigmoid"},
    "bert": {"text_tower": "bert", "image_pool": "mean", "pad": PAD},
}


@functools.cache
def made(form):
    """A model of this form and parameters so far from zero that every one of them shows."""
    model = models.TwoTowers(**IMAGE, **TEXT, **FORMS[form])
    shapes = jax.eval_shape(model.init, jax.random.key(0), images(), tokens())["params"]
    random = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: jnp.asarray(0.5 + random.normal(size=x.shape), jnp.float32), shapes)


def images(b=3):
    return jnp.asarray(np.random.default_rng(1).normal(size=(b, 8, 8, 3)), jnp.float32)


def tokens(b=2):
    """Texts of five ids, their end, and two ids of padding."""
    texts = np.random.default_rng(2).integers(1, END, (b, 8))
    texts[:, 5], texts[:, 6:] = END, PAD
    return jnp.asarray(texts, jnp.int32)


@functools.cache
def embed(form, method):
    model, params = made(form)
    return jax.jit(lambda x: models.apply(model, params, x, method=method))


@pytest.mark.parametrize("form", FORMS)
def test_embeddings_have_the_length_one_and_each_tower_runs_alone(form):
    model, params = made(form)
    found = embed(form, "embed_images")(images())
    assert found.shape == (3, 16) and found.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=1), 1, rtol=1e-6)
    alone = {name: value for name, value in params.items() if not name.startswith("text")}
    shape = jax.eval_shape(lambda: models.apply(model, alone, images(), method="embed_images"))
    assert shape == jax.eval_shape(lambda: found)
    texts = embed(form, "embed_texts")(tokens())
    assert np.abs(texts[0] - texts[1]).max() > 0.01
    np.testing.assert_allclose(jnp.linalg.norm(texts, axis=1), 1, rtol=1e-6)


def test_several_texts_of_an_image_are_each_embedded_as_alone():
    many = embed("clip", "embed_texts")(tokens(4).reshape(2, 2, 8))
    np.testing.assert_allclose(many.reshape(4, 16), embed("clip", "embed_texts")(tokens(4)), atol=1e-6)


def test_what_follows_the_end_shows_in_siglip_alone():
    other = tokens().at[:, 7].set(3)
    for form, shows in (("clip", False), ("siglip", True), ("bert", True)):
        found = [embed(form, "embed_texts")(x) for x in (tokens(), other)]
        assert np.allclose(*found, atol=1e-6) != shows, form
    padded = jnp.pad(tokens()[:, :7], ((0, 0), (0, 1)), constant_values=PAD)
    np.testing.assert_allclose(*(embed("bert", "embed_texts")(x) for x in (padded[:, :6], padded)), atol=1e-6)


def test_the_scale_of_the_softmax_is_at_most_a_hundred_and_can_come_back():
    scale = jax.value_and_grad(lambda s: models.scale_and_bias({"scale": s})[0])
    for log_scale, expected in ((2.0, np.exp(2)), (5.0, 100.0)):
        value, slope = scale(log_scale)
        assert value == pytest.approx(expected, rel=1e-5) and slope == pytest.approx(expected, rel=1e-5)
    for form, expected in (("clip", (1 / 0.07, 0)), ("siglip", (10, -10))):
        model = made(form)[0]
        start = jax.jit(
            lambda model=model: models.scale_and_bias(model.init(jax.random.key(0), images(), tokens())["params"])
        )
        assert start() == pytest.approx(expected)


def test_the_first_state_is_the_class_token():
    model = models.ViT(3, width=16, depth=1, heads=2, patch=4, pool="token")

    @jax.jit
    def both(images):
        params = model.init(jax.random.key(0), images)
        return model.apply(params, images, method="encode"), model.apply(params, images, pooled=True)

    states, pooled = both(images())
    assert states.shape == (3, 1 + 4, 16)
    np.testing.assert_allclose(pooled, states[:, 0], atol=1e-6)


def test_sizes_that_do_not_go_together_are_named():
    fields = IMAGE | TEXT
    for changes, message in (
        ({"image_pool": "map", "embed_dim": 8}, r'image_pool="map" .* set config.model.embed_dim=16, not 8'),
        ({"text_heads": 3}, "text_width=8 must be divisible by text_heads=3"),
        ({"image_heads": 0}, "image_heads must be at least 1"),
        ({"text_tower": "bart"}, "text_tower must be causal, bidirectional or bert, not 'bart', did you mean bert"),
        ({"loss": "hinge"}, "loss must be softmax or sigmoid"),
        ({"max_length": 7}, "8 tokens, but the model has 7 positions"),
    ):
        with pytest.raises(ConfigError, match=message):
            jax.eval_shape(models.TwoTowers(**fields | changes).init, jax.random.key(0), images(), tokens())
