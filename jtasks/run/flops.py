"""Floating point operations of a function, and the peak rate of well-known accelerators."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval

from jtasks.models import kernels
from jtasks.models.attention import RECOMPUTED

# Dense peaks in FLOP/s of one JAX device: (pattern of device_kind, bfloat16, float16, float32).
# TPU: cloud.google.com/tpu/docs, "peak compute per chip"; a device is half a chip on v2 and v3, a chip from v4 on.
# NVIDIA: the product datasheets; where those quote sparse rates (H100, H200, L4), half of them.
# float32 is the unit that runs a float32 product at JAX's default precision: bfloat16 passes on TPU,
# TensorFloat-32 from Ampere on, plain float32 before (see jax.lax.Precision).
_PEAKS: tuple[tuple[str, float | None, float | None, float], ...] = (
    (r"^TPU v2$", 23e12, None, 23e12),
    (r"^TPU v3$", 61.5e12, None, 61.5e12),
    (r"^TPU v4$", 275e12, None, 275e12),
    (r"^TPU v5( lite|e)$", 197e12, None, 197e12),
    (r"^TPU v5p?$", 459e12, None, 459e12),
    (r"^TPU v6( lite|e)$", 918e12, None, 918e12),
    (r"\bH[12]00 NVL\b", 835.5e12, 835.5e12, 417.5e12),
    (r"\bH200\b|\bH100\b.*\b(HBM3|SXM5?)\b", 989.5e12, 989.5e12, 494.5e12),
    (r"\bH100 PCIe\b", 756.5e12, 756.5e12, 378e12),
    (r"\bA100\b", 312e12, 312e12, 156e12),
    (r"\bA10\b", 125e12, 125e12, 62.5e12),
    (r"\bL4\b", 121e12, 121e12, 60e12),
    (r"\bV100S\b", None, 130e12, 16.4e12),
    (r"\bV100-SXM", None, 125e12, 15.7e12),
    (r"\bV100-PCIE", None, 112e12, 14e12),
    (r"\bT4\b", None, 65e12, 8.1e12),
)


class _What(NamedTuple):
    """What to count."""

    recomputed: bool
    only_kernels: bool
    causal: bool = False  # inside the scope of a kernel that skips blocks of later keys


def count(function: Callable[..., Any], *args: Any, recomputed: bool = True, only_kernels: bool = False) -> float:
    """Return the floating point operations of the matrix products and convolutions in one call of `function`.

    A multiply-add counts as two and everything else as none, the convention of model FLOPs utilization
    (PaLM, Chowdhery et al. 2022, appendix B). The count uses the jaxpr, because XLA's own cost analysis
    counts the body of a loop once. A scan (also a `fori_loop` of known length) counts times its length, a
    shard_map times its shards, a cond as its largest branch, and a `while_loop`, whose length is unknown, as
    one iteration. Code whose result is unused is left out. A Pallas kernel counts as its cost estimate says, or
    times its grid; products inside
    other kernels (cuDNN) are not counted.

    Args:
        function: any traceable function.
        *args: its arguments: pytrees of arrays or of `jax.ShapeDtypeStruct`; nothing is computed.
        recomputed: whether recomputation (remat) counts. With it the ratio to the peak is the utilization of the
            hardware, without it that of the model.
        only_kernels: count only what Pallas kernels do.

    >>> import jax.numpy as jnp
    >>> matrix = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    >>> count(jnp.dot, matrix, matrix)
    1024.0
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return float(_jaxpr(live, _What(recomputed, only_kernels)))


def peak(device: jax.Device, precision: str) -> float | None:
    """Return the published dense peak of `device` in FLOP/s, or None for an unknown device.

    Args:
        device: a device as JAX lists it; a core, not a chip, on TPU v2 and v3.
        precision: "bfloat16", "float16" or "float32". float32 means JAX's default precision of float32
            products: TensorFloat-32 or bfloat16 passes if the hardware has them.

    >>> peak(jax.devices("cpu")[0], "bfloat16") is None
    True
    """
    precisions = ("bfloat16", "float16", "float32")
    if precision not in precisions or " MIG " in device.device_kind:  # a slice of a GPU has a slice of its peak
        return None
    rates = next((rates for pattern, *rates in _PEAKS if re.search(pattern, device.device_kind)), None)
    return rates[precisions.index(precision)] if rates else None


def _jaxpr(jaxpr: Any, what: _What) -> float:
    return sum(_equation(equation, what) for equation in jaxpr.eqns)


def _equation(equation: Any, what: _What) -> float:
    name, params, scope = equation.primitive.name, equation.params, str(equation.source_info.name_stack)
    if RECOMPUTED in scope and not what.recomputed:
        return 0
    what = what._replace(causal=what.causal or kernels.CAUSAL in scope)
    if name == "dot_general":
        return 0 if what.only_kernels else _dot(equation)
    if name == "conv_general_dilated":
        return 0 if what.only_kernels else _convolution(equation)
    if name == "pallas_call":
        return _kernel(params, what)
    inner = [_jaxpr(jaxpr, what) for jaxpr in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * _repeats(name, params)


def _kernel(params: dict[str, Any], what: _What) -> float:
    if estimate := params.get("cost_estimate"):  # our own kernels say what they do
        return float(estimate.flops)
    grid = [size for size in params["grid_mapping"].grid if isinstance(size, int)]
    whole = math.prod(grid) * _jaxpr(params["jaxpr"], what._replace(only_kernels=False))
    if not what.causal or len(grid) < 2:
        return whole
    rows, columns = grid[-2:]  # blocks of queries and of keys, or the other way around
    needed = sum(column * rows < (row + 1) * columns for row in range(rows) for column in range(columns))
    return whole * needed / (rows * columns)


def _repeats(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # its body is the work of one shard
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    kernel, params = equation.invars[1].aval, equation.params
    features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    # The input gradient of a strided convolution dilates its input with zeros, which cost nothing.
    return 2 * equation.outvars[0].aval.size * kernel.size // features // math.prod(params["lhs_dilation"])
