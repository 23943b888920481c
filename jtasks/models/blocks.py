"""The transformer block, and a stack of blocks as one scan."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jtasks.distributed import sharding
from jtasks.models import attention as attend
from jtasks.models import kernels
from jtasks.models.dropout import DRAWS, Dropout
from jtasks.models.layers import ACTIVATIONS, HEADS, Attention, Cache, CrossAttention, dense, make_norm
from jtasks.ops.precision import wide

# Forward passes of attention as primitives: a function with a custom derivative on TPUs, cuDNN's on GPUs.
KERNELS = ("custom_vjp_call", "dot_product_attention_fwd_wrapper")
HIDDEN = "hidden"  # checkpoint_name of the feed-forward layer's values before the activation
SUMMED = "summed"  # checkpoint_name of what a norm after the feed-forward layer normalizes


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
        variable_axes={"params": 0, "intermediates": 0, "perturbations": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, *[nn.broadcast] * (5 if fields.get("relative") else 4 if fields.get("cross") else 2)),
        length=model.depth,
    )
    return scanned(name=name, **fields)


def single(stack: Any) -> Block:
    """Return a block with the fields of a stack's blocks, for one layer's parameters."""
    names = {field.name for field in dataclasses.fields(Block)} - {"name", "parent"}
    return Block(**{name: getattr(stack, name) for name in names}, parent=None)
