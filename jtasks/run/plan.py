"""Cost estimate of a step on a mesh larger than this machine: memory, computation and communication.

The step is compiled ahead of time for fake CPU devices, from shapes alone: nothing is allocated. Memory follows from
the shardings and the compiler's own analysis, communication from the collectives in the compiled program. Other
compilers fuse differently, so temporaries are an estimate, and the CPU compiler widens float16 types. It sums gradients
that are sharded by an all-reduce; the compilers for GPU and TPU send half of that, by a reduce-scatter.
`run/tpu.py` plans with the real compiler of a TPU.
"""

import math
import pathlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jtasks import config as configs
from jtasks import task
from jtasks.config import Config
from jtasks.console import format_si
from jtasks.data import hub, pipeline, stand_ins
from jtasks.distributed import sharding
from jtasks.errors import ConfigError
from jtasks.interop import model_config, published
from jtasks.run import flops, hlo, programs
from jtasks.run.hlo import Collective
from jtasks.run.job import Job, fill, prepare, total_steps
from jtasks.run.programs import Programs

EXAMPLES = 100_000  # in an epoch, if the data is not read
SIZES = ("width", "image_width", "text_width")  # fields of config.model that a Hugging Face folder may fill
TEXT = ("vocab", "target_vocab", "max_length")  # fields that the texts have otherwise


class Hardware(NamedTuple):
    """The rates of one device; the defaults are an NVIDIA A100 with a 200 Gbit/s network card."""

    peak_tflops: float = 312.0
    efficiency: float = 0.4  # fraction of the peak that a step reaches without communication
    bandwidth_gbs: float = 25.0  # gigabytes a second out of a device, over all links
    latency_us: float = 10.0  # per hop of a collective


class Planned(NamedTuple):
    """A step that is not compiled yet, and the shapes and shardings that it takes."""

    job: Job
    program: Programs
    state: Any
    batch: Any
    steps: int  # of the run

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self.state.params))

    def arguments(self) -> dict[str, int]:
        """Return the bytes of the step's arguments on the fullest device."""
        return {
            "parameters": bytes_on_fullest(self.state.params),
            "optimizer": bytes_on_fullest(self.state.opt_state),
            "ema_params": bytes_on_fullest(self.state.ema_params),
            "frozen parameters": bytes_on_fullest(self.state.base),
            "batch": bytes_on_fullest(self.batch),
        }


def abstract(config: Config, devices: Sequence[jax.Device] | None = None) -> Planned:
    """Return the step of a config for some devices, by default JAX's own; they need not be part of this machine."""
    module = task.load(config.task)
    if hasattr(module, "made_example"):
        config = configs.freeze(config)
        job, example = without_data(config, module, sharding.make_mesh(config.mesh, devices))
        count = max(EXAMPLES, config.batch_size)
        plan = job.plan({name: np.broadcast_to(x, (count, *x.shape)) for name, x in example.items()}, shuffle=True)
        pairs = {pipeline.PARTNER + name: array for name, array in example.items()} if plan.partner else {}
        entries = example | pairs | {"mask": np.float32(1), "seed": np.uint32(0)}
        host = plan.cut({name: np.broadcast_to(x, (plan.rows(0), *x.shape)) for name, x in entries.items()}, 0)
    else:
        job = prepare(config, devices=devices)
        examples = job.require("train")
        plan = job.plan(examples, shuffle=True)
        host = pipeline.batch_at(examples, plan, 0, job.collate)
    batched = sharding.batch_sharding(job.mesh)
    batch: Any = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batched) for name, x in host.items()}
    steps = total_steps(job.config, plan)
    program = programs.build(job, batch, steps)
    return Planned(job, program, sharding.with_shardings(program.shapes, program.shardings), batch, steps)


def without_data(config: Config, module: ModuleType, mesh: Mesh) -> tuple[Job, dict[str, np.ndarray]]:
    """Return a task's job and its `made_example`; the config alone gives what the data would.

    One source stands for all of config.data.mix. Of a Hugging Face model only config.json is needed.
    """
    full = config.to_dict()
    data = full["data"] | ({"mix": {}, "sources": {}} if config.data.mix else {})
    unset = any(config.model.get(name, 0) is None for name in SIZES)
    if unset and config.init_from.startswith(hub.PREFIX):
        folder = described(config.init_from)
        theirs = model_config.model_fields(folder)
        known = {name: theirs[name] for name in TEXT if config.model.get(name, 0) is None and name in theirs}
        full |= {"init_from": f"{hub.PREFIX}{folder}", "model": full["model"] | known}
        config = Config(full)
    if hasattr(module, "texts"):
        data["tokenizer"] = stand_ins.tokenizer(config)
        if data.get("target_tokenizer"):
            data["target_tokenizer"] = stand_ins.tokenizer(config, "target_tokenizer", "target_vocab")
    config = Config(full | {"data": data})
    config = fill(config, module, pretrained=unset, model_args=lambda config: module.made_example(config)[0])
    return Job(module, config, mesh), module.made_example(config)[1]


def described(model: str) -> pathlib.Path:
    """Return a folder with the config.json of a Hugging Face model, `hf:NAME` or `hf:FOLDER`; without weights."""
    name = hub.parse(model)
    known = published.CONFIGS.get(name.repo) if name and not name.revision else None
    if known is None or hub.local(model).is_dir():
        return hub.model_folder(model, *hub.SETTINGS)
    return stand_ins.model_folder(known)


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
    planned = abstract(config)
    job, program, state, batch, steps = planned
    compiled = program.step.lower(state, batch).compile()
    traffic = hlo.collectives(hlo.parse(compiled.as_text()), job.mesh.size)
    operations = flops.count(program.step, state, batch)
    compute = operations / job.mesh.size / (hardware.peak_tflops * 1e12 * hardware.efficiency)
    memory = {
        **planned.arguments(),
        "activations and gradients": int(compiled.memory_analysis().temp_size_in_bytes),
    }
    return {
        "devices": job.mesh.size,
        "mesh": dict(job.mesh.shape),
        "batch_size": config.batch_size,
        "steps": steps,
        "parameters": planned.parameters,
        "memory": memory | {"total": sum(memory.values())},
        "flops": operations,
        "collectives": by_kind(traffic),
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


def by_kind(traffic: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Return the number of each kind of collective, and the bytes that a device sends by them."""
    kinds: dict[str, dict[str, float]] = {}
    for collective in traffic:
        kind = kinds.setdefault(collective.kind, {"count": 0, "bytes": 0.0})
        kind["count"] += collective.times
        kind["bytes"] += collective.sent
    return dict(sorted(kinds.items()))
