"""The gradient noise scale: how many examples a batch needs before larger ones stop paying (McCandlish et al. 2018).

A batch much smaller than the noise scale gives gradients that are mostly noise; a much larger one wastes computation.
It is the trace of the covariance of an example's gradient over the squared norm of the true gradient. Both follow
from how much larger the squared norms of the microbatches' gradients are than that of the whole gradient
(arXiv:1812.06162, appendix A.1). The estimates of each step are unbiased and noisy, so their sums over steps are
divided.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from jtasks.config import Config
from jtasks.distributed.shares import count_microbatches, unequal
from jtasks.errors import ConfigError
from jtasks.metrics import Mean

NAME = "noise_scale"
Square = Callable[[Any], jax.Array]  # from a gradient to its squared norm


def check(task: ModuleType, config: Config) -> int:
    """Return the number of microbatches of a step, whose gradients are compared.

    Raises:
      ConfigError: there is only one, or the loss compares examples, so microbatches have no gradients of their own.
    """
    if hasattr(task, "batch_loss_fn") or getattr(task, "MIXES_EXAMPLES", False):
        raise ConfigError(
            f"config.noise_scale=True compares the gradients of microbatches, but the loss of task {config.task} is not"
            " a sum over examples: set it to False"
        )
    shares = unequal(config.shares)
    microbatches = sum(shares) if shares else count_microbatches(config)
    if microbatches < 2:
        raise ConfigError(
            "config.noise_scale=True compares the gradients of microbatches, and a step has only one: set"
            " config.accumulate to 2 or more"
        )
    return microbatches


def square(gradient: Any) -> jax.Array:
    """Return the squared norm of a gradient, float32."""
    return sum((jnp.vdot(x, x).astype(jnp.float32) for x in jax.tree.leaves(gradient)), jnp.float32(0))


def estimate(parts: jax.Array, whole: jax.Array, microbatches: int, examples: jax.Array) -> Mean:
    """Return trace and squared norm as the sums of a Mean, whose value over some steps is the noise scale in examples.

    Args:
      parts: sum of the squared norms of the microbatches' gradients, each of its share of the loss.
      whole: squared norm of the sum of these gradients.
      microbatches: number of equal microbatches. If they count unequal numbers of tokens, the scale is approximate.
      examples: number of examples in the batch.
    """
    rest = microbatches - 1
    return Mean(examples * (microbatches * parts - whole) / rest, microbatches * (whole - parts) / rest)
