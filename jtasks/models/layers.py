"""The transformer block, shared by the backbones, and the head that predicts ids."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jtasks.distributed import sharding
from jtasks.models import attention as attend
from jtasks.models import kernels
from jtasks.models.dense import Dense, PositionsLast, transposed_product
from jtasks.models.dropout import DRAWS, Dropout
from jtasks.ops.precision import wide

Cache = dict[str, Any]  # arrays, see models/cache.py

# Forward passes of attention as primitives: a function with a custom derivative on TPUs, cuDNN's on GPUs.
KERNELS = ("custom_vjp_call", "dot_product_attention_fwd_wrapper")
HEADS = "heads"  # checkpoint_name of queries, keys and values, which the CPU saves in place of their product
HIDDEN = "hidden"  # checkpoint_name of the feed-forward layer's values before the activation
SUMMED = "summed"  # checkpoint_name of what a norm after the feed-forward layer normalizes
NORMAL = nn.initializers.normal(0.02)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),  # GPT-2's
    # BERT's and ViT's, as in torch; the erfc of jax.nn.gelu has no derivative in a shard_map that checks types.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5))),
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

    If `cache` is a dict, returns a cache of the memory's keys and values, and of the weights [b, t, s], averaged over
    heads. If `cache` holds the memory's keys and values, these are read instead of a memory. `memory_mask` is that of
    `attention.cross_attention`; for the other fields see `Attention`.
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
        if cache is not None and new is not None:
            weights = attend.attention_weights(query, key, mask, None, self.scale)
            mixed, new["memory_weights"] = attend.mix(weights, value), jnp.mean(weights, axis=1)
        elif self.dropout and not deterministic:
            rng = self.make_rng("dropout")
            mixed = attend.attention_with_dropout(query, key, value, mask, rng, self.dropout, None, self.scale)
        else:
            mixed = attend.cross_attention(query, key, value, memory_mask, scale=self.scale, plain=self.plain)
        mixed = jnp.moveaxis(mixed, 2, 1).reshape(b, t, self.heads * size)
        return dense(self, self.width, "output", self.output_scale)(mixed), None if cache is None else new


def compute_cotangent_first(x: jax.Array) -> jax.Array:
    """Return `x`; on TPUs the cotangent of `x` is complete before the derivative of what made it begins.

    XLA for TPUs would make the sums of a norm's derivative part of the product before them, which then takes more than
    both alone: 1.65 ms instead of 1.08 for 16,384 rows of BERT-large on a v5e, by the compiler's estimate.
    """
    if kernels.platform() != "tpu":
        return x
    same = jax.custom_vjp(lambda x: x)
    same.defvjp(lambda x: (x, None), lambda _, cotangent: (jax.lax.optimization_barrier(cotangent),))
    return same(x)


class Block(nn.Module):
    """A transformer block, which also returns its features: the mean over positions [b, width] of attention's input.

    Pre-norm by default: the residual stream itself is never normalized. With `post_norm` the stream is normalized after
    each addition (Vaswani et al. 2017, BERT). With `cross` the block attends to a `memory` [b, s, d] between
    self-attention and feed-forward layer, at positions that `memory_mask` of `attention.cross_attention` selects.
    Without a memory, in the call or in the cache, the block skips this part.

    Attributes:
      mlp_dim: width of the feed-forward layer; 0: four times `width`.
      activation: one of ACTIVATIONS.
      gated: multiply the activation by a second linear layer (Shazeer 2020, GLU variants).
      norm: `layer` or `rms`.
      head_dim, attention_scale, bias, init_std: see `Attention`; `bias` and `init_std` are those of all dense layers.
      relative: the block is called with a bias of scores by distance, or None, as last argument.
      activation_dropout: dropout inside the feed-forward layer.
      plain: use an attention with forward-mode derivatives, which holds all scores in memory.
    """

    width: int
    heads: int
    causal: bool
    depth: int
    mlp_dim: int = 0
    activation: str = "gelu_tanh"
    gated: bool = False
    norm: str = "layer"
    epsilon: float = 1e-6
    post_norm: bool = False
    cross: bool = False
    head_dim: int = 0
    attention_scale: float = 0.0
    bias: bool = True
    relative: bool = False
    init_std: float = 0.02
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    plain: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        cache: Cache | None,
        segment_ids: jax.Array | None,
        deterministic: bool,
        memory: jax.Array | None = None,
        memory_mask: Any = None,
        relative: Any = None,
    ) -> tuple[jax.Array, tuple[Cache | None, jax.Array]]:
        x = sharding.constrain_batch(x)  # without this XLA may shard activations like the parameters
        # GPT-2's scale keeps the residual stream's variance independent of depth; after a norm the variance is fixed.
        scale = 1.0 if self.post_norm else ((3 if self.cross else 2) * self.depth) ** -0.5
        norms = [make_norm(self.norm, self.epsilon, self.dtype, name) for name in ("norm1", "norm2")]

        def up_and_down(y: jax.Array) -> jax.Array:
            mlp_dim = self.mlp_dim or 4 * self.width
            gate = dense(self, mlp_dim, "gate")(y) if self.gated else None
            y = checkpoint_name(dense(self, mlp_dim, "up")(y), HIDDEN)
            y = ACTIVATIONS[self.activation](y) if gate is None else ACTIVATIONS[self.activation](gate) * y
            y = Dropout(self.activation_dropout, name="activation_dropout1")(y, deterministic)
            return dense(self, self.width, "down", scale)(y)

        names = ("head_dim", "bias", "init_std", "plain", "dtype")
        options = {name: getattr(self, name) for name in names}
        options |= {"scale": self.attention_scale, "dropout": self.attention_dropout}
        attend = Attention(self.width, self.heads, self.causal, scale, **options, name="attention")
        normed, past = x if self.post_norm else norms[0](x), cache
        y, cache = attend(normed, past, segment_ids, deterministic, relative)
        x = x + Dropout(self.dropout, name="dropout1")(y, deterministic)
        if self.post_norm:
            x = norms[0](x) if self.plain else compute_cotangent_first(norms[0](x))
        if self.cross and (memory is not None or (past and "memory_key" in past)):
            norm = make_norm(self.norm, self.epsilon, self.dtype, "cross_norm")
            cross = CrossAttention(self.width, self.heads, scale, **options, name="cross")
            y, new = cross(x if self.post_norm else norm(x), past, memory, memory_mask, deterministic)
            x = x + Dropout(self.dropout, name="cross_dropout")(y, deterministic)
            x = norm(x) if self.post_norm else x
            cache = cache if new is None else {**(cache or {}), **new}
        y = up_and_down(x if self.post_norm else norms[1](x))
        x = x + Dropout(self.dropout, name="dropout2")(y, deterministic)
        x = norms[1](checkpoint_name(x, SUMMED)) if self.post_norm else x
        return x, (cache, jnp.mean(normed.astype(wide(normed)), axis=1))


def remat_policy(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
    """Save products with parameters, attention and dropout's draws for the backward pass (a `jax.checkpoint` policy).

    Everything else is cheap to recompute; saving it used two thirds of the memory and extra bandwidth.
    """
    policies = jax.checkpoint_policies
    named = policies.save_only_these_names(attend.SAVED, DRAWS, HEADS)
    kinds = (policies.dots_with_no_batch_dims_saveable, named)
    return primitive.name in KERNELS or any(kind(primitive, *arguments, **parameters) for kind in kinds)


def stack(model: Any, *, name: str | None = None, **others: Any) -> nn.Module:
    """Return `model.depth` blocks as one scan: compiled once, with parameters stacked along a leading axis.

    The stack is called like a Block: (x, cache, segment_ids, deterministic), and with `cross` in `others` (x, cache,
    segment_ids, deterministic, memory, memory_mask), where all layers read the same memory, and with `relative` in
    `others` (x, cache, segment_ids, deterministic, memory, memory_mask, relative). For the backward pass each
    layer saves what `remat_policy` selects (on TPUs fewer products), or with `model.remat` only its input and the
    outputs of attention.

    Args:
      model: a backbone, whose fields are those of its blocks too where a Block has them.
      name: of the stack; None in `setup`, where the attribute gives the name.
      others: the remaining fields of the blocks.
    """
    shared = {field.name for field in dataclasses.fields(Block)} & {field.name for field in dataclasses.fields(model)}
    fields = {field: getattr(model, field) for field in shared - {"name", "parent"}} | others
    names = (attend.SAVED,) if model.remat else (attend.SAVED, DRAWS, HIDDEN, SUMMED)
    by_name = model.remat or kernels.platform() == "tpu"  # a TPU multiplies again faster than it stores and reads
    policy = jax.checkpoint_policies.save_only_these_names(*names) if by_name else remat_policy
    block: Any = Block
    if sharding.gathers_layers():
        path = "/".join((*model.path, name or "blocks"))
        gather = functools.partial(sharding.gather_layer, path=path, depth=model.depth, dtype=model.dtype)
        block = nn.map_variables(Block, "params", gather)
    scanned = nn.scan(
        nn.remat(block, prevent_cse=False, static_argnums=(4,), policy=policy),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, *[nn.broadcast] * (5 if fields.get("relative") else 4 if fields.get("cross") else 2)),
        length=model.depth,
    )
    return scanned(name=name, **fields)


def single(stack: Any) -> Block:
    """Return a block with the fields of a stack's blocks, for one layer's parameters."""
    names = {field.name for field in dataclasses.fields(Block)} - {"name", "parent"}
    return Block(**{name: getattr(stack, name) for name in names}, parent=None)
