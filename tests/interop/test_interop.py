"""Claims about jtasks.interop: the golden folders were written by transformers, their outputs computed by torch."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import reference
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jtasks import cli, models
from jtasks.data import assets
from jtasks.errors import CheckpointError, ConfigError
from jtasks.interop import files, huggingface, layouts, model_config
from jtasks.run import job

GOLDEN = tiny.ROOT / "tests" / "golden"
METHODS = {
    "BertForPreTraining": "masked_logits",
    "BertForSequenceClassification": "classify",
    "BertForMultipleChoice": "classify",
    "BertForTokenClassification": "tag",
    "BertForQuestionAnswering": "tag",
}
TOWERS = ("clip", "siglip")


def read_config(name):  # here and below: of a folder in GOLDEN, or the path of any other
    return json.loads((GOLDEN / name / "config.json").read_text())


@functools.cache
def imported(name):
    return huggingface.from_hf(GOLDEN / name)


def arguments(fields):
    of_pictures = ("num_colors", "palette", "shape", "mean", "std", "rescale", "resize")
    return {name: value for name, value in fields.items() if name not in of_pictures}


def model(name, **changes):
    fields = arguments(model_config.model_fields(GOLDEN / name)) | changes
    params, kind = imported(name)[0], read_config(name)["model_type"]
    if kind == "bert":
        labels = params["classifier"]["bias"].size if "classifier" in params else 0
        return models.BERT(**{"labels": labels} | fields)
    if kind in TOWERS:
        return models.TwoTowers(**fields)
    return models.ViT(**{"classes": params["head"]["bias"].size} | fields) if kind == "vit" else models.GPT(**fields)


def inputs(name, io):
    kind = read_config(name)["model_type"]
    if kind == "bert":
        return tuple(jnp.asarray(io[key]) for key in ("input_ids", "token_type_ids", "attention_mask"))
    images = (jnp.moveaxis(io["pixel_values"], 1, 3),) if "pixel_values" in io else ()
    return images if kind == "vit" else (*images, jnp.asarray(io["input_ids"]))


def outputs(name):
    """What our model says with the folder's weights, and the folder's io.npz."""
    io = dict(np.load(GOLDEN / name / "io.npz"))
    method = METHODS.get(read_config(name)["architectures"][0], "__call__")
    run = jax.jit(functools.partial(model(name).apply, method=method))
    return run({"params": imported(name)[0]}, *inputs(name, io)), io


cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def close(found, expected):
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Weights in


@reference.of(reference.GPT2)
def test_gpt2_says_what_transformers_says(folder):
    logits, io = outputs(folder)
    close(logits, io["logits"])
    close(cross_entropy(logits[:, :-1], io["input_ids"][:, 1:]).mean(), io["loss"])


@reference.of(reference.IMAGEGPT)
def test_imagegpt_says_what_transformers_says(folder):
    logits, io = outputs(folder)
    close(logits, io["logits"])
    close(cross_entropy(logits, io["pixels"]).mean(), io["nll"])


@reference.of(reference.BERT_PRETRAINING)
def test_bert_says_what_transformers_says_of_padding_too(folder):
    (logits, follows), io = outputs(folder)
    assert (io["attention_mask"] == 0).any()
    close(logits, io["prediction_logits"])
    close(follows, io["seq_relationship_logits"])
    masked = io["labels"] >= 0
    nats = cross_entropy(logits, np.where(masked, io["labels"], 0))
    loss = nats[masked].mean() + cross_entropy(follows, io["next_sentence_label"]).mean()
    close(loss, io["loss"])


@reference.of(reference.BERT_PRETRAINING)
def test_the_loss_of_pre_training_is_that_of_transformers(folder):
    io = dict(np.load(folder / "io.npz"))
    most = (io["labels"] >= 0).sum(1).max() + 1
    places = np.argsort(io["labels"] < 0, axis=1, kind="stable")[:, :most]  # the masked ones first
    labels = np.take_along_axis(io["labels"], places, axis=1)
    nats, correct, follows = jax.jit(functools.partial(model(folder).apply, method="pretrain"))(
        {"params": imported(folder)[0]}, *inputs(folder, io), jnp.asarray(places), jnp.asarray(np.maximum(labels, 0))
    )
    assert (io["labels"] >= 0).sum() == (labels >= 0).sum()
    loss = nats[labels >= 0].mean() + cross_entropy(follows, io["next_sentence_label"]).mean()
    close(loss, io["loss"])
    best = np.take_along_axis(io["prediction_logits"].argmax(-1), places, axis=1)
    np.testing.assert_array_equal(correct[labels >= 0], (best == labels)[labels >= 0])


@reference.of(*reference.CLASSIFIERS)
def test_classifiers_say_what_transformers_say(folder):
    logits, io = outputs(folder)
    close(logits, io["logits"])


@reference.of(reference.BERT_ANSWERS)
def test_question_answering_says_what_transformers_says(folder):
    logits, io = outputs(folder)
    close(logits, np.stack([io["start_logits"], io["end_logits"]], axis=-1))


@reference.of()
def test_every_tensor_is_used(folder):
    assert imported(folder)[1] == []


def rewritten(name, folder, rename, more=None):
    """A copy of a golden folder with other names of tensors."""
    shutil.copytree(GOLDEN / name, folder)
    tensors = {rename(key): value for key, value in load_file(folder / files.WEIGHTS).items()}
    save_file(tensors | (more or {}), folder / files.WEIGHTS)
    return folder


def change_config(folder, **changes):
    content = json.loads((folder / files.CONFIG).read_text()) | changes
    (folder / files.CONFIG).write_text(json.dumps({k: v for k, v in content.items() if v != "absent"}))
    return folder


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_bare_body_has_no_prefix(tmp_path):
    for name, prefix in (("gpt2_lm", "transformer."), ("bert_pretraining", "bert."), ("vit_classification", "vit.")):
        folder = rewritten(name, tmp_path / name, lambda key, prefix=prefix: key.removeprefix(prefix))
        same(huggingface.from_hf(folder)[0], imported(name)[0])


def test_old_names_of_norms_and_buffers_are_known(tmp_path):
    def old(key):
        return key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    same(huggingface.from_hf(rewritten("bert_pretraining", tmp_path / "bert", old))[0], imported("bert_pretraining")[0])
    buffers = {f"transformer.h.{i}.attn.bias": np.ones((1, 1, 64, 64), bool) for i in range(2)}
    params, unused = huggingface.from_hf(rewritten("gpt2_lm", tmp_path / "gpt2", str, buffers))
    same(params, imported("gpt2_lm")[0])
    assert unused == sorted(buffers)


def test_shards_are_read_as_one(tmp_path):
    folder = tmp_path / "sharded"
    shutil.copytree(GOLDEN / "gpt2_lm", folder)
    tensors = load_file(folder / files.WEIGHTS)
    (folder / files.WEIGHTS).unlink()
    parts = [dict(list(tensors.items())[i::2]) for i in range(2)]
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for part, file in zip(parts, names, strict=True):
        save_file(part, folder / file)
    index = {"weight_map": {key: file for part, file in zip(parts, names, strict=True) for key in part}}
    (folder / files.INDEX).write_text(json.dumps(index))
    same(huggingface.from_hf(folder)[0], imported("gpt2_lm")[0])
    (folder / names[1]).unlink()
    with pytest.raises(CheckpointError, match=r"names model-00002-of-00002\.safetensors, which the folder does"):
        huggingface.from_hf(folder)


def test_sixteen_bit_numbers_become_float32(tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(GOLDEN / "gpt2_lm", folder)
    tensors = {key: value.astype(ml_dtypes.bfloat16) for key, value in load_file(folder / files.WEIGHTS).items()}
    save_file(tensors, folder / files.WEIGHTS)
    params, _ = huggingface.from_hf(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    np.testing.assert_allclose(
        params["head" if "head" in params else "tokens"]["embedding"][0, :3],
        imported("gpt2_lm")[0]["tokens"]["embedding"][0, :3],
        rtol=0.01,
    )


def test_a_vit_without_biases_of_query_key_and_value_has_zeros(tmp_path):
    folder = tmp_path / "vit"
    shutil.copytree(GOLDEN / "vit_classification", folder)
    tensors = {
        k: v
        for k, v in load_file(folder / files.WEIGHTS).items()
        if not k.endswith(("query.bias", "key.bias", "value.bias"))
    }
    save_file(tensors, folder / files.WEIGHTS)
    with pytest.raises(CheckpointError, match=r"no tensor vit\.encoder\.layer\.0\.attention\.attention\.query\.bias"):
        huggingface.from_hf(folder)
    params, _ = huggingface.from_hf(change_config(folder, qkv_bias=False))
    assert params["blocks"]["attention"]["query_key_value"]["bias"].shape == (2, 3 * 48)
    assert not params["blocks"]["attention"]["query_key_value"]["bias"].any()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2_lm", {"model_type": "llama"}, "model_type='llama'; expected one of gpt2, imagegpt, bert, vit"),
        ("gpt2_lm", {"activation_function": "mish"}, "activation 'mish'; our models have gelu"),
        ("gpt2_lm", {"scale_attn_weights": False}, "scale_attn_weights=False; our model has True only"),
        ("bert_pretraining", {"position_embedding_type": "relative_key"}, "our model has 'absolute' only"),
        ("bert_pretraining", {"num_hidden_layers": 3}, r"no tensor bert\.encoder\.layer\.2"),
        ("vit_classification", {"patch_size": [4, 2]}, "our patches are square"),
    ],
)
def test_a_model_that_ours_cannot_be_is_refused(name, changes, message, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        huggingface.from_hf(change_config(tmp_path / name, **changes))


def test_a_folder_that_is_none_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no folder .*as save_pretrained of transformers writes it"):
        huggingface.from_hf(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        huggingface.from_hf(tmp_path)
    shutil.copy(GOLDEN / "gpt2_lm" / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors.*torch's own format: load it"):
        huggingface.from_hf(tmp_path)
    (tmp_path / files.WEIGHTS).write_text("no safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        huggingface.from_hf(tmp_path)


# Layouts


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_query_key_and_value_of_each_head_come_together(heads, width, rows):
    """A kernel whose entries name their origin: which of the three, head, place in the head, row."""
    three, head, place, row = np.meshgrid(
        np.arange(3), np.arange(heads), np.arange(width), np.arange(rows), indexing="ij"
    )
    named = (three * 1000 + head * 100 + place * 10 + row).astype(np.float32)  # [3, heads, width, rows]
    joined = np.moveaxis(named, 3, 0).reshape(rows, -1)
    ours = layouts.fused_qkv(heads).read([joined])
    np.testing.assert_array_equal(ours.reshape(rows, heads, 3, width), np.moveaxis(named, (3, 1), (0, 1)))
    np.testing.assert_array_equal(layouts.fused_qkv(heads).write(ours)[0], joined)
    apart = [matrix.reshape(-1, rows) for matrix in named]  # torch's [out, in]
    np.testing.assert_array_equal(layouts.split_qkv(heads).read(apart), ours)
    for one, other in zip(layouts.split_qkv(heads).write(ours), apart, strict=True):
        np.testing.assert_array_equal(one, other)
    biases = [matrix[:, 0] for matrix in apart]
    np.testing.assert_array_equal(layouts.split_qkv(heads).read(biases), ours[0])
    for one, other in zip(layouts.split_qkv(heads).write(ours[0]), biases, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_convolution_over_patches_is_a_linear_layer():
    random = np.random.default_rng(0)
    kernel, image = random.normal(size=(5, 3, 4, 4)), random.normal(size=(3, 4, 4))
    expected = (kernel * image[None]).sum((1, 2, 3))
    ours = layouts.patches(4).read([kernel])
    np.testing.assert_allclose(np.moveaxis(image, 0, 2).reshape(-1) @ ours, expected)
    np.testing.assert_array_equal(layouts.patches(4).write(ours)[0], kernel)


# Into a task's parameters


def start(name, method=None, seed=1, **changes):
    """Freshly initialized parameters of the folder's model."""
    built, io = model(name, **changes), dict(np.load(GOLDEN / name / "io.npz"))
    shapes = jax.eval_shape(
        functools.partial(built.init, method=method or METHODS.get(read_config(name)["architectures"][0], "__call__")),
        jax.random.key(0),
        *inputs(name, io),
    )["params"]
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), shapes)


def take(name, params, architecture=None, folder=None, **changes):
    fields = model_config.model_fields(GOLDEN / name) | changes
    return huggingface.import_params(str(folder or GOLDEN / name), params, fields, architecture, pytest.fail)


@reference.of()
def test_all_parameters_are_taken_where_the_model_is_the_folders(folder):
    params, report = take(folder, start(folder), read_config(folder)["architectures"][0])
    same(params, imported(folder)[0])
    assert report["left"] == report["unused"] == []
    assert len(report["taken"]) == len(jax.tree.leaves(params))


def test_parameters_keep_their_sharding():
    mesh = tiny.mesh(8)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params = start("gpt2_lm")
    params["position"]["embedding"] = jax.device_put(params["position"]["embedding"], rows)
    found, _ = take("gpt2_lm", params)
    assert found["position"]["embedding"].sharding == rows
    same(found, imported("gpt2_lm")[0])


def test_a_head_of_another_size_is_left_and_told():
    fresh = start("bert_sequence_classification", labels=4)
    params, report = take("bert_sequence_classification", fresh, "BertForSequenceClassification")
    same(params["classifier"], fresh["classifier"])
    same(params["pooler"], imported("bert_sequence_classification")[0]["pooler"])
    assert report["left"] == ["classifier/bias [4]: there it is [3]", "classifier/kernel [48, 4]: there it is [48, 3]"]
    assert report["unused"] == ["classifier.weight", "classifier.bias"]


def test_a_head_of_another_kind_is_left_and_told():
    fresh = start("bert_pretraining", "tag", labels=2)
    params, report = take("bert_pretraining", fresh, "BertForQuestionAnswering")
    same(params["classifier"], fresh["classifier"])
    same(params["blocks"], imported("bert_pretraining")[0]["blocks"])
    assert report["left"] == ["classifier/bias [2]: not there", "classifier/kernel [48, 2]: not there"]
    assert "cls.predictions.bias" in report["unused"] and "bert.pooler.dense.weight" in report["unused"]


def test_a_classifier_of_another_task_is_not_taken_though_it_fits():
    fresh = start("bert_question_answering")
    params, _ = take("bert_question_answering", fresh, "BertForTokenClassification")
    same(params["classifier"], fresh["classifier"])
    params, _ = take("bert_question_answering", fresh, "BertForQuestionAnswering")
    same(params["classifier"], imported("bert_question_answering")[0]["classifier"])


def test_a_config_of_another_model_is_told_field_by_field():
    with pytest.raises(ConfigError) as error:
        take("gpt2_lm", start("gpt2_lm"), depth=5, epsilon=1e-6, activation="gelu", dropout=0.9, mlp_dim=0)
    assert [line.strip() for line in str(error.value).splitlines()[1:-1]] == [
        "config.model.depth is 5, there 2",
        "config.model.activation is 'gelu', there 'gelu_tanh'",
        "config.model.epsilon is 1e-06, there 1e-05",
    ]


def test_what_no_shape_shows_and_the_config_does_not_say_is_told():
    told = []
    fields = model_config.model_fields(GOLDEN / "gpt2_lm")
    given_ = {name: value for name, value in fields.items() if name != "epsilon"}
    huggingface.import_params(str(GOLDEN / "gpt2_lm"), start("gpt2_lm"), given_, None, told.append)
    assert len(told) == 1 and "config.model has no epsilon" in told[0] and "epsilon=1e-05" in told[0]


def test_a_shape_that_does_not_fit_names_both():
    params = start("gpt2_lm")
    params["blocks"]["up"]["kernel"] = jnp.zeros((2, 48, 100))
    with pytest.raises(CheckpointError, match=r"blocks/up/kernel \[2, 48, 100\]: there it is \[2, 48, 192\]"):
        take("gpt2_lm", params)


def test_another_structure_does_not_fit():
    untied = start("gpt2_lm", tied=False)
    with pytest.raises(CheckpointError, match=r"head/kernel .*set config\.model\.tied=True"):
        take("gpt2_lm", untied)
    rms = start("gpt2_lm", norm="rms")
    with pytest.raises(CheckpointError, match=r"norm1/bias \[2, 48\] is there, and this model has no place for it"):
        take("gpt2_lm", rms)
    layered = start("imagegpt_causal", norm="layer")
    with pytest.raises(CheckpointError, match=r"blocks/norm1/bias \[2, 48\]: not there"):
        take("imagegpt_causal", layered)


def test_an_untied_masked_head_does_not_fit(tmp_path):
    """transformers unties two tensors that it finds both and unlike, whatever config.json says."""
    table = load_file(GOLDEN / "bert_pretraining" / files.WEIGHTS)["bert.embeddings.word_embeddings.weight"]
    copy = rewritten("bert_pretraining", tmp_path / "copy", str, {"cls.predictions.decoder.weight": table})
    _, report = take("bert_pretraining", start("bert_pretraining"), folder=copy)
    assert report["unused"] == ["cls.predictions.decoder.weight"]
    folder = rewritten("bert_pretraining", tmp_path / "bert", str, {"cls.predictions.decoder.weight": table + 1})
    with pytest.raises(CheckpointError, match=r"masked_out/kernel \[48, 120\] is there"):
        take("bert_pretraining", start("bert_pretraining"), folder=folder)


def test_another_output_layer_than_the_embedding_is_used(tmp_path):
    tensors = load_file(GOLDEN / "gpt2_lm" / files.WEIGHTS)
    table = tensors["transformer.wte.weight"]
    folder = rewritten("gpt2_lm", tmp_path / "other", str, {"lm_head.weight": 2 * table})
    assert model_config.model_fields(folder)["tied"] is False
    same(huggingface.from_hf(folder)[0], imported("gpt2_lm")[0] | {"head": {"kernel": 2 * table.T}})
    copy = rewritten("gpt2_lm", tmp_path / "copy", str, {"lm_head.weight": table})
    assert model_config.model_fields(copy)["tied"] is True
    lone = rewritten("gpt2_lm", tmp_path / "lone", lambda key: key.replace("transformer.wte.", "lm_head."))
    same(huggingface.from_hf(lone)[0], imported("gpt2_lm")[0])


def test_the_bias_of_the_masked_head_is_the_decoders(tmp_path):
    folder = rewritten(
        "bert_pretraining", tmp_path / "lone", lambda key: key.replace("predictions.bias", "predictions.decoder.bias")
    )
    params, unused = huggingface.from_hf(folder)
    same(params, imported("bert_pretraining")[0])
    assert unused == []


ODD = [
    ("gpt2_lm", {"n_layer": 10**9}, "does not go with the weights beside it"),
    ("gpt2_lm", {"n_layer": -1}, "depth comes out as -1, expected a whole number"),
    ("gpt2_lm", {"n_head": 5}, "does not go with the weights beside it"),
    ("gpt2_lm", {"n_head": 0}, "heads comes out as 0"),
    ("gpt2_lm", {"n_embd": "48"}, "has an odd value|width comes out as"),
    ("gpt2_lm", {"vocab_size": None}, "vocab comes out as None"),
    ("gpt2_lm", {"vocab_size": 1e9}, "vocab comes out as 1000000000.0"),
    ("gpt2_lm", {"layer_norm_epsilon": "small"}, "epsilon comes out as 'small'"),
    ("gpt2_lm", {"model_type": ["gpt2"]}, r"model_type=\['gpt2'\]; expected one of"),
    ("gpt2_lm", {"n_positions": "absent"}, "has no 'n_positions', which a gpt2 must have"),
    ("bert_pretraining", {"hidden_size": []}, "width comes out as"),
    ("vit_classification", {"image_size": {}}, "has an odd value|has no"),
    ("vit_classification", {"patch_size": None}, "has an odd value"),
]


@pytest.mark.parametrize(("name", "changes", "message"), ODD)
def test_an_odd_config_is_told_and_takes_no_memory(name, changes, message, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        huggingface.from_hf(change_config(tmp_path / name, **changes))


@pytest.mark.parametrize(
    "index",
    [
        *({"weight_map": {"x": name}} for name in ("../model.safetensors", "/etc/passwd", "a\\b", "", "..", 3, None)),
        *({"weight_map": value} for value in ([], {}, None, "x")),
        [],
        {},
    ],
)
def test_an_index_names_files_of_its_folder_alone(index, tmp_path):
    shutil.copytree(GOLDEN / "gpt2_lm", tmp_path / "gpt2")
    (tmp_path / "gpt2" / files.INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"must map tensors to names|must hold a JSON object"):
        files.where(tmp_path / "gpt2")


def resized(tmp_path, name, **processor):
    """config.model's `resize` from a golden folder with this preprocessor_config.json."""
    folder = tmp_path / "resized"
    shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model_config.model_fields(folder)["resize"]


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({}, (2, "own", "own", 0, 0)),
        ({"resample": 3, "size": 40}, (3, 40, 40, 0, 0)),
        ({"size": {"height": 40, "width": 30}, "image_processor_type": "ViTImageProcessorFast"}, (2, 40, 30, 0, 0)),
        ({"do_resize": False}, (2, 0, 0, 0, 0)),
        ({"do_center_crop": True, "crop_size": 32, "size": {"shortest_edge": 40}}, (2, 40, 0, 32, 32)),
        ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 36, "crop_size": 32}, (3, 36, 36, 32, 32)),
        ({"image_processor_type": "CLIPImageProcessor", "size": 36, "do_center_crop": False}, (3, 36, 0, 0, 0)),
    ],
)
def test_a_vit_folders_sizes_filter_and_crop_are_taken(tmp_path, processor, expected):
    own = read_config("vit_classification")["image_size"]
    assert resized(tmp_path, "vit_classification", **processor) == tuple(own if x == "own" else x for x in expected)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"image_processor_type": "ConvNextImageProcessor"}, "image_processor_type is 'ConvNextImageProcessor'"),
        ({"resample": "bicubic"}, "resample is 'bicubic', expected 0 to 5"),
        ({"size": {"longest_edge": 8}}, r"size is {'longest_edge': 8}, expected a height and a width"),
        ({"size": 0}, "size is 0"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 8}}, "crop_size is"),
        ({"do_center_crop": True}, "crop_size is None"),
        ({"do_pad": True, "size": {"shortest_edge": 8}}, "do_pad is true for pictures of different sizes"),
        ({"crop_pct": 0.9}, "crop_pct is 0.9, which jtasks does not do"),
    ],
)
def test_what_cannot_be_done_as_the_folder_says_is_named(tmp_path, processor, message):
    with pytest.raises(CheckpointError, match=rf"preprocessor_config.json: {message}"):
        resized(tmp_path, "vit_classification", **processor)


def test_an_imagegpts_pictures_are_resized_as_its_folder_says(tmp_path):
    processor = {"clusters": np.linspace(-1, 1, 48).reshape(16, 3).tolist(), "size": {"height": 4, "width": 4}}
    assert resized(tmp_path, "imagegpt_causal", **processor) == (2, 4, 4, 0, 0)
    with pytest.raises(ConfigError, match=r"makes pictures of 4x4, config.model.shape is \(8, 8\)"):
        model_config.complete({"shape": (8, 8), "palette": None, "resize": None}, {}, str(tmp_path / "resized"))
    with pytest.raises(CheckpointError, match="do_normalize is False, but an ImageGPT"):
        resized(tmp_path, "imagegpt_causal", **processor, do_normalize=False)


def test_an_export_says_how_pictures_come_to_their_size(tmp_path):
    for resize in ((2, 40, 30, 0, 0), (3, 36, 0, 32, 32), (3, 36, 36, 32, 32), (0, 0, 0, 0, 0), (1, 9, 9, 0, 0)):
        files_ = assets.image_processor([0.5] * 3, [0.5] * 3, 1 / 255, (32, 32), resize)
        assert resized(tmp_path, "vit_classification", **json.loads(files_[assets.PROCESSOR])) == resize


# Placeholders of a config


def test_placeholders_are_filled_from_the_folder_and_what_the_data_says_stays():
    model_ = dict.fromkeys(("vocab", "max_length", "width", "heads", "shape", "labels")) | {"depth": 7}
    filled = model_config.complete({"vocab": 90, "labels": 3}, model_, str(GOLDEN / "bert_pretraining"))
    assert filled == {"vocab": 120, "max_length": 48, "width": 48, "heads": 4, "labels": 3}
    with pytest.raises(ConfigError, match=r"the data needs config\.model\.vocab=121, but the model in .* has 120"):
        model_config.complete({"vocab": 121}, model_, str(GOLDEN / "bert_pretraining"))
    images = model_config.complete({"shape": (8, 8)}, model_, str(GOLDEN / "vit_classification"))
    assert images["shape"] == (8, 8) and images["width"] == 48


def test_an_imagegpts_clusters_are_the_palette(tmp_path):
    shutil.copytree(GOLDEN / "imagegpt_causal", tmp_path / "image")
    clusters = np.linspace(-1, 1, 48).reshape(16, 3)
    (tmp_path / "image" / "preprocessor_config.json").write_text(json.dumps({"clusters": clusters.tolist()}))
    fields = {"palette": None, "num_colors": None, "norm": None}
    filled = model_config.complete({"palette": "fitted", "num_colors": 3}, fields, str(tmp_path / "image"))
    np.testing.assert_allclose(filled["palette"], (clusters + 1) * 127.5)
    assert (filled["num_colors"], filled["norm"]) == (16, "rms")
    without = model_config.complete({"palette": "fitted", "num_colors": 3}, fields, str(GOLDEN / "imagegpt_causal"))
    assert without == {"palette": "fitted", "num_colors": 3, "norm": "rms"}


# Weights out


@reference.of()
def test_what_came_in_goes_out_bit_for_bit(folder):
    config = read_config(folder)
    tensors, written = huggingface.to_hf(
        imported(folder)[0], model_config.model_fields(folder), config["architectures"][0]
    )
    expected = load_file(folder / files.WEIGHTS)
    assert sorted(tensors) == sorted(expected)
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype and tensors[key].shape == value.shape
        np.testing.assert_array_equal(tensors[key], value)
        assert tensors[key].flags.c_contiguous
    resolved = config | ({"n_inner": config["n_inner"] or 4 * config["n_embd"]} if "n_inner" in config else {})
    free = ("bos_token_id", "eos_token_id", "pad_token_id", "classifier_dropout", "id2label", "label2id")
    parts = [name for name in ("text_config", "vision_config") if name in written]
    for part, theirs in [(written, resolved), *((written[name], resolved[name]) for name in parts)]:
        # A part's own projection_dim counts only in a folder of one tower.
        unused = parts if part is written else ["projection_dim"]
        described = {k: v for k, v in part.items() if k not in (*free, *unused) and k in theirs}
        assert described == {k: theirs[k] for k in described}


def test_a_written_folder_is_read_as_it_was(tmp_path):
    name = "bert_token_classification"
    tensors, config = huggingface.to_hf(
        imported(name)[0], model_config.model_fields(GOLDEN / name), "BertForTokenClassification"
    )
    files.write(tmp_path / "out", config, tensors)
    same(huggingface.from_hf(tmp_path / "out")[0], imported(name)[0])
    assert model_config.model_fields(tmp_path / "out") == model_config.model_fields(GOLDEN / name)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("bias", [0.0, 0.7, -0.7])
def test_an_imagegpt_with_layer_norms_becomes_a_gpt2_that_never_says_start(bias, tmp_path):
    fields = {"max_length": 12, "width": 16, "depth": 2, "heads": 2, "activation": "gelu_tanh", "epsilon": 1e-6}
    ours = models.GPT(vocab=8, outputs=7, **fields)
    random, ids = np.random.default_rng(0), jnp.asarray(np.random.default_rng(1).integers(0, 8, (3, 12)))
    params = jax.tree.map(
        lambda x: (0.3 * random.normal(size=x.shape)).astype(np.float32),
        jax.eval_shape(ours.init, jax.random.key(0), ids)["params"],
    )
    params["norm"]["scale"] = random.uniform(0.5, 2, 16).astype(np.float32)
    params["norm"]["bias"] = (bias * random.uniform(0.5, 1, 16)).astype(np.float32)
    tensors, config = huggingface.to_hf(params, fields, "ImageGPTForCausalImageModeling")
    assert config["architectures"] == ["GPT2LMHeadModel"] and not config["tie_word_embeddings"]
    files.write(tmp_path / "gpt2", config, tensors)
    theirs = models.GPT(**model_config.model_fields(tmp_path / "gpt2"))
    logits = jax.jit(theirs.apply)({"params": huggingface.from_hf(tmp_path / "gpt2")[0]}, ids)
    np.testing.assert_allclose(logits[..., :7], jax.jit(ours.apply)({"params": params}, ids), atol=1e-4)
    np.testing.assert_allclose(logits[..., 7], -1000, rtol=1e-4)


def without(tree, *path):
    copy = dict(tree)
    if len(path) > 1:
        copy[path[0]] = without(tree[path[0]], *path[1:])
    else:
        del copy[path[0]]
    return copy


def test_what_transformers_cannot_express_is_refused():
    gpt2, fields = imported("gpt2_lm")[0], model_config.model_fields(GOLDEN / "gpt2_lm")
    image = imported("imagegpt_causal")[0]
    with pytest.raises(CheckpointError, match="GPT2LMHeadModel of Hugging Face has layer norms"):
        huggingface.to_hf(image, fields, "GPT2LMHeadModel")
    with pytest.raises(CheckpointError, match="cannot read 101 ids and predict 50"):
        huggingface.to_hf(gpt2 | {"head": {"kernel": np.zeros((48, 50))}}, fields, "GPT2LMHeadModel")
    with pytest.raises(CheckpointError, match="no place for the parameters classifier/kernel"):
        huggingface.to_hf(gpt2 | {"classifier": {"kernel": np.zeros((48, 3))}}, fields, "GPT2LMHeadModel")
    vit = imported("vit_classification")[0]
    with pytest.raises(CheckpointError, match=r'only models with config\.model\.pool="token" can be exported'):
        huggingface.to_hf(without(vit, "token"), fields, "ViTForImageClassification")
    with pytest.raises(CheckpointError, match="the model has no 'type' parameters, which a BertForPreTraining must"):
        huggingface.to_hf(gpt2, fields, "BertForPreTraining")
    with pytest.raises(CheckpointError, match="no parameter blocks/norm2/bias, which a GPT2LMHeadModel must have"):
        huggingface.to_hf(without(gpt2, "blocks", "norm2", "bias"), fields, "GPT2LMHeadModel")
    with pytest.raises(ConfigError, match=r"the export needs config\.model\.heads"):
        huggingface.to_hf(gpt2, without(fields, "heads"), "GPT2LMHeadModel")
    with pytest.raises(ConfigError, match="no export to 'T5Model': expected one of GPT2LMHeadModel"):
        huggingface.to_hf(gpt2, fields, "T5Model")


# The command


VIT = ["--config.model.width=16", "--config.model.depth=2", "--config.model.heads=2", "--config.batch_size=8"]
VIT += ["--config.steps=2", "--config.show_count=0"]


def command(capfd, *arguments, code=0):
    """What the command printed to stdout as JSON, and to stderr."""
    assert cli.run([str(argument) for argument in arguments]) == code
    output, errors = capfd.readouterr()
    return json.loads(output) if output else {}, errors


@pytest.mark.slow  # two runs through the command line
def test_a_run_is_exported_and_another_starts_from_it(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    trained, _ = command(capfd, "--config=configs/vit_digits.py", f"--workdir={tmp_path / 'one'}", *VIT)
    found, _ = command(capfd, "--config=configs/vit_digits.py", f"--workdir={tmp_path / 'one'}", *VIT, "--mode=export")
    folder = pathlib.Path(found["exported"])
    assert folder == tmp_path / "one" / "export" / "hf"
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 8, "width": 8} and processor["rescale_factor"] == 1 / 16
    # The same model with nothing said about its sizes, and no further step.
    digits = ["--config.data.name=digits", "--config.data.size=8", "--config.data.white=16", "--config.batch_size=8"]
    again, errors = command(
        capfd,
        "--config=configs/vit_cifar.py:hf",
        f"--workdir={tmp_path / 'two'}",
        f"--config.init_from=hf:{folder}",
        *digits,
        "--config.steps=1",
        "--config.optim.lr=0.0",
        "--config.show_count=0",
    )
    assert again["test/loss"] == pytest.approx(trained["test/loss"], rel=1e-5)
    assert "init_from: 20 parameters taken" in errors and "init_from: 0 parameters left" in errors
    filled = json.loads((tmp_path / "two" / "config.json").read_text())["model"]
    assert (filled["width"], filled["depth"], filled["patch"], filled["mlp_dim"]) == (16, 2, 2, 64)


def test_an_export_says_what_it_cannot_do(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    arguments = ["--config=configs/mnist.py", "--config.data.name=digits", "--mode=export", f"--workdir={tmp_path}"]
    _, errors = command(capfd, *arguments, code=2)
    assert "task jtasks.tasks.mnist does not say which Hugging Face architecture" in errors
    arguments[0] = "--config=configs/vit_digits.py"
    _, errors = command(capfd, *arguments, code=1)
    assert "no checkpoint in" in errors
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    _, errors = command(capfd, *arguments, f"--output={tmp_path / 'full'}", code=2)
    assert "holds something else" in errors
    _, errors = command(
        capfd,
        "--config=configs/vit_digits.py",
        f"--workdir={tmp_path}",
        f"--config.init_from=hf:{tmp_path}/absent",
        *VIT,
        code=2,
    )
    assert f"no config.json of a model in {tmp_path}/absent" in errors


def test_the_palette_goes_out_as_clusters():
    config = job.prepare(tiny.config("igpt", model__palette=((0.0, 127.5, 255.0),) * 16, model__num_colors=16)).config
    found = json.loads(assets.palette_files(config.model)["preprocessor_config.json"])
    assert found["clusters"] == [[-1.0, 0.0, 1.0]] * 16 and found["size"] == {"height": 8, "width": 8}
