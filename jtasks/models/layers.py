"""The transformer block, shared by the backbones, and the loss over a vocabulary."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jtasks.distributed import sharding
from jtasks.models import attention as attend
from jtasks.models.dropout import DRAWN, Dropout
from jtasks.ops.precision import wide

Cache = dict[str, jax.Array]

# Attention's forward passes on TPUs (a function with a derivative of its own, which its forward pass calls) and GPUs.
KERNELS = ("custom_vjp_call", "dot_product_attention_fwd_wrapper")
NORMAL = nn.initializers.normal(0.02)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),  # GPT-2's
    # BERT's and ViT's, as torch has it; the erfc of jax.nn.gelu has no derivative in a shard_map that checks its types.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5))),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # ImageGPT's
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
}


def make_norm(kind: str, epsilon: float, dtype: Any, name: str | None = None) -> nn.Module:
    """`layer` (Ba et al. 2016) or `rms` (Zhang and Sennrich 2019) normalization of the last axis."""
    kinds = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
    return kinds[kind](epsilon=epsilon, dtype=dtype, name=name)


def vocabulary_loss(
    hidden: jax.Array, table: jax.Array, labels: jax.Array, bias: jax.Array | None = None, rows: int = 1024
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of `hidden @ table.T + bias`, whose logits are never whole in memory: `rows` rows at a time.

    Args:
      hidden: [..., width]; `table` is [vocab, width], `bias` [vocab], `labels` [...] int32.

    Returns:
      Nats [...], at least float32, and whether the likeliest id is the label [...] bool.
    """
    shape, n = labels.shape, labels.size

    @jax.checkpoint  # the backward pass computes a block's logits again
    def block(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = vocabulary_logits(part[0], table, bias)
        return optax.softmax_cross_entropy_with_integer_labels(logits, part[1]), logits.argmax(-1) == part[1]

    flat, ids = hidden.reshape(n, -1), labels.reshape(n)
    if n <= rows:
        nats, correct = block((flat, ids))
    else:
        padding = -n % rows
        flat, ids = jnp.pad(flat, ((0, padding), (0, 0))), jnp.pad(ids, (0, padding))
        blocks = flat.reshape(-1, rows, flat.shape[-1]), ids.reshape(-1, rows)
        nats, correct = (x.reshape(-1)[:n] for x in jax.lax.map(block, blocks))
    return nats.reshape(shape), correct.reshape(shape)


def vocabulary_logits(hidden: jax.Array, table: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Logits [..., vocab] of `hidden @ table.T + bias`, at least float32 from the products on."""
    product = jnp.einsum("...w,vw->...v", hidden, table.astype(hidden.dtype), preferred_element_type=wide(hidden))
    return product if bias is None else product + bias.reshape(*[1] * (product.ndim - 1), -1)


class Head(nn.Module):
    """A dense layer whose outputs, such as logits, are at least float32 from the products on."""

    features: int
    use_bias: bool = True
    dtype: Any = None
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        dtype = self.dtype or jnp.result_type(x, kernel)
        return vocabulary_logits(x.astype(dtype), kernel.T, bias)


class Attention(nn.Module):
    """Multi-head self-attention; `segments` [b, t] is as in `models/attention.py`.

    Where `cache` is a dict the keys and values of `x` are given back in one like it. If it holds those of s positions
    before, each position of `x` looks at itself and at them, but not at the others of `x`: `segments`, bool
    [b, t, s], then tells which ones.
    """

    width: int
    heads: int
    causal: bool
    output_scale: float
    dropout: float = 0.0
    plain: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: Cache | None, segments: jax.Array | None, deterministic: bool
    ) -> tuple[jax.Array, Cache | None]:
        b, t, _ = x.shape
        fused = nn.Dense(3 * self.width, dtype=self.dtype, kernel_init=NORMAL, name="query_key_value")(x)
        # Heads before q, k, v: so the kernel can be divided by heads over devices.
        fused = fused.reshape(b, t, self.heads, 3, self.width // self.heads)
        query, key, value = jnp.transpose(fused, (3, 0, 2, 1, 4))
        if cache and segments is not None:
            mixed = attend.continued(query, key, value, cache["key"], cache["value"], segments)
        elif self.dropout and not deterministic:
            mask = attend.visible(t, self.causal, segments)
            mixed = attend.dropped_attention(query, key, value, mask, self.make_rng("dropout"), self.dropout)
        else:
            mixed = attend.self_attention(query, key, value, causal=self.causal, segments=segments, plain=self.plain)
        if cache is not None:
            cache = {"key": key, "value": value}
        mixed = jnp.moveaxis(mixed, 2, 1).reshape(b, t, self.width)
        init = nn.initializers.normal(0.02 * self.output_scale)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="output")(mixed), cache


class Block(nn.Module):
    """A transformer block.

    By default pre-norm: the residual stream is added to, never normalized itself; with `post_norm` it is
    normalized after each addition, as in Vaswani et al. 2017 and BERT.

    Also gives the input of the attention averaged over positions, [b, width]: the features of this layer.

    Attributes:
      hidden: width of the feed-forward layer; 0: four times `width`.
      activation: one of ACTIVATIONS.
      norm: `layer` or `rms`.
      plain: attention in a form with forward-mode derivatives, whose scores are all in memory.
    """

    width: int
    heads: int
    causal: bool
    depth: int
    hidden: int = 0
    activation: str = "gelu_tanh"
    norm: str = "layer"
    epsilon: float = 1e-6
    post_norm: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    plain: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: Cache | None, segments: jax.Array | None, deterministic: bool
    ) -> tuple[jax.Array, tuple[Cache | None, jax.Array]]:
        x = sharding.constrain_batch(x)  # else the compiler may divide it as it finds the parameters divided
        # GPT-2: the residual stream's variance does not grow with depth; after a norm it cannot.
        scale = 1.0 if self.post_norm else (2 * self.depth) ** -0.5
        norms = [make_norm(self.norm, self.epsilon, self.dtype, name) for name in ("norm1", "norm2")]

        def up_and_down(y: jax.Array) -> jax.Array:
            hidden = self.hidden or 4 * self.width
            y = nn.Dense(hidden, dtype=self.dtype, kernel_init=NORMAL, name="up")(y)
            down = nn.Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02 * scale), name="down")
            return down(ACTIVATIONS[self.activation](y))

        options = {"plain": self.plain, "dtype": self.dtype, "name": "attention"}
        attend = Attention(self.width, self.heads, self.causal, scale, self.attention_dropout, **options)
        normed = x if self.post_norm else norms[0](x)
        y, cache = attend(normed, cache, segments, deterministic)
        x = x + Dropout(self.dropout, name="dropout1")(y, deterministic)
        x = norms[0](x) if self.post_norm else x
        y = up_and_down(x if self.post_norm else norms[1](x))
        x = x + Dropout(self.dropout, name="dropout2")(y, deterministic)
        x = norms[1](x) if self.post_norm else x
        return x, (cache, jnp.mean(normed.astype(wide(normed)), axis=1))


def remat_policy(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
    """What the backward pass does not compute again: products with parameters, attention, draws of dropout.

    A policy of `jax.checkpoint`. All else is cheap, and to keep it took two thirds of the memory, and time to write it
    there and read it again.
    """
    policies = jax.checkpoint_policies
    named = policies.save_only_these_names(attend.KEPT, DRAWN)
    kinds = (policies.dots_with_no_batch_dims_saveable, named)
    return primitive.name in KERNELS or any(kind(primitive, *arguments, **parameters) for kind in kinds)


def stack(*, depth: int, remat: bool, name: str | None, **block: Any) -> nn.Module:
    """`depth` blocks as one scan: compiled once, parameters stacked along a leading axis.

    Called as a Block: (x, cache, segments, deterministic). For the backward pass each layer keeps what `remat_policy`
    says, or with `remat` only what enters it.
    """
    scanned = nn.scan(
        nn.remat(Block, prevent_cse=False, static_argnums=(4,), policy=None if remat else remat_policy),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=depth,
    )
    return scanned(depth=depth, name=name, **block)
