"""Marian (Junczys-Dowmunt et al. 2018) of transformers, as `models.EncoderDecoder` with sinusoidal positions.

Encoder and decoder share one embedding, or have a vocabulary each.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jtasks.errors import CheckpointError
from jtasks.interop import bart, files, settings
from jtasks.interop.bart import BIAS, HEAD, PREFIX, SHARED, SOURCE, TABLES, UNREAD
from jtasks.interop.layouts import Entry

ARCHITECTURES = ("MarianMTModel",)
POSITIONS = "sinusoidal"
TIED = ()  # see `resolve`
ALIASES = ()
POSITION = (f"{PREFIX}encoder.embed_positions.weight", f"{PREFIX}decoder.embed_positions.weight")

DEFAULTS: Mapping[str, Any] = {
    **bart.DEFAULTS,
    "vocab_size": 58101,
    "pad_token_id": 58100,
    "eos_token_id": 0,
    "decoder_start_token_id": 58100,
    "share_encoder_decoder_embeddings": True,
}
# Fixed properties of transformers' class; the fields are those of older versions.
FIXED = {
    "is_encoder_decoder": True,
    "is_decoder": False,
    "normalize_before": False,
    "add_final_layer_norm": False,
    "normalize_embedding": False,
    "static_position_embeddings": True,
    "add_bias_logits": False,
}
# What `models.EncoderDecoder` must be to be a Marian.
NEEDED: Mapping[str, Any] = {**bart.NEEDED, "positions": POSITIONS, "position_offset": 0, "embed_norm": False}


def resolve(config: Mapping[str, Any], where: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """Complete config.json from the tensors: whether the head is tied, and has a bias.

    Raises:
      CheckpointError: embeddings that config.json says are shared differ, or positions are not sinusoidal.
    """
    config = {**DEFAULTS, **config}
    tables = bart.tables(config, where) if config["share_encoder_decoder_embeddings"] else UNREAD
    for name in POSITION:
        if name in where:
            positions = files.read(where[name], name)
            if not np.allclose(positions, sinusoids(*positions.shape), atol=1e-4):
                raise CheckpointError(f"{name} holds positions that are not sinusoidal; our model has those only")
    tied, table = bool(config["tie_word_embeddings"]), tables[-1]
    if tied and HEAD in where and table in where:
        tied = settings.are_equal(where, HEAD, table)
    return {**config, "tie_word_embeddings": tied, BIAS: BIAS in where, TABLES: tables}


def sinusoids(count: int, width: int) -> np.ndarray:
    """Return Marian's positions [count, width]: the sines, then the cosines (Vaswani et al. 2017)."""
    angles = np.arange(count)[:, None] / 10000 ** (np.arange(0, width, 2)[None] / width)
    return np.concatenate([np.sin(angles), np.cos(angles)[:, : width // 2]], axis=1)


def unread(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of tensors that repeat others, or hold constants."""
    return (*POSITION, *bart.unread(config))


def copies(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of tensors that an export repeats, with the tensors."""
    return {} if config[TABLES] == UNREAD else bart.copies(config)


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `models.EncoderDecoder` for config.json."""
    config = {**DEFAULTS, **config}
    settings.refuse(config, FIXED)
    target = (config.get("decoder_vocab_size") or config["vocab_size"]) if config[TABLES] == UNREAD else 0
    return {**NEEDED, **bart.shared_fields(config), "target_vocab": target, **settings.marks(config)}


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the tensors of each parameter."""
    config = {**DEFAULTS, **config}
    return [*bart.embeddings(config), *bart.stacks(config), *bart.output(config)]


def to_hf(params: dict[str, Any], model: Mapping[str, Any], architecture: str) -> tuple[dict[str, Any], Any]:
    """Return config.json of a Marian's parameters.

    Raises:
      CheckpointError: the model is no Marian.
    """
    settings.require_values(model, NEEDED, architecture)
    own = "target_tokens" in params
    config = {
        **bart.shared_out(params, model, architecture),
        "max_position_embeddings": settings.require_field(model, "max_length"),
        "share_encoder_decoder_embeddings": not own,
        TABLES: UNREAD if own else (SOURCE,) if "head" in params else (SHARED,),
        "static_position_embeddings": True,
        "normalize_embedding": False,
    }
    target = params.get("target_tokens", params["tokens"])["embedding"].shape[0]
    named = {"architectures": [architecture], "model_type": "marian", "decoder_vocab_size": target}
    return {**config, **named}, params
