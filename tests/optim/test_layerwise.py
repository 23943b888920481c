"""Claims about the layers of a scanned stack: each is optimized by itself, and rates fall towards the input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import AxisType

from jtasks import models, optim
from jtasks.distributed import sharding
from jtasks.errors import ConfigError
from jtasks.optim import layerwise
from jtasks.tree import leaf_name

DEPTH = 3
VARIANTS = [
    *({"name": name} for name in sorted(optim.factories())),
    {"name": "muon", "adaptive": True},
    {"name": "adafactor", "min_dim_size_to_factor": 2, "momentum": 0.9},
    {"name": "galore", "rank": 2, "update_proj_gap": 2},
    {"name": "lamb", "freeze": "^blocks/1/"},
]


def stacked():
    """Layers of unlike norms."""
    random = np.random.default_rng(0)
    kernel, bias = (random.normal(size=(DEPTH, *shape)).astype(np.float32) for shape in ((6, 4), (4,)))
    kernel *= np.array([1, 3, 9], np.float32)[:, None, None]
    return {"blocks": {"up": {"kernel": kernel, "bias": bias}}, "head": {"kernel": kernel[0] + 1}}


def unrolled(params):
    return {
        "blocks": {str(i): jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(DEPTH)},
        "head": params["head"],
    }


def trained(fields, params):
    """The change of the parameters in four steps."""
    transformation, _ = optim.optimizer({"lr": 0.01, "weight_decay": 0.1} | fields, 10, params)
    trainable = optim.trainable(fields, params)

    @jax.jit
    def step(new, state, i):
        gradient = jax.tree.map(lambda x, train: (jnp.cos((3 + i) * x) + 0.5 * x) * train, new, trainable)
        updates, state = transformation.update(gradient, state, new)
        return optax.apply_updates(new, updates), state

    new, state = params, transformation.init(params)
    for i in range(4):
        new, state = step(new, state, i)
    return jax.tree.map(jnp.subtract, new, params)


@pytest.mark.parametrize("fields", VARIANTS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_scanned_stack_trains_as_the_same_layers_without_scan(fields):
    found, expected = unrolled(trained(fields, stacked())), trained(fields, unrolled(stacked()))
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, found, expected))
    # Muon's products of matrices are rounded in another order.
    assert difference <= (1e-5 if fields["name"] == "muon" else 1e-6) * optax.tree.norm(expected)


def test_lambs_trust_ratio_is_one_for_each_layer():
    params = stacked()
    transformation, _ = optim.optimizer({"name": "lamb", "lr": 1.0, "eps": 0.0}, 10, params)
    updates, _ = transformation.update(params, transformation.init(params), params)
    ratios = np.linalg.norm(updates["blocks"]["up"]["kernel"], axis=(1, 2)) / np.linalg.norm(
        params["blocks"]["up"]["kernel"], axis=(1, 2)
    )
    np.testing.assert_allclose(ratios, 1, rtol=1e-5)  # You et al. 2020: |update| = lr * |parameter|


@pytest.mark.parametrize("name", optim.PER_LEAF)
def test_moments_of_a_stack_are_divided_over_devices_like_the_stack(name):
    mesh = jax.make_mesh((1, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:2])
    params = jax.tree.map(jnp.asarray, stacked())
    transformation, _ = optim.optimizer({"name": name, "lr": 0.01}, 10, params)
    shapes = jax.eval_shape(transformation.init, params)
    places = sharding.shardings(shapes, params, mesh)
    for (keys, leaf), place in zip(jax.tree.leaves_with_path(shapes), jax.tree.leaves(places), strict=True):
        if leaf_name(keys).endswith("blocks/up/kernel") and leaf.shape == (DEPTH, 6, 4):
            assert "fsdp" in place.spec, leaf_name(keys)
    state = jax.jit(transformation.init, out_shardings=places)(params)
    found, _ = jax.jit(transformation.update)(params, state, params)
    expected, _ = transformation.update(params, transformation.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def backbones():
    """Every backbone with all of its parameters, and which modules come before the layers."""
    common = {"width": 8, "depth": DEPTH, "heads": 2}
    ids = jnp.zeros((2, 4), jnp.int32)
    bert = models.BERT(vocab=9, max_length=4, labels=3, **common)
    gpt = {"vocab": 9, "outputs": 9, "max_length": 9, **common}
    prompt, kinds = models.Prompt(jnp.zeros((2, 2, 5)), jnp.full(2, 2), ids, ids + 1), {"features": 5, **gpt}
    vit, images = {"classes": 3, "patch": 2, **common}, jnp.zeros((2, 4, 4, 1))
    return {
        "bert": (bert, (ids, ids, ids + 1, ids[:, :2], ids[:, :2]), "pretrain", "tokens position type norm"),
        "bert-classify": (bert, (ids, ids, ids + 1), "classify", "tokens position type norm"),
        "bert-tag": (bert, (ids, ids, ids + 1), "tag", "tokens position type norm"),
        "gpt": (models.GPT(**gpt), (ids,), "__call__", "tokens position"),
        "gpt-tied": (models.GPT(tied=True, **gpt), (ids,), "__call__", "tokens position"),
        "gpt-classify": (models.GPT(classes=2, **gpt), (ids,), "classify", "tokens position"),
        "video": (models.VideoGPT(**kinds), (prompt, ids), "losses", "tokens position kind project"),
        "vit-mean": (models.ViT(**vit), (images,), "__call__", "embed position"),
        "vit-token": (models.ViT(pool="token", **vit), (images,), "__call__", "embed position token"),
    }


@pytest.mark.parametrize("name", backbones())
def test_layer_decay_is_lowest_at_the_input_and_1_above_the_layers_in_every_backbone(name):
    model, inputs, method, before = backbones()[name]
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, method=method))["params"]
    factors = layerwise.rates(0.5, "", params)
    assert set(before.split()) < set(params)
    for keys, factor in jax.tree.leaves_with_path(factors):
        module = leaf_name(keys).split("/")[0]
        expected = [0.125, 0.25, 0.5] if module == "blocks" else [0.0625 if module in before.split() else 1.0]
        assert np.ravel(factor).tolist() == expected, leaf_name(keys)


def test_a_network_without_a_stack_has_no_layer_decay():
    with pytest.raises(ConfigError, match="there is no stack"):
        optim.optimizer({"layer_decay": 0.5}, 10, tiny.params("mnist"))


def test_each_of_two_towers_has_rates_of_its_own_depth():
    image = {"embed": {"kernel": 0}, "blocks": {"bias": np.zeros((2, 1))}, "norm": {"scale": 0}}
    text = {"tokens": {"embedding": 0}, "blocks": {"bias": np.zeros((3, 1))}}
    rates = layerwise.rates(0.5, "", {"image": image, "text": text, "scale": 0})
    assert rates["image"]["embed"]["kernel"] == 0.5**3 and rates["text"]["tokens"]["embedding"] == 0.5**4
    assert rates["text"]["blocks"]["bias"].ravel().tolist() == [0.5**3, 0.5**2, 0.5]
    assert rates["image"]["norm"]["scale"] == rates["scale"] == 1
