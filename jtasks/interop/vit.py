"""ViT (Dosovitskiy et al. 2021) of transformers, as `models.ViT` with `pool="token"`."""

import math
from collections.abc import Mapping
from typing import Any

from jtasks.errors import CheckpointError
from jtasks.interop import settings
from jtasks.interop.layouts import Entry, leading_ones, linear, norm, patches, split_qkv

PREFIX = "vit."
ARCHITECTURES = ("ViTForImageClassification",)
TIED = ALIASES = ()

DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
}


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `models.ViT` for config.json, and `shape`, the images' height and width."""
    config = {**DEFAULTS, **config}
    return {
        "shape": _pair(config["image_size"]),
        "patch": settings.patch(config),
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_dim": config["intermediate_size"],
        "pool": "token",
        "activation": settings.activation(config["hidden_act"]),
        "epsilon": config["layer_norm_eps"],
        "dropout": config["hidden_dropout_prob"],
        "attention_dropout": config["attention_probs_dropout_prob"],
    }


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the tensors of each parameter; the classifier is optional."""
    layer, embeddings, three = f"{PREFIX}encoder.layer.{{}}", f"{PREFIX}embeddings", ("query", "key", "value")
    weights, biases = (tuple(f"{layer}.attention.attention.{x}.{kind}" for x in three) for kind in ("weight", "bias"))
    embed, three_layout = f"{embeddings}.patch_embeddings.projection", split_qkv(config["num_attention_heads"])
    return [
        *linear("embed", embed, patches(settings.patch({**DEFAULTS, **config}))),
        Entry("token", (f"{embeddings}.cls_token",), leading_ones(2)),
        Entry("position", (f"{embeddings}.position_embeddings",), leading_ones(1)),
        *norm("blocks/norm1", f"{layer}.layernorm_before"),
        Entry("blocks/attention/query_key_value/kernel", weights, three_layout),
        Entry("blocks/attention/query_key_value/bias", biases, three_layout, zeros=not config.get("qkv_bias", True)),
        *linear("blocks/attention/output", f"{layer}.attention.output.dense"),
        *norm("blocks/norm2", f"{layer}.layernorm_after"),
        *linear("blocks/up", f"{layer}.intermediate.dense"),
        *linear("blocks/down", f"{layer}.output.dense"),
        *norm("norm", f"{PREFIX}layernorm"),
        *linear("head", "classifier", head=True),
    ]


def to_hf(params: dict[str, Any], model: Mapping[str, Any], architecture: str) -> tuple[dict[str, Any], Any]:
    """Return config.json of a ViT's parameters; images without `model.shape` (height, width) are square."""
    if "token" not in params:
        raise CheckpointError(
            f"{architecture} of Hugging Face classifies a class token, this model the mean over patches: only models"
            ' with config.model.pool="token" can be exported'
        )
    patch, width = settings.require_field(model, "patch"), params["position"].shape[1]
    side = patch * math.isqrt(len(params["position"]) - 1)
    height, breadth = model.get("shape") or (side, side)
    return {
        "architectures": [architecture],
        "model_type": "vit",
        "image_size": height if height == breadth else [height, breadth],
        "patch_size": patch,
        "num_channels": params["embed"]["kernel"].shape[0] // patch**2,
        "hidden_size": width,
        **settings.encoder_out(params["blocks"], model),
        "qkv_bias": True,
        **settings.labels(settings.default_names(params["head"]["bias"].size)),
    }, params


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
