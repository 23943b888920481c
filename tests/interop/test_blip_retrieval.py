"""Claims about BLIP for retrieval: the folders were written by transformers, their outputs computed by torch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from safetensors.numpy import load_file

from jtasks import config as configs
from jtasks import models
from jtasks import task as tasks
from jtasks.errors import CheckpointError
from jtasks.interop import files, huggingface, model_config
from jtasks.tasks import match

BLIP = reference.BLIP_RETRIEVAL


def model(folder):
    fields = model_config.model_fields(folder)
    own = {field.name for field in dataclasses.fields(models.BLIP)}
    return models.BLIP(**{name: value for name, value in fields.items() if name in own})


def inputs(folder):
    io = np.load(folder / "io.npz")
    ids, mask = (jnp.asarray(io[name], jnp.int32) for name in ("input_ids", "attention_mask"))
    return (jnp.moveaxis(io["pixel_values"], 1, 3), ids, mask), io


def start(folder):
    """Random parameters of the folder's model, initialized for retrieval."""
    init = functools.partial(model(folder).init, method="retrieve")
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs(folder)[0])["params"]
    return jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(0).normal(size=x.shape), x.dtype), shapes)


@reference.of(BLIP)
def test_pairs_have_the_scores_of_transformers(folder):
    given, io = inputs(folder)
    params, unused = huggingface.from_hf(folder)
    run = jax.jit(functools.partial(model(folder).apply, method="retrieve"))
    scale = {"contrast": {"scale": np.float32(0)}}
    image, text, matching = run({"params": params | scale}, *given)
    assert unused == [] and (io["attention_mask"] == 0).any()
    np.testing.assert_allclose(matching, io["itm_score"], atol=1e-5)
    np.testing.assert_allclose(image @ text.T, io["itc_score"], atol=1e-5)


@reference.of(BLIP)
def test_maps_are_those_of_torchs_weights_and_gradients(folder):
    """As LAVIS's `compute_gradcam`, for both layers; of the last one only the first token has a map."""
    if not (folder / "grad_cam.npy").exists():
        pytest.skip("these reference folders have no maps")
    (images, ids, mask), _ = inputs(folder)
    own, params = model(folder), huggingface.from_hf(folder)[0]
    shape = tuple(edge // own.patch for edge in images.shape[1:3])
    options = {"score": lambda logits: logits[:, match.MATCHES], "tower": "text_encoder", "shape": shape}

    @jax.jit
    def run():
        states = own.apply({"params": params}, images, method="encode_image")
        given = own, params, states, ids, mask
        return [models.grad_cam(*given, layer=layer, method="match", **options) for layer in (0, 1)]

    expected = np.load(folder / "grad_cam.npy")
    found = np.asarray(run()).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert found[0, :, 1:].any() and not found[1, :, 1:].any()


@reference.of(BLIP)
def test_what_ranks_pairs_again_is_the_matching_logit_of_transformers(folder):
    (images, ids, mask), io = inputs(folder)
    config = configs.defaults(own=tasks.fields(match))
    pixels = {"mean": (0.0,), "std": (1.0,), "rescale": 1.0}
    config.model.update({"vocab": 71, "max_length": 24} | dict(model_config.model_fields(folder)) | pixels)
    batch = {"image": images, "tokens": jnp.stack([ids, ids[::-1]], 1), "segment_ids": jnp.stack([mask, mask[::-1]], 1)}
    run = jax.jit(match.pair_fn, static_argnames="config")
    scores = run(huggingface.from_hf(folder)[0], batch, None, config=configs.Config(config))["match"]
    assert scores.shape == (len(images), 2)
    np.testing.assert_allclose(scores[:, 0], io["itm_score"][:, match.MATCHES], atol=1e-5)


@reference.of(BLIP)
def test_all_parameters_are_taken_but_the_temperature_which_the_folder_lacks(folder):
    fresh = start(folder)
    params, report = huggingface.import_params(str(folder), fresh, model_config.model_fields(folder), BLIP, pytest.fail)
    assert [name.split()[0] for name in report["left"]] == ["contrast/scale"] and report["unused"] == []
    expected = huggingface.from_hf(folder)[0] | {"contrast": fresh["contrast"]}
    assert jax.tree.all(jax.tree.map(np.array_equal, params, expected))


@reference.of(BLIP)
def test_what_came_in_goes_out_bit_for_bit_without_the_temperature(folder, tmp_path):
    params = huggingface.from_hf(folder)[0] | {"contrast": {"scale": np.float32(0)}}
    tensors, config = huggingface.to_hf(params, model_config.model_fields(folder), BLIP)
    expected = load_file(folder / files.WEIGHTS)
    assert sorted(tensors) == sorted(expected)
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)
    files.write(tmp_path / "out", config, tensors)
    assert model_config.model_fields(tmp_path / "out") == model_config.model_fields(folder)


@reference.of(BLIP)
def test_a_folder_without_a_tensor_is_refused(folder, tmp_path):
    params = huggingface.from_hf(folder)[0]
    tensors, config = huggingface.to_hf(params, model_config.model_fields(folder), BLIP)
    lacking = {name: value for name, value in tensors.items() if "layer.0.crossattention.self.key" not in name}
    files.write(tmp_path / "out", config, lacking)
    with pytest.raises(CheckpointError, match=r"no tensor text_encoder\.encoder\.layer\.0\.crossattention\.self\.key"):
        huggingface.from_hf(tmp_path / "out")
