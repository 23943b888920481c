"""Sweeps as a user starts them: killed, stopped, resumed, refused."""

import csv
import os
import signal

import pytest
from front_door import LINEAR, run, start, wait_for

from jtasks import cli
from jtasks.run import checkpoint_files

SWEEP = [*LINEAR, "--config.steps=60", "--config.log_every=5", "--config.save_every=20", "--sweep.optim.lr=0.01,0.1"]
PACE = "0.002"  # seconds an example, so that a run is still under way when the test acts


def untimed_table(folder):
    with open(folder / "sweep.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed sweep: its best run and its table."""
    folder = tmp_path_factory.mktemp("whole")
    best, errors = run(*SWEEP, f"--workdir={folder}")
    lines = [line.partition(": ")[0] for line in errors.splitlines()]
    assert lines == ["[1/2] lr=0.01", "[2/2] lr=0.1", "all runs of the sweep"]
    return best, untimed_table(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lr=0.01", "lr=0.1"])
def test_a_killed_sweep_ends_like_an_undisturbed_one(name, whole, tmp_path):
    process = start(*SWEEP, f"--workdir={tmp_path}", PACE=PACE)
    wait_for(tmp_path / name, 5, process)
    process.kill()
    process.communicate()
    best, _ = run(*SWEEP, f"--workdir={tmp_path}")  # the run that was under way saves by itself
    assert untimed_table(tmp_path) == whole[1]
    assert best == whole[0] | {"workdir": str(tmp_path / "lr=0.1")}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_current_run_and_the_sweep_goes_on(number, whole, tmp_path):
    process = start(*SWEEP, f"--workdir={tmp_path}", PACE=PACE)
    wait_for(tmp_path / "lr=0.1", 5, process)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert errors.endswith("stopped in run lr=0.1: run the same command again to resume\n")
    assert [row["state"] for row in untimed_table(tmp_path)] == ["done", "stopped"]
    assert 5 <= checkpoint_files.saved_steps(tmp_path / "lr=0.1" / "checkpoints")[-1] < 60
    run(*SWEEP, f"--workdir={tmp_path}")
    assert untimed_table(tmp_path) == whole[1]


@pytest.mark.slow
def test_a_failed_run_is_recorded_and_the_best_is_printed(tmp_path):
    sweep = [*LINEAR, "--sweep.optim.lr=1e30,0.1", "--config.steps=30", "--config.max_bad_steps=2"]
    best, errors = run(*sweep, f"--workdir={tmp_path}", code=1)
    assert best["best"] == "lr=0.1"
    assert "error: 1 run of the sweep failed:\n  lr=1e+30: the loss, the gradient or the update" in errors
    assert [row["state"] for row in untimed_table(tmp_path)] == ["done", "failed"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sweep.optim.lrr=1"], "did you mean config.optim.lr?"),
        (["--sweep.seed=1", "--mode=eval"], "--mode=eval does not fit"),
        (["--sweep.seed=1", "--sweep=file.py"], "exclude each other"),
        (["--sweep.seed=1", "--config.seed=1"], "exclude each other"),
        (["--sweep-index=1"], "needs a sweep"),
        (["--sweep.seed"], "has no value"),
        (["--sweep=none.py"], "no such file"),
        (
            ["--sweep.seed=1", "--num-processes=2", "--process-id=0", "--coordinator=localhost:1"],
            "a sweep is one process",
        ),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(flags, message, tmp_path, capsys):
    assert cli.run([*LINEAR, f"--workdir={tmp_path / 'new'}", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
