"""Cost estimate of a step on a mesh larger than this machine: memory, computation and communication.

The step is compiled ahead of time for fake CPU devices, from shapes alone: nothing is allocated. Memory follows from
the shardings and the compiler's own analysis, communication from the collectives in the compiled program. Other
compilers fuse differently, so temporaries are an estimate, and the CPU compiler widens float16 types.
"""

import collections
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from jtasks.config import Config
from jtasks.data import pipeline
from jtasks.distributed import sharding
from jtasks.errors import ConfigError
from jtasks.run import flops, programs
from jtasks.run.job import prepare, total_steps
from jtasks.run.summary import format_si

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}
_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*)?\{$")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_SHAPE = re.compile(r"\b(pred|bf16|[a-z]\d+(?:e\d+m\d+\w*)?|c\d+)\[([\d,]*)\]")

Line = tuple[str, str, str, str]  # an instruction: name, shape, operation and the rest
Computations = dict[str, list[Line]]
Users = dict[str, list[Line]]  # the instructions that a name is an operand of


class Hardware(NamedTuple):
    """The rates of one device; the defaults are an NVIDIA A100 with a 200 Gbit/s network card."""

    peak_tflops: float = 312.0
    efficiency: float = 0.4  # fraction of the peak that a step reaches without communication
    bandwidth_gbs: float = 25.0  # gigabytes a second out of a device, over all links
    latency_us: float = 10.0  # per hop of a collective


class Collective(NamedTuple):
    """One collective of a program."""

    kind: str
    devices: int  # in each group
    size: int  # bytes of the whole buffer: reduced, or gathered
    times: int  # runs per step

    @property
    def sent(self) -> float:
        """Bytes that each device sends per step, by the ring algorithm (Patarasu and Yuan 2009)."""
        n = self.devices
        part = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1, "collective-broadcast": 1}
        return self.times * self.size * part.get(self.kind, (n - 1) / n)

    @property
    def hops(self) -> int:
        """Consecutive messages per step."""
        n = self.devices
        return self.times * {"all-reduce": 2 * (n - 1), "collective-permute": 1}.get(self.kind, n - 1)


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
    examples = job.required("train")
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
        "parameters": held(state.params),
        "optimizer": held(state.opt_state),
        "ema_params": held(state.ema_params),
        "batch": held(batch),
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


def scaling(compute: float, gradient: float, bandwidth: float, nodes: int, latency: float = 0.0) -> float:
    """Return the speed-up of `nodes` equal nodes over one in data-parallel training with a ring sum of gradients.

    Each node computes for `compute` seconds, sends 2 (n - 1) / n times the `gradient`'s bytes at `bandwidth` bytes a
    second, and each of the ring's 2 (n - 1) hops takes `latency` seconds; nothing overlaps.

    HetSeq's published figures (Ding et al. 2021: BERT on nodes of 4 GPUs) are 1.72 on 2 nodes, 3.22 on 4 and 5.94 on
    8. With one free parameter, communication over computation, fitted at 2 nodes (0.163), and no latency, the model
    gives 3.21 on 4 nodes (0.2% less than published) and 6.23 on 8 (4.8% more). A ring's bytes saturate at twice the
    gradient, but the published loss grows from 4 to 8 nodes, as do the number of hops and the wait for the slowest
    node: a latency of 0.6% of the computation, fitted at 8 nodes as well, gives 3.17 on 4 nodes (1.6% less).

    >>> round(scaling(1.0, 0.163, 1.0, 4), 2)
    3.21
    """
    return nodes * compute / (compute + 2 * (nodes - 1) / nodes * gradient / bandwidth + 2 * (nodes - 1) * latency)


def held(tree: Any) -> int:
    """Return the bytes of a tree of shapes on the fullest device, by their shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def collectives(text: str, devices: int) -> list[Collective]:
    """Return the collectives of a compiled program in HLO text; a collective in a loop counts once per iteration.

    An all-reduce from which each device keeps only its own part counts as a reduce-scatter: the compilers for GPU and
    TPU make this replacement, XLA's for CPU does not.
    """
    computations, entry = _computations(text)
    times = _times(computations, entry)
    users = {name: _users(lines) for name, lines in computations.items()}
    counts: collections.Counter[tuple[str, int, int, int]] = collections.Counter()
    for name, lines in computations.items():
        for line in (line for line in lines if re.fullmatch(_KINDS, line[2]) and times[name]):
            n = _group_size(line[3], devices)
            for index, size in enumerate(_sizes(line[1])):
                kind, whole = line[2], size * n if line[2] == "reduce-scatter" else size
                results = _elements(users[name], line, index)
                if (
                    kind == "all-reduce"
                    and results
                    and all(_is_cut(users, computations, name, r, size / n) for r in results)
                ):
                    kind = "reduce-scatter"
                if n > 1:
                    counts[kind, n, int(whole), times[name]] += 1
    return [Collective(kind, n, size, turns * count) for (kind, n, size, turns), count in counts.items()]


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


def _computations(text: str) -> tuple[Computations, str]:
    computations: Computations = {}
    entry = name = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            computations[name] = []
            entry = name if start[1] else entry
        elif name and (instruction := _INSTRUCTION.match(line)):
            computations[name].append(instruction.groups())  # type: ignore[arg-type]
    return computations, entry


def _times(computations: Computations, entry: str) -> collections.Counter[str]:
    """Count how often a step runs each computation; a loop of unknown length counts as one iteration."""
    times: collections.Counter[str] = collections.Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for _, _, kind, rest in computations[name]:
            turns = re.search(r"known_trip_count\W+n\W+(\d+)", rest) if kind == "while" else None
            branches = re.search(r"branch_computations=\{([^}]*)\}", rest)
            called = _CALLED.findall(rest) + (re.findall(r"[\w.-]+", branches[1]) if branches else [])
            for other in called:
                if other in computations:
                    visit(other, count * (int(turns[1]) if turns else 1))

    visit(entry, 1)
    return times


def _operands(line: Line) -> list[str]:
    return re.findall(r"%([\w.-]+)", line[3].split(")")[0])


def _users(lines: list[Line]) -> Users:
    users: Users = collections.defaultdict(list)
    for line in lines:
        for operand in set(_operands(line)):
            users[operand].append(line)
    return users


def _elements(users: Users, line: Line, index: int) -> list[str]:
    """Return the names of a result, or of one element of a tuple."""
    if not line[1].startswith("("):
        return [line[0]]
    return [user[0] for user in users[line[0]] if re.search(rf"index={index}\b", user[3])]


def _is_cut(users: dict[str, Users], computations: Computations, computation: str, name: str, size: float) -> bool:
    """Return whether every user of a value, also inside fusions, first cuts the value down to `size` bytes."""

    def cuts(user: Line) -> bool:
        if user[2] == "dynamic-slice":
            return sum(_sizes(user[1])) == size
        if user[2] in ("bitcast", "copy", "transpose"):
            return _is_cut(users, computations, computation, user[0], size)
        called = _CALLED.findall(user[3])
        if user[2] != "fusion" or not called:
            return False
        place = f"{_operands(user).index(name)})"
        (inner,) = [line[0] for line in computations[called[0]] if line[2] == "parameter" and line[3].startswith(place)]
        return _is_cut(users, computations, called[0], inner, size)

    return bool(users[computation][name]) and all(map(cuts, users[computation][name]))


def _sizes(shape: str) -> list[float]:
    """Return the bytes of an array, or of each element of a tuple."""
    return [
        _itemsize(kind) * math.prod(map(int, filter(None, size.split(",")))) for kind, size in _SHAPE.findall(shape)
    ]


def _itemsize(kind: str) -> float:
    return _BYTES.get(kind) or int(re.sub(r"\D.*", "", kind.lstrip("abcdefghijklmnopqrstuvwxyz"))) / 8


def _group_size(rest: str, devices: int) -> int:
    """Return the number of devices in each group, given as lists, `[groups,size]<=[...]`, or axes of a mesh."""
    if mesh := re.search(r"replica_groups=\S*mesh\[([^\]]*)\].*?\{([^}]*)\}", rest):
        axes = dict(re.findall(r"'([\w.]+)'=(\d+)", mesh[1]))
        used = re.findall(r"'([\w.]+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or axes[axis]) for axis, part in used)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return listed[1].count(",") + 1
    return devices if "source_target_pairs" not in rest else 2
