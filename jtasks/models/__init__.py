"""Backbones as Flax Linen modules; the only folder that imports Flax.

>>> import jax, jax.numpy as jnp
>>> from jtasks import models
>>> model = models.ViT(classes=4, width=8, depth=2, heads=2, patch=2)
>>> images = jnp.zeros([3, 4, 4, 1])
>>> params = model.init(jax.random.key(0), images)["params"]
>>> model.apply({"params": params}, images).shape
(3, 4)
"""

from typing import Any

from jtasks.models.bert import BERT
from jtasks.models.convnet import ConvNet
from jtasks.models.gpt import GPT, reordered, shifted
from jtasks.models.video_gpt import VideoGPT
from jtasks.models.vit import ViT

__all__ = ["BERT", "GPT", "ConvNet", "ViT", "VideoGPT", "apply", "reordered", "shifted"]


def apply(model: Any, params: Any, *inputs: Any, rng: Any = None, **options: Any) -> Any:
    """Apply a backbone to its inputs: with dropout drawn from `rng`, or without where it is None."""
    rngs = {} if rng is None else {"dropout": rng}
    return model.apply({"params": params}, *inputs, deterministic=rng is None, rngs=rngs, **options)
