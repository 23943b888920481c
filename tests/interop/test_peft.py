"""Claims about adapters in PEFT's format: applied as PEFT does, they give the merged model of each architecture."""

import jax
import numpy as np
import pytest
from front_door import ROOT

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
    for module in config["target_modules"]:
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
