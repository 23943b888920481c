"""Claims about CLIP and SigLIP of transformers: what came in says the same; what cannot come in or go out is named."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import tiny

import jtasks
from jtasks import models
from jtasks.data import tokenizers
from jtasks.errors import CheckpointError, ConfigError
from jtasks.interop import beside, files, huggingface, model_config, two_towers

GOLDEN = tiny.ROOT / "tests" / "golden"


@functools.cache
def said(folder):
    """Embeddings and products by our model with the folder's weights, and the folder's io.npz."""
    io, params = dict(np.load(folder / "io.npz")), huggingface.from_hf(folder)[0]
    inputs = jnp.moveaxis(io["pixel_values"], 1, 3), jnp.asarray(io["input_ids"])
    known = {field.name for field in dataclasses.fields(models.TwoTowers)}
    fields = {name: value for name, value in model_config.model_fields(folder).items() if name in known}
    images, texts = jax.jit(models.TwoTowers(**fields).apply)({"params": params}, *inputs)
    scale, bias = models.scale_and_bias(params)
    return images, texts, scale * images @ texts.T + bias, io


def close(ours, theirs):
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@reference.of(*reference.TOWERS)
def test_embeddings_and_products_are_those_of_transformers(folder):
    images, texts, products, io = said(folder)
    close(images, io["image_embeds"])
    close(texts, io["text_embeds"])
    close(products, io["logits_per_image"])


@reference.of("CLIPModel")
def test_the_loss_of_clip_is_that_of_transformers(folder):
    _, _, products, io = said(folder)
    nats = optax.softmax_cross_entropy_with_integer_labels
    own = jnp.arange(len(products))
    close((nats(products, own).mean() + nats(products.T, own).mean()) / 2, io["loss"])


@reference.of("SiglipModel")
def test_the_loss_of_siglip_is_that_of_transformers(folder):
    _, _, products, io = said(folder)
    signs = 2 * jnp.eye(len(products)) - 1
    close(-jax.nn.log_sigmoid(signs * products).sum() / len(products), io["loss"])


def changed(tmp_path, name, text=None, vision=None, **changes):
    """A copy of a golden folder with changes of its config.json."""
    shutil.copytree(GOLDEN / name, tmp_path / name)
    config = json.loads((GOLDEN / name / files.CONFIG).read_text()) | changes
    config["text_config"] |= text or {}
    config["vision_config"] |= vision or {}
    (tmp_path / name / files.CONFIG).write_text(json.dumps(config))
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("siglip", {"vision": {"vision_use_head": False}}, "vision_use_head=False; our model has True only"),
        ("clip", {"text": {"hidden_act": "mish"}}, "activation 'mish'; our models have gelu"),
        ("clip", {"vision": {"patch_size": [4, 2]}}, "our patches are square"),
        ("clip", {"text": {"num_hidden_layers": 3}}, r"no tensor text_model\.encoder\.layers\.2"),
        ("clip", {"text": {"num_hidden_layers": 10**9}}, "does not go with the weights beside it: text_width 16"),
        ("clip", {"vision": {"num_attention_heads": 5}}, "does not go with the weights beside it: image_width 24"),
        ("clip", {"vision": {"hidden_size": "24"}}, "image_width comes out as '24'|has an odd value"),
        ("clip", {"text": {"layer_norm_eps": None}}, "text_epsilon comes out as None"),
        ("clip", {"text": {"eos_token_id": [1, 2]}}, r"has an odd value: eos_token_id is \[1, 2\]"),
        ("clip", {"vision": {"image_size": {}}}, "has an odd value|has no"),
        ("siglip", {"text": {"vocab_size": None}}, "vocab comes out as None"),
    ],
)
def test_towers_that_ours_cannot_be_are_refused(tmp_path, name, changes, message):
    with pytest.raises(CheckpointError, match=message):
        huggingface.from_hf(changed(tmp_path, name, **changes))


def test_what_a_config_leaves_out_has_the_values_of_transformers():
    config = json.loads((GOLDEN / "clip" / files.CONFIG).read_text())
    config["text_config"] = None  # the first files of CLIP have both parts twice
    config["text_config_dict"] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
    from_config = two_towers.fields(config)
    assert (from_config["text_mlp_dim"], from_config["max_length"], from_config["end"]) == (2048, 77, 49407)
    assert (from_config["text_activation"], from_config["text_epsilon"]) == ("quick_gelu", 1e-5)


def test_a_picture_has_the_size_that_its_folder_says(tmp_path):
    folder = changed(tmp_path, "clip")
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 20}, "crop_size": 16}
    processor |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    ours = model_config.model_fields(folder)
    assert (ours["shape"], ours["resize"], ours["mean"]) == ((16, 16), (3, 20, 0, 16, 16), (0.1, 0.2, 0.3))
    assert model_config.image_size(str(folder)) == 16


def test_a_model_of_neither_form_is_not_exported():
    params, ours = huggingface.from_hf(GOLDEN / "clip")[0], model_config.model_fields(GOLDEN / "clip")
    with pytest.raises(
        CheckpointError, match=r"CLIPModel .* is another model:\n  config.model.text_tower is 'bert', there"
    ):
        huggingface.to_hf(params, ours | {"text_tower": "bert"}, "CLIPModel")
    with pytest.raises(ConfigError, match=r"the export needs config\.model\.image_heads"):
        huggingface.to_hf(params, {k: v for k, v in ours.items() if k != "image_heads"}, "CLIPModel")
    bounded, _ = huggingface.to_hf(params | {"scale": np.float32(9)}, ours, "CLIPModel")
    assert np.exp(bounded["logit_scale"]) == pytest.approx(100)
    siglip, theirs = huggingface.from_hf(GOLDEN / "siglip")[0], model_config.model_fields(GOLDEN / "siglip")
    assert huggingface.to_hf(siglip, theirs, "CLIPModel")[1]["architectures"] == ["SiglipModel"]


def test_the_first_folders_own_fields_stay_in_each_tower():
    first = json.loads((GOLDEN / "clip" / files.CONFIG).read_text())
    params, ours = huggingface.from_hf(GOLDEN / "clip")[0], model_config.model_fields(GOLDEN / "clip")
    written = huggingface.to_hf(params, ours | {"attention_dropout": 0.2}, "CLIPModel")[1]
    whole = beside.config(written, first, {}, {})
    assert (whole["text_config"]["bos_token_id"], whole["text_config"]["attention_dropout"]) == (0, 0.2)


def test_siglips_tokenizer_is_exported_without_a_mask_of_padding(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n</s>\na")
    stored = tokenizers.assets(tokenizers.load(str(vocabulary)))
    for name, inputs in (("siglip", ["input_ids"]), ("clip", ["input_ids", "attention_mask"])):
        params, ours = huggingface.from_hf(GOLDEN / name)[0], model_config.model_fields(GOLDEN / name)
        whole = beside.config(huggingface.to_hf(params, ours, "CLIPModel")[1], {}, stored, {})
        written = beside.more(whole, {}, stored)["tokenizer_config.json"]
        assert (written["model_input_names"], written["model_max_length"]) == (inputs, 10)
        assert "eos_token_id" not in whole  # each tower has its own


def test_a_task_that_describes_another_tower_is_told_field_by_field():
    ours = model_config.model_fields(GOLDEN / "clip") | {"text_heads": 4, "image_mlp_dim": 0, "end": -1}
    with pytest.raises(ConfigError) as error:
        huggingface.import_params(str(GOLDEN / "clip"), {}, ours, None, pytest.fail)
    assert [line.strip() for line in str(error.value).splitlines()[1:-1]] == [
        "config.model.image_mlp_dim is 96, there 32",
        "config.model.text_heads is 4, there 2",
        "config.model.end is -1, there 39",
    ]


def test_a_folder_without_a_tokenizer_says_what_is_missing_and_what_to_do(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "clip" / name, tmp_path)
    with pytest.raises(ConfigError, match=r"has no tokenizer.*one of tokenizer\.json.*config\.data\.tokenizer"):
        jtasks.load(f"hf:{tmp_path}")
