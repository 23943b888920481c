"""A run that is asked to stop saves and says 75; a run that is killed goes on as if nothing had been."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from front_door import LINEAR, ROOT, run, start, untimed, wait_for

from jtasks.run import checkpoint, checkpoint_files

LONG = [*LINEAR, "--config.steps=300", "--config.log_every=5", "--config.save_every=50", "--config.eval_every=100"]
PACE = "0.002"  # seconds an example, so that the run is still under way when the test acts

# A task file whose functions hold the process up where a test wants it, once HOLD names the place.
HOLDING = """
import os, pathlib, sys, time
import jax
sys.path.insert(0, {tests!r})
from data_tasks.linear import *
from data_tasks import linear

def hold(place):
    if os.environ.get("HOLD") == place:
        print("holding", file=sys.stderr, flush=True)
        time.sleep(600)

def get_config():
    config = linear.get_config()
    config.task = __file__
    config.steps, config.save_every, config.eval_every, config.log_every = 40, 10, 5, 5
    return config

class Slow(linear.Rows):
    def __getitem__(self, i):
        if os.environ.get("HOLD") == "data" and pathlib.Path(os.environ["WORKDIR"], "checkpoints", "10").is_dir():
            hold("data")
        return super().__getitem__(i)

def dataset(split, config):
    return Slow(64, 3) if split == "train" else linear.dataset(split, config)

def loss_fn(params, batch, rng, config):
    hold("compile")  # while it is traced
    return linear.loss_fn(params, batch, rng, config)

def eval_fn(params, batch, config):
    def called(x):
        hold("evaluation")
        return x
    if pathlib.Path(os.environ.get("WORKDIR", ""), "environment.json").exists():  # a resumed run
        hold("evaluation compile")
    if os.environ.get("HOLD") == "evaluation":
        jax.debug.callback(called, batch["mask"])
    return linear.eval_fn(params, batch, config)
"""


def held(path: pathlib.Path, workdir: pathlib.Path, place: str) -> subprocess.Popen[str]:
    """A run of that task which has come to the place."""
    path.write_text(HOLDING.format(tests=str(ROOT / "tests")))
    process = start(f"--config={path}", f"--workdir={workdir}", HOLD=place, WORKDIR=str(workdir), PACE=PACE)
    for line in process.stderr:
        if line == "holding\n":  # and not a path with that name
            break
    return process


def signalled(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """The exit code and stderr of a process that ends by a signal, long before what holds it up does."""
    os.kill(process.pid, number)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """An undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole")
    run(*LONG, f"--workdir={workdir}")
    return workdir


def assert_same_end(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    ours, theirs = (checkpoint.arrays(folder / "checkpoints" / "300") for folder in (workdir, whole))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].tobytes() == theirs[name].tobytes(), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_the_very_step_and_the_run_goes_on_to_the_same_end(number, whole, tmp_path):
    process = start(*LONG, f"--workdir={tmp_path}", PACE=PACE)
    wait_for(tmp_path, 5, process)
    code, errors = signalled(process, number)
    assert code == 75, errors
    (step,) = checkpoint_files.saved_steps(tmp_path / "checkpoints")[-1:]
    assert f"{number.name}: saving step {step}" in errors
    assert 5 <= step < 300
    run(*LONG, f"--workdir={tmp_path}")
    assert_same_end(tmp_path, whole)


def test_killed_runs_end_like_an_undisturbed_one_and_record_no_step_twice(whole, tmp_path):
    for step in (5, 60, 110, 205):
        process = start(*LONG, f"--workdir={tmp_path}", PACE=PACE)
        wait_for(tmp_path, step, process)
        process.kill()
        process.communicate()
    run(*LONG, f"--workdir={tmp_path}")
    assert_same_end(tmp_path, whole)
    assert untimed(tmp_path) == untimed(whole)


@pytest.mark.slow
def test_two_signals_at_once_are_one_as_a_scheduler_and_a_parent_send_them(tmp_path):
    process = start(*LONG, f"--workdir={tmp_path}", PACE=PACE)
    wait_for(tmp_path, 5, process)
    os.kill(process.pid, signal.SIGINT)
    code, errors = signalled(process, signal.SIGTERM)
    assert code == 75, errors
    assert checkpoint_files.saved_steps(tmp_path / "checkpoints")


def test_a_second_signal_ends_it_at_once(tmp_path):
    process = held(tmp_path / "holding.py", tmp_path / "run", "compile")
    while process.poll() is None:  # two that come at once are one to the system
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.2)
    assert process.returncode == 128 + signal.SIGTERM
    assert "ending at once" in process.communicate()[1]


@pytest.mark.parametrize(
    ("place", "saved"), [("compile", []), ("evaluation compile", [5, 7]), ("evaluation", [5]), ("data", None)]
)
def test_a_signal_is_answered_wherever_the_run_is(place, saved, tmp_path):
    path, workdir = tmp_path / "holding.py", tmp_path / "run"
    if place == "evaluation compile":  # of a resumed run, beside its second step: a fresh one traces it before step 1
        path.write_text(HOLDING.format(tests=str(ROOT / "tests")))
        run(f"--config={path}", f"--workdir={workdir}", "--config.steps=5")
    code, errors = signalled(held(path, workdir, place), signal.SIGTERM)
    assert code == 75, errors
    steps = checkpoint_files.saved_steps(workdir / "checkpoints")
    assert steps == saved if saved is not None else steps[-1] >= 10  # how far it read ahead depends on the machine
    result, errors = run(f"--config={path}", f"--workdir={workdir}")
    assert result["step"] == 40
    assert f"resumed from step {steps[-1]}" in errors if steps else "resumed" not in errors


def catches(process: subprocess.Popen, number: signal.Signals) -> bool:
    lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (mask,) = (line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("after", [0.0, 0.02, 0.1, 0.25, 0.5, 1.5])  # seconds: it starts twice, for huge pages
def test_a_signal_while_the_run_is_still_starting_says_75_too(after, number, tmp_path):
    process = start(*LONG, f"--workdir={tmp_path}", GLIBC_TUNABLES="", PACE=PACE)
    while not catches(process, signal.SIGTERM):  # before, the interpreter itself is starting
        time.sleep(0.01)
    time.sleep(after)
    code, errors = signalled(process, number)
    assert code == 75, errors
    assert "Traceback" not in errors


def test_a_second_run_in_one_workdir_is_refused_and_the_first_goes_on(tmp_path):
    process = start(*LONG, f"--workdir={tmp_path}", PACE=PACE)
    wait_for(tmp_path, 5, process)
    _, errors = run(*LONG, f"--workdir={tmp_path}", code=2)
    assert f"in use by process {process.pid}" in errors
    assert process.poll() is None
    assert signalled(process, signal.SIGTERM)[0] == 75


def limited(size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A run that can write no file longer than `size` bytes, as on a disk that is nearly full."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}));"
        "from jtasks.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_a_full_disk_keeps_the_last_good_checkpoint_and_ends_non_zero(tmp_path):
    arguments = [*LINEAR, f"--workdir={tmp_path}", "--config.log_every=2", "--config.save_every=2"]
    arguments += ["--config.eval_every=0", "--config.model.width=20000"]
    run(*arguments, "--config.steps=2")
    found = limited(20_000, *arguments, "--config.steps=6")
    assert found.returncode == 1, found.stderr
    assert "WARNING: step 4 was not saved in" in found.stderr
    assert "earlier checkpoints are kept" in found.stderr
    assert found.stderr.count("step 6 was not saved in") == 1  # the error that the run ends with
    assert "step 6/6" in found.stderr
    assert checkpoint_files.newest(tmp_path / "checkpoints", pytest.fail) == 2
    result, errors = run(*arguments, "--config.steps=6")
    assert result["step"] == 6
    assert "resumed from step 2" in errors


def test_a_workdir_that_vanishes_is_told_and_the_run_ends_non_zero(tmp_path):
    workdir = tmp_path / "run"
    process = start(*LONG, f"--workdir={workdir}", PACE=PACE)
    wait_for(workdir, 5, process)
    workdir.rename(tmp_path / "gone")
    workdir.write_text("a file in its place")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "WARNING" in errors
    assert "step 300/300" in errors
    assert "cannot be saved" in errors
