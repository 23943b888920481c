"""Seconds from the command to the first step, with a cold and with a warm cache, and of `import jtasks`.

  python benchmarks/startup.py [import] [cold] [warm] [--preset=xs] [--rounds=3]

cold  `python main.py --config=configs/igpt_cifar.py ...` with nothing in the cache: fits the palette, compiles
warm  the same command once more in another workdir: palette and programs are in the cache

The time is taken until the record of the first step stands in metrics.jsonl, in seconds and in the processor's of all
threads; pictures of CIFAR-10's size are made. `phases.py` tells where the time goes.
The peer is `import torch`, and the first step of its igpt program. Prints one JSON line a case.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from common import ROOT, parser, sizes, start_peer, write_data

CASES = ("import", "cold", "warm")


class Start(NamedTuple):
    """The cost of one start."""

    seconds: float
    processor: float  # seconds of all threads, in user code and in the system


def main() -> None:
    flags = parser(__doc__, CASES, rounds=3).parse_args()
    cases = flags.cases or CASES
    if "import" in cases:
        ours = [imported(sys.executable, "jtasks") for _ in range(flags.rounds)]
        theirs = [imported(flags.peer_python, "torch") for _ in range(flags.rounds)]
        bare = statistics.median(imported(sys.executable, "sys") for _ in range(flags.rounds))
        show("import", ours, theirs, {"python_alone_s": round(bare, 3)})
    if {"cold", "warm"} & set(cases):
        peers = [first_step_of_peer(flags) for _ in range(flags.rounds)]
        cold, warm = list[Start](), list[Start]()
        for number in range(flags.rounds if "cold" in cases else 1):
            with tempfile.TemporaryDirectory() as folder:
                write_data(pathlib.Path(folder))
                cold.append(first_step(flags, pathlib.Path(folder)))
                turns = flags.rounds if "warm" in cases and number == 0 else 0
                warm += [first_step(flags, pathlib.Path(folder)) for _ in range(turns)]
        if "cold" in cases:
            show("cold", [start.seconds for start in cold], peers, processor(cold))
        if "warm" in cases:
            show("warm", [start.seconds for start in warm], peers, processor(warm))


def show(case: str, ours: list[float], theirs: list[float | None], more: dict[str, float]) -> None:
    mine = statistics.median(ours)
    other = statistics.median(theirs) if None not in theirs else None
    ratio = round(mine / other, 4) if other else None
    peer = round(other, 3) if other else None
    record = {"case": f"startup {case}", "jtasks_s": round(mine, 3), "peer_s": peer, "ratio": ratio, **more}
    print(json.dumps(record | {"jtasks_all": [round(s, 3) for s in ours]}), flush=True)


def processor(starts: list[Start]) -> dict[str, float]:
    return {"jtasks_processor_s": round(statistics.median(start.processor for start in starts), 3)}


def imported(python: str, module: str) -> float | None:
    """Return the seconds to start an interpreter and import a module; None if that fails."""
    begun = time.perf_counter()
    try:
        subprocess.run([python, "-c", f"import {module}"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return time.perf_counter() - begun


def first_step(flags: argparse.Namespace, data: pathlib.Path) -> Start:
    """Return the cost until a run records its first step, which ends the run. The cache is beside the data."""
    _, size = sizes("igpt", flags.preset)
    model = {"width": size["width"], "depth": size["layers"], "heads": size["heads"]}
    fields = {"batch_size": size["batch"], "log_every": 1, "eval_every": 0, "save_every": 0, "show_count": 0}
    fields |= {f"model.{name}": value for name, value in model.items()} | {"data.num_colors": size["vocab"]}
    fields |= {"data.dir": data}
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "main.py", "--config=configs/igpt_cifar.py", f"--workdir={workdir}"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        places = {"XDG_CACHE_HOME": str(data / "cache"), "JTASKS_DATA": str(data), "JAX_PLATFORMS": flags.device}
        places |= {"PYTHONDONTWRITEBYTECODE": ""}  # the second start finds modules compiled, as those of a user
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun, before = time.perf_counter(), usage.ru_utime + usage.ru_stime
        with (pathlib.Path(workdir) / "stderr").open("w+") as errors:
            run = subprocess.Popen(command, cwd=ROOT, env=os.environ | places, stdout=errors, stderr=errors)
            try:
                while not stepped(pathlib.Path(workdir)):
                    if run.poll() is not None:
                        errors.seek(0)
                        raise SystemExit(f"the run ended before its first step:\n{errors.read()}")
                    time.sleep(0.01)
                seconds = time.perf_counter() - begun
            finally:
                run.kill()
                run.wait()
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            return Start(seconds, usage.ru_utime + usage.ru_stime - before)


def stepped(workdir: pathlib.Path) -> bool:
    path = workdir / "metrics.jsonl"
    return path.exists() and any('"split": "train"' in line for line in path.read_text().splitlines())


def first_step_of_peer(flags: argparse.Namespace) -> float | None:
    """Return the seconds of two steps, mostly of the first one."""
    program = start_peer("igpt", flags)
    if program is None:
        return None
    program.close()
    return program.facts["ready_s"]


if __name__ == "__main__":
    main()
