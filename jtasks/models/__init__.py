"""Backbones as Flax Linen modules; the only folder that imports Flax.

>>> import jax, jax.numpy as jnp
>>> from jtasks import models
>>> model = models.ViT(classes=4, width=8, depth=2, heads=2, patch=2)
>>> images = jnp.zeros([3, 4, 4, 1])
>>> params = model.init(jax.random.key(0), images)["params"]
>>> model.apply({"params": params}, images).shape
(3, 4)
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from jtasks import ranges
from jtasks.config import Config
from jtasks.errors import ConfigError
from jtasks.models.attention_maps import cross_attention_weights, grad_cam
from jtasks.models.bert import BERT
from jtasks.models.blip import BLIP
from jtasks.models.cache import reorder_branches
from jtasks.models.convnet import ConvNet
from jtasks.models.decoding import generate, search
from jtasks.models.encoder_decoder import EncoderDecoder
from jtasks.models.gpt import GPT, shift_right
from jtasks.models.prefix_captioner import PrefixCaptioner
from jtasks.models.ranking import rank, until_end
from jtasks.models.two_towers import TwoTowers, scale_and_bias
from jtasks.models.video_gpt import Prompt, VideoGPT
from jtasks.models.vit import ViT
from jtasks.ops import precision

__all__ = [
    "BERT",
    "BLIP",
    "GPT",
    "ConvNet",
    "EncoderDecoder",
    "PrefixCaptioner",
    "Prompt",
    "TwoTowers",
    "ViT",
    "VideoGPT",
    "apply",
    "build",
    "cross_attention_weights",
    "fields",
    "generate",
    "grad_cam",
    "rank",
    "reorder_branches",
    "scale_and_bias",
    "search",
    "shift_right",
    "until_end",
]


def apply(model: Any, params: Any, *inputs: Any, rng: Any = None, **options: Any) -> Any:
    """Apply a backbone to its inputs, with dropout drawn from `rng`, or without dropout if `rng` is None."""
    rngs = {} if rng is None else {"dropout": rng}
    return model.apply({"params": params}, *inputs, deterministic=rng is None, rngs=rngs, **options)


def fields(kind: type, *, filled: Collection[str] = (), omit: Collection[str] = ()) -> dict[str, ranges.Field]:
    """Return the fields of config.model that a backbone has, with its own defaults, for a task's `defaults`.

    Args:
      kind: the backbone, a dataclass.
      filled: fields without a default, because `model_args` fills them from the data.
      omit: fields that the task sets itself.
    """
    own = {}
    for field in _own(kind):
        if field.name in omit:
            continue
        known = ranges.MODEL.get(field.name)
        allowed = known.allowed if known and known.kind is field.type else None
        default = None if field.default is dataclasses.MISSING or field.name in filled else field.default
        own[f"model.{field.name}"] = ranges.Field(field.type, allowed, default)
    return own


def build(kind: type, config: Config, **others: Any) -> Any:
    """Return the backbone that config.model describes, with config.precision; the task sets `others`."""
    model = config.model
    given = {field.name: model[field.name] for field in _own(kind) if model.get(field.name) is not None}
    needed = (field.name for field in _own(kind) if field.default is field.default_factory is dataclasses.MISSING)
    if unset := [name for name in needed if name not in given | others]:
        names = ", ".join(f"config.model.{name}" for name in unset)
        raise ConfigError(f"not set: {names}; give them, or --config.init_from=hf:FOLDER, which has them")
    return kind(**given | others, dtype=precision.computation(config.precision))


def _own(kind: type) -> list[Any]:
    return [field for field in dataclasses.fields(kind) if field.name not in ("dtype", "parent", "name")]
