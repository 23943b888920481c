"""Where the time of a training step goes on the CPU, by instruction, by pass and by kind, from XLA's own trace.

  taskset -c 1 python benchmarks/profile_step.py vit [igpt] [mnist] [bert] [clip] [--steps=3] [--top=20]
  taskset -c 1 python benchmarks/profile_step.py clip --by=pass --config.FIELD=VALUE

Prints the milliseconds of a step, their share and the calls of each instruction with its kind, shape and the operation
of the model it comes from; with `--by=pass` sums over passes (forward, recomputed, backward, rest), with `--by=kind`
over kinds: products (`ynn` and `dot`: YNNPACK's and Eigen's), loops over arrays, and what moves data alone. Times of
several threads add up, so trace one core (`taskset`).
"""

import argparse
import collections
import pathlib
import re
import sys
import tempfile
from typing import Any

from common import sizes, use_huge_pages

COLUMNS = {
    "instruction": lambda op: (op["pass"], op["kind"], op["shape"], op["source"]),
    "pass": lambda op: (op["pass"],),
    "kind": lambda op: (op["kind"],),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("cases", nargs="+", metavar="CASE", help="as of step.py")
    arguments.add_argument("--preset", help="size of the cases")
    arguments.add_argument("--steps", type=int, default=3, help="steps that are traced")
    arguments.add_argument("--top", type=int, default=20, help="lines of a table")
    arguments.add_argument("--by", choices=COLUMNS, default="instruction", help="what is summed")
    flags, overrides = arguments.parse_known_args()
    use_huge_pages()
    for case in flags.cases:
        durations, instructions = traced(case, flags.preset, flags.steps, overrides)
        total, rows = sum(t for t, _ in durations.values()), collections.defaultdict(lambda: [0.0, 0.0])
        for name, (milliseconds, calls) in durations.items():
            row = rows[COLUMNS[flags.by](instructions.get(name, UNKNOWN))]
            row[0], row[1] = row[0] + milliseconds, row[1] + calls
        print(f"{case}: {total:.1f} ms a step")
        for key, (milliseconds, calls) in sorted(rows.items(), key=lambda row: -row[1][0])[: flags.top]:
            print(f"{milliseconds:9.1f} ms {milliseconds / total:6.1%} {calls:7.0f}  {'  '.join(key)}")


UNKNOWN = {"pass": "rest", "kind": "?", "shape": "", "source": ""}


def traced(
    case: str, preset: str | None, steps: int, overrides: list[str]
) -> tuple[dict[str, tuple[float, float]], dict[str, dict[str, str]]]:
    """Return milliseconds and calls a step of each instruction, and what the compiled program says of them."""
    import jax
    import ours

    name, size = sizes(case, preset)
    sys.argv = [sys.argv[0], "", *overrides]
    programs: list[Any] = []
    inner = ours.step_of

    def step_of(made: Any, batch: Any) -> Any:
        result = inner(made, batch)
        programs.append(result[0])
        return result

    ours.step_of = step_of
    work, _ = ours.setup(dict(case=case, preset=name, sizes=size, device="cpu", bf16=False))
    (compiled,) = programs[0].programs.values()
    durations: dict[str, tuple[float, float]] = collections.defaultdict(lambda: (0.0, 0.0))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            work(steps)
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
    events = (event for plane in trace.planes for line in plane.lines for event in line.events)
    for event in events:
        op = dict(event.stats).get("hlo_op")
        if op and not re.match("while|call|conditional", op):  # their instructions have events of their own
            milliseconds, calls = durations[op]
            durations[op] = milliseconds + event.duration_ns / 1e6 / steps, calls + 1 / steps
    return durations, instructions_of(compiled.as_text())


def instructions_of(program: str) -> dict[str, dict[str, str]]:
    """Return pass, kind, shape and source of the instructions in the text of a compiled program."""
    instructions = {}
    for name, shape, rest in re.findall(r"^\s*(?:ROOT )?%?([\w.-]+) = (\S+) (.*)$", program, re.M):
        path = (re.search('op_name="([^"]*)"', rest) or [""] * 2)[1]
        instructions[name] = {
            "pass": _pass(path),
            "kind": _kind(name),
            "shape": re.sub(r"\{.*", "", shape),
            "source": _source(path),
        }
    return instructions


def _pass(path: str) -> str:
    if "rematted" in path:
        return "recomputed"
    return "backward" if "transpose(" in path else "forward" if "jvp" in path else "rest"


def _kind(name: str) -> str:
    kind = re.sub(r"[.\d]+$", "", name)
    if kind.startswith(("ynn", "dot")):
        return kind.split("_")[0]
    return kind.removesuffix("_fusion")


def _source(path: str) -> str:
    noise = r"jit\(step\)|while|body|closed_call|checkpoint|rematted_computation|(transpose\()?jvp\(.*"
    return "/".join(part for part in path.split("/") if not re.fullmatch(noise, part))


if __name__ == "__main__":
    main()
