"""T5 (Raffel et al. 2020) of transformers, versions 1.0 and 1.1, as `models.EncoderDecoder` with relative positions."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jtasks.errors import CheckpointError
from jtasks.interop import settings
from jtasks.interop.layouts import IDENTITY, TRANSPOSED, Entry, linear, norm, split_qkv

PREFIX = ""
ARCHITECTURES = ("T5ForConditionalGeneration",)
POSITIONS = "relative"
TIED = ()  # see `resolve`
ALIASES = ()
# Copies of the embedding, and what transformers leaves out too: first versions saved a table that nothing reads.
UNREAD = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)
SHARED, HEAD = "shared.weight", "lm_head.weight"

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "eos_token_id": 1,
}
FIXED = {"is_encoder_decoder": True, "is_decoder": False}
# What `models.EncoderDecoder` must be to be a T5.
NEEDED: Mapping[str, Any] = {
    "positions": POSITIONS,
    "norm": "rms",
    "bias": False,
    "post_norm": False,
    "final_norm": True,
    "embed_norm": False,
    "output_bias": False,
    "attention_scale": 1.0,
    "embed_scale": 1.0,
    "target_vocab": 0,
}


def resolve(config: Mapping[str, Any], where: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """Complete config.json from the tensors: whether the head is the embedding, whatever config.json says.

    `tie_word_embeddings` of config.json says whether the decoder's output is scaled, if `scale_decoder_outputs` does
    not: version 1.1 has neither the scale nor a tied head.

    Raises:
      CheckpointError: encoder and decoder have embeddings of their own.
    """
    settings.require_copies(where, SHARED, UNREAD[:2])
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    tied = HEAD not in where or (SHARED in where and settings.are_equal(where, HEAD, SHARED))
    return {**config, "scale_decoder_outputs": scaled, "tie_word_embeddings": tied}


def unread(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of tensors that repeat others, or that nothing reads."""
    return UNREAD


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `models.EncoderDecoder` for config.json."""
    config = {**DEFAULTS, **config}
    settings.refuse(config, FIXED)
    kind, _, activation = config["feed_forward_proj"].rpartition("-")
    if kind not in ("", "gated"):
        raise CheckpointError(
            f"config.json says feed_forward_proj={config['feed_forward_proj']!r}; expected gated-NAME or NAME of an"
            " activation"
        )
    usual = "gelu_new" if kind and activation == "gelu" else activation
    gated, activation = config.get("is_gated_act", bool(kind)), config.get("dense_act_fn", usual)
    depth, dropout = config["num_layers"], config["dropout_rate"]
    return {
        **NEEDED,
        "vocab": config["vocab_size"],
        "width": config["d_model"],
        "heads": config["num_heads"],
        "head_dim": config["d_kv"],
        "encoder_depth": depth,
        "decoder_depth": depth if config.get("num_decoder_layers") is None else config["num_decoder_layers"],
        "decoder_heads": config["num_heads"],
        "mlp_dim": config["d_ff"],
        "decoder_mlp_dim": config["d_ff"],
        "activation": settings.activation(activation),
        "gated": gated,
        "epsilon": config["layer_norm_epsilon"],
        "buckets": config["relative_attention_num_buckets"],
        "max_distance": config["relative_attention_max_distance"],
        "tied": config["tie_word_embeddings"],
        "output_scale": 0.0 if config["scale_decoder_outputs"] else 1.0,
        "dropout": dropout,
        "attention_dropout": dropout,
        "activation_dropout": dropout,
        **settings.marks(config),
    }


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the tensors of each parameter."""
    config = {**DEFAULTS, **config}
    heads = config["num_heads"]
    gated = config.get("is_gated_act", config["feed_forward_proj"].startswith("gated-"))
    head = [] if config["tie_word_embeddings"] else [Entry("head/kernel", (HEAD,), TRANSPOSED)]
    return [
        Entry("tokens/embedding", (SHARED,), IDENTITY),
        *_stack("encoder", heads, gated),
        *_stack("decoder", heads, gated),
        *head,
    ]


def _stack(side: str, heads: int, gated: bool) -> list[Entry]:
    """Return the entries of the encoder or the decoder; only the decoder has the second of three parts of a block."""
    block, blocks = f"{side}.block.{{}}.layer", f"{side}/blocks"
    attention, cross, last = f"{block}.0.SelfAttention", f"{block}.1.EncDecAttention", 2 if side == "decoder" else 1
    mlp = f"{block}.{last}.DenseReluDense"
    table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    fused = tuple(f"{attention}.{name}.weight" for name in "qkv")
    stacked = [
        *norm(f"{blocks}/norm1", f"{block}.0.layer_norm", bias=False),
        Entry(f"{blocks}/attention/query_key_value/kernel", fused, split_qkv(heads)),
        *linear(f"{blocks}/attention/output", f"{attention}.o", bias=False),
        *norm(f"{blocks}/norm2", f"{block}.{last}.layer_norm", bias=False),
        *linear(f"{blocks}/down", f"{mlp}.wo", bias=False),
    ]
    if gated:
        stacked += linear(f"{blocks}/gate", f"{mlp}.wi_0", bias=False) + linear(
            f"{blocks}/up", f"{mlp}.wi_1", bias=False
        )
    else:
        stacked += linear(f"{blocks}/up", f"{mlp}.wi", bias=False)
    if side == "decoder":
        pair = (f"{cross}.k.weight", f"{cross}.v.weight")
        stacked += [
            *norm(f"{blocks}/cross_norm", f"{block}.1.layer_norm", bias=False),
            *linear(f"{blocks}/cross/query", f"{cross}.q", bias=False),
            Entry(f"{blocks}/cross/key_value/kernel", pair, split_qkv(heads, 2)),
            *linear(f"{blocks}/cross/output", f"{cross}.o", bias=False),
        ]
    return [
        Entry(f"{side}/relative", (table,), IDENTITY),
        *(entry._replace(depth=f"{side}_depth") for entry in stacked),
        *norm(f"{side}/norm", f"{side}.final_layer_norm", bias=False),
    ]


def to_hf(params: dict[str, Any], model: Mapping[str, Any], architecture: str) -> tuple[dict[str, Any], Any]:
    """Return config.json of a T5's parameters.

    Raises:
      CheckpointError: the model is no T5.
    """
    settings.require_values(model, NEEDED, architecture)
    encoder, decoder = params["encoder"]["blocks"], params["decoder"]["blocks"]
    heads, width = settings.require_field(model, "heads"), params["tokens"]["embedding"].shape[1]
    same = {"decoder_heads": heads, "decoder_mlp_dim": encoder["up"]["kernel"].shape[-1]}
    settings.require_values(model, {name: value for name, value in same.items() if model.get(name)}, architecture)
    scale = model.get("output_scale", 1.0)
    if scale not in (0, 1):
        raise CheckpointError(f"{architecture} cannot have config.model.output_scale={scale}: expected 0 or 1")
    activation, gated = settings.activation_out(settings.require_field(model, "activation")), "gate" in encoder
    name = "gelu" if gated and activation == "gelu_new" else activation
    config = {
        "architectures": [architecture],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": params["tokens"]["embedding"].shape[0],
        "d_model": width,
        "d_kv": encoder["attention"]["output"]["kernel"].shape[1] // heads,
        "d_ff": encoder["up"]["kernel"].shape[-1],
        "num_layers": encoder["up"]["kernel"].shape[0],
        "num_decoder_layers": decoder["up"]["kernel"].shape[0],
        "num_heads": heads,
        "relative_attention_num_buckets": params["encoder"]["relative"].shape[0],
        "relative_attention_max_distance": settings.require_field(model, "max_distance"),
        "feed_forward_proj": f"gated-{name}" if gated else name,
        "dense_act_fn": activation,
        "is_gated_act": gated,
        "dropout_rate": model.get("dropout", 0.0),
        "layer_norm_epsilon": settings.require_field(model, "epsilon"),
        "scale_decoder_outputs": not scale,
        "tie_word_embeddings": "head" not in params,
        **settings.marks_out(model),
    }
    return config, params
