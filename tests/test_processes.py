"""Several processes are one run: they stop after the same step and go on from it."""

import os
import pathlib
import signal
import socket
import subprocess

import pytest
from front_door import DIGITS, run, start, untimed, wait_for

from jtasks import checkpoint, processes
from jtasks.errors import ConfigError

RUN = [*DIGITS, "--config.log_every=5", "--config.save_every=20", "--config.eval_every=20"]
RUN += ["--config.optim.schedule=constant", "--config.optim.warmup=0"]  # steps do not depend on how many will follow


def pair(workdir: pathlib.Path, *arguments: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    joint = [*RUN, f"--workdir={workdir}", f"--coordinator={address}", "--processes=2", *arguments]
    return [start(*joint, f"--process={i}") for i in range(2)]


def finish(running: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    try:
        ends = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()  # SIGTERM is only noted by a process of several
    return [(process.returncode, *end) for process, end in zip(running, ends, strict=True)]


def test_a_signal_to_one_of_two_stops_both_after_the_same_step_and_the_run_goes_on_from_it(tmp_path):
    running = pair(tmp_path / "pair", "--config.steps=2000")
    wait_for(tmp_path / "pair", 20, running[0])
    os.kill(running[1].pid, signal.SIGTERM)
    ends = finish(running)
    assert [code for code, _, _ in ends] == [75, 75], ends
    step = checkpoint.saved_steps(tmp_path / "pair" / "checkpoints")[-1]
    assert all(f"stopped at step {step} of 2000" in errors for _, _, errors in ends)

    length = f"--config.steps={step + 20}"
    (code, output, _), (other, silent, _) = finish(pair(tmp_path / "pair", length))
    assert (code, other) == (0, 0)
    assert f'"step": {step + 20}' in output.splitlines()[-1]
    assert "step" not in silent
    run(*RUN, f"--workdir={tmp_path / 'single'}", "--config.steps=20", devices=2)
    one, two = ({(r["step"], r["split"]): r["loss"] for r in untimed(tmp_path / name)} for name in ("single", "pair"))
    for key in ((5, "train"), (20, "train"), (20, "valid")):
        assert one[key] == pytest.approx(two[key], rel=1e-4), key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", None, None), "--processes, --process missing"),
        (("localhost:1", 2, 2), "--process=2 must be at least 0 and below --processes=2"),
    ],
)
def test_a_half_given_run_of_several_is_an_error(arguments, message):
    with pytest.raises(ConfigError, match=message):
        processes.start(*arguments)


def test_a_process_alone_agrees_with_itself():
    assert processes.alone()
    assert processes.first()
    assert processes.agree(lambda: 7) == 7
