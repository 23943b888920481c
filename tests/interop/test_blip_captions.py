"""Claims about BLIP for captions: the folders were written by transformers, their outputs computed by torch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from front_door import ROOT
from safetensors.numpy import load_file

from jtasks import models
from jtasks.interop import files, huggingface, model_config

BEAMS = ROOT / "tests" / "golden" / "blip_beams"
HEAD = "text_decoder.cls.predictions"
SEARCHES = {
    "greedy": {"max_len": 10, "num_beams": 1},
    "beam": {"max_len": 10, "num_beams": 3},
    "beam_pen": {"max_len": 10, "min_len": 4, "num_beams": 4, "repetition_penalty": 1.5, "length_penalty": 0.7},
}


def model(folder):
    fields, own = model_config.model_fields(folder), {field.name for field in dataclasses.fields(models.BLIP)}
    return models.BLIP(**{name: value for name, value in fields.items() if name in own})


@functools.partial(jax.jit, static_argnames=("folder", "method"))
def run(folder, params, *inputs, method):
    return model(folder).apply({"params": params}, *inputs, method=method)


@reference.of(reference.BLIP_CAPTIONS)
def test_captions_have_the_logits_and_the_loss_of_transformers(folder):
    io, (params, unused) = np.load(folder / "io.npz"), huggingface.from_hf(folder)
    images, ids = jnp.moveaxis(io["pixel_values"], 1, 3), jnp.asarray(io["input_ids"], jnp.int32)
    mask = io.get("attention_mask", np.ones(ids.shape, np.int32))
    logits = run(folder, params, images, ids, jnp.asarray(mask, jnp.int32), method="caption_logits")
    np.testing.assert_allclose(logits, io["logits"], atol=2e-5)
    nats, _ = run(folder, params, images, ids[:, None], method="caption_loss")
    counted = (io["labels"] >= 0 if "labels" in io else mask > 0)[:, 1:]
    np.testing.assert_allclose(np.asarray(nats)[:, 0][counted].mean(), io["loss"], rtol=1e-5)
    assert unused == []


@reference.of(reference.BLIP_CAPTIONS)
def test_a_blip_for_captions_goes_out_bit_for_bit(folder, tmp_path):
    params, fields = huggingface.from_hf(folder)[0], model_config.model_fields(folder)
    tensors, config = huggingface.to_hf(params, fields, reference.BLIP_CAPTIONS)
    files.write(tmp_path, config, tensors)
    theirs = load_file(folder / "model.safetensors")
    if f"{HEAD}.decoder.bias" in theirs:  # transformers reads this one of the two
        theirs[f"{HEAD}.bias"] = theirs[f"{HEAD}.decoder.bias"]
    assert set(theirs) == set(tensors)
    assert all(np.array_equal(tensors[name], array) for name, array in theirs.items())
    again = model_config.model_fields(tmp_path)
    assert {k: v for k, v in again.items() if k != "resize"} == {k: v for k, v in fields.items() if k != "resize"}
    assert jax.tree.all(jax.tree.map(np.array_equal, huggingface.from_hf(tmp_path)[0], params))


@pytest.mark.slow
@pytest.mark.parametrize("search", SEARCHES)
def test_generated_captions_are_those_of_transformers(search):
    """With a prompt, and with the begin mark alone."""
    io, (params, _), end = (
        np.load(BEAMS / "io.npz"),
        huggingface.from_hf(BEAMS),
        model_config.model_fields(BEAMS)["end"],
    )
    images = jnp.moveaxis(io["pixel_values"], 1, 3)
    for kind, given in (("prompt", 4), ("none", 1)):
        prompt = jnp.asarray(io["prompt"][:, :given], jnp.int32)
        options = {"method": "read", "eos": end, "pad": 0, "prompt": prompt}
        beams = models.search(model(BEAMS), params, (images, prompt), SEARCHES[search], **options)
        expected = io[f"{search}_{kind}"][:, given:]
        np.testing.assert_array_equal(beams.tokens[:, 0, : expected.shape[1]], expected)
