"""Shared parts of the benchmarks: sizes of the cases, and two programs that take turns, each in a process of its own.

The programs are `ours.py` and `torch_peers.py`. Each gets its orders as one JSON argument, sets itself up, compiles and
warms up, prints a line of facts, and then runs a block of work for every line it reads. While one works the other
waits for input, so neither sits on the processor meanwhile, and both see the same minutes of the machine.
Only the standard library is needed here: the peers may run under an interpreter of their own.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent

# T5 small's, and the sizes of many of OPUS-MT's Marians.
PAIRS = dict(layers=6, width=512, heads=8, mlp=2048, source=64, target=64, vocab=32128, batch=8)
FEW_PAIRS = dict(layers=1, width=16, heads=2, mlp=32, source=8, target=6, vocab=50, batch=2)
BEAMS = {"greedy": 1, "beam": 4}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    **{case: {"small": PAIRS, "smoke": FEW_PAIRS} for case in ("t5", "marian")},
    **{
        f"{case}_{search}": {
            "small": PAIRS | dict(beams=beams, longest=32),
            "smoke": FEW_PAIRS | dict(beams=beams, longest=4),
        }
        for case in ("t5", "marian")
        for search, beams in BEAMS.items()
    },
    "igpt": {  # the first is the default
        "xs": dict(layers=8, width=256, heads=8, length=1024, vocab=512, batch=4, tied=False),
        "xxs": dict(layers=8, width=16, heads=2, length=784, vocab=16, batch=64, tied=False),
        "s": dict(layers=24, width=512, heads=8, length=1024, vocab=512, batch=32, tied=False),
        "gpt2": dict(layers=12, width=768, heads=12, length=1024, vocab=50304, batch=16, tied=True),
        "smoke": dict(layers=2, width=16, heads=2, length=64, vocab=16, batch=2, tied=False),
    },
    "bert": {
        "xs": dict(layers=4, width=256, heads=4, length=128, vocab=30522, batch=32, hidden=20),
        "base": dict(layers=12, width=768, heads=12, length=512, vocab=30522, batch=32, hidden=77),
        "smoke": dict(layers=2, width=16, heads=2, length=16, vocab=200, batch=2, hidden=3),
    },
    "mnist": {"xs": dict(batch=128, images=60_000), "smoke": dict(batch=32, images=64)},
    "vit": {
        "xs": dict(layers=6, width=192, heads=3, size=32, patch=4, classes=10, batch=64),
        "s16": dict(layers=12, width=384, heads=6, size=224, patch=16, classes=1000, batch=128),
        "smoke": dict(layers=2, width=16, heads=2, size=8, patch=4, classes=3, batch=2),
    },
    "clip": {  # open_clip's ViT-S-16, without projection to another width
        "s16": dict(
            layers=12,
            width=384,
            heads=6,
            size=224,
            patch=16,
            text_layers=12,
            text_width=384,
            text_heads=6,
            length=77,
            vocab=49408,
            batch=8,
        ),
        "smoke": dict(
            layers=2,
            width=16,
            heads=2,
            size=8,
            patch=4,
            text_layers=1,
            text_width=16,
            text_heads=2,
            length=8,
            vocab=50,
            batch=2,
        ),
    },
    "beam": {
        "xs": dict(layers=6, width=256, heads=8, prompt=200, vocab=8000, batch=8, beams=5, shortest=5, longest=20),
        "gpt2": dict(
            layers=12, width=768, heads=12, prompt=200, vocab=50257, batch=16, beams=5, shortest=5, longest=20
        ),
        "smoke": dict(layers=2, width=16, heads=2, prompt=6, vocab=50, batch=2, beams=2, shortest=2, longest=4),
    },
    "greedy": {
        "xs": dict(layers=6, width=256, heads=8, prompt=32, vocab=8000, batch=1, beams=1, shortest=64, longest=64),
        "gpt2": dict(layers=12, width=768, heads=12, prompt=32, vocab=50257, batch=1, beams=1, shortest=64, longest=64),
        "smoke": dict(layers=2, width=16, heads=2, prompt=6, vocab=50, batch=1, beams=1, shortest=4, longest=4),
    },
    "arrays": {"xs": dict(batch=128, images=60_000, size=28, channels=1), "smoke": dict(batch=8, images=64, size=8)},
    "sequence": {"xs": dict(batch=128, images=60_000, size=28), "smoke": dict(batch=8, images=64, size=8)},
    "pictures": {
        "xs": dict(batch=64, images=512, side=256, size=64),
        "smoke": dict(batch=4, images=8, side=16, size=8),
    },
    "windows": {"xs": dict(batch=4, tokens=4_000_000, length=1024), "smoke": dict(batch=4, tokens=1000, length=16)},
}


class NoAnswerError(Exception):
    """A program that ended before it answered; its reason is on stderr."""


class Program:
    """A program that works on request."""

    def __init__(self, command: Iterable[str], environment: dict[str, str]):
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        try:
            self.facts = self._answer()
        except NoAnswerError:
            self.close()
            raise
        self.facts["ready_s"] = time.perf_counter() - begun

    def run(self, count: int) -> dict[str, float]:
        """Do `count` units of work; returns `seconds` per unit, and `peak_bytes` of memory."""
        assert self.process.stdin is not None
        print(count, file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the program."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise NoAnswerError(f"{' '.join(self.process.args[:2])} ended without an answer")
        return json.loads(line)


def parser(description: str | None, cases: Collection[str], **defaults: Any) -> argparse.ArgumentParser:
    """Make a parser of the arguments that all comparisons take; `defaults` may have `rounds`."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("cases", nargs="*", choices=[*cases, []], help=f"of {', '.join(cases)}; all by default")
    arguments.add_argument("--preset", help="size of the cases; `smoke` is tiny")
    arguments.add_argument("--rounds", type=int, default=defaults.get("rounds", 5), help="turns of each side")
    arguments.add_argument("--count", type=int, default=0, help="units of work in a turn; 0: what fits the case")
    arguments.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    arguments.add_argument("--compile", action="store_true", help="torch.compile for the peer")
    arguments.add_argument(
        "--peer-python", default=sys.executable, metavar="PATH", help="an interpreter that has PyTorch"
    )
    arguments.add_argument("--peer-plain-pages", action="store_true", help="no huge pages for the peer")
    return arguments


def sizes(case: str, preset: str | None) -> tuple[str, dict[str, Any]]:
    """Return the preset's name and sizes."""
    name = preset or next(iter(PRESETS[case]))
    if name not in PRESETS[case]:
        raise SystemExit(f"{case} has no preset {name}; it has {', '.join(PRESETS[case])}")
    return name, PRESETS[case][name]


def start_ours(case: str, flags: argparse.Namespace, overrides: Iterable[str] = ()) -> Program:
    """Start our side of a case."""
    environment = {**os.environ, "JAX_PLATFORMS": flags.device, "TF_CPP_MIN_LOG_LEVEL": "2"}
    return Program([sys.executable, str(HERE / "ours.py"), _orders(case, flags), *overrides], _huge_pages(environment))


def start_peer(case: str, flags: argparse.Namespace) -> Program | None:
    """Start the peer's side; None if the peer cannot run, with the reason on stderr."""
    environment = dict(os.environ) if flags.peer_plain_pages else _huge_pages(dict(os.environ))
    try:
        return Program([flags.peer_python, str(HERE / "torch_peers.py"), _orders(case, flags)], environment)
    except (NoAnswerError, OSError) as error:  # OSError: there is no such interpreter
        print(f"no peer for {case}: {error}", file=sys.stderr)
        return None


def use_huge_pages() -> None:
    """Restart this process with the environment that the command sets for itself (jtasks/environment.py)."""
    environment = _huge_pages(dict(os.environ))
    if environment != dict(os.environ):
        os.execve(sys.executable, sys.orig_argv, environment)


def _orders(case: str, flags: argparse.Namespace) -> str:
    name, size = sizes(case, flags.preset)
    orders = dict(case=case, preset=name, sizes=size, device=flags.device, bf16=flags.bf16, compile=flags.compile)
    return json.dumps(orders)


def _huge_pages(environment: dict[str, str]) -> dict[str, str]:
    """Return the environment in which glibc asks for huge pages."""
    if "glibc.malloc.hugetlb" in environment.get("GLIBC_TUNABLES", ""):
        return environment
    tunables = [environment.get("GLIBC_TUNABLES", ""), "glibc.malloc.hugetlb=1"]
    return environment | {"GLIBC_TUNABLES": ":".join(filter(None, tunables))}


@contextlib.contextmanager
def busy_neighbor(wanted: bool) -> Iterator[None]:
    """Keep a core busy with another process, if wanted; the process ends with the block, or with this program."""
    if not wanted:
        yield
        return
    loop = f"import os\nwhile os.getppid() == {os.getpid()}:\n    sum(range(100_000))"
    process = subprocess.Popen([sys.executable, "-c", loop])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def in_turn(
    ours: Program, peer: Program | None, rounds: int, count: int, warm: int = 0, busy: bool = False
) -> dict[str, Any]:
    """Alternate blocks of work of both sides, A B A B ...; returns medians of seconds per unit, and their ratio.

    Before each block the side does `warm` units that are not timed: a system may take pages away from a program that
    waits, and a training loop never waits. With `busy` another process computes meanwhile.
    """
    mine, theirs = [], []
    with busy_neighbor(busy):
        for _ in range(rounds):
            for program, seconds in ((ours, mine), (peer, theirs)):
                if program and warm:
                    program.run(warm)
                if program:
                    seconds.append(program.run(count)["seconds"])
    result = {"jtasks_s": round(statistics.median(mine), 6), "peer_s": None, "ratio": None}
    if theirs:
        ratio = statistics.median(mine) / statistics.median(theirs)
        result |= {"peer_s": round(statistics.median(theirs), 6), "ratio": round(ratio, 4)}
    spread = {"jtasks_all": mine, "peer_all": theirs}
    return result | {"rounds": rounds} | {name: [round(s, 5) for s in seconds] for name, seconds in spread.items()}


def serve(
    setup: Callable[[dict[str, Any]], tuple[Callable[[int], None], dict[str, Any]]],
    device_peak: Callable[[], int | None],
) -> None:
    """Run as a program: work on request, and print the seconds.

    Args:
      setup: maps orders to the work, a function of a number of units, warmed up, and to facts to print.
      device_peak: returns the accelerator's peak of memory so far, None on a CPU.
    """
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    work, facts = setup(json.loads(sys.argv[1]))
    print(json.dumps(facts | {"peak_bytes": device_peak() or peak_bytes()}), file=channel, flush=True)
    reset_peak()
    for line in sys.stdin:
        count = int(line)
        begun = time.perf_counter()
        work(count)
        seconds = (time.perf_counter() - begun) / count
        print(json.dumps({"seconds": seconds, "peak_bytes": device_peak() or peak_bytes()}), file=channel, flush=True)


def write_data(folder: pathlib.Path) -> None:
    """Write random images as the files of MNIST and CIFAR-10, in full size."""
    import numpy as np

    random = np.random.default_rng(0)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images, labels = random.integers(0, 256, (count, 784), np.uint8), random.integers(0, 10, count, np.uint8)
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([0x801, count], ">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    cifar = folder / "cifar-10-batches-bin"
    cifar.mkdir()
    for file in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = random.integers(0, 256, (10_000, 3073), np.uint8)
        records[:, 0] %= 10
        (cifar / file).write_bytes(records.tobytes())
    (cifar / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n")


def peak_bytes() -> int:
    """Return the largest resident memory of this process since the last reset (Linux), else since its start."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> None:
    """Reset the peak to the memory that is resident now, if the system can."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak of memory cannot be reset here: it includes the start", file=sys.stderr)
