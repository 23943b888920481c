"""Collectives of a compiled program, read from its HLO text."""

import collections
import math
import re
from typing import NamedTuple

_KINDS = re.compile("all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*)?\{$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\]")


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


class Instruction(NamedTuple):
    """One line of HLO."""

    name: str  # unique in the program
    shape: str
    operation: str
    inputs: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results this one takes."""
        return re.findall(r"%([\w.-]+)", self.inputs)


Computations = dict[str, list[Instruction]]


def collectives(text: str, devices: int) -> list[Collective]:
    """Return the collectives of a program in HLO text; a collective in a loop counts once per iteration.

    An all-reduce from which each device keeps only its own part counts as a reduce-scatter: the compilers for GPU and
    TPU make this replacement, XLA's for CPU does not.
    """
    computations, entry = _computations(text)
    times = _times(computations, entry)
    users = collections.defaultdict[str, list[Instruction]](list)
    for instruction in (i for instructions in computations.values() for i in instructions):
        for operand in set(instruction.operands):
            users[operand].append(instruction)

    def is_cut(result: str, size: float) -> bool:
        """Return whether every user of a result, also inside fusions, first cuts the result down to `size` bytes."""
        return bool(users[result]) and all(cuts(user, result, size) for user in users[result])

    def cuts(user: Instruction, operand: str, size: float) -> bool:
        if user.operation == "dynamic-slice":
            return sum(_sizes(user.shape)) == size
        if user.operation in ("bitcast", "copy", "transpose"):
            return is_cut(user.name, size)
        if user.operation != "fusion":
            return False
        index = str(user.operands.index(operand))
        (called,) = _called(user, computations)
        inner = (i.name for i in computations[called] if i.operation == "parameter" and i.inputs == index)
        return all(is_cut(name, size) for name in inner)

    counts = collections.Counter[tuple[str, int, int, int]]()
    for computation, instructions in computations.items():
        for instruction in (i for i in instructions if _KINDS.fullmatch(i.operation) and times[computation]):
            n = _group_size(instruction.attributes, devices)
            for index, size in enumerate(_sizes(instruction.shape)):
                kind, results = instruction.operation, [instruction.name]
                if instruction.shape.startswith("("):
                    elements = (u for u in users[instruction.name] if re.search(rf"index={index}\b", u.attributes))
                    results = [element.name for element in elements]
                whole = size * n if kind == "reduce-scatter" else size
                if kind == "all-reduce" and results and all(is_cut(result, size / n) for result in results):
                    kind = "reduce-scatter"
                if n > 1:
                    counts[kind, n, int(whole), times[computation]] += 1
    return [Collective(kind, n, size, trips * count) for (kind, n, size, trips), count in counts.items()]


def _computations(text: str) -> tuple[Computations, str]:
    """Return the instructions of each computation, and the name of the computation where the program starts."""
    computations: Computations = {}
    entry = name = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            computations[name] = []
            entry = name if start[1] else entry
        elif name and (instruction := _INSTRUCTION.match(line)):
            computations[name].append(Instruction(*instruction.groups()))
    return computations, entry


def _called(instruction: Instruction, computations: Computations) -> list[str]:
    return [name for name in re.findall(r"%([\w.-]+)", instruction.attributes) if name in computations]


def _times(computations: Computations, entry: str) -> collections.Counter[str]:
    """Count how often a step runs each computation; a loop of unknown length counts as one iteration."""
    times = collections.Counter[str]()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for instruction in computations[name]:
            trips = re.search(r"known_trip_count\W+n\W+(\d+)", instruction.attributes)
            for called in _called(instruction, computations):
                visit(called, count * int(trips[1]) if trips else count)

    visit(entry, 1)
    return times


def _sizes(shape: str) -> list[float]:
    """Return the bytes of an array, or of each element of a tuple."""
    return [
        math.prod(map(int, filter(None, sizes.split(","))), start=_itemsize(kind))
        for kind, sizes in _ARRAY.findall(shape)
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
