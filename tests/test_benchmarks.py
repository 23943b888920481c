"""Claims about benchmarks/: each program runs to its end and prints its lines; the sizes are tiny."""

import json
import os
import subprocess
import sys

import pytest
from front_door import ROOT

SMOKE = ["--preset=smoke", "--rounds=1", "--count=1"]
CASES = {
    "step.py": ["igpt", "bert", "mnist", "vit", "clip", "t5"],
    "decode.py": ["greedy", "marian_beam"],
    "memory.py": ["memory igpt", "memory bert"],
    "data.py": ["data arrays", "data sequence", "data pictures", "data windows"],
}


def benchmark(*arguments, code=0):
    """The lines on stdout as JSON, and stderr."""
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"},
        timeout=900,
    )
    assert process.returncode == code, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()], process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("program", CASES)
def test_every_case_is_measured_and_runs_without_a_peer(program):
    named = CASES[program] if program in ("step.py", "decode.py") else []
    found, errors = benchmark(program, *named, *SMOKE, "--peer-python=/nowhere")
    assert [record["case"] for record in found] == CASES[program]
    for record in found:
        assert record["jtasks_s"] > 0 and record["peer_s"] is None and record["ratio"] is None
    assert "no peer for" in errors


@pytest.mark.slow
def test_a_peer_that_answers_is_compared(tmp_path):
    # Any program that keeps to the exchange can stand in for PyTorch.
    peer = tmp_path / "python"
    answer = '{"seconds": 0.5, "peak_bytes": 1000}'
    peer.write_text(f"#!/bin/sh\necho '{answer}'\nwhile read count; do echo '{answer}'; done\n")
    peer.chmod(0o755)
    (step,), _ = benchmark("step.py", "vit", *SMOKE, "--busy", f"--peer-python={peer}")
    assert step["busy"] and step["peer_s"] == 0.5 and step["ratio"] == pytest.approx(step["jtasks_s"] / 0.5, abs=1e-3)
    (memory,), _ = benchmark("memory.py", "igpt", *SMOKE, f"--peer-python={peer}")
    assert memory["peer_bytes"] == 1000 and memory["ratio"] == pytest.approx(memory["jtasks_bytes"] / 1000, abs=1e-3)


@pytest.mark.slow
def test_the_start_is_timed(tmp_path):
    found, _ = benchmark("startup.py", "import", "warm", "--preset=smoke", "--rounds=1", "--peer-python=/nowhere")
    by_case = {record["case"]: record for record in found}
    assert by_case["startup import"]["python_alone_s"] > 0 and by_case["startup import"]["peer_s"] is None
    assert by_case["startup warm"]["jtasks_s"] > 0.5  # the whole of JAX, a config and a step
    assert by_case["startup warm"]["jtasks_processor_s"] > 0.5
    linear = ROOT / "tests/data_tasks/linear.py"
    (phases,), _ = benchmark("phases.py", f"--cache={tmp_path}", f"--config={linear}", "--config.log_every=1")
    assert phases["imports"] > phases["trace of init"] > 0
    assert sum(phases.values()) == pytest.approx(2 * phases["all"], abs=0.1)


@pytest.mark.slow
def test_saves_restores_and_meetings_are_timed(tmp_path):
    found, _ = benchmark("checkpoint.py", "--gigabytes=0.01", "--rounds=1", "--cold", f"--folder={tmp_path}")
    assert [record["case"] for record in found] == ["save 0.01 GB", "restore 0.01 GB"]
    assert all(record["ratio"] > 0 and record["ours_gb_per_s"] > 0 for record in found)
    assert not list(tmp_path.iterdir())
    (held,), _ = benchmark("save.py", "--megabytes=1", "--runs=1")
    assert held["synchronous_s"] > 0
    (meeting,), _ = benchmark("meet.py", "--processes=8")
    assert meeting["meeting_s"] > 0


def test_arguments_that_cannot_be_are_refused():
    _, errors = benchmark("step.py", "bert", "--preset=s", code=1)
    assert "bert has no preset s; it has xs, base, smoke" in errors
    _, errors = benchmark("step.py", "--fast", code=1)
    assert "unknown arguments --fast" in errors
