"""BART (Lewis et al. 2020) of transformers, as `models.EncoderDecoder` with learned positions and post-norm."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jtasks.errors import CheckpointError
from jtasks.interop import settings
from jtasks.interop.layouts import IDENTITY, TRANSPOSED, Entry, fused_linear, leading_ones, linear, norm

PREFIX = "model."
ARCHITECTURES = ("BartForConditionalGeneration",)
POSITIONS = "learned"
TIED = (("lm_head.weight", f"{PREFIX}shared.weight"),)
ALIASES = ()
SHARED, HEAD, BIAS = f"{PREFIX}shared.weight", "lm_head.weight", "final_logits_bias"
# Copies of the embedding, or without `tie_word_embeddings` the embeddings of each side; then nothing reads SHARED.
UNREAD = (SOURCE, TARGET) = (f"{PREFIX}encoder.embed_tokens.weight", f"{PREFIX}decoder.embed_tokens.weight")
TABLES = "_embeddings"  # what `resolve` and `to_hf` add to config.json: names of the embeddings to read

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "scale_embedding": False,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "tie_word_embeddings": True,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
# Fixed properties of transformers' class; the fields are those of older versions.
FIXED = {
    "is_encoder_decoder": True,
    "is_decoder": False,
    "normalize_before": False,
    "add_final_layer_norm": False,
    "normalize_embedding": True,
    "static_position_embeddings": False,
    "add_bias_logits": False,
    "extra_pos_embeddings": 2,
}
# What `models.EncoderDecoder` must be to be a BART.
NEEDED: Mapping[str, Any] = {
    "positions": POSITIONS,
    "position_offset": 2,
    "norm": "layer",
    "epsilon": 1e-5,
    "bias": True,
    "post_norm": True,
    "final_norm": False,
    "embed_norm": True,
    "gated": False,
    "attention_scale": 0.0,
    "output_scale": 1.0,
}


def resolve(config: Mapping[str, Any], where: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """Complete config.json from the tensors: the embeddings, and whether there is a bias of the logits.

    Raises:
      CheckpointError: encoder and decoder have embeddings of their own, and config.json says they share one.
    """
    return {**config, BIAS: BIAS in where, TABLES: tables(config, where)}


def tables(config: Mapping[str, Any], where: Mapping[str, pathlib.Path]) -> tuple[str, ...]:
    """Return the names of the embedding, or of the encoder's and the decoder's."""
    if config.get("tie_word_embeddings", True) or not all(name in where for name in UNREAD):
        settings.require_copies(where, SHARED, UNREAD, PREFIX)
        return (SHARED,)
    return (SOURCE,) if settings.are_equal(where, *UNREAD) else UNREAD


def unread(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of tensors that repeat others, or that nothing reads."""
    return (SHARED, *UNREAD)


def copies(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of tensors that an export repeats, with the tensors: untied embeddings are all there."""
    return {} if SHARED in config[TABLES] else dict.fromkeys((SHARED, *UNREAD), config[TABLES][0])


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `models.EncoderDecoder` for config.json."""
    config = {**DEFAULTS, **config}
    settings.refuse(config, FIXED)
    own = config["vocab_size"] if config[TABLES] == UNREAD else 0
    return {**NEEDED, **shared_fields(config), "target_vocab": own, **settings.marks(config)}


def shared_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments whose names BART and Marian share."""
    return {
        "vocab": config["vocab_size"],
        "max_length": config["max_position_embeddings"],
        "width": config["d_model"],
        "heads": config["encoder_attention_heads"],
        "head_dim": 0,
        "encoder_depth": config["encoder_layers"],
        "decoder_depth": config["decoder_layers"],
        "decoder_heads": config["decoder_attention_heads"],
        "mlp_dim": config["encoder_ffn_dim"],
        "decoder_mlp_dim": config["decoder_ffn_dim"],
        "activation": settings.activation(config["activation_function"]),
        "embed_scale": 0.0 if config["scale_embedding"] else 1.0,
        "tied": bool(config["tie_word_embeddings"]),
        "output_bias": config[BIAS],
        "dropout": config["dropout"],
        "attention_dropout": config["attention_dropout"],
        "activation_dropout": config["activation_dropout"],
    }


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the tensors of each parameter."""
    config = {**DEFAULTS, **config}
    own = [
        entry
        for side in ("encoder", "decoder")
        for entry in (
            Entry(f"{side}/position/embedding", (f"{PREFIX}{side}.embed_positions.weight",), IDENTITY),
            *norm(f"{side}/first_norm", f"{PREFIX}{side}.layernorm_embedding"),
        )
    ]
    return [*embeddings(config), *own, *stacks(config), *output(config)]


def embeddings(config: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of the embedding, or of the encoder's and the decoder's."""
    paths = ("tokens/embedding", "target_tokens/embedding")
    return [Entry(path, (name,), IDENTITY) for path, name in zip(paths, config[TABLES], strict=False)]


def output(config: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of the matrix that predicts, unless it is the embedding, and of the bias, if there is one."""
    head = [] if config["tie_word_embeddings"] else [Entry("head/kernel", (HEAD,), TRANSPOSED)]
    return [*head, Entry("output/bias", (BIAS,), leading_ones(1), head=True)]


def stacks(config: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of the blocks of encoder and decoder, whose names BART and Marian share."""
    stacked = []
    for side in ("encoder", "decoder"):
        layer, blocks, heads = f"{PREFIX}{side}.layers.{{}}", f"{side}/blocks", config[f"{side}_attention_heads"]
        each = [
            *fused_linear(f"{blocks}/attention/query_key_value", [f"{layer}.self_attn.{x}_proj" for x in "qkv"], heads),
            *linear(f"{blocks}/attention/output", f"{layer}.self_attn.out_proj"),
            *norm(f"{blocks}/norm1", f"{layer}.self_attn_layer_norm"),
            *linear(f"{blocks}/up", f"{layer}.fc1"),
            *linear(f"{blocks}/down", f"{layer}.fc2"),
            *norm(f"{blocks}/norm2", f"{layer}.final_layer_norm"),
        ]
        if side == "decoder":
            each += [
                *linear(f"{blocks}/cross/query", f"{layer}.encoder_attn.q_proj"),
                *fused_linear(f"{blocks}/cross/key_value", [f"{layer}.encoder_attn.{x}_proj" for x in "kv"], heads),
                *linear(f"{blocks}/cross/output", f"{layer}.encoder_attn.out_proj"),
                *norm(f"{blocks}/cross_norm", f"{layer}.encoder_attn_layer_norm"),
            ]
        stacked += [entry._replace(depth=f"{side}_depth") for entry in each]
    return stacked


def to_hf(params: dict[str, Any], model: Mapping[str, Any], architecture: str) -> tuple[dict[str, Any], Any]:
    """Return config.json of a BART's parameters.

    Raises:
      CheckpointError: the model is no BART.
    """
    settings.require_values(model, NEEDED, architecture)
    rows = params["encoder"]["position"]["embedding"].shape[0]
    if "target_tokens" in params and (
        "head" not in params or params["target_tokens"]["embedding"].shape != params["tokens"]["embedding"].shape
    ):
        raise CheckpointError(
            f"{architecture} of Hugging Face has one vocabulary, this model a vocabulary for the target"
        )
    named = UNREAD if "target_tokens" in params else (SOURCE,) if "head" in params else (SHARED,)
    config = {**shared_out(params, model, architecture), "max_position_embeddings": rows - 2, TABLES: named}
    return {**config, "architectures": [architecture], "model_type": "bart"}, params


def shared_out(params: dict[str, Any], model: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Return the fields of config.json whose names BART and Marian share.

    Raises:
      CheckpointError: heads or the scale of the embedding are not as transformers has them.
    """
    vocab, width = params["tokens"]["embedding"].shape
    scale, heads = model.get("embed_scale", 1.0), settings.require_field(model, "heads")
    if scale not in (0, 1):
        raise CheckpointError(f"{architecture} cannot have config.model.embed_scale={scale}: expected 0 or 1")
    config: dict[str, Any] = {
        "is_encoder_decoder": True,
        "vocab_size": vocab,
        "d_model": width,
        "activation_function": settings.activation_out(settings.require_field(model, "activation")),
        "scale_embedding": not scale,
        "dropout": model.get("dropout", 0.0),
        "attention_dropout": model.get("attention_dropout", 0.0),
        "activation_dropout": model.get("activation_dropout", 0.0),
        "tie_word_embeddings": "head" not in params,
        "init_std": model.get("init_std", 0.02),
        **settings.marks_out(model),
    }
    for side, count in (("encoder", heads), ("decoder", model.get("decoder_heads") or heads)):
        blocks = params[side]["blocks"]
        inner = blocks["attention"]["output"]["kernel"].shape[1]
        if inner != width:
            raise CheckpointError(
                f"{architecture} cannot have heads of another width: {inner // count} x {count} heads"
            )
        config |= {
            f"{side}_layers": blocks["up"]["kernel"].shape[0],
            f"{side}_ffn_dim": blocks["up"]["kernel"].shape[-1],
            f"{side}_attention_heads": count,
        }
    return config
