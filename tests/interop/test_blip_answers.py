"""Claims about BLIP for questions: the folders were written by transformers, their outputs computed by torch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from safetensors.numpy import load_file

from jtasks import models
from jtasks.errors import CheckpointError
from jtasks.interop import files, huggingface, model_config

BLIP = reference.BLIP_ANSWERS


def model(folder):
    fields = model_config.model_fields(folder)
    own = {field.name for field in dataclasses.fields(models.BLIP)}
    return models.BLIP(**{name: value for name, value in fields.items() if name in own})


def inputs(folder):
    io = np.load(folder / "io.npz")
    ids, mask, labels = (jnp.asarray(io[name], jnp.int32) for name in ("input_ids", "attention_mask", "labels"))
    return (jnp.moveaxis(io["pixel_values"], 1, 3), ids, mask), labels, io


@reference.of(BLIP)
def test_the_loss_and_the_greedy_answer_are_those_of_transformers(folder):
    given, labels, io = inputs(folder)
    params, unused = huggingface.from_hf(folder)
    run = functools.partial(model(folder).apply, {"params": params})

    @jax.jit
    def losses(images, ids, mask):
        states = run(images[:, None], ids, mask, method="fuse")
        return [run(states, seen, labels[:, None], method="answer_nats")[0].mean(-1) for seen in (mask, mask**0)]

    assert unused == []
    masked, padded = losses(*given)
    # The decoder of transformers attends to a question's padding, ours does not: whole questions agree as they are.
    np.testing.assert_allclose(padded.mean(), io["loss"], rtol=1e-5)
    whole = (io["attention_mask"] == 1).all(1)
    np.testing.assert_allclose(masked[whole], padded[whole], rtol=1e-5)
    assert (np.abs(masked - padded)[~whole] > 1e-4).all() and not whole.all()
    config, wanted = files.read_config(folder)["text_config"], io["greedy"][whole]
    end, options = config["sep_token_id"], {"num_beams": 1, "max_len": wanted.shape[1] - 1, "min_len": 0}
    inputs_of = (*(x[whole] for x in given), jnp.asarray(wanted[:, :1], jnp.int32))
    found = jax.jit(
        lambda params: models.search(model(folder), params, inputs_of, options, method="begin_answer", eos=end, pad=0)
    )(params)
    np.testing.assert_array_equal(found.tokens[:, 0], wanted[:, 1:])


@reference.of(BLIP)
def test_what_came_in_goes_out_bit_for_bit(folder, tmp_path):
    params, fields = huggingface.from_hf(folder)[0], model_config.model_fields(folder)
    tensors, config = huggingface.to_hf(params, fields, BLIP)
    expected = load_file(folder / files.WEIGHTS)
    assert sorted(tensors) == sorted(expected)
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)
    files.write(tmp_path / "out", config, tensors)
    names = set(fields) - {"mean", "std", "rescale", "resize"}
    again = model_config.model_fields(tmp_path / "out")
    assert {name: again[name] for name in names} == {name: fields[name] for name in names}
    lacking = {name: value for name, value in tensors.items() if "text_encoder.encoder.layer.0.cross" not in name}
    files.write(tmp_path / "out", config, lacking)
    with pytest.raises(CheckpointError, match=r"no tensor text_encoder\.encoder\.layer\.0\.crossattention"):
        huggingface.from_hf(tmp_path / "out")
