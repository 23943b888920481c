"""Two towers, for images and for texts, with embeddings in one space: CLIP and SigLIP.

CLIP is Radford et al. 2021 (arXiv:2103.00020), SigLIP is Zhai et al. 2023 (arXiv:2303.15343).
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks import ranges
from jtasks.errors import ConfigError
from jtasks.models.bert import BERT
from jtasks.models.blocks import stack
from jtasks.models.dense import Dense
from jtasks.models.dropout import Dropout
from jtasks.models.layers import NORMAL, make_norm
from jtasks.models.vit import ViT
from jtasks.ops import pooling

LARGEST = math.log(100)  # of CLIP's log scale
INITIAL = {"softmax": math.log(1 / 0.07), "sigmoid": math.log(10)}  # log scale
BIAS = -10.0  # SigLIP's initial one: nearly all pairs are negative


class TextTower(nn.Module):
    """A pre-norm transformer: ids [b, t] -> normalized states [b, t, width]; the fields are those of `blocks.Block`."""

    vocab: int
    max_length: int
    width: int
    depth: int
    heads: int
    causal: bool
    mlp_dim: int = 0
    activation: str = "gelu_tanh"
    epsilon: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: bool = False
    plain: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array, segment_ids: jax.Array | None, deterministic: bool) -> jax.Array:
        embed = nn.Embed(self.vocab, self.width, dtype=self.dtype, embedding_init=NORMAL, name="tokens")
        position = nn.Embed(self.max_length, self.width, dtype=self.dtype, embedding_init=NORMAL, name="position")
        x = embed(tokens) + position(jnp.arange(tokens.shape[1]))[None]
        x = Dropout(self.dropout, name="dropout")(x, deterministic)
        x, _ = stack(self, name="blocks")(x, None, segment_ids, deterministic)
        return make_norm("layer", self.epsilon, self.dtype, name="norm")(x)


class TwoTowers(nn.Module):
    """Embeddings of images and of texts, of length 1, whose products say how well they go together.

    Fields that begin with `image_` are those of `models.ViT`, fields that begin with `text_` those of `blocks.Block`.

    Attributes:
      image_pool: with `map` the pooled image is its embedding, as in SigLIP; other pools have a projection.
      image_norm_first, patch_bias: see `models.ViT`; CLIP has a norm before the blocks and no bias.
      text_tower: `causal`, pooled at the end of the text (CLIP); `bidirectional`, pooled at the last position (SigLIP);
        or `bert`, pooled at the first token.
      vocab, max_length: number of ids, and largest number of tokens in a text.
      end: id at whose first place a `causal` tower is pooled; -1: the place of the largest id, as OpenAI's CLIP.
      pad: id that fills up texts; only `bert` hides it.
      embed_dim: width of the embeddings.
      loss: `softmax` (CLIP's) or `sigmoid` (SigLIP's, with a learned bias); sets what the log scale begins with.
      remat: save only each layer's input for the backward pass, for less memory.
      plain: use an attention with forward-mode derivatives (`jax.jvp`), which holds all scores in memory.
      dtype: of the computation; None: that of parameters and inputs. Parameters are float32.
    """

    patch: int
    image_width: int
    image_depth: int
    image_heads: int
    vocab: int
    max_length: int
    text_width: int
    text_depth: int
    text_heads: int
    embed_dim: int
    image_mlp_dim: int = 0
    image_pool: str = "token"
    image_norm_first: bool = False
    patch_bias: bool = True
    image_activation: str = "gelu_tanh"
    image_epsilon: float = 1e-6
    text_tower: str = "causal"
    text_mlp_dim: int = 0
    text_activation: str = "gelu_tanh"
    text_epsilon: float = 1e-6
    end: int = -1
    pad: int = 0
    loss: str = "softmax"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: bool = False
    plain: bool = False
    dtype: Any = None

    def setup(self) -> None:
        ranges.check_module(self)
        projected = self.image_pool != "map"
        if not projected and self.image_width != self.embed_dim:
            raise ConfigError(
                f'with config.model.image_pool="map" config.model.image_width={self.image_width} is the width of the'
                f" embeddings: set config.model.embed_dim={self.image_width}, not {self.embed_dim}"
            )
        image = {"patch": self.patch, "patch_bias": self.patch_bias, **self._fields("image")}
        self.image = ViT(0, pool=self.image_pool, norm_first=self.image_norm_first, **image)
        text = {"vocab": self.vocab, "max_length": self.max_length, **self._fields("text")}
        kind = self.text_tower
        self.text: Any = BERT(**text) if kind == "bert" else TextTower(causal=kind == "causal", **text)
        if projected:
            self.image_projection = self._projection(self.image_width, bias=False)
        self.text_projection = self._projection(self.text_width, bias=kind == "bidirectional")
        self.scale = self.param("scale", nn.initializers.constant(INITIAL[self.loss]), ())
        if self.loss == "sigmoid":
            self.bias = self.param("bias", nn.initializers.constant(BIAS), ())

    def __call__(self, images: jax.Array, tokens: jax.Array, deterministic: bool = True) -> tuple[jax.Array, jax.Array]:
        """Return the embeddings of images and of texts, float32; see `embed_images` and `embed_texts`."""
        return self.embed_images(images, deterministic), self.embed_texts(tokens, deterministic=deterministic)

    def embed_images(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        """Return embeddings [b, embed_dim] float32 of normalized images [b, h, w, c]."""
        pooled = self.image(images, deterministic, pooled=True)
        return pooling.unit_length(pooled if self.image_pool == "map" else self.image_projection(pooled))

    def embed_texts(
        self, tokens: jax.Array, segment_ids: jax.Array | None = None, deterministic: bool = True
    ) -> jax.Array:
        """Return embeddings [b, embed_dim], or [b, k, embed_dim], float32 of texts [b, t], or [b, k, t], int32.

        Args:
          segment_ids: shaped as `tokens`, 0 for padding that the text does not attend to; None: `pad` for a `bert`,
            else no token. CLIP's text never sees what follows its end, and SigLIP's reads its padding.
          deterministic: no dropout.

        Raises:
          ConfigError: more tokens than the model has positions.
        """
        shape, rows = tokens.shape[:-1], tokens.reshape(-1, tokens.shape[-1])
        if rows.shape[1] > self.max_length:
            raise ConfigError(f"{rows.shape[1]} tokens, but the model has {self.max_length} positions")
        segment_ids = None if segment_ids is None else segment_ids.reshape(rows.shape)
        pooled = self._pool_text(rows, segment_ids, deterministic)
        return pooling.unit_length(self.text_projection(pooled)).reshape(*shape, self.embed_dim)

    def _pool_text(self, tokens: jax.Array, segment_ids: jax.Array | None, deterministic: bool) -> jax.Array:
        if self.text_tower == "bert":
            segment_ids = (tokens != self.pad).astype(jnp.int32) if segment_ids is None else segment_ids
            return self.text(tokens, jnp.zeros_like(tokens), segment_ids, deterministic)[:, 0]
        states = self.text(tokens, segment_ids, deterministic)
        if self.text_tower == "bidirectional":
            return states[:, -1]
        place = jnp.argmax(tokens if self.end < 0 else tokens == self.end, axis=1)
        return jnp.take_along_axis(states, place[:, None, None], axis=1)[:, 0]

    def _fields(self, tower: str) -> dict[str, Any]:
        own = ("width", "depth", "heads", "mlp_dim", "activation", "epsilon")
        same = ("dropout", "attention_dropout", "remat", "plain", "dtype")
        return {name: getattr(self, f"{tower}_{name}") for name in own} | {name: getattr(self, name) for name in same}

    def _projection(self, width: int, *, bias: bool) -> Dense:
        init = nn.initializers.normal(width**-0.5)
        return Dense(self.embed_dim, use_bias=bias, dtype=self.dtype, kernel_init=init)


def scale_and_bias(params: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Return what a `TwoTowers` multiplies and shifts the products of its embeddings by, from its parameters.

    With the softmax loss the scale is at most 100, as CLIP was trained, and the bias is 0. The bound leaves the
    gradient as it is, so that a scale above can come back.
    """
    scale = params["scale"]
    if "bias" in params:
        return jnp.exp(scale), params["bias"]
    bounded = scale + jax.lax.stop_gradient(jnp.minimum(scale, LARGEST) - scale)
    return jnp.exp(bounded), jnp.zeros_like(scale)
