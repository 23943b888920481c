"""Two processes, one of them three times slower: seconds a step with equal and with automatic shares.

  python benchmarks/unlike.py [--slower=3] [--steps=40] [--rounds=1]

Each process is a `python main.py` of its own with one CPU device, kept to one core of its own. The slow one is
stopped (SIGSTOP) for two thirds of every 30 ms, so all it does takes three times as long, as on a machine that much
slower. What is timed are the steps of the training loop, from metrics.jsonl; `slower` is how much slower
`config.shares="auto"` found the process to be.

A second line has the scaling model of jtasks/run/plan.py for 2, 4 and 8 nodes like the fast process, with the
computation measured there and the bandwidth of a sum of gradients over the two processes, beside what HetSeq (Ding et
al. 2021) reports for BERT on nodes of 4 GPUs, which is other hardware and another model.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PERIOD = 0.03  # seconds of one stop and one go: short beside a step
TASK = ["--config=configs/igpt_digits.py", "--config.batch_size=128", "--config.save_every=0", "--config.eval_every=0"]
TASK += ["--config.show_count=0", "--config.log_every=5"]
HETSEQ = {2: 1.72, 4: 3.22, 8: 5.94}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slower", type=float, default=3.0, help="how many times, of the second process")
    parser.add_argument("--steps", type=int, default=40, help="of a run")
    parser.add_argument("--rounds", type=int, default=1, help="of a run with equal and one with automatic shares")
    parser.add_argument("--sum", nargs=2, metavar=("ADDRESS", "PROCESS"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.sum:
        sums(*flags.sum)
        return
    seconds: dict[str, list[float]] = {"equal": [], "auto": []}
    for _ in range(flags.rounds):  # the two take turns: the machine drifts
        for shares, runs in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                train(pathlib.Path(folder), shares, flags.steps, flags.slower)
                runs.append(seconds_a_step(pathlib.Path(folder)))
                if shares == "auto":
                    record = json.loads((pathlib.Path(folder) / "shares.json").read_text())
    equal, auto = (statistics.median(runs) for runs in seconds.values())
    fast, slow = (a + 64 * b for a, b in zip(record["seconds_to_start"], record["seconds_an_example"], strict=True))
    measured = {"equal_s": round(equal, 4), "auto_s": round(auto, 4), "ratio": round(auto / equal, 4)}
    print(json.dumps({"case": "unlike", "slower": round(slow / fast, 2), "shares": record["shares"]} | measured))
    print(json.dumps(scaling(fast)), flush=True)


def train(workdir: pathlib.Path, shares: str, steps: int, slower: float) -> None:
    """Train in two processes, the second slowed down."""
    joint = [*TASK, f"--workdir={workdir}", f"--config.shares={shares}", f"--config.steps={steps}"]
    joint += [f"--coordinator={address()}", "--num-processes=2"]
    with both(lambda i: ["main.py", *joint, f"--process-id={i}"]) as running, slowed(running[1], slower):
        ends = [process.communicate(timeout=1200) for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("".join(errors for _, errors in ends))


def seconds_a_step(workdir: pathlib.Path) -> float:
    """Return the median seconds per step over the lines of the log, except for the first, which warms up."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return statistics.median([r["seconds_per_step"] for r in records if "seconds_per_step" in r][1:])


@contextlib.contextmanager
def both(arguments):
    """Start two processes, each on a core of its own and with one device."""
    cores = sorted(os.sched_getaffinity(0))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, *arguments(i)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda i=i: os.sched_setaffinity(0, {cores[i % len(cores)]}),
        )
        for i in range(2)
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()


@contextlib.contextmanager
def slowed(process, times):
    """Slow a process down: let it run for one part in `times` of each period."""
    done = threading.Event()

    def stop_and_go():
        with contextlib.suppress(ProcessLookupError):
            while not done.is_set() and process.poll() is None:
                time.sleep(PERIOD / times)
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(PERIOD * (1 - 1 / times))
                os.kill(process.pid, signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go)
    if times > 1:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if times > 1:
            thread.join()


def scaling(compute: float) -> dict:
    """Return the speed-ups by the model of `jtasks.run.plan`, from measurements of this machine."""
    from jtasks.run.hlo import Collective
    from jtasks.run.plan import Hardware, times

    where = address()
    with both(lambda i: ["benchmarks/unlike.py", "--sum", where, str(i)]) as running:
        ends = [process.communicate(timeout=600) for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("".join(errors for _, errors in ends))
    size, seconds = json.loads(ends[0][0].splitlines()[-1])
    bandwidth = size / seconds  # two processes send half of it twice
    hardware = Hardware(bandwidth_gbs=bandwidth / 1e9, latency_us=0)
    rings = {n: Collective("all-reduce", n, size, 1) for n in HETSEQ}
    model = {n: round(n * times(compute, [ring], hardware)["efficiency"], 2) for n, ring in rings.items()}
    measured = {"compute_s": round(compute, 4), "gradient_bytes": size, "bandwidth": round(bandwidth)}
    return {"case": "scaling model", **measured, "speed_up": model, "hetseq": HETSEQ}


def sums(where: str, process: str) -> None:
    """Print the seconds of a sum over two processes of as many bytes as the task's gradient."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from jtasks import config as configs
    from jtasks.distributed import processes, sharding
    from jtasks.run import job

    processes.start(where, 2, int(process))
    made = job.prepare(configs.load(str(ROOT / "configs" / "igpt_digits.py")))
    examples = made.require("train")
    batch = made.batch_at(examples, made.plan(examples, shuffle=True), 0)
    params = jax.eval_shape(lambda b: made.task.init(jax.random.key(0), b, made.config), batch)
    count = sum(x.size for x in jax.tree.leaves(params))
    ones = jax.jit(lambda: jnp.ones((2, count)), out_shardings=sharding.batch_sharding(made.mesh))()
    add = jax.jit(
        jax.shard_map(
            lambda x: jax.lax.psum(x, "data"), mesh=made.mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec()
        )
    )
    seconds = []
    for _ in range(20):
        begun = time.perf_counter()
        jax.block_until_ready(add(ones))
        seconds.append(time.perf_counter() - begun)
    print(json.dumps([4 * count, statistics.median(seconds)]))


def address() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{server.getsockname()[1]}"


if __name__ == "__main__":
    main()
