"""Our side of the encoder-decoders: made pairs of texts, and searches with the models of `cases.py`."""

import time
from typing import Any

import jax
import numpy as np


def examples(size: dict[str, Any], random: np.random.Generator) -> dict[str, np.ndarray]:
    """Make pairs of texts, with a tenth of padding on both sides."""
    n, made = 8 * size["batch"], {}
    for side in ("source", "target"):
        length = size[side]
        filled = np.broadcast_to(np.arange(length) < length - length // 10, (n, length))
        made[side] = random.integers(2, size["vocab"], (n, length)).astype(np.int32) * filled
        made[f"{side}_segment_ids"] = filled.astype(np.uint8)
    return made


def search(config: Any, size: dict[str, Any], bf16: bool) -> tuple[Any, float]:
    """Return a search for `longest` new ids from random sources and weights, and the seconds to compile it."""
    from jtasks import models

    model = models.build(models.EncoderDecoder, config)
    random, shape = np.random.default_rng(0), (size["batch"], size["source"])
    source = jax.device_put(random.integers(2, size["vocab"], shape, np.int32))
    begin = jax.numpy.zeros((size["batch"], 1), np.int32)
    params = jax.jit(lambda: model.init(jax.random.key(0), source, begin, begin, method="token_loss")["params"])()
    params = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), params) if bf16 else params
    options = dict(num_beams=size["beams"], min_len=size["longest"], max_len=size["longest"])

    def run(params: Any, source: jax.Array) -> Any:
        inputs = source, jax.numpy.ones_like(source), begin
        return models.search(model, params, inputs, options, method="read", eos=1, pad=0)

    started = time.perf_counter()
    program = jax.jit(run).lower(params, source).compile()
    compiled = time.perf_counter() - started

    def work(count: int) -> None:
        for _ in range(count):
            outputs = program(params, source)
        jax.block_until_ready(outputs)

    return work, compiled
