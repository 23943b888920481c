"""Compiled programs, read from their HLO text: how often instructions run, what they cost, what devices exchange."""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_COLLECTIVE = re.compile(
    "(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(-start)?"
)
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*)?\{$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\]")
_RUN = r"(?:to_apply|(?:true|false)_computation|branch_computations|called_computations)=\{?([^,}]+(?:, ?%[^,}]+)*)"
UNKNOWN = 2**63 - 1  # cycles, says the TPU compiler of what it does not estimate
KERNEL = 'custom_call_target="tpu_custom_call"'


class Instruction(NamedTuple):
    """One line of HLO."""

    name: str  # unique in the program
    shape: str
    operation: str
    inputs: str
    attributes: str

    @property
    def cycles(self) -> int:
        """The TPU compiler's estimate; 0 where it has none, as for kernels and collectives."""
        estimate = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(estimate[1]) if estimate and int(estimate[1]) != UNKNOWN else 0

    @property
    def scope(self) -> str:
        """The path of the operation in the traced function."""
        path = re.search(r'op_name="([^"]*)"', self.attributes)
        return path[1] if path else ""


class Program(NamedTuple):
    """The computations of a program by name, and how often a step runs each of them.

    A computation inside a fusion does not run by itself.
    """

    computations: dict[str, list[Instruction]]
    times: collections.Counter[str]

    def instructions(self) -> Iterator[tuple[Instruction, int]]:
        """Yield each instruction that runs, and how often."""
        for name, count in self.times.items():
            for instruction in self.computations[name]:
                yield instruction, count

    def inside(self, instruction: Instruction) -> Iterator[tuple[str, Instruction]]:
        """Yield the computations inside a fusion, and their instructions; nothing for other instructions."""
        if instruction.operation in ("fusion", "async-start"):
            for name in re.findall(r"\bcalls=%?([\w.-]+)", instruction.attributes):
                for inner in self.computations[name]:
                    yield name, inner
                    yield from self.inside(inner)


class Collective(NamedTuple):
    """One collective of a program."""

    kind: str
    devices: int  # in each group
    size: int  # bytes of the whole buffer: reduced, or gathered
    times: int  # runs per step
    overlaps: bool = False  # whether other instructions run meanwhile
    links: int = 2  # of a device at once: both ways round a ring, or what the TPU compiler chose

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


def parse(text: str) -> Program:
    """Read a program; a loop whose length the text does not tell counts as one iteration."""
    computations: dict[str, list[Instruction]] = {}
    entry = name = ""
    text = re.sub(r"kernel_metadata=\{\s*[^{}]*\}", "", text)  # has line breaks
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            computations[name] = []
            entry = name if start[1] else entry
        elif name and (instruction := _INSTRUCTION.match(line)):
            computations[name].append(Instruction(*instruction.groups()))
    program = Program(computations, collections.Counter())
    _visit(program, entry, 1)
    return program


def _visit(program: Program, name: str, count: int) -> None:
    program.times[name] += count
    for instruction in program.computations[name]:
        attributes = instruction.attributes
        if instruction.operation == "while":
            (condition,), (body,) = (re.findall(rf"\b{key}=%?([\w.-]+)", attributes) for key in ("condition", "body"))
            _visit(program, body, count * _trips(program, attributes, condition))
        elif instruction.operation in ("call", "conditional", "async-start"):
            for called in re.findall(r"%([\w.-]+)", " ".join(re.findall(_RUN, attributes))):
                if called in program.computations:
                    _visit(program, called, count)


def _trips(program: Program, attributes: str, condition: str) -> int:
    """Return the iterations of a loop: what the compiler knows, else the bound that its condition compares with."""
    if known := re.search(r"known_trip_count\W+n\W+(\d+)", attributes):
        return int(known[1])
    inner = [i for own in program.computations[condition] for i in (own, *(each for _, each in program.inside(own)))]
    return max((int(i.inputs) for i in inner if i.operation == "constant" and i.inputs.isdigit()), default=1)


def collectives(program: Program, devices: int) -> list[Collective]:
    """Return the collectives of a program on `devices` devices; one in a loop counts once per iteration.

    The TPU compiler cuts an asynchronous collective into pieces that it fuses with other work. The pieces
    have the number of one channel, and count once. It writes a reduce-scatter as a fusion of an all-reduce.
    """
    counts, seen = collections.Counter[Collective](), set[tuple[str, str]]()
    for instruction, times in program.instructions():
        inner = list(program.inside(instruction))
        fused = any(name.startswith("async") or "AsyncCollective" in i.attributes for name, i in inner)
        scatters = any(name.startswith("all-reduce-scatter") for name, _ in inner)
        for each in (instruction, *(i for _, i in inner)):
            kind = _COLLECTIVE.fullmatch(each.operation)
            channel = re.search(r"channel_id=(\d+)", each.attributes)
            if kind is None or (channel and (kind[1], channel[1]) in seen):
                continue
            seen.update([(kind[1], channel[1])] if channel else ())
            n = _group_size(each.attributes, devices)
            if n > 1:
                name = "reduce-scatter" if scatters and kind[1] == "all-reduce" else kind[1]
                colors = re.search(r"\bcolors:(\d+)", each.attributes)  # rings at once, each with a part of the bytes
                links = max(2, int(colors[1])) if colors else 2  # a single ring goes both ways round
                size = _size(each, kind[1], bool(kind[2]), n)
                counts[Collective(name, n, size, times, bool(kind[2]) or fused, links)] += 1
    return [collective._replace(times=collective.times * count) for collective, count in counts.items()]


def _size(instruction: Instruction, kind: str, starts: bool, n: int) -> int:
    """Return the bytes of a collective's whole buffer; the shape of a start also has what goes in."""
    size = sum(sizes(instruction.shape))
    if kind == "reduce-scatter":
        return int(size * n)
    if starts and kind == "all-gather":
        return int(size * n / (n + 1))
    return int(size / 2 if starts and kind == "collective-permute" else size)


def sizes(shape: str) -> list[float]:
    """Return the bytes of an array, or of each element of a tuple."""
    return [
        math.prod(map(int, filter(None, dimensions.split(","))), start=_itemsize(kind))
        for kind, dimensions in _ARRAY.findall(shape)
    ]


def _itemsize(kind: str) -> float:
    bits = re.search(r"\d+", kind)
    return int(bits[0]) / 8 if bits else 1


def _group_size(attributes: str, devices: int) -> int:
    """Return the number of devices in each group, given as lists, `[groups,size]<=[...]`, or axes of a mesh."""
    if mesh := re.search(r"replica_groups=\S*mesh\[([^\]]*)\].*?\{([^}]*)\}", attributes):
        axes = dict(re.findall(r"'([\w.]+)'=(\d+)", mesh[1]))
        used = re.findall(r"'([\w.]+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or axes[axis]) for axis, part in used)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    return devices if "source_target_pairs" not in attributes else 2
