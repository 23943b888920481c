"""Our side's configs, as `benchmarks/cases.py:CASE/PRESET`."""

import math
from typing import Any

import ml_collections
import numpy as np
from common import sizes


def get_config(preset: str) -> ml_collections.ConfigDict:
    """Return the config of a case with all placeholders filled, because no data is read."""
    case, name = preset.split("/")
    size = sizes(case, name)[1]
    config = ml_collections.ConfigDict()
    config.steps, config.batch_size = 1_000_000, size["batch"]
    lm = _lm if size.get("tied") else _igpt
    makers = {"igpt": lm, "bert": _bert, "mnist": _mnist, "vit": _vit, "clip": _clip, "t5": _t5, "marian": _marian}
    fields = makers[case](size)
    config.update({"optim": dict(name="adamw", lr=1e-4, weight_decay=0.01)} | fields)
    return config


def _transformer(size: dict[str, Any]) -> dict[str, Any]:
    return dict(width=size["width"], depth=size["layers"], heads=size["heads"], dropout=0.0, remat=False)


def _igpt(size: dict[str, Any]) -> dict[str, Any]:
    side = math.isqrt(size["length"])
    colors = np.random.default_rng(0).integers(0, 256, (size["vocab"], 3)).tolist()
    model = dict(
        palette=tuple(map(tuple, colors)), num_colors=size["vocab"], shape=(side, side), max_length=side * side
    )
    return dict(task="jtasks.tasks.igpt", data=dict(name="digits"), model=_transformer(size) | model)


def _lm(size: dict[str, Any]) -> dict[str, Any]:
    model = dict(vocab=size["vocab"], max_length=size["length"], tied=True, end=-1)
    data = dict(length=size["length"], packed=False)
    return dict(task="jtasks.tasks.lm", data=data, model=_transformer(size) | model)


def _bert(size: dict[str, Any]) -> dict[str, Any]:
    dropout = dict(dropout=0.1, attention_dropout=0.1)
    special = dict(mask_token=3, first_token=1, separator=2)
    model = dict(vocab=size["vocab"], max_length=size["length"], **special)
    data = dict(length=size["length"], mask_rate=0.15, max_predictions=size["hidden"], whole_words=False)
    return dict(task="jtasks.tasks.bert", data=data, model=_transformer(size) | model | dropout)


def _mnist(size: dict[str, Any]) -> dict[str, Any]:
    return dict(task="jtasks.tasks.mnist", model=dict(classes=10, dropout=True), optim=dict(name="adadelta", lr=1.0))


def _vit(size: dict[str, Any]) -> dict[str, Any]:
    model = dict(patch=size["patch"], classes=size["classes"], shape=(size["size"],) * 2)
    return dict(task="jtasks.tasks.vit", data=dict(name="digits"), model=_transformer(size) | model)


def _clip(size: dict[str, Any]) -> dict[str, Any]:
    image, text = (
        {f"{tower}_{name}": size[f"{prefix}{theirs}"] for name, theirs in names.items()}
        for names in [{"width": "width", "depth": "layers", "heads": "heads"}]
        for tower, prefix in (("image", ""), ("text", "text_"))
    )
    model = dict(
        patch=size["patch"],
        shape=(size["size"],) * 2,
        image_norm_first=True,
        patch_bias=False,
        vocab=size["vocab"],
        max_length=size["length"],
        end=size["vocab"] - 1,
        pad=0,
        embed_dim=size["width"],
    )
    return dict(task="jtasks.tasks.contrast", data=dict(length=size["length"]), model=image | text | model)


def _t5(size: dict[str, Any]) -> dict[str, Any]:
    dropout = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.1)
    kind = dict(positions="relative", norm="rms", bias=False, attention_scale=1.0, activation="relu", output_scale=0.0)
    return _pairs(size, kind | dropout)


def _marian(size: dict[str, Any]) -> dict[str, Any]:
    kind = dict(positions="sinusoidal", post_norm=True, final_norm=False, activation="silu", output_bias=True)
    return _pairs(size, kind | dict(embed_scale=0.0, epsilon=1e-5, dropout=0.1))


def _pairs(size: dict[str, Any], kind: dict[str, Any]) -> dict[str, Any]:
    depth = dict(encoder_depth=size["layers"], decoder_depth=size["layers"])
    sizes = dict(width=size["width"], heads=size["heads"], mlp_dim=size["mlp"], vocab=size["vocab"], target_vocab=0)
    marks = dict(begin=0, end=1, pad=0, max_length=max(size["source"], size["target"]))
    data = dict(source_length=size["source"], target_length=size["target"])
    return dict(task="jtasks.tasks.seq2seq", data=data, model=depth | sizes | marks | kind)
