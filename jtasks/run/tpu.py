"""Plan of a step by the compiler of a TPU, which needs no TPU: memory, time, and what the chips exchange.

The step of the config is compiled from shapes alone for a topology such as v5e:4x4. The compiler analyses the memory,
and estimates the cycles of each instruction that it schedules, except for kernels and collectives. Kernels count by
their operations at a fraction of the peak, collectives by the bytes that they send to a chip's neighbors, over two
links or over as many as the compiler chose. Asynchronous collectives run beside other work, so the time of a step has
two bounds. What the SparseCores of v5p and v6e do beside, such as looking up embeddings, has no estimate and counts as
none.
"""

import collections
import importlib.util
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jtasks.config import Config
from jtasks.console import format_si
from jtasks.environment import NO_CLOUD
from jtasks.errors import ConfigError
from jtasks.run import flops, hlo, plan, programs, tpu_memory
from jtasks.run.plan import Planned
from jtasks.schema import AXES

LARGEST = 8  # number of instructions that the table shows


class Chip(NamedTuple):
    """One chip, by cloud.google.com/tpu/docs, "system architecture"; `flops.peak` has its peak.

    The clock is the one at which the matrix units reach that peak: four of 128 x 128 on v5e, twice four on v4 and v5p,
    four of 256 x 256 on v6e.
    """

    hbm: float  # bytes; Google's GB are powers of 2
    clock: float  # Hz
    link: float  # bytes a second out of one link; each chip has four links, on v4 and v5p six


CHIPS = {
    "v4": Chip(32 * 2**30, 1.05e9, 50e9),
    "v5e": Chip(16 * 2**30, 1.5e9, 50e9),
    "v5p": Chip(95 * 2**30, 1.75e9, 100e9),
    "v6e": Chip(32 * 2**30, 1.75e9, 100e9),
}
ALONE = {  # no questions to the cloud, and several processes may load libtpu
    **NO_CLOUD,
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Work(NamedTuple):
    """The work of one chip in a step, by the compiled program."""

    seconds: dict[str, float]  # by kind of work, as the compiler estimates
    largest: list[tuple[float, str]]  # seconds and description of the longest instructions
    kernels: dict[str, int]  # runs of each kernel
    kernel_flops: float | None  # what all of these say that they do; None: not all say it


def devices(topology: str) -> Sequence[jax.Device]:
    """Return the chips of a topology, such as v5e:4x4.

    Raises:
      ConfigError: libtpu is not installed, or has no such topology.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"[1-9]\d{0,2}(x[1-9]\d{0,2}){1,2}", shape):
        raise ConfigError(
            f"--topology={topology}: expected one of {', '.join(CHIPS)}, a colon and the chips along each axis,"
            " such as v5e:4x4 or v5p:2x2x1"
        )
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        raise ConfigError("--topology needs the compiler of TPUs, which is absent: pip install 'jtasks[tpu-plan]'")
    os.environ.pop("XLA_FLAGS", None)  # at a flag for other devices, libtpu ends the process
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if generation == "v4" else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--topology={topology}: {str(error).splitlines()[0]}") from error


def run(config: Config, topology: str, efficiency: float) -> tuple[dict[str, Any], str]:
    """Compile the training step of a config for a topology and estimate its memory and its time.

    Args:
      config: the config.
      topology: see `devices`.
      efficiency: fraction of the peak that kernels reach.

    Returns:
      The numbers, and the compiled program as HLO text. If the step needs more memory than a chip has, the numbers
      have `fits` False, `hbm_bytes`, what the compiler says and an advice, and there is no program.

    Raises:
      ConfigError: the topology or the mesh is impossible.
    """
    chips = devices(topology)
    chip = CHIPS[topology.partition(":")[0]]
    peak = flops.peak(chips[0], config.precision) or flops.peak(chips[0], "float32") or 0.0
    planned = plan.abstract(config, chips)
    arguments = planned.arguments()
    facts: dict[str, Any] = {
        "topology": topology,
        "devices": len(chips),
        "mesh": dict(planned.job.mesh.shape),
        "batch_size": config.batch_size,
        "parameters": planned.parameters,
    }
    try:
        compiled, text = compile_step(planned)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if kernel := re.search(r"memory space vmem while allocating on stack for %([\w.-]+)", str(error)):
            raise ConfigError(
                f"--topology={topology}: the kernel {kernel[1]} needs more memory of a core than the compiler gives it:"
                " try --config.precision=bfloat16"
            ) from error
        total = tpu_memory.needed(str(error), sum(arguments.values()))
        change = tpu_memory.advice(planned, total, chip.hbm)
        return facts | {"fits": False, "hbm_bytes": total, "refusal": _refusal(str(error)), "advice": change}, ""
    program, analysis = hlo.parse(text), compiled.memory_analysis()
    memory = {
        **arguments,
        "padding of these": max(0, analysis.argument_size_in_bytes - sum(arguments.values())),
        "activations and gradients": analysis.temp_size_in_bytes,
        "outputs": max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
        "program": analysis.generated_code_size_in_bytes,
    }
    traffic = hlo.collectives(program, len(chips))
    done = work(program, chip)
    model = flops.count(*on_one_cpu(planned), recomputed=False)
    kernels = done.kernel_flops
    if kernels is None:  # the backward pass reads what the kernels of the forward pass saved, so they run once
        step = planned.program.step.__wrapped__, planned.state, planned.batch
        kernels = flops.count(*step, recomputed=False, only_kernels=True) / len(chips)
    times = bounds(sum(done.seconds.values()), kernels / (efficiency * peak), traffic, chip)
    ideal = model / (len(chips) * peak)
    return {
        **facts,
        "fits": True,
        "hbm_bytes": sum(memory.values()),
        "hbm_bytes_of_chip": int(chip.hbm),
        "memory": memory,
        "model_flops": model,
        "peak_flops": peak,
        "compiler_seconds": done.seconds,
        "kernels": done.kernels,
        "kernel_flops": kernels,
        "kernel_efficiency": efficiency,
        "collectives": [
            {**c._asdict(), "sent": c.sent, "seconds": seconds(c, chip)}
            for c in sorted(traffic, key=lambda c: c.sent, reverse=True)
        ],
        **times,
        "mfu": ideal / times["step_seconds"],
        "mfu_range": sorted(ideal / x for x in times["step_seconds_range"]),
        "largest": [{"seconds": each, "instruction": name} for each, name in done.largest],
    }, text


def compile_step(planned: Planned) -> tuple[Any, str]:
    """Return the compiled step, and its program as HLO text.

    libtpu writes the text itself, since JAX 0.10 cannot read a program that looks up embeddings on SparseCores.
    """
    with tempfile.TemporaryDirectory() as folder:
        lowered = planned.program.step.lower(planned.state, planned.batch)
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        (path,) = pathlib.Path(folder).glob("*.after_codegen.txt")
        return compiled, path.read_text()


def bounds(compiler: float, kernels: float, traffic: Sequence[hlo.Collective], chip: Chip) -> dict[str, Any]:
    """Return the seconds of a step, and their range from full overlap of asynchronous collectives to none."""
    alone = sum(seconds(c, chip) for c in traffic if not c.overlaps)
    beside = sum(seconds(c, chip) for c in traffic if c.overlaps)
    work = compiler + kernels + alone
    return {
        "kernel_seconds": kernels,
        "synchronous_seconds": alone,
        "asynchronous_seconds": beside,
        "step_seconds": max(work, beside),
        "step_seconds_range": [max(work, beside), work + beside],
    }


def seconds(collective: hlo.Collective, chip: Chip) -> float:
    """Return the seconds of a collective that the links of a chip take."""
    return collective.sent / (collective.links * chip.link)


def work(program: hlo.Program, chip: Chip) -> Work:
    """Return the work of a chip in one step, loops counted, by the compiler's estimates."""
    kinds, largest = collections.defaultdict[str, float](float), collections.defaultdict[str, float](float)
    kernels, kernel_flops = collections.Counter[str](), [0.0]
    for instruction, times in program.instructions():
        name = re.sub(r"\.\d+$", "", instruction.name)
        if hlo.KERNEL in instruction.attributes:
            kernels[name] += times
            said = re.search(r'"cost_estimate":\{[^}]*"flops":"(\d+)"', instruction.attributes)
            kernel_flops.append(int(said[1]) * times if said else math.nan)
        if instruction.cycles:
            took = instruction.cycles * times / chip.clock
            kinds[kind(program, instruction)] += took
            shape = re.sub(r"\{[^}]*\}|/\*[^*]*\*/", "", instruction.shape)
            largest[f"{name} {shape[:60]} {instruction.scope[-90:]}"] += took
    described = sorted(((took, name) for name, took in largest.items()), reverse=True)[:LARGEST]
    by_kind = dict(sorted(kinds.items(), key=lambda item: item[1], reverse=True))
    said_by_all = None if math.isnan(sum(kernel_flops)) else sum(kernel_flops)
    return Work(by_kind, described, dict(kernels), said_by_all)


def kind(program: hlo.Program, instruction: hlo.Instruction) -> str:
    """Return the kind of work of an instruction."""
    operations = {instruction.operation, *(each.operation for _, each in program.inside(instruction))}
    name = f"{instruction.name} {instruction.operation}"
    if operations & {"convolution", "dot"}:
        return "products"
    if re.search(r"copy|transpose", name):
        return "copies and transpositions"
    if re.search(r"slice|concatenate|pad", name) and not operations & {"reduce", "reduce-window"}:
        return "slices"
    if operations & {"gather", "scatter", "sort"}:
        return "gathers, scatters, sorts"
    return "sums" if operations & {"reduce", "reduce-window"} else "elementwise"


def on_one_cpu(planned: Planned) -> Iterator[Any]:
    """Yield the step in its plain form, whose operations `flops` can count, and its arguments."""
    mesh = Mesh(np.array(jax.devices("cpu")[:1]).reshape(1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    config = planned.job.config
    job = planned.job._replace(mesh=mesh, config=Config(config.to_dict() | {"shares": None}))
    batch: Any = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in planned.batch.items()}
    program = programs.build(job, batch, 1)
    yield from (program.step, program.shapes, batch)


def _refusal(message: str) -> str:
    """Return the first line of the compiler's message, without its codes."""
    return re.sub(r"^([A-Z_]+: )?(E\d+: )?", "", message.splitlines()[0])


def table(facts: dict[str, Any]) -> str:
    """Format a plan as aligned lines, which say which numbers are the compiler's and which are assumed."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in facts["mesh"].items())
    fast, slow = map(duration, facts["step_seconds_range"])
    low, high = (f"{mfu:.1%}" for mfu in facts["mfu_range"])
    alone, beside = (duration(facts[f"{kind}_seconds"]) for kind in ("synchronous", "asynchronous"))
    flop, reached = format_si(facts["kernel_flops"]), f"{facts['kernel_efficiency']:.0%}"
    rows = [
        ("chips", f"{facts['devices']} of {facts['topology']}: {mesh}"),
        ("parameters", f"{facts['parameters']:,}"),
        ("batch", f"{facts['batch_size']} examples"),
        ("model FLOPs a step", format_si(facts["model_flops"])),
        ("memory of a chip", f"{format_si(facts['hbm_bytes'])}B of {format_si(facts['hbm_bytes_of_chip'])}B"),
        *((f"  {name}", f"{format_si(size)}B") for name, size in facts["memory"].items() if size),
        ("work, the compiler's estimate", duration(sum(facts["compiler_seconds"].values()))),
        *((f"  {name}", duration(took)) for name, took in facts["compiler_seconds"].items()),
    ]
    if facts["kernels"]:
        rows.append(("kernels, assumed", f"{duration(facts['kernel_seconds'])}: {flop}FLOP at {reached} of the peak"))
        rows += [(f"  {name.partition('_block')[0]}", f"{runs} times") for name, runs in facts["kernels"].items()]
    if facts["collectives"]:
        rows.append(("collectives, assumed", f"{alone} alone, and {beside} beside other work"))
    for each in facts["collectives"][:LARGEST]:
        overlap = "asynchronous" if each["overlaps"] else "synchronous"
        size = f"{each['times']} times {format_si(each['size'])}B"
        rows.append((f"  {each['kind']} of {each['devices']}", f"{size}, {overlap}, {duration(each['seconds'])}"))
    rows.append(("step", fast if fast == slow else f"{fast}, or {slow} if no asynchronous collective overlaps"))
    rows.append(("MFU", high if low == high else f"{high}, or {low}"))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {value}" for name, value in rows]
    return "\n".join(
        [*lines, "longest:", *(f"  {duration(x['seconds'])}  {x['instruction']}" for x in facts["largest"])]
    )


def duration(seconds: float) -> str:
    """Format seconds, in milliseconds below one second."""
    if 0 < seconds < 1e-6:
        return "below 0.001 ms"
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
