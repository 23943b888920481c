"""Kill runs at random moments, start them again, and compare the end with that of an undisturbed run, bit for bit.

  python benchmarks/kill.py --kills=25 [--seed=0] [--cases=igpt,mnist,classify]

A case counts as survived if, after its kills, the same command ends with the very same parameters,
optimizer state, metrics and predictions. Prints one JSON line a case and one in all.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
LENGTH = ["--config.steps=60", "--config.batch_size=16", "--config.eval_every=20", "--config.log_every=5"]
SAVING = ["--config.save_every=10", "--config.keep=3", "--config.show_count=2"]
SMALL = ["--config.model.width=32", "--config.model.depth=2", "--config.model.heads=2"]
CASES = {
    "igpt": ["--config=configs/igpt_digits.py", *SMALL, "--config.ema=0.9"],
    "mnist": ["--config=configs/mnist.py", "--config.data.name=digits", "--config.accumulate=2"],
    "classify": [
        "--config=configs/igpt_cifar_classify.py:xxs",
        "--config.data.name=digits",
        "--config.data.crop=1",
        *SMALL,
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="in all, shared out among the cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", default=",".join(CASES))
    flags = parser.parse_args()
    names = flags.cases.split(",")
    shares = [flags.kills // len(names) + (i < flags.kills % len(names)) for i in range(len(names))]
    survived = tried = 0
    for name, kills in zip(names, shares, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            result = case(CASES[name], kills, random.Random(f"{flags.seed} {name}"), pathlib.Path(folder))
        print(json.dumps({"case": name, **result}), flush=True)
        survived, tried = survived + result["survived"], tried + result["kills"]
    print(json.dumps({"survived": survived, "tried": tried}))
    return 0 if survived == tried else 1


def case(arguments: list[str], kills: int, chance: random.Random, folder: pathlib.Path) -> dict:
    """Run once undisturbed, then with kills in as many runs as needed; a run that differs loses all its kills."""
    environment = dict(os.environ, JTASKS_DATA=str(folder / "data"), XDG_CACHE_HOME=str(folder / "cache"))
    command = [sys.executable, "main.py", *arguments, *LENGTH, *SAVING]
    start(command, folder / "warm", environment).communicate()  # fills the compilation cache
    begun = time.monotonic()
    finish(start(command, folder / "whole", environment))
    seconds = time.monotonic() - begun
    whole = outcome(command, folder / "whole", environment)
    done = survived = attempt = 0
    differences: list[str] = []
    while done < kills:
        attempt += 1
        workdir, here = folder / f"killed-{attempt}", 0
        while True:
            process = start(command, workdir, environment)
            try:
                if done + here < kills:
                    process.wait(chance.uniform(0, 1.1 * seconds))
                finish(process)
                break
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                here += 1
        different = differing(whole, outcome(command, workdir, environment))
        differences += different
        done, survived = done + here, survived + (0 if different else here)
    return {"survived": survived, "kills": done, "seconds": round(seconds, 1), "differences": differences[:10]}


def start(command: list[str], workdir: pathlib.Path, environment: dict) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}:\n{output}")


def outcome(command: list[str], workdir: pathlib.Path, environment: dict) -> dict[str, bytes]:
    """Return all that must be equal: the last checkpoint's arrays, the recorded metrics, the predictions."""
    from jtasks.run import checkpoint, checkpoint_files

    finish(start([*command, "--mode=predict", "--split=test"], workdir, environment))
    folder = workdir / "checkpoints"
    result = {
        name: np.asarray(array).tobytes()
        for name, array in checkpoint.arrays(folder / str(max(checkpoint_files.saved_steps(folder)))).items()
    }
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("wall", "examples_per_second", "seconds_per_step")
    kept = [{name: value for name, value in record.items() if name not in timed} for record in records]
    result["metrics.jsonl"] = json.dumps(sorted(kept, key=lambda r: (r["step"], r["split"]))).encode()
    result["predictions"] = (workdir / "predictions-test.jsonl").read_bytes()
    return result


def differing(whole: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return [name for name in {**whole, **other} if whole.get(name) != other.get(name)]


if __name__ == "__main__":
    sys.exit(main())
