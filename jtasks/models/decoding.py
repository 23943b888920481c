"""Continue prompts with a model that has `extend`, `unstack` and a method that reads a prompt, such as `models.GPT`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jtasks.models.cache import reorder_branches
from jtasks.ops import decode


def generate(
    model: Any,
    params: Any,
    inputs: jax.Array | tuple[Any, ...],
    keys: jax.Array | None,
    length: int,
    *,
    branches: int = 1,
    valid: jax.Array | None = None,
    method: str = "prefill",
    **options: Any,
) -> jax.Array:
    """Sample continuations of prompts [b, t]: int32 [b, branches, length].

    Args:
      model: has `extend`, `unstack` and `method`.
      params: the model's parameters.
      inputs: what `method` reads: of `prefill`, the prompts [b, t].
      keys: a random key for each sequence, [b, branches]; not needed at temperature 0.
      length: new tokens.
      branches: sequences that continue each prompt.
      valid: bool [b, t], False where the prompt is padding; None: no padding.
      method: reads the inputs and makes room for `length` tokens of `branches` sequences.
      options: of `decode.sample`.
    """
    inputs, size = inputs if isinstance(inputs, tuple) else (inputs,), {"length": length, "branches": branches}
    logits, cache = _read(model, params, method, *inputs, **size, valid=valid)
    logits = jnp.broadcast_to(logits[:, None], (len(logits), branches, logits.shape[-1]))
    return decode.sample(_extend(model, params), cache, logits, keys, length, **options)


def search(
    model: Any, params: Any, inputs: tuple[Any, ...], options: Mapping[str, Any], *, method: str = "prefill", **ids: Any
) -> decode.Beams:
    """Search for the best continuations of prompts with beams.

    Args:
      model: has `extend`, `unstack` and `method`.
      params: the model's parameters.
      inputs: what `method` reads: of `prefill`, the prompts [b, t].
      options: of `decode.beam_search`, as config.beam has them; `num_beams` and `max_len` at least.
      method: reads the inputs and makes room for `max_len` tokens of `num_beams` branches.
      ids: `eos` and `pad` of `decode.beam_search`.
    """
    size = {"length": options["max_len"], "branches": options["num_beams"]}
    logits, cache = _read(model, params, method, *inputs, **size)
    return decode.beam_search(_extend(model, params), cache, logits, reorder=reorder_branches, **options, **ids)


def _read(model: Any, params: Any, method: str, *inputs: Any, **options: Any) -> tuple[jax.Array, Any]:
    logits, cache = model.apply({"params": params}, *inputs, **options, method=method)
    return logits, cache | model.apply({"params": params}, method="unstack")


def _extend(model: Any, params: Any) -> decode.StepFn:
    return lambda cache, tokens: model.apply({"params": params}, tokens, cache, method="extend")
