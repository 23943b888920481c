"""Claims about adapters in PEFT's format: applied as PEFT does, they give the merged model of each architecture."""

import json

import jax
import numpy as np
import pytest
from front_door import ROOT
from safetensors.numpy import save_file

from jtasks.errors import CheckpointError
from jtasks.interop import huggingface, model_config, peft
from jtasks.models import lora
from jtasks.tree import by_name

GOLDEN = ROOT / "tests" / "golden"
CASES = {
    "bert_sequence_classification": ("BertForSequenceClassification", "query|value|up", ("classifier/",)),
    "gpt2_lm": ("GPT2LMHeadModel", "query|value|output", ()),
    "vit_classification": ("ViTForImageClassification", "attention", ("head/",)),
    "t5": ("T5ForConditionalGeneration", "query|value", ()),
    "marian": ("MarianMTModel", "query|key|down", ()),
    "siglip": ("SiglipModel", "blocks/.*value", ()),
}


def adapted(name, match, whole):
    """The parameters of a golden model, an adapter with a nonzero product, and the merged parameters."""
    params, _ = huggingface.from_hf(GOLDEN / name)
    fields = model_config.model_fields(GOLDEN / name)
    heads = dict.fromkeys(("blocks/attention", "encoder/blocks/attention"), fields.get("heads"))
    for side, own in (("decoder", "decoder_heads"), ("image", "image_heads"), ("text", "text_heads")):
        count = fields.get(own) or fields.get("heads")
        heads |= dict.fromkeys((f"{side}/blocks/attention", f"{side}/blocks/cross"), count)
    layers = lora.match(match, lora.layers(params, {path: n for path, n in heads.items() if n}), 2)
    random = np.random.default_rng(0)
    adapter = {
        k: random.normal(size=x.shape).astype(np.float32) for k, x in lora.init(jax.random.key(0), layers, 2).items()
    }
    adapter |= {
        k: random.normal(size=x.shape).astype(np.float32)
        for k, x in by_name(params).items()
        if k.startswith(whole or "-")
    }
    base = jax.tree.map_with_path(
        lambda path, x: None if jax.tree_util.keystr(path, simple=True, separator="/") in adapter else x, params
    )
    return params, adapter, jax.device_get(lora.merge(base, adapter, 1.5)), fields


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_applied_as_peft_does_is_the_merged_model(name):
    architecture, match, whole = CASES[name]
    params, adapter, merged, fields = adapted(name, match, whole)
    tensors, config = peft.to_peft(adapter, merged, fields, architecture, alpha=3.0, base="there")
    made, _ = huggingface.to_hf(params, fields, architecture)
    expected, _ = huggingface.to_hf(merged, fields, architecture)
    newer = {key for key in tensors if "vit.layers." in key}  # the same layers by other names
    assert {key.rpartition(".lora_")[0].removeprefix("base_model.model.") for key in newer} <= set(
        config["target_modules"]
    )
    tensors = {key: value for key, value in tensors.items() if key not in newer}
    for module in [name for name in config["target_modules"] if not name.startswith("vit.layers.")]:
        a, b = (tensors.pop(f"base_model.model.{module}.lora_{x}.weight") for x in "AB")
        rank = config["rank_pattern"].get(module, config["r"])
        scale = config["alpha_pattern"].get(module, config["lora_alpha"]) / rank
        assert a.shape[0] == b.shape[1] == rank
        made[f"{module}.weight"] = made[f"{module}.weight"] + scale * ((b @ a).T if config["fan_in_fan_out"] else b @ a)
    for module in config["modules_to_save"] or ():
        for kind in ("weight", "bias"):
            made[f"{module}.{kind}"] = tensors.pop(f"base_model.model.{module}.{kind}")
    assert not tensors and made.keys() == expected.keys()
    for tensor, value in expected.items():
        np.testing.assert_allclose(made[tensor], value, atol=2e-5, err_msg=tensor)
    assert len(config["target_modules"]) == len(set(config["target_modules"])) > 0


def test_what_peft_cannot_express_is_refused():
    _, adapter, merged, fields = adapted("bert_sequence_classification", "up", ("blocks/norm1/bias",))
    with pytest.raises(CheckpointError, match="blocks/norm1/bias is one parameter of several modules"):
        peft.to_peft(adapter, merged, fields, "BertForSequenceClassification", alpha=1.0, base=None)
    _, adapter, merged, fields = adapted("vit_classification", "embed", ())
    with pytest.raises(CheckpointError, match="is no linear layer there, so PEFT has no adapter for it"):
        peft.to_peft(adapter, merged, fields, "ViTForImageClassification", alpha=1.0, base=None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the other libraries
@pytest.mark.parametrize("name", CASES)
def test_peft_itself_gives_the_outputs_of_the_merged_model(name, tmp_path):
    library, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    architecture, match, whole = CASES[name]
    _, adapter, merged, fields = adapted(name, match, whole)
    tensors, config = peft.to_peft(adapter, merged, fields, architecture, alpha=3.0, base=str(GOLDEN / name))
    write_files(tmp_path / "adapter", {peft.CONFIG: json.dumps(config)}, {peft.WEIGHTS: tensors})
    files, described = huggingface.to_hf(merged, fields, architecture)
    original = json.loads((GOLDEN / name / "config.json").read_text())
    write_files(tmp_path / "merged", {"config.json": json.dumps(original | described)}, {"model.safetensors": files})
    kind = getattr(transformers, architecture)
    ours = kind.from_pretrained(tmp_path / "merged").eval()
    theirs = library.PeftModel.from_pretrained(kind.from_pretrained(GOLDEN / name), tmp_path / "adapter").eval()
    inputs = {key: torch.from_numpy(value) for key, value in model_inputs(original).items()}
    for model in (theirs, theirs.merge_and_unload()):
        with torch.no_grad():
            found, expected = (m(**inputs).to_tuple()[0] for m in (model, ours))
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, float(expected.abs().max())))


def write_files(folder, texts, tensors):
    folder.mkdir()
    for file, text in texts.items():
        (folder / file).write_text(text)
    for file, arrays in tensors.items():
        save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, folder / file, {"format": "pt"})


def model_inputs(config):
    """Random inputs that fit a model of transformers."""
    random, inputs = np.random.default_rng(0), {}
    if size := config.get("image_size") or config.get("vision_config", {}).get("image_size"):
        inputs["pixel_values"] = random.random((2, 3, size, size), np.float32)
    if vocab := config.get("vocab_size") or config.get("text_config", {}).get("vocab_size"):
        inputs["input_ids"] = random.integers(3, vocab, (2, 6))
    if config.get("is_encoder_decoder"):
        inputs["decoder_input_ids"] = random.integers(3, vocab, (2, 5))
    return inputs
