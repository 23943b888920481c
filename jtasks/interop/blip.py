"""BLIP (Li et al. 2022) of transformers, as `models.BLIP`."""

import math
from collections.abc import Mapping
from typing import Any

from jtasks.interop import settings
from jtasks.interop.layouts import IDENTITY, Entry, fused_linear, joined_qkv, leading_ones, linear, norm, patches

PREFIX = ""
CAPTIONS, ANSWERS = "BlipForConditionalGeneration", "BlipForQuestionAnswering"
RETRIEVAL = "BlipForImageTextRetrieval"
ARCHITECTURES = (CAPTIONS, ANSWERS, RETRIEVAL)
WORDS, PREDICTIONS = "text_decoder.bert.embeddings.word_embeddings.weight", "text_decoder.cls.predictions"
TIED = ((f"{PREDICTIONS}.decoder.weight", WORDS),)
ALIASES = ((f"{PREDICTIONS}.decoder.bias", f"{PREDICTIONS}.bias"),)

# Values of transformers for what a config.json leaves out.
TEXT: Mapping[str, Any] = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "bos_token_id": 30522,
    "sep_token_id": 102,
}
VISION: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 384,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `models.BLIP` for config.json, and `shape`, the pictures' height and width.

    Of a model that generates also `begin` and `end`, the ids that begin and end its texts.
    """
    text, vision = part(config, "text"), part(config, "vision")
    generates = settings.architecture(config) != RETRIEVAL
    return {
        **({"begin": text["bos_token_id"], "end": text["sep_token_id"]} if generates else {}),
        "shape": (vision["image_size"], vision["image_size"]),
        "patch": settings.patch(vision),
        **settings.tower("image", vision),
        **settings.tower("text", text),
        "vocab": text["vocab_size"],
        "max_length": text["max_position_embeddings"],
        "embed_dim": config.get("image_text_hidden_size", 256),
        "tied": bool(config.get("tie_word_embeddings", True)),
        "dropout": text["hidden_dropout_prob"],
        "attention_dropout": text["attention_probs_dropout_prob"],
        "image_attention_dropout": vision["attention_dropout"],
    }


def part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings of one tower, `text` or `vision`, with the values that config.json leaves out."""
    return {**{"text": TEXT, "vision": VISION}[name], **(config.get(f"{name}_config") or {})}


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the tensors of each parameter; projections and the matching head are optional."""
    text, vision = part(config, "text"), part(config, "vision")
    architecture, heads = settings.architecture(config), text["num_attention_heads"]
    tower = _vision(vision)
    encoder, decoder = _text("text_encoder", "text_encoder", heads), _text("text_decoder", "text_decoder.bert", heads)
    if architecture == RETRIEVAL:
        return [
            *tower,
            *encoder,
            *linear("image_projection", "vision_proj", head=True),
            *linear("text_projection", "text_proj", head=True),
            *linear("matcher", "itm_head", head=True),
        ]
    predictions = [
        *linear("text_decoder/transform", f"{PREDICTIONS}.transform.dense"),
        *norm("text_decoder/transform_norm", f"{PREDICTIONS}.transform.LayerNorm"),
        Entry("text_decoder/output/bias", (f"{PREDICTIONS}.bias",), IDENTITY),
    ]
    if not config.get("tie_word_embeddings", True):
        predictions += linear("text_decoder/output", f"{PREDICTIONS}.decoder", bias=False)
    return [*tower, *(encoder if architecture == ANSWERS else []), *decoder, *predictions]


def _vision(config: Mapping[str, Any]) -> list[Entry]:
    embed, layer = "vision_model.embeddings", "vision_model.encoder.layers.{}"
    fused = joined_qkv(config["num_attention_heads"])
    stacked = [
        *norm("vision/blocks/norm1", f"{layer}.layer_norm1"),
        Entry("vision/blocks/attention/query_key_value/kernel", (f"{layer}.self_attn.qkv.weight",), fused),
        Entry("vision/blocks/attention/query_key_value/bias", (f"{layer}.self_attn.qkv.bias",), fused),
        *linear("vision/blocks/attention/output", f"{layer}.self_attn.projection"),
        *norm("vision/blocks/norm2", f"{layer}.layer_norm2"),
        *linear("vision/blocks/up", f"{layer}.mlp.fc1"),
        *linear("vision/blocks/down", f"{layer}.mlp.fc2"),
    ]
    return [
        *linear("vision/embed", f"{embed}.patch_embedding", patches(settings.patch(config))),
        Entry("vision/token", (f"{embed}.class_embedding",), leading_ones(2)),
        Entry("vision/position", (f"{embed}.position_embedding",), leading_ones(1)),
        *(entry._replace(depth="image_depth") for entry in stacked),
        *norm("vision/norm", "vision_model.post_layernorm"),
    ]


def _text(path: str, name: str, heads: int) -> list[Entry]:
    """Return the entries of a `BLIPText` at `path`, whose tensors begin with `name`."""
    blocks, layer, embed = f"{path}/blocks", f"{name}.encoder.layer.{{}}", f"{name}.embeddings"
    own, cross = f"{layer}.attention", f"{layer}.crossattention"
    three = [f"{own}.self.{x}" for x in ("query", "key", "value")]
    stacked = [
        *fused_linear(f"{blocks}/attention/query_key_value", three, heads),
        *linear(f"{blocks}/attention/output", f"{own}.output.dense"),
        *norm(f"{blocks}/norm1", f"{own}.output.LayerNorm"),
        *linear(f"{blocks}/cross/query", f"{cross}.self.query"),
        *fused_linear(f"{blocks}/cross/key_value", [f"{cross}.self.key", f"{cross}.self.value"], heads),
        *linear(f"{blocks}/cross/output", f"{cross}.output.dense"),
        *norm(f"{blocks}/cross_norm", f"{cross}.output.LayerNorm"),
        *linear(f"{blocks}/up", f"{layer}.intermediate.dense"),
        *linear(f"{blocks}/down", f"{layer}.output.dense"),
        *norm(f"{blocks}/norm2", f"{layer}.output.LayerNorm"),
    ]
    return [
        Entry(f"{path}/tokens/embedding", (f"{embed}.word_embeddings.weight",), IDENTITY),
        Entry(f"{path}/position/embedding", (f"{embed}.position_embeddings.weight",), IDENTITY),
        *norm(f"{path}/norm", f"{embed}.LayerNorm"),
        *(entry._replace(depth="text_depth") for entry in stacked),
    ]


def to_hf(params: dict[str, Any], model: Mapping[str, Any], architecture: str) -> tuple[dict[str, Any], Any]:
    """Return config.json of a BLIP, and its parameters; transformers' model for retrieval has no temperature."""
    text = params["text_decoder" if "text_decoder" in params else "text_encoder"]
    vision, patch = params["vision"], settings.require_field(model, "patch")
    sizes, embed_dim = vision["embed"]["kernel"].shape, model.get("embed_dim") or 256
    config = {
        "architectures": [architecture],
        "model_type": "blip",
        "image_text_hidden_size": embed_dim,
        "projection_dim": embed_dim,
        "tie_word_embeddings": model.get("tied", True),
        "text_config": {
            "model_type": "blip_text_model",
            "vocab_size": text["tokens"]["embedding"].shape[0],
            "max_position_embeddings": text["position"]["embedding"].shape[0],
            "encoder_hidden_size": sizes[1],
            "projection_dim": embed_dim,
            "is_decoder": True,
            "tie_word_embeddings": model.get("tied", True),
            **settings.tower_out("text", text["blocks"], model),
            "hidden_dropout_prob": model.get("dropout", 0.0),
            "attention_probs_dropout_prob": model.get("attention_dropout", 0.0),
            **_marks(model),
        },
        "vision_config": {
            "model_type": "blip_vision_model",
            "image_size": patch * math.isqrt(len(vision["position"]) - 1),
            "patch_size": patch,
            "num_channels": sizes[0] // patch**2,
            **settings.tower_out("image", vision["blocks"], model),
            "attention_dropout": model.get("image_attention_dropout", 0.0),
        },
    }
    return config, {name: value for name, value in params.items() if name != "contrast"}


def _marks(model: Mapping[str, Any]) -> dict[str, int]:
    """Return the special ids that config.model has, by their names in transformers; 0 is BERT's padding."""
    names = {"begin": ("bos_token_id",), "end": ("eos_token_id", "sep_token_id")}
    ids = {theirs: model[ours] for ours, each in names.items() if model.get(ours) is not None for theirs in each}
    return ids | {"pad_token_id": 0} if ids else {}
