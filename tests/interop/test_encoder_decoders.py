"""Claims about T5, BART and Marian: the folders were written by transformers, their outputs computed by torch."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from safetensors.numpy import load_file, save_file

from jtasks import models
from jtasks.errors import CheckpointError
from jtasks.interop import files, generation, huggingface, marian, model_config, settings

NAMES = {
    "num_beams": "num_beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_len",
    "min_new_tokens": "min_len",
    "num_return_sequences": "n_best",
}


def model(folder):
    fields, own = model_config.model_fields(folder), {field.name for field in dataclasses.fields(models.EncoderDecoder)}
    return models.EncoderDecoder(**{name: value for name, value in fields.items() if name in own})


def read(folder):
    io = dict(np.load(folder / "io.npz"))
    source, segment_ids = (jnp.asarray(io[name], jnp.int32) for name in ("input_ids", "attention_mask"))
    return io, source, segment_ids


def options(folder, arguments):
    beam = {name: value for name, value in generation.fields(folder, pytest.fail).items() if not name.endswith("_len")}
    beam |= {NAMES[name]: value for name, value in arguments.items() if name in NAMES}
    beam |= {
        ours: arguments[name] - 1
        for name, ours in (("min_length", "min_len"), ("max_length", "max_len"))
        if name in arguments
    }
    return beam | {"bad_words_ids": tuple(tuple(word) for word in arguments.get("bad_words_ids", ()))}


@reference.of(*reference.PAIRS)
def test_logits_and_loss_are_those_of_transformers(folder):
    (io, source, segment_ids), ours = read(folder), model(folder)
    labels, counted = jnp.asarray(np.maximum(io["labels"], 0), jnp.int32), io["labels"] >= 0
    padded = jnp.where(counted, labels, ours.pad)
    inputs = jnp.concatenate([jnp.full((len(labels), 1), ours.begin), padded[:, :-1]], axis=1)

    @jax.jit
    def run(params):
        given = source, inputs, segment_ids
        nats, _ = ours.apply({"params": params}, source, inputs, labels, segment_ids, method="token_loss")
        return ours.apply({"params": params}, *given, method="logits"), nats

    logits, nats = run(huggingface.from_hf(folder)[0])
    np.testing.assert_allclose(logits, io["logits"], atol=2e-5)
    np.testing.assert_allclose(np.asarray(nats)[counted].mean(), io["loss"], rtol=1e-5)


@pytest.mark.slow
@reference.of(*reference.PAIRS)
def test_searches_find_the_sequences_and_scores_of_transformers(folder):
    (io, source, segment_ids), ours, params = read(folder), model(folder), huggingface.from_hf(folder)[0]
    prompt = jnp.full((len(source), 1), ours.begin, jnp.int32)
    calls = [json.loads(str(io[f"generate{i}_arguments"])) for i in range(8) if f"generate{i}_arguments" in io]

    @jax.jit
    def run(params):
        inputs, ids = (source, segment_ids, prompt), {"eos": ours.end, "pad": ours.pad, "prompt": prompt}
        found = [models.search(ours, params, inputs, options(folder, call), method="read", **ids) for call in calls]
        return [(beams.tokens[:, 0], beams.scores[:, 0], beams.lengths[:, 0]) for beams in found]

    for i, (tokens, scores, lengths) in enumerate(run(params)):
        wanted = io[f"generate{i}_sequences"][:, 1:]
        for row, count, theirs in zip(np.asarray(tokens), np.asarray(lengths), wanted, strict=True):
            np.testing.assert_array_equal(row[:count], theirs[:count])
            assert (theirs[count:] == theirs[count - 1]).all() or (theirs[count:] == ours.pad).all()
        if f"generate{i}_scores" in io:
            np.testing.assert_allclose(scores, io[f"generate{i}_scores"], rtol=1e-5, atol=1e-5)


@reference.of(*reference.PAIRS)
def test_what_came_in_goes_out_bit_for_bit(folder, tmp_path):
    params, fields = huggingface.from_hf(folder)[0], model_config.model_fields(folder)
    architecture = settings.architecture(files.read_config(folder))
    tensors, config = huggingface.to_hf(params, fields, architecture)
    files.write(tmp_path, config, tensors)
    theirs = load_file(folder / "model.safetensors")
    assert set(theirs) == set(tensors)
    assert all(np.array_equal(tensors[name], array) for name, array in theirs.items())
    assert model_config.model_fields(tmp_path) == fields
    assert jax.tree.all(jax.tree.map(np.array_equal, huggingface.from_hf(tmp_path)[0], params))
    recorded, original = files.read_config(tmp_path), files.read_config(folder)
    # T5's own config of version 5 ties all weights, and reads an untied head from the file.
    free = {"dtype", "transformers_version", *(("tie_word_embeddings",) if original["model_type"] == "t5" else ())}
    differ = {name for name in set(recorded) & set(original) - free if recorded[name] != original[name]}
    assert differ <= {"activation_function"}  # swish is silu


@pytest.fixture
def copy(tmp_path):
    return lambda name: shutil.copytree(reference.OURS / name, tmp_path / name)


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_an_unknown_or_missing_tensor_is_named(name, copy):
    folder = copy(name)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "decoder.adapter.weight": tensors[min(tensors)]}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has a tensor decoder\.adapter\.weight"):
        huggingface.from_hf(folder)
    gone = next(key for key in sorted(tensors) if key.endswith("norm.weight"))
    save_file({key: array for key, array in tensors.items() if key != gone}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"has no tensor {gone}"):
        huggingface.from_hf(folder)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("bart", "normalize_before", True, "normalize_before=True"),
        ("bart", "static_position_embeddings", True, "static_position_embeddings=True"),
        ("marian", "normalize_embedding", True, "normalize_embedding=True"),
        ("marian", "activation_function", "mish", "activation 'mish'"),
        ("t5", "feed_forward_proj", "doubled-gelu", "feed_forward_proj='doubled-gelu'"),
        ("t5", "is_encoder_decoder", False, "is_encoder_decoder=False"),
        ("t5", "eos_token_id", "one", "id 'one' as eos_token_id"),
    ],
)
def test_a_field_that_the_model_lacks_is_refused_by_name(name, field, value, message, copy):
    folder = copy(name)
    files.write_json(folder / "config.json", files.read_config(folder) | {field: value})
    with pytest.raises(CheckpointError, match=message):
        model_config.model_fields(folder)


def test_embeddings_that_should_be_one_and_positions_of_another_kind_are_refused(copy):
    folder, name = copy("bart"), "model.decoder.embed_tokens.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: tensors["model.shared.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.decoder\.embed_tokens\.weight differs"):
        huggingface.from_hf(folder)
    save_file({**tensors, name: tensors["model.shared.weight"]}, folder / "model.safetensors")
    assert huggingface.from_hf(folder)[1] == []
    folder, name = copy("marian"), "model.encoder.embed_positions.weight"
    tensors, table = load_file(folder / "model.safetensors"), marian.sinusoids(40, 16).astype(np.float32)
    save_file({**tensors, name: table}, folder / "model.safetensors")
    assert huggingface.from_hf(folder)[1] == []
    save_file({**tensors, name: table[::-1].copy()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not sinusoidal"):
        huggingface.from_hf(folder)


def test_untied_embeddings_of_a_bart_come_in_and_go_out(copy):
    folder = copy("bart")
    tensors, names = (
        load_file(folder / "model.safetensors"),
        ("model.encoder.embed_tokens", "model.decoder.embed_tokens"),
    )
    table = tensors["model.shared.weight"]
    own = {f"{name}.weight": table + i for i, name in enumerate((*names, "lm_head"), 1)}
    save_file({**tensors, **own}, folder / "model.safetensors")
    files.write_json(folder / "config.json", files.read_config(folder) | {"tie_word_embeddings": False})
    params, fields = huggingface.from_hf(folder)[0], model_config.model_fields(folder)
    np.testing.assert_array_equal(params["tokens"]["embedding"], table + 1)
    np.testing.assert_array_equal(params["target_tokens"]["embedding"], table + 2)
    assert (fields["target_vocab"], fields["tied"]) == (fields["vocab"], False)
    tensors, config = huggingface.to_hf(params, fields, "BartForConditionalGeneration")
    assert all(np.array_equal(tensors[name], array) for name, array in own.items()) and "model.shared.weight" in tensors
    assert config["tie_word_embeddings"] is False and not any(name.startswith("_") for name in config)


def test_what_no_architecture_has_is_refused_on_the_way_out():
    params, fields = (
        huggingface.from_hf(reference.OURS / "marian")[0],
        model_config.model_fields(reference.OURS / "marian"),
    )
    with pytest.raises(CheckpointError, match=r"T5ForConditionalGeneration.*positions='sinusoidal'"):
        huggingface.to_hf(params, fields, "T5ForConditionalGeneration")
    with pytest.raises(CheckpointError, match=r"cannot have config\.model\.post_norm=False"):
        huggingface.to_hf(params, fields | {"post_norm": False}, "MarianMTModel")


def test_generation_config_becomes_fields_of_the_beam_search_and_back(tmp_path):
    given = {"num_beams": 6, "max_length": 142, "min_length": 56, "length_penalty": 2.0, "early_stopping": True}
    given |= {"bad_words_ids": [[7], [8, 9]], "forced_bos_token_id": 0, "forced_eos_token_id": 2}
    marks = {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    files.write_json(tmp_path / generation.FILE, given | marks)
    beam = generation.fields(tmp_path, pytest.fail)
    assert (beam["max_len"], beam["min_len"], beam["bad_words_ids"]) == (141, 55, ((7,), (8, 9)))
    assert generation.written(beam, {"begin": 2, "end": 2, "pad": 1}) == given | marks
    told = []
    files.write_json(tmp_path / generation.FILE, {"num_beam_groups": 3, "do_sample": False})
    assert generation.fields(tmp_path, told.append) == {} and "num_beam_groups=3" in told[0]
    files.write_json(tmp_path / generation.FILE, {"max_length": "long"})
    with pytest.raises(CheckpointError, match="max_length='long'"):
        generation.fields(tmp_path, pytest.fail)
