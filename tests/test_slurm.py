"""The recipes for SLURM on its real controller; skipped where SLURM's daemons are not installed."""

import contextlib
import csv
import os
import pathlib
import shutil
import signal
import sys
import time

import pytest
import slurm_cluster
from front_door import LINEAR, records

from jtasks.run import checkpoint_files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_cluster.lack()), reason=slurm_cluster.lack()),
]
LONG = [*LINEAR, "--config.steps=100000", "--config.log_every=20", "--config.save_every=100000"]
SMALL = ["--cpus-per-task=1", "--gpus-per-node=1"]

STUB = """#!/bin/bash
echo "task $SLURM_ARRAY_TASK_ID: $*"
[ "$SLURM_RESTART_COUNT" ] || [ "$SLURM_JOB_ID" != "$SLURM_ARRAY_JOB_ID" ] || exit 75
"""


@pytest.fixture(scope="module")
def slurm():
    with slurm_cluster.cluster() as found:
        yield found


def await_step(slurm, workdir, step, seconds=300):
    end = time.monotonic() + seconds
    while not any(record["step"] >= step for record in records(workdir)):
        assert time.monotonic() < end, slurm.logs()
        time.sleep(0.1)


def test_a_job_is_preempted_queues_again_goes_on_and_scancel_ends_it_for_good(slurm, tmp_path):
    job = slurm.submit(*SMALL, "launch/slurm.sbatch", *LONG, f"--workdir={tmp_path / 'a run'}", PACE="0.002")
    await_step(slurm, tmp_path / "a run", 20)
    urgent = slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    slurm.await_state(urgent, "COMPLETED")
    saved = checkpoint_files.saved_steps(tmp_path / "a run" / "checkpoints")[-1]
    await_step(slurm, tmp_path / "a run", saved + 20)
    assert slurm.state(job)["Restarts"] == "1"
    slurm.run("scancel", job)
    assert slurm.await_state(job, "CANCELLED")["Restarts"] == "1"
    last = checkpoint_files.saved_steps(tmp_path / "a run" / "checkpoints")[-1]
    assert last > saved
    log = (slurm.folder / f"jtasks-{job}.log").read_text()
    assert f"resumed from step {saved}" in log
    assert f"stopped at step {last}" in log
    time.sleep(1)
    assert slurm.state(job)["JobState"] == "CANCELLED"


def test_a_job_whose_time_is_nearly_up_queues_again_and_finishes(slurm, tmp_path):
    steps = [*LINEAR, "--config.steps=400", "--config.log_every=20", "--config.save_every=400"]
    job = slurm.submit(*SMALL, "launch/slurm.sbatch", *steps, f"--workdir={tmp_path}", PACE="0.005")
    await_step(slurm, tmp_path, 20)
    slurm.run("scancel", "--signal=TERM", job)  # as sbatch --signal=TERM@180 has it sent
    assert slurm.await_state(job, "COMPLETED")["Restarts"] == "1"
    assert checkpoint_files.saved_steps(tmp_path / "checkpoints")[-1] == 400


def test_of_an_array_only_the_task_that_was_stopped_queues_again(slurm, tmp_path):
    stub = tmp_path / "stub"
    stub.write_text(STUB)
    stub.chmod(0o755)
    tasks = ["--array=0-2", "--nodes=1", *SMALL, f"--output={tmp_path}/%a.log"]
    job = slurm.submit(*tasks, "launch/slurm.sbatch", "--workdir=runs/%a", "--config.seed=%a", PYTHON=str(stub))
    last = next(i for i in "210" if slurm.state(f"{job}_{i}")["JobId"] == job)  # the array's own number is a task's
    for i in set("012") - {last}:
        ended = slurm.await_state(f"{job}_{i}", "COMPLETED")
        assert ended["Restarts"] == "0"
        assert (tmp_path / f"{i}.log").read_text() == f"task {i}: main.py --workdir=runs/{i} --config.seed={i}\n"
    assert slurm.await_state(f"{job}_{last}", "COMPLETED")["Restarts"] == "1"
    shared = slurm.submit(*tasks, "launch/slurm.sbatch", "--workdir=runs/one", PYTHON=str(stub))
    assert slurm.await_state(f"{shared}_0", "FAILED")["ExitCode"] == "2:0"
    assert "folders of their own" in (tmp_path / "0.log").read_text()


def test_a_sweep_as_an_array_goes_on_where_one_of_its_tasks_was_stopped(slurm, tmp_path):
    runs = [*LINEAR, "--config.steps=400", "--config.log_every=20", "--config.save_every=400", "--sweep.seed=0,1"]
    tasks = ["--array=0-1", "--cpus-per-task=1", f"--output={tmp_path}/%a.log"]
    job = slurm.submit(*tasks, "launch/slurm-sweep.sbatch", *runs, f"--workdir={tmp_path / 'sweep'}", PACE="0.005")
    await_step(slurm, tmp_path / "sweep" / "seed=1", 20)
    slurm.run("scancel", "--signal=TERM", f"{job}_1")
    ended = [slurm.await_state(f"{job}_{i}", "COMPLETED")["Restarts"] for i in range(2)]
    assert ended == ["0", "1"]
    with open(tmp_path / "sweep" / "sweep.csv", newline="") as file:
        assert [(row["seed"], row["state"], row["step"]) for row in csv.DictReader(file)] == [
            ("0", "done", "400"),
            ("1", "done", "400"),
        ]


@pytest.mark.parametrize("fault", ["no data", "killed"])
def test_a_job_that_failed_by_its_own_fault_stays_failed(fault, slurm, tmp_path):
    wrong = ["--config=igpt_cifar:xxs", "--config.data.dir=/nowhere"] if fault == "no data" else LONG
    command = ["launch/slurm.sbatch", *wrong, f"--workdir={tmp_path}"]
    job = slurm.submit(*SMALL, *command, PACE="0.002", JTASKS_OFFLINE="1")
    if fault == "killed":
        await_step(slurm, tmp_path, 20)
        os.kill(rank(slurm, job, 1), signal.SIGKILL)
    ended = slurm.await_state(job, "FAILED")
    assert (ended["ExitCode"], ended["Restarts"]) == ("1:0" if fault == "no data" else "137:0", "0")


def rank(slurm, job, number):
    """The system's number of a process of a job."""
    for process in slurm.run("pgrep", "-f", "main.py").split():
        with contextlib.suppress(FileNotFoundError):  # it has ended
            names = pathlib.Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            if {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={number}".encode()} <= set(names):
                return int(process)
    raise AssertionError(slurm.logs())


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI is not installed")
def test_mpirun_in_an_allocation_starts_one_run(slurm, tmp_path):
    train = f"{sys.executable} main.py {' '.join(LINEAR)} --workdir={tmp_path / 'run'}"
    job = slurm.submit("--nodes=2", "--ntasks=2", f"--wrap=mpirun --allow-run-as-root -n 2 {train}")
    slurm.await_state(job, "COMPLETED")
    log = (slurm.folder / f"wrap-{job}.log").read_text()
    assert "2 processes, by Open MPI" in log
    assert '"step": 6,' in log
