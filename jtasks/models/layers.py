"""The layers that the backbones share: norms, dense layers, heads, self-attention and cross-attention."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jtasks.models import attention as attend
from jtasks.models import kernels
from jtasks.models.dense import Dense, PositionsLast, transposed_product
from jtasks.ops.precision import wide

Cache = dict[str, Any]  # arrays, see models/cache.py

HEADS = "heads"  # checkpoint_name of queries, keys and values, which the CPU saves in place of their product
NORMAL = nn.initializers.normal(0.02)


@jax.custom_jvp
def _erf(x: jax.Array) -> jax.Array:
    """Compute the error function; the derivatives of JAX's own ones fail in a shard_map that checks types."""
    return jax.lax.erf(x)


_erf.defjvps(lambda tangent, _, x: 2 / math.sqrt(math.pi) * (tangent * jnp.exp(-x * x)))

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),  # GPT-2's
    "gelu": lambda x: 0.5 * x * (1 + _erf(x * math.sqrt(0.5))),  # BERT's and ViT's, as in torch
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # ImageGPT's
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
}


def make_norm(kind: str, epsilon: float, dtype: Any, name: str | None = None) -> nn.Module:
    """Return `layer` (Ba et al. 2016) or `rms` (Zhang and Sennrich 2019) normalization of the last axis."""
    kinds = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
    return kinds[kind](epsilon=epsilon, dtype=dtype, name=name)


def vocabulary_logits(hidden: jax.Array, table: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Return logits [..., vocab] of `hidden @ table.T + bias`; products accumulate in at least float32."""
    product = transposed_product(hidden, table.astype(hidden.dtype), preferred_element_type=wide(hidden))
    return product if bias is None else product + bias.reshape(*[1] * (product.ndim - 1), -1)


class Head(nn.Module):
    """A dense layer whose outputs, such as logits, are accumulated in at least float32."""

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


def dense(module: Any, features: int, name: str, scale: float = 1.0, *, positions_last: bool = False) -> nn.Module:
    """Return a dense layer with the `bias`, `init_std` and `dtype` of a module, its initial kernel times `scale`."""
    init, kind = nn.initializers.normal(module.init_std * scale), PositionsLast if positions_last else Dense
    return kind(features, use_bias=module.bias, dtype=module.dtype, kernel_init=init, name=name)


class Attention(nn.Module):
    """Multi-head self-attention; `models/attention.py` defines `segment_ids` [b, t].

    If `cache` is a dict, returns a cache of the keys and values of `x`. If `cache` holds keys and values of s
    positions, those of `x` are written into it from position `slot` on, and each position of `x` attends to those
    positions that `segment_ids`, then bool [b, t, s], selects. `relative` is the bias of scores that
    `models/attention.py` defines, with such a cache that of `attend_to_seen`.

    Attributes:
      head_dim: width of a head; 0: `width / heads`.
      scale: factor of the products of queries and keys; 0: `head_dim ** -0.5`.
      init_std: standard deviation of the initial kernels, that of the output times `output_scale`.
    """

    width: int
    heads: int
    causal: bool
    output_scale: float
    head_dim: int = 0
    scale: float = 0.0
    bias: bool = True
    init_std: float = 0.02
    dropout: float = 0.0
    plain: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cache: Cache | None,
        segment_ids: jax.Array | None,
        deterministic: bool,
        relative: Any = None,
    ) -> tuple[jax.Array, Cache | None]:
        (b, t, _), size = x.shape, self.head_dim or self.width // self.heads
        drops = self.dropout and not deterministic
        if cache is None and not drops and attend.fuses(t, relative, self.plain):
            fused = dense(self, 3 * self.heads * size, "query_key_value", positions_last=True)(x)
            fused = fused.reshape(b, self.heads, 3, size, t)
            mixed = attend.fused_self_attention(fused, segment_ids, causal=self.causal, scale=self.scale)
            mixed = jnp.swapaxes(mixed.reshape(b, self.heads * size, t), 1, 2)
            return dense(self, self.width, "output", self.output_scale)(mixed), None
        fused = dense(self, 3 * self.heads * size, "query_key_value")(x)
        # Heads come before q, k, v, so the kernel can be sharded by heads.
        fused = fused.reshape(b, t, self.heads, 3, size)
        query, key, value = _split_parts(fused)
        if cache and segment_ids is not None:
            # Written before it is read: in a loop over tokens the other order would copy the cache.
            slot = (0, 0, cache["slot"], 0)
            key, value = (jax.lax.dynamic_update_slice(cache[k], x, slot) for k, x in (("key", key), ("value", value)))
            mixed = attend.attend_to_seen(query, key, value, segment_ids, relative, self.scale)
        elif drops:
            mask, rng = attend.attention_mask(t, self.causal, segment_ids), self.make_rng("dropout")
            mixed = attend.attention_with_dropout(query, key, value, mask, rng, self.dropout, relative, self.scale)
        else:
            options = {"segment_ids": segment_ids, "relative": relative, "scale": self.scale, "plain": self.plain}
            mixed = attend.self_attention(query, key, value, causal=self.causal, **options)
        if cache is not None:
            cache = {"key": key, "value": value}
        mixed = jnp.moveaxis(mixed, 2, 1).reshape(b, t, self.heads * size)
        return dense(self, self.width, "output", self.output_scale)(mixed), cache


def _split_parts(fused: jax.Array) -> list[jax.Array]:
    """Return the n parts [b, h, t, d] of [b, t, h, n, d]: by a split, whose gradient is one concatenation."""
    on_cpu = kernels.platform() == "cpu"
    if on_cpu:
        # Without the barrier XLA concatenates twice, for the gradients of the bias and of the kernel.
        rows = fused.reshape(-1, math.prod(fused.shape[2:]))
        fused = jax.lax.optimization_barrier(rows).reshape(fused.shape)
    parts = jax.lax.split(fused, (1,) * fused.shape[3], axis=3)
    parts = [jnp.moveaxis(part[:, :, :, 0], 2, 1) for part in parts]
    return [checkpoint_name(part, HEADS) for part in parts] if on_cpu else parts


class CrossAttention(nn.Module):
    """Multi-head attention from `x` to a memory, such as an encoder's states.

    If `cache` is a dict, returns a cache of the memory's keys and values. If `cache` holds the memory's keys and
    values, these are read instead of a memory. `memory_mask` is that of `attention.cross_attention`; for the other
    fields see `Attention`. If the collection `intermediates` is mutable, it gets the `weights` [b, h, t, s], after
    those of the collection `perturbations` are added; see `models/attention_maps.py`.
    """

    width: int
    heads: int
    output_scale: float
    head_dim: int = 0
    scale: float = 0.0
    bias: bool = True
    init_std: float = 0.02
    dropout: float = 0.0
    plain: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cache: Cache | None,
        memory: jax.Array | None,
        memory_mask: Any,
        deterministic: bool,
    ) -> tuple[jax.Array, Cache | None]:
        b, t, _ = x.shape
        size, new = self.head_dim or self.width // self.heads, None
        query = dense(self, self.heads * size, "query")(x)
        query = jnp.moveaxis(query.reshape(b, t, self.heads, size), 2, 1)
        if cache and "memory_key" in cache:
            key, value = cache["memory_key"], cache["memory_value"]
        else:
            assert memory is not None
            fused = dense(self, 2 * self.heads * size, "key_value")(memory)
            key, value = _split_parts(fused.reshape(b, -1, self.heads, 2, size))
            new = {"memory_key": key, "memory_value": value}
        mask = attend.memory_mask(t, memory_mask)
        if self.is_mutable_collection("intermediates"):  # for maps; training never gets here
            weights = self.perturb("weights", attend.attention_weights(query, key, mask, None, self.scale))
            self.sow("intermediates", "weights", weights, reduce_fn=lambda _, last: last, init_fn=lambda: None)
            mixed = attend.mix(weights, value)
        elif self.dropout and not deterministic:
            rng = self.make_rng("dropout")
            mixed = attend.attention_with_dropout(query, key, value, mask, rng, self.dropout, None, self.scale)
        else:
            mixed = attend.cross_attention(query, key, value, memory_mask, scale=self.scale, plain=self.plain)
        mixed = jnp.moveaxis(mixed, 2, 1).reshape(b, t, self.heads * size)
        return dense(self, self.width, "output", self.output_scale)(mixed), None if cache is None else new
