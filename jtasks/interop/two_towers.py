"""CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023) of transformers, as `models.TwoTowers`."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jtasks.errors import CheckpointError
from jtasks.interop import settings
from jtasks.interop.layouts import IDENTITY, Entry, fused_linear, joined_qkv, leading_ones, linear, norm, patches

PREFIX = ""
TIED = ALIASES = ()
CLIP, SIGLIP = "CLIPModel", "SiglipModel"
ARCHITECTURES = (CLIP, SIGLIP)

# What our model must be to be one of theirs.
FORMS: Mapping[str, Mapping[str, Any]] = {
    "clip": {
        "image_pool": "token",
        "image_norm_first": True,
        "patch_bias": False,
        "text_tower": "causal",
        "loss": "softmax",
    },
    "siglip": {
        "image_pool": "map",
        "image_norm_first": False,
        "patch_bias": True,
        "text_tower": "bidirectional",
        "loss": "sigmoid",
    },
}
# Values of transformers for what a config.json leaves out.
TEXT: Mapping[str, Mapping[str, Any]] = {
    "clip": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "eos_token_id": 49407,
    },
    "siglip": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 64,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "pad_token_id": 1,
    },
}
VISION: Mapping[str, Mapping[str, Any]] = {
    kind: {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": patch,
        "hidden_act": TEXT[kind]["hidden_act"],
        "layer_norm_eps": TEXT[kind]["layer_norm_eps"],
        "attention_dropout": 0.0,
        "num_channels": 3,
    }
    for kind, patch in (("clip", 32), ("siglip", 16))
}
LARGEST_ID = 2  # the eos_token_id of CLIP's first config.json files, which stands for the largest id of a text


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `models.TwoTowers` for config.json, and `shape`, the images' height and width."""
    kind = config["model_type"]
    text, vision = (part(config, name) for name in ("text", "vision"))
    settings.refuse(vision, {"vision_use_head": True})
    size = vision["image_size"]
    both = {
        "shape": (size, size) if isinstance(size, int) else (size[0], size[1]),
        "patch": settings.patch(vision),
        **settings.tower("image", vision),
        **settings.tower("text", text),
        **FORMS[kind],
        "vocab": text["vocab_size"],
        "max_length": text["max_position_embeddings"],
        "pad": text["pad_token_id"] or 0,
        "attention_dropout": vision["attention_dropout"],
    }
    if kind == "siglip":
        return both | {"embed_dim": text.get("projection_size") or text["hidden_size"]}
    end = text["eos_token_id"]
    if not isinstance(end, int):
        raise ValueError(f"eos_token_id is {end!r}, expected one id")
    return both | {"embed_dim": config.get("projection_dim", 512), "end": -1 if end == LARGEST_ID else end}


def part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the settings of one tower, `text` or `vision`, with the values that config.json leaves out."""
    usual = {"text": TEXT, "vision": VISION}[name][config["model_type"]]
    # In CLIP's first files a part called *_config_dict replaces *_config.
    old = config.get(f"{name}_config_dict")
    return {**usual, **(config.get(f"{name}_config") or {} if old is None else old)}


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the tensors of each parameter."""
    siglip, vision = config["model_type"] == "siglip", part(config, "vision")
    text, heads = part(config, "text"), vision["num_attention_heads"]
    embed, words, head = "vision_model.embeddings", "text_model.embeddings", "vision_model.head"
    numbers = leading_ones(1) if siglip else IDENTITY
    both = [
        *linear("image/embed", f"{embed}.patch_embedding", patches(settings.patch(vision)), bias=siglip),
        Entry("image/position", (f"{embed}.position_embedding.weight",), IDENTITY),
        *_blocks("image", "vision_model", heads),
        *norm("image/norm", "vision_model.post_layernorm"),
        Entry("text/tokens/embedding", (f"{words}.token_embedding.weight",), IDENTITY),
        Entry("text/position/embedding", (f"{words}.position_embedding.weight",), IDENTITY),
        *_blocks("text", "text_model", text["num_attention_heads"]),
        *norm("text/norm", "text_model.final_layer_norm"),
        *linear("text_projection", "text_model.head" if siglip else "text_projection", bias=siglip),
        Entry("scale", ("logit_scale",), numbers),
    ]
    if not siglip:
        return [
            *both,
            Entry("image/token", (f"{embed}.class_embedding",), IDENTITY),
            *norm("image/first_norm", "vision_model.pre_layrnorm"),
            *linear("image_projection", "visual_projection", bias=False),
        ]
    return [
        *both,
        Entry("image/pool/probe", (f"{head}.probe",), leading_ones(2)),
        Entry("image/pool/query_key_value/kernel", (f"{head}.attention.in_proj_weight",), joined_qkv(heads)),
        Entry("image/pool/query_key_value/bias", (f"{head}.attention.in_proj_bias",), joined_qkv(heads)),
        *linear("image/pool/output", f"{head}.attention.out_proj"),
        *norm("image/pool/norm", f"{head}.layernorm"),
        *linear("image/pool/up", f"{head}.mlp.fc1"),
        *linear("image/pool/down", f"{head}.mlp.fc2"),
        Entry("bias", ("logit_bias",), numbers),
    ]


def _blocks(tower: str, theirs: str, heads: int) -> list[Entry]:
    blocks, layer = f"{tower}/blocks", f"{theirs}.encoder.layers.{{}}"
    three = [f"{layer}.self_attn.{x}_proj" for x in ("q", "k", "v")]
    stacked = [
        *norm(f"{blocks}/norm1", f"{layer}.layer_norm1"),
        *fused_linear(f"{blocks}/attention/query_key_value", three, heads),
        *linear(f"{blocks}/attention/output", f"{layer}.self_attn.out_proj"),
        *norm(f"{blocks}/norm2", f"{layer}.layer_norm2"),
        *linear(f"{blocks}/up", f"{layer}.mlp.fc1"),
        *linear(f"{blocks}/down", f"{layer}.mlp.fc2"),
    ]
    return [entry._replace(depth=f"{tower}_depth") for entry in stacked]


def to_hf(params: dict[str, Any], model: Mapping[str, Any], architecture: str) -> tuple[dict[str, Any], Any]:
    """Return config.json of two towers, and the parameters as transformers uses them.

    A model of SigLIP's form becomes a SiglipModel, any other one a CLIPModel. CLIP's log scale is bounded in training
    alone there, so the bounded one is written.
    """
    kind = "siglip" if model.get("image_pool") == "map" else "clip"
    architecture = {"clip": CLIP, "siglip": SIGLIP}[kind]
    different = [
        f"config.model.{name} is {model.get(name)!r}, there {value!r}"
        for name, value in FORMS[kind].items()
        if model.get(name) != value
    ]
    if different:
        raise CheckpointError(f"{architecture} of Hugging Face is another model:\n  " + "\n  ".join(different))
    vision, text = (settings.tower_out(tower, params[tower]["blocks"], model) for tower in ("image", "text"))
    dropout = {"attention_dropout": model.get("attention_dropout", 0.0)}
    patch, projection = settings.require_field(model, "patch"), params["text_projection"]["kernel"].shape[1]
    vision |= dropout | {
        "model_type": f"{kind}_vision_model",
        "image_size": patch * math.isqrt(len(params["image"]["position"]) - (kind == "clip")),
        "patch_size": patch,
        "num_channels": params["image"]["embed"]["kernel"].shape[0] // patch**2,
        **({"vision_use_head": True} if kind == "siglip" else {"projection_dim": projection}),
    }
    vocab, end = params["text"]["tokens"]["embedding"].shape[0], model.get("end", -1)
    text |= dropout | {
        "model_type": f"{kind}_text_model",
        "vocab_size": vocab,
        "max_position_embeddings": params["text"]["position"]["embedding"].shape[0],
        "pad_token_id": model.get("pad", 0),
    }
    if kind == "siglip":
        text["projection_size"] = projection
    else:
        text |= {"projection_dim": projection, "eos_token_id": LARGEST_ID if end < 0 else end}
        params = params | {"scale": np.minimum(params["scale"], np.float32(math.log(100)))}
    config = {"architectures": [architecture], "model_type": kind, "text_config": text, "vision_config": vision}
    return config | ({"projection_dim": projection} if kind == "clip" else {}), params
