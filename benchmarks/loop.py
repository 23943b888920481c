"""What the loop costs: seconds a step of train() over those of the bare jitted step on the same batches.

  python benchmarks/loop.py [mnist] [igpt_cifar] [--steps=20] [--rounds=8]

The two run in turn (A B A B ...), `steps` each, with all guards, logging and reading of data on; made images
of the real shape stand for the data. Prints one JSON line a case.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

from common import ROOT, use_huge_pages, write_data

use_huge_pages()

import jax  # noqa: E402 - not before this process has its final form

TASK = """
from jtasks.tasks import {task}
from jtasks.tasks.{task} import *

def dataset(split, config):
    return {task}.dataset(split, config) if split == "train" else None  # what is timed is training
"""
CASES = {"mnist": ("configs/mnist.py", "mnist"), "igpt_cifar": ("configs/igpt_cifar.py:xxs", "igpt")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--rounds", type=int, default=8)
    flags = parser.parse_args()
    for name in flags.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["JTASKS_DATA"] = os.environ["XDG_CACHE_HOME"] = folder
            measured = case(name, pathlib.Path(folder), flags.steps, flags.rounds)
        print(json.dumps({"case": f"loop {name}", "steps": flags.steps, **measured}), flush=True)


def case(name: str, folder: pathlib.Path, steps: int, rounds: int) -> dict[str, float]:
    from jtasks import config as configs
    from jtasks.run.hooks import Hooks
    from jtasks.run.loop import train

    path, task = CASES[name]
    write_data(folder)
    (folder / "bench.py").write_text(TASK.format(task=task))
    length = [f"--config.task={folder / 'bench.py'}", f"--config.steps={steps * (rounds + 1)}"]
    quiet = ["--config.save_every=0", "--config.eval_every=0", f"--config.log_every={steps}"]
    config = configs.load(str(ROOT / path), [*length, *quiet])
    bare = bare_step(config)
    bare(3)
    theirs = []
    after_step = Hooks.after_step

    def measure_between(self, state, step):
        if step and step % steps == 0:
            with self.log.pause():  # so that it does not count as the loop's time
                theirs.append(bare(steps))
        return after_step(self, state, step)

    Hooks.after_step = measure_between  # the two take turns within a minute: the machine drifts over longer times
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            train(config, folder / "run")
    finally:
        Hooks.after_step = after_step
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    ours = [r["seconds_per_step"] for r in records if "seconds_per_step" in r][1:]  # the first warms up
    pairs = list(zip(ours, theirs, theirs[1:], strict=False))  # each span of the loop, and the bare ones around it
    ratios = [2 * loop / (before + after) for loop, before, after in pairs]
    print("ratios " + " ".join(f"{ratio:.3f}" for ratio in ratios), file=sys.stderr)
    step, loop = statistics.median(theirs), statistics.median(ours)
    return {"loop_s": round(loop, 5), "step_s": round(step, 5), "ratio": round(statistics.median(ratios), 4)}


def bare_step(config):
    """Return a function of a number of steps that returns the seconds per step, on batches already on the device."""
    from jtasks import optim
    from jtasks.run import job as jobs
    from jtasks.run import step

    job = jobs.prepare(config)
    examples = job.require("train")
    plan = job.plan(examples, shuffle=True)
    batches = [job.batch_at(examples, plan, i) for i in range(8)]
    params = job.task.init(jax.random.key(0), batches[0], job.config)
    optimizer, schedule = optim.optimizer(job.config.optim, config.steps, params)
    trainable = jax.tree.map(lambda _: True, params)
    made = step.make_train_step(job.task, job.config, optimizer, schedule, trainable, job.mesh)
    run = jax.jit(made, donate_argnums=0)
    state = step.init_state(params, optimizer, ema=False)

    def seconds(steps: int) -> float:
        nonlocal state
        begun = time.perf_counter()
        for i in range(steps):
            state, report = run(state, batches[i % len(batches)])
            if i % 16 == 15:
                jax.block_until_ready(report)
        jax.block_until_ready(state)
        return (time.perf_counter() - begun) / steps

    return seconds


if __name__ == "__main__":
    main()
