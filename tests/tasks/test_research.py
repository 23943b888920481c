"""Claims about the tasks' functions in code of one's own: float64, forward mode, shard_map, batches without extras."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from jtasks import config as configs
from jtasks import models, task
from jtasks.errors import ConfigError
from jtasks.metrics import Mean
from jtasks.models import attention

RNG = jax.random.key(0)
B, T = 4, 6
SIZES = {"width": 8, "depth": 1, "heads": 2, "dropout": 0.0, "attention_dropout": 0.0}
BERT = {"vocab": 11, "max_length": T, "classifier_dropout": 0.0} | SIZES
IDS = {"mask_token": 3, "first_token": 1, "separator": 2}
GPT = {"vocab": 11, "max_length": 160} | SIZES
FIELDS = {
    "bert": {"data": {"masked": 0.3, "predictions": 2}, "model": BERT | IDS},
    "classify": {
        "problem": "single_label",
        "loss": {"smoothing": 0.0, "focal": 0.0, "class_weights": ()},
        "model": BERT | {"labels": 3},
    },
    "choice": {"model": BERT | {"labels": 1}},
    "tag": {"model": BERT | {"labels": 3}},
    "qa": {"model": BERT | {"labels": 2}},
    "lm": {"data": {"packed": True, "length": 159}, "model": GPT | {"end": 10}},
    "caption": {
        "label_smoothing": 0.1,
        "attention_layer": None,
        "data": {"augment": "", "color": 0.0, "white": 255.0},
        "model": {
            **{f"{tower}_{name}": SIZES[name] for tower in ("image", "text") for name in ("width", "depth", "heads")},
            "vocab": 11,
            "max_length": T,
            "patch": 4,
            "fusion": "cross",
            "begin": 1,
            "prompt": (4,),
        },
    },
    "vqa": {
        "label_smoothing": 0.1,
        "data": {"augment": "", "color": 0.0, "white": 255.0},
        "model": {
            **{f"{tower}_{name}": SIZES[name] for tower in ("image", "text") for name in ("width", "depth", "heads")},
            "vocab": 11,
            "max_length": T,
            "patch": 4,
            "begin": 1,
            "end": 2,
        },
    },
    "seq2seq": {
        "label_smoothing": 0.1,
        "attention_layer": None,
        "model": {name: SIZES[name] for name in ("width", "heads", "dropout", "attention_dropout")}
        | {"vocab": 11, "max_length": T, "encoder_depth": 1, "decoder_depth": 1, "begin": 1, "end": 2, "pad": 0},
    },
    "avsd": {"video_loss": 0.5, "model": GPT | {"remat": False, "features": 5}},
}
SLOW = ("caption", "seq2seq")
NAMES = [*tiny.FIELDS, *(pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FIELDS)]


@functools.cache
def config(name, **model):
    if name in tiny.FIELDS:
        return tiny.config(name, data__crop=0, data__flip=False, **{f"model__{k}": v for k, v in model.items()})
    full = configs.defaults()
    with full.unlocked():
        full.update(ml_collections.ConfigDict(FIELDS[name]))
        full.model.update(model)
    return configs.Config(full)


def batch(name):
    """Four examples, without `mask` and `seed` where a task can do without."""
    random = np.random.default_rng(3)
    ids = lambda *shape: random.integers(1, 10, shape).astype(np.int32)  # noqa: E731
    if name in tiny.FIELDS:
        return {key: value for key, value in tiny.batch(B).items() if key in ("image", "label")}
    text = {
        "tokens": ids(B, T),
        "token_types": ids(B, T) % 2,
        "segment_ids": (np.arange(T)[None] < ids(B, 1)).astype(np.int32),
    }
    places = {"places": np.array([[1, 2]] * B, np.int32), "labels": ids(B, 2), "next": ids(B) % 2}
    dialogue = {"context": ids(B, 5), "kinds": ids(B, 5) % 4, "answer": ids(B, 4), "answered": ids(B) % 4}
    video = {"video": random.normal(size=(B, 3, 5)), "frames": np.array([3, 2, 1, 0], np.int32)}
    return {
        "bert": text | places,
        "classify": text | {"label": ids(B) % 3},
        "choice": {key: np.stack([value] * 3, 1) + (key == "tokens") * ids(B, 3, T) % 2 for key, value in text.items()}
        | {"label": ids(B) % 3},
        "tag": text | {"labels": ids(B, T) % 4 - 1},
        "qa": text | {"start": ids(B) * 0, "end": ids(B) * 0},
        "lm": {"tokens": ids(B, 160), "skip": ids(B), "bytes": ids(B)},  # more than attention.BLOCK
        "caption": {
            "image": random.integers(0, 256, (B, 8, 8, 3), dtype=np.uint8),
            "tokens": ids(B, 2, 4),
            "counts": ids(B, 2) % 5,
        },
        "vqa": {
            "image": random.integers(0, 256, (B, 8, 8, 3), dtype=np.uint8),
            "tokens": ids(B, T),
            "segment_ids": text["segment_ids"],
            "answer": ids(B, 2, 4),
            "weight": ids(B, 2) / np.float32(10),
        },
        "seq2seq": {
            "source": ids(B, T),
            "source_segment_ids": text["segment_ids"],
            "target": ids(B, 4),
            "target_segment_ids": (np.arange(4)[None] < ids(B, 1) % 5).astype(np.int32),
        },
        "avsd": dialogue | video,
    }[name]


def loss_of(name, **model):
    module = task.load(f"jtasks.tasks.{tiny.module(name)}")
    return lambda params, rows: module.loss_fn(params, rows, jax.random.key(0), config(name, **model))[0]


@functools.cache
def parameters(name):
    """Random float64 parameters and a direction."""
    module = task.load(f"jtasks.tasks.{tiny.module(name)}")
    shapes = jax.eval_shape(lambda rows: module.init(jax.random.key(0), rows, config(name)), batch(name))
    random = np.random.default_rng(1)
    return tuple(
        jax.tree.map(lambda x, scale=scale: random.normal(size=x.shape) * scale, shapes) for scale in (0.2, 1.0)
    )


def inner(first, second):
    return sum(float(np.vdot(a, b)) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_float64_are_those_of_finite_differences_in_both_modes(name):
    with jax.enable_x64(True):
        params, direction = parameters(name)
        rows = batch(name)  # neither `mask` nor `seed`
        loss = jax.jit(lambda params: loss_of(name)(params, rows))
        step = 1e-5 if name != "mnist" else 1e-7  # its relu has kinks
        there, back = (loss(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction)) for s in (step, -step))
        assert there.dtype == jnp.float64
        expected = float(there - back) / (2 * step)
        gradient = jax.jit(jax.grad(loss))(params)
        assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype(np.float64)}
        np.testing.assert_allclose(inner(gradient, direction), expected, rtol=1e-6)

        plain = lambda params: loss_of(name, plain=True)(params, rows)  # noqa: E731
        value, tangent = jax.jit(lambda p, d: jax.jvp(plain, (p,), (d,)))(params, direction)
        np.testing.assert_allclose([value, tangent], [loss(params), expected], rtol=1e-6)
        value, linear = jax.linearize(jax.jit(plain), params)
        np.testing.assert_allclose([value, linear(direction)], [loss(params), expected], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_go_through_a_shard_map_that_checks_its_types(name):
    params, _ = jax.tree.map(np.float32, parameters(name))
    rows, mesh = jax.tree.map(jnp.asarray, batch(name)), tiny.mesh(2)
    loss = loss_of(name)

    def divided(params):
        mean = lambda params, rows: jax.lax.pmean(loss(params, rows), "data")  # noqa: E731
        return jax.shard_map(mean, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())(params, rows)

    def whole(params):
        return sum(loss(params, jax.tree.map(lambda x, i=i: x[i : i + 2], rows)) for i in (0, 2)) / 2

    found, expected = (jax.jit(jax.value_and_grad(function))(params) for function in (divided, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_mask_is_one_whose_examples_are_all_real(name):
    params, _ = jax.tree.map(np.float32, parameters(name))
    evaluate = jax.jit(lambda rows: task.load(f"jtasks.tasks.{tiny.module(name)}").eval_fn(params, rows, config(name)))
    bare = batch(name)
    found, expected = evaluate(bare), evaluate(bare | {"mask": np.ones(B, np.float32)})
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_random_numbers_without_a_seed_are_refused_by_name():
    params, _ = parameters("bert")
    rows = {name: array for name, array in batch("bert").items() if name not in ("places", "labels")}
    with pytest.raises(ConfigError, match="entry `seed`"):
        loss_of("bert")(params, rows)
    with pytest.raises(ConfigError, match="entry `seed`"):
        task.load("jtasks.tasks.igpt").loss_fn({}, batch("igpt"), RNG, tiny.config("igpt", data__flip=True))


@pytest.mark.parametrize("name", NAMES)
def test_under_bfloat16_the_loss_is_float32(name):
    half = configs.Config(ml_collections.ConfigDict(config(name).to_dict() | {"precision": "bfloat16"}))
    params, _ = jax.tree.map(np.float32, parameters(name))
    module = task.load(f"jtasks.tasks.{tiny.module(name)}")
    loss = jax.eval_shape(lambda p: module.loss_fn(p, batch(name), jax.random.key(0), half)[0], params)
    assert loss.dtype == jnp.float32


def logits_of(kind, dtype):
    """Logits of an untrained model under a type of computation."""
    ids, images = jnp.ones((2, 4), jnp.int32), jnp.ones((2, 8, 8, 1))
    common = {"width": 8, "depth": 1, "heads": 2, "dtype": dtype}
    bert = models.BERT(vocab=9, max_length=4, labels=3, **common)
    gpt = {"vocab": 9, "outputs": 9, "max_length": 9, **common}
    model, arguments, method, pick = {
        "vit": (models.ViT(classes=3, patch=4, **common), (images,), "__call__", lambda x: x),
        "convnet": (models.ConvNet(3, dtype=dtype), (images,), "__call__", lambda x: x),
        "gpt": (models.GPT(**gpt), (ids,), "__call__", lambda x: x),
        "gpt-tied": (models.GPT(tied=True, **gpt), (ids,), "__call__", lambda x: x),
        "gpt-prefill": (models.GPT(**gpt), (ids, 2), "prefill", lambda x: x[0]),
        "gpt-classify": (models.GPT(classes=3, **gpt), (ids,), "classify", lambda x: x[1]),
        "bert-classify": (bert, (ids, ids * 0, ids), "classify", lambda x: x),
        "bert-tag": (bert, (ids, ids * 0, ids), "tag", lambda x: x),
        "bert-masked": (bert, (ids, ids * 0, ids), "masked_logits", lambda x: x[0]),
        "bert-next": (bert, (ids, ids * 0, ids), "masked_logits", lambda x: x[1]),
    }[kind]
    params = jax.jit(lambda: model.init(jax.random.key(0), *arguments, method=method))()
    return pick(jax.jit(lambda params: model.apply(params, *arguments, method=method))(params))


@pytest.mark.parametrize(
    "kind",
    [
        "vit",
        "convnet",
        "gpt",
        "gpt-tied",
        "gpt-prefill",
        "gpt-classify",
        "bert-classify",
        "bert-tag",
        "bert-masked",
        "bert-next",
    ],
)
def test_logits_under_bfloat16_are_not_rounded_to_it(kind):
    logits = logits_of(kind, jnp.bfloat16)
    assert logits.dtype == jnp.float32
    assert np.mean(np.asarray(logits.astype(jnp.bfloat16), np.float32) == logits) < 0.5
    np.testing.assert_allclose(logits, logits_of(kind, None), atol=0.05)


def test_plain_attention_is_that_in_blocks():
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 2, attention.BLOCK + 9, 4))
    one, two = (attention.self_attention(query, key, value, causal=True, plain=plain) for plain in (False, True))
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_mean_masks_gradients_of_values_and_weights():
    values, mask = jnp.array([jnp.nan, 2.0, jnp.inf]), jnp.array([0.0, 1.0, 0.0])
    for function in (jax.grad, jax.jacfwd):
        by_value, by_weight = function(lambda v, m: Mean.of(v, m).value, argnums=(0, 1))(values, mask)
        np.testing.assert_array_equal(by_value, [0, 1, 0])
        assert np.isfinite(by_weight).all()
    tangent = jax.jvp(lambda p: Mean.of(jnp.log(p), mask).value, (jnp.array([0.0, 2, 0]),), (jnp.ones(3),))[1]
    np.testing.assert_allclose(tangent, 0.5)
    safe = lambda p: Mean.of(jnp.log(jnp.where(mask > 0, p, 1)), mask).value  # noqa: E731
    np.testing.assert_allclose(jax.grad(safe)(jnp.array([0.0, 2, 0])), [0, 0.5, 0])


def test_sums_are_at_least_float32():
    assert {Mean.of(jnp.ones(2, kind)).total.dtype for kind in (bool, jnp.int8, jnp.bfloat16)} == {np.dtype("float32")}
    with jax.enable_x64(True):
        assert Mean.of(jnp.ones(2, jnp.float64)).total.dtype == np.float64


@pytest.mark.parametrize("shape", [(5, 5), (5, 28), (28, 4), (1, 1)])
def test_pictures_too_small_for_the_convnet_are_refused_with_the_smallest_size(shape):
    model = models.ConvNet(3)
    with pytest.raises(ConfigError, match=f"{shape[0]}x{shape[1]} are too small.*6x6"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, *shape, 1)))
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 6, 6, 1)))
