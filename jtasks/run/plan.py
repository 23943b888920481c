"""Cost estimate of a step on a mesh larger than this machine: memory, computation and communication.

The step is compiled ahead of time for fake CPU devices, from shapes alone: nothing is allocated. Memory follows from
the shardings and the compiler's own analysis, communication from the collectives in the compiled program. Other
compilers fuse differently, so temporaries are an estimate, and the CPU compiler widens float16 types.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from jtasks.config import Config
from jtasks.console import format_si
from jtasks.data import pipeline
from jtasks.distributed import sharding
from jtasks.errors import ConfigError
from jtasks.run import flops, programs
from jtasks.run.collectives import Collective, collectives
from jtasks.run.job import prepare, total_steps


class Hardware(NamedTuple):
    """The rates of one device; the defaults are an NVIDIA A100 with a 200 Gbit/s network card."""

    peak_tflops: float = 312.0
    efficiency: float = 0.4  # fraction of the peak that a step reaches without communication
    bandwidth_gbs: float = 25.0  # gigabytes a second out of a device, over all links
    latency_us: float = 10.0  # per hop of a collective


def run(config: Config, hardware: Hardware) -> dict[str, Any]:
    """Estimate the cost of a config's training step on JAX's devices.

    Returns:
      The numbers that `table` prints: counts, bytes and seconds.

    Raises:
      DataError: the data, which gives the batch its shapes, is absent.
      ConfigError: the mesh, the batch or the hardware is impossible.
    """
    if wrong := [f"--{name.replace('_', '-')}" for name, value in hardware._asdict().items() if value < 0]:
        raise ConfigError(f"{wrong[0]} must not be negative")
    if not hardware.peak_tflops or not 0 < hardware.efficiency <= 1 or not hardware.bandwidth_gbs:
        raise ConfigError("--peak-tflops and --bandwidth-gbs must be above 0, and --efficiency above 0 and at most 1")
    job = prepare(config)
    examples = job.require("train")
    plan = job.plan(examples, shuffle=True)
    batched = sharding.batch_sharding(job.mesh)
    host = pipeline.batch_at(examples, plan, 0, job.collate)
    batch: Any = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batched) for name, x in host.items()}
    program = programs.build(job, batch, total_steps(job.config, plan))
    state = sharding.with_shardings(program.shapes, program.shardings)
    compiled = program.step.lower(state, batch).compile()
    traffic = collectives(compiled.as_text(), job.mesh.size)
    operations = flops.count(program.step, state, batch)
    compute = operations / job.mesh.size / (hardware.peak_tflops * 1e12 * hardware.efficiency)
    memory = {
        "parameters": bytes_on_fullest(state.params),
        "optimizer": bytes_on_fullest(state.opt_state),
        "ema_params": bytes_on_fullest(state.ema_params),
        "batch": bytes_on_fullest(batch),
        "activations and gradients": int(compiled.memory_analysis().temp_size_in_bytes),
    }
    return {
        "devices": job.mesh.size,
        "mesh": dict(job.mesh.shape),
        "batch_size": config.batch_size,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(program.shapes.params)),
        "memory": memory | {"total": sum(memory.values())},
        "flops": operations,
        "collectives": _by_kind(traffic),
        **times(compute, traffic, hardware),
    }


def times(compute: float, traffic: Sequence[Collective], hardware: Hardware) -> dict[str, float]:
    """Return the seconds of a step and the scaling efficiency, which is compute over step time.

    The upper bound overlaps no communication with computation, the lower bound all of it.
    """
    sent, hops = sum(c.sent for c in traffic), sum(c.hops for c in traffic)
    communication = sent / (hardware.bandwidth_gbs * 1e9) + hops * hardware.latency_us * 1e-6
    slowest, fastest = compute + communication, max(compute, communication)
    return {
        "compute_seconds": compute,
        "communication_seconds": communication,
        "step_seconds": slowest,
        "efficiency": compute / slowest,
        "step_seconds_overlapped": fastest,
        "efficiency_overlapped": compute / fastest,
    }


def bytes_on_fullest(tree: Any) -> int:
    """Return the bytes of a tree of shapes on the fullest device, by their shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def table(plan: dict[str, Any]) -> str:
    """Format a plan as aligned lines."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    rows = [
        ("devices", f"{plan['devices']}: {mesh}"),
        ("parameters", f"{plan['parameters']:,}"),
        ("batch", f"{plan['batch_size']} examples"),
        ("FLOPs a step", format_si(plan["flops"])),
        ("memory of a device", f"{format_si(plan['memory']['total'])}B"),
        *((f"  {name}", f"{format_si(size)}B") for name, size in plan["memory"].items() if name != "total" and size),
        ("sent by a device a step", f"{format_si(sum(c['bytes'] for c in plan['collectives'].values()))}B"),
        *((f"  {kind}", f"{format_si(c['bytes'])}B in {c['count']}") for kind, c in plan["collectives"].items()),
        ("computing", f"{plan['compute_seconds']:.3g} s"),
        ("communicating", f"{plan['communication_seconds']:.3g} s"),
        ("step, one after the other", f"{plan['step_seconds']:.3g} s, {plan['efficiency']:.0%} efficient"),
        (
            "step, both at once",
            f"{plan['step_seconds_overlapped']:.3g} s, {plan['efficiency_overlapped']:.0%} efficient",
        ),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def _by_kind(traffic: Iterable[Collective]) -> dict[str, dict[str, float]]:
    kinds: dict[str, dict[str, float]] = {}
    for collective in traffic:
        kind = kinds.setdefault(collective.kind, {"count": 0, "bytes": 0.0})
        kind["count"] += collective.times
        kind["bytes"] += collective.sent
    return dict(sorted(kinds.items()))
