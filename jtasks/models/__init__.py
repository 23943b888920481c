"""Backbones as Flax Linen modules; the only folder that imports Flax.

>>> import jax, jax.numpy as jnp
>>> from jtasks import models
>>> model = models.ViT(classes=4, width=8, depth=2, heads=2, patch=2)
>>> images = jnp.zeros([3, 4, 4, 1])
>>> params = model.init(jax.random.key(0), images)["params"]
>>> model.apply({"params": params}, images).shape
(3, 4)
"""

from jtasks.models.bert import BERT
from jtasks.models.convnet import ConvNet
from jtasks.models.gpt import GPT, reordered, shifted
from jtasks.models.video_gpt import VideoGPT
from jtasks.models.vit import ViT

__all__ = ["BERT", "GPT", "ConvNet", "ViT", "VideoGPT", "reordered", "shifted"]
