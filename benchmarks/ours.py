"""Our side of the benchmarks, started by them: the library's own step, decoding and pipeline on made data."""

import itertools
import math
import sys
import time
from typing import Any

import jax
import numpy as np
import pairs
from common import HERE, serve


def setup(orders: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the work of a case, warmed up, and facts about it."""
    case, size = orders["case"], orders["sizes"]
    if case in ("arrays", "sequence", "pictures", "windows"):
        import sources

        return sources.ours(case, size)
    if case in ("beam", "greedy"):
        return search(size, orders)
    from jtasks import config as configs
    from jtasks import task
    from jtasks.distributed import sharding
    from jtasks.run import job

    overrides = [f"--config.precision={'bfloat16' if orders['bf16'] else 'float32'}", *sys.argv[2:]]
    kind = case.split("_")[0]
    config = configs.load(f"{HERE / 'cases.py'}:{kind}/{orders['preset']}", overrides)
    if case != kind:
        work, compiled = pairs.search(config, size, orders["bf16"])
        work(2)
        return work, {"compile_s": compiled, **device(config.precision)}
    made = job.Job(task.load(config.task), config, sharding.make_mesh(config.mesh))
    examples = EXAMPLES["lm" if size.get("tied") else case](size, np.random.default_rng(0))
    plan = made.plan(examples, shuffle=True)
    run, state, model_flops = step_of(made, made.batch_at(examples, plan, 0))
    flops = transformer_flops(case, size) or model_flops

    if case == "mnist":  # an epoch, with the pipeline that cuts its batches
        epoch = -(-size["images"] // size["batch"])
        batches = made.batches(examples, plan, range(1, sys.maxsize))
    else:
        epoch = 1
        batches = itertools.cycle([made.batch_at(examples, plan, i) for i in range(8)])

    def work(count: int) -> None:
        nonlocal state
        for _ in range(count * epoch):
            state, report = run(state, next(batches))
        jax.block_until_ready((state, report))

    if case == "mnist":
        for _ in range(3):
            state, _ = run(state, next(batches))
        jax.block_until_ready(state)
    else:
        work(2)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    return work, {"flops": flops * epoch, "parameters": parameters, **device(config.precision)}


def step_of(made: Any, batch: Any) -> tuple[Any, Any, float]:
    """Return the compiled step as the loop runs it, its state, and its floating point operations."""
    from jtasks.run import flops, programs
    from jtasks.run.compile import Compiled

    built = programs.build(made, batch, made.config.steps)
    params = jax.jit(built.init, out_shardings=built.shardings.params)(batch)
    state = jax.jit(built.create, out_shardings=built.shardings, donate_argnums=0)(params)
    run = built.step
    operations = flops.count(run, state, batch)
    program = Compiled(run)
    program.program(state, batch)
    return program, state, operations


def transformer_flops(case: str, size: dict[str, Any]) -> float:
    """Count the model's operations in a step, without recomputation; causal attention is half (PaLM, appendix B)."""
    if case == "mnist":
        return 0.0
    if case in ("t5", "marian"):
        return pair_flops(size)
    if case == "clip":
        names = ("layers", "width")
        text = transformer_flops("igpt", size | {name: size[f"text_{name}"] for name in names} | {"vocab": 0})
        return text + transformer_flops("vit", size)
    length = (size["size"] // size["patch"]) ** 2 if case == "vit" else size["length"]
    tokens, width, layers = size["batch"] * length, size["width"], size["layers"]
    predicted = {"igpt": tokens, "bert": size["batch"] * size.get("hidden", 0), "vit": 0}[case]
    attention = layers * length * width * (6 if case == "igpt" else 12)
    return tokens * (6 * 12 * layers * width**2 + attention) + 6 * predicted * width * size.get("vocab", 0)


def pair_flops(size: dict[str, Any]) -> float:
    """Count the operations of an encoder-decoder in a step; see `transformer_flops`."""
    width, source, target = size["width"], size["source"], size["target"]
    mlp, attention = 2 * width * size["mlp"], 4 * width**2
    encoder = source * (attention + mlp + 2 * source * width)
    decoder = target * (1.5 * attention + mlp + (target + 2 * source) * width) + source * attention / 2
    return 6 * size["batch"] * (size["layers"] * (encoder + decoder) + target * width * size["vocab"])


def device(precision: str) -> dict[str, Any]:
    """Return the device's name, and its peak in FLOP/s if known."""
    from jtasks.run import flops

    first = jax.devices()[0]
    return {"device": first.device_kind, "peak_flops": flops.peak(first, precision)}


def device_peak() -> int | None:
    """Return the peak bytes of the device's memory, None on a CPU."""
    statistics = jax.local_devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else None


def igpt(size: dict[str, Any], random: np.random.Generator) -> dict[str, np.ndarray]:
    """Make pictures, whose nearest colors are the tokens."""
    n, side = 8 * size["batch"], math.isqrt(size["length"])
    return {"image": random.integers(0, 256, (n, side, side, 3), np.uint8), "label": np.zeros(n, np.int32)}


def lm(size: dict[str, Any], random: np.random.Generator) -> dict[str, np.ndarray]:
    n = 8 * size["batch"]
    tokens = random.integers(0, size["vocab"], (n, size["length"] + 1), np.int32)
    return {"tokens": tokens, "skip": np.zeros(n, np.int32), "bytes": np.ones(n, np.float32)}


def bert(size: dict[str, Any], random: np.random.Generator) -> dict[str, np.ndarray]:
    """Make pairs of texts, with a tenth of padding."""
    n, length = 8 * size["batch"], size["length"]
    tokens = random.integers(4, size["vocab"], (n, length), np.int32)
    tokens[:, 0], tokens[:, length // 2] = 1, 2
    filled = np.arange(length) < length - length // 10
    types = np.broadcast_to((np.arange(length) > length // 2) * filled, (n, length))
    segment_ids = np.broadcast_to(filled, (n, length))
    labels = random.integers(0, 2, n, np.int32)
    return {
        "tokens": tokens,
        "token_types": types.astype(np.int32),
        "segment_ids": segment_ids.astype(np.int32),
        "next": labels,
    }


def mnist(size: dict[str, Any], random: np.random.Generator) -> dict[str, np.ndarray]:
    n = size["images"]
    images = random.integers(0, 256, (n, 28, 28, 1), np.uint8)
    return {"image": images, "label": random.integers(0, 10, n, np.int32)}


def vit(size: dict[str, Any], random: np.random.Generator) -> dict[str, np.ndarray]:
    n, side = 8 * size["batch"], size["size"]
    images = random.integers(0, 256, (n, side, side, 3), np.uint8)
    return {"image": images, "label": random.integers(0, size["classes"], n, np.int32)}


def search(size: dict[str, Any], orders: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a search from random prompts with a GPT-2 of random weights, compiled as one program."""
    from jtasks import models

    longest = size["longest"]
    model = models.GPT(
        vocab=size["vocab"],
        outputs=size["vocab"],
        max_length=size["prompt"] + longest,
        width=size["width"],
        depth=size["layers"],
        heads=size["heads"],
        tied=True,
        dtype=jax.numpy.bfloat16 if orders["bf16"] else jax.numpy.float32,
    )
    shape = (size["batch"], size["prompt"])
    prompts = jax.device_put(np.random.default_rng(0).integers(3, size["vocab"], shape, np.int32))
    variables = jax.jit(model.init)(jax.random.key(0), prompts)

    options = {"num_beams": size["beams"], "min_len": size["shortest"], "max_len": longest}

    def outputs_of(variables: Any, prompts: jax.Array) -> Any:
        return models.search(model, variables["params"], (prompts,), options, eos=1, pad=2)

    begun = time.perf_counter()
    run = jax.jit(outputs_of).lower(variables, prompts).compile()
    compiled = time.perf_counter() - begun

    def work(count: int) -> None:
        for _ in range(count):
            outputs = run(variables, prompts)
        jax.block_until_ready(outputs)

    work(2)
    return work, {"compile_s": compiled, **device("float32")}


def clip(size: dict[str, Any], random: np.random.Generator) -> dict[str, np.ndarray]:
    """Make pictures with one text each, half of it padding."""
    n, length = 8 * size["batch"], size["length"]
    tokens = random.integers(1, size["vocab"] - 1, (n, 1, length), np.int32)
    tokens[:, :, length // 2], tokens[:, :, length // 2 + 1 :] = size["vocab"] - 1, 0
    images = random.integers(0, 256, (n, size["size"], size["size"], 3), np.uint8)
    return {"image": images, "tokens": tokens, "count": np.ones(n, np.int32), "pictured": np.ones(n, bool)}


EXAMPLES = {"igpt": igpt, "lm": lm, "bert": bert, "mnist": mnist, "vit": vit, "clip": clip}
EXAMPLES |= {"t5": pairs.examples, "marian": pairs.examples}

if __name__ == "__main__":
    serve(setup, device_peak)
