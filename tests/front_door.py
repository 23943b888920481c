"""Runs of main.py as a user starts them: a process of its own, on fake devices."""

import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY_GPT = ["--config.model.width=16", "--config.model.depth=2", "--config.model.heads=2", "--config.sample.count=1"]
LINEAR = ["--config=tests/data_tasks/linear.py"]  # compiles in no time
DIGITS = ["--config=configs/igpt_digits.py", *TINY_GPT, "--config.batch_size=16", "--config.show_count=2"]


def readers_environment() -> dict[str, str]:
    """The environment of a reader, whose compiler optimizes as usual."""
    return {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")}


def start(
    *arguments: object, program: object = "main.py", devices: int = 1, **environment: str
) -> subprocess.Popen[str]:
    """Begin `python main.py ARGUMENTS`, or another program."""
    return subprocess.Popen(
        [sys.executable, *map(str, (program, *arguments))],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object, code: int = 0, devices: int = 1, **environment: str) -> tuple[dict, str]:
    """Run to the end; returns the last line of stdout as JSON, and stderr."""
    process = start(*arguments, devices=devices, **environment)
    try:
        output, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code, errors
    return json.loads(output) if output else {}, errors


def wait_for(workdir: pathlib.Path, step: int, process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Wait until the run has recorded a step in metrics.jsonl."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        if any(record["step"] >= step for record in records(workdir)):
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"no step {step} in {seconds} s: {process.communicate()[1]}")


def records(workdir: pathlib.Path) -> list[dict]:
    """The whole lines of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def untimed(workdir: pathlib.Path) -> list[dict]:
    """The records without what depends on the clock."""
    timed = {"wall", "crc32", "examples_per_second", "tokens_per_second", "seconds_per_step"}
    return [{name: value for name, value in record.items() if name not in timed} for record in records(workdir)]
