"""Several processes are one run: they stop after the same step and go on from it."""

import contextlib
import itertools
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import jax
import pytest
from front_door import LINEAR, records, run, start, untimed, wait_for

from jtasks import cli
from jtasks.distributed import processes, service
from jtasks.errors import ConfigError
from jtasks.run import checkpoint_files

RUN = [*LINEAR, "--config.log_every=5", "--config.save_every=20", "--config.eval_every=20"]


# A task whose preparation takes a while, leaves a mark each time, and fails where FAIL says so, as the data may.
PREPARES = """
import os, pathlib, sys, time
sys.path.insert(0, {tests!r})
from data_tasks.rotation import *
from data_tasks import rotation
from jtasks.errors import DataError

def get_config():
    config = rotation.get_config()
    config.task, config.steps = __file__, 2
    return config

def prepare(config):
    time.sleep(1)
    pathlib.Path(__file__).with_name("prepared").open("a").write("once ")
    if os.environ["FAIL"] == "prepare":
        raise DataError("there is nothing to prepare")

def dataset(split, config):
    raise DataError(f"no data, but prepared {{pathlib.Path(__file__).with_name('prepared').read_text()}}")
"""


# A task whose process FAIL cannot write its part of a checkpoint.
FAILS = """
import os, sys
sys.path.insert(0, {tests!r})
from data_tasks.linear import *
from data_tasks import linear

def get_config():
    config = linear.get_config()
    config.task = __file__
    return config

def dataset(split, config):
    from orbax.checkpoint._src.handlers.base_pytree_checkpoint_handler import BasePyTreeCheckpointHandler as Handler
    if os.environ["FAIL"] == str(jax.process_index()):
        Handler.async_save = full
    return linear.dataset(split, config)

def full(*args, **kwargs):
    raise OSError(28, "the disk is full")
"""


# A task that scores its predictions, and leaves a mark where.
SCORES = """
import os, pathlib, time
import jax, jax.numpy as jnp, ml_collections, numpy as np
from jtasks.metrics import Mean

def get_config():
    config = ml_collections.ConfigDict()
    config.task, config.steps, config.batch_size, config.show_count = __file__, 2, 8, 0
    config.optim = dict(name="sgd", lr=1e-3)
    return config

def dataset(split, config):
    return None if split == "test" else {"x": np.arange(21, dtype=np.float32)}

def init(rng, batch, config):
    return {"w": jnp.ones(())}

def loss_fn(params, batch, rng, config):
    metrics = {"loss": Mean.of((params["w"] - batch["x"]) ** 2, batch["mask"])}
    return metrics["loss"].value, metrics

def eval_fn(params, batch, config):
    return loss_fn(params, batch, None, config)[1]

def predict_fn(params, batch, rng, config):
    return {"x": batch["x"]}

def score_fn(examples, outputs, config):
    if len(examples) < 21:  # the trial before step 1
        return {"far": 0.0, "near": 0.0}
    if os.environ["FAIL"] == "wait":
        pathlib.Path(__file__).with_name("waiting").touch()
        time.sleep(600)
    if os.environ["FAIL"] == "score":
        raise ValueError("cannot score")
    assert [example["x"] for example in examples] == [output["x"] for output in outputs]
    with open(pathlib.Path(__file__).with_name("scored"), "a") as file:
        file.write(f"process {jax.process_index()} of {len(examples)} and {len(outputs)}\\n")
    return {"far": np.float32(np.inf), "near": 0.25}

def export_fn(examples, outputs, config):
    if os.environ["FAIL"]:
        pathlib.Path(__file__).with_name("waiting").touch()
        time.sleep(600)
    return {}

show_fn = export_fn
"""


# A program that connects its processes itself, and trains.
CONNECTS = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jtasks import config
from jtasks.run import train
train(config.load(sys.argv[3]), sys.argv[4])
"""


def free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def pair(
    workdir: pathlib.Path, *arguments: str, of: list[str] = RUN, **environment: str
) -> list[subprocess.Popen[str]]:
    joint = [*of, f"--workdir={workdir}", f"--coordinator={free_address()}", "--num-processes=2", *arguments]
    return [start(*joint, f"--process-id={i}", **environment) for i in range(2)]


def slurm_pair(*arguments: object, **environment: str) -> list[subprocess.Popen[str]]:
    """Two processes as srun starts them, on a machine of their own."""
    host, _, port = free_address().rpartition(":")
    names = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": host}
    tasks = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "JAX_COORDINATOR_PORT": port} for i in range(2)]
    return [start(*arguments, **names, **task, **environment) for task in tasks]


def finish(running: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    try:
        ends = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()  # SIGTERM is only noted by a process of several
    return [(process.returncode, *end) for process, end in zip(running, ends, strict=True)]


def test_a_signal_to_one_of_two_stops_both_after_the_same_step_and_the_run_goes_on_from_it(tmp_path):
    running = pair(tmp_path / "pair", "--config.steps=2000", PACE="0.002")
    wait_for(tmp_path / "pair", 20, running[0])
    os.kill(running[1].pid, signal.SIGTERM)
    ends = finish(running)
    assert [code for code, _, _ in ends] == [75, 75], ends
    step = checkpoint_files.saved_steps(tmp_path / "pair" / "checkpoints")[-1]
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


@pytest.mark.slow  # six starts of a process
def test_when_one_is_killed_the_other_ends_with_its_name_and_the_same_command_goes_on(tmp_path):
    saved = 0
    for victim in (1, 0):  # 0 is the coordinator
        running = pair(tmp_path, "--config.steps=100000", "--config.eval_every=0", PACE="0.002")
        wait_for(tmp_path, saved + 45, running[0])  # the save of step 40 has waited for that of step 20
        running[victim].kill()
        ends = finish(running)
        code, _, errors = ends[1 - victim]
        assert code == 75, errors  # a launcher starts it again, which it does not after 1
        assert f"error: process {victim} on {socket.gethostname()} is gone" in errors
        saved = checkpoint_files.saved_steps(tmp_path / "checkpoints")[-1]
    ends = finish(pair(tmp_path, f"--config.steps={saved + 2}", "--config.eval_every=0"))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert f"resumed from step {saved}" in ends[0][2]
    assert len({(record["step"], record["split"]) for record in records(tmp_path)}) == len(records(tmp_path))


@pytest.mark.slow  # eight starts of a process
def test_a_save_that_fails_in_one_of_two_ends_both_and_the_same_command_goes_on(tmp_path):
    task = tmp_path / "task.py"
    task.write_text(FAILS.format(tests=str(pathlib.Path(__file__).parents[1])))
    arguments = [f"--config={task}", f"--workdir={tmp_path / 'run'}", "--config.steps=40", "--config.save_every=20"]
    assert [code for code, _, _ in finish(slurm_pair(*arguments[:2], "--config.steps=20", FAIL=""))] == [0, 0]
    for victim in (1, 0):
        ends = finish(slurm_pair(*arguments, FAIL=str(victim)))
        assert [code for code, _, _ in ends] == [1, 1], ends
        assert "error: step 40 cannot be saved" in ends[victim][2]
        assert f"error: process {victim} failed: step 40 cannot be saved" in ends[1 - victim][2]
        assert all(errors.endswith("the disk is full\n") and "Traceback" not in errors for _, _, errors in ends), ends
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["20"]
    ends = finish(slurm_pair(*arguments, FAIL=""))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert "resumed from step 20" in ends[0][2]


@pytest.mark.slow  # five starts of a process
def test_a_loss_of_the_whole_batch_is_the_same_in_two_with_unequal_shares_and_after_a_pause(tmp_path):
    own = ["--config=tests/data_tasks/pairs.py", "--config.model.dropout=0.3", "--config.log_every=1"]
    run(*own, f"--workdir={tmp_path / 'single'}", "--config.accumulate=4")
    for steps in (3, 6):
        ends = finish(pair(tmp_path / "pair", "--config.shares=(3, 1)", f"--config.steps={steps}", of=own))
        assert [code for code, _, _ in ends] == [0, 0], ends
    single, both = (
        {(r["step"], r["split"]): r["loss"] for r in records(tmp_path / name)} for name in ("single", "pair")
    )
    assert len(single) == 7
    for key, loss in single.items():
        assert both[key] == pytest.approx(loss, rel=1e-5), key


def test_a_folder_that_cannot_be_written_ends_both_at_once_with_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    for code, output, errors in finish(pair(tmp_path / "file" / "run", "--mode=eval")):
        assert (code, output) == (2, "")
        assert "cannot be written to (Not a directory): the processes of a run meet there" in errors
        assert "Traceback" not in errors


def test_in_a_folder_without_a_token_the_config_takes_its_place(tmp_path):
    token = tmp_path / processes.TOKEN
    keys = [processes.read_key(token)]
    for path, content in ((tmp_path / "config.json", "a"), (tmp_path / "config.json", "b"), (token, "a")):
        path.write_text(content)
        keys.append(processes.read_key(token))
    assert len(set(keys)) == 3
    assert keys[1] == keys[3]


def test_the_first_prepares_while_the_others_wait_and_its_failure_ends_them(tmp_path):
    task = tmp_path / "task.py"
    task.write_text(PREPARES.format(tests=str(pathlib.Path(__file__).parents[1])))
    arguments = [f"--config={task}", f"--workdir={tmp_path / 'run'}"]
    ends = finish(slurm_pair(*arguments, FAIL="prepare"))
    assert [code for code, _, _ in ends] == [1, 1], ends
    assert "2 processes, by SLURM" in ends[0][2]
    assert "error: there is nothing to prepare" in ends[0][2]
    assert "error: process 0 failed: there is nothing to prepare" in ends[1][2]
    ends = finish(slurm_pair(*arguments, FAIL="dataset"))
    assert [code for code, _, _ in ends] == [1, 1], ends
    assert all("no data, but prepared once once" in errors for _, _, errors in ends), ends


@pytest.mark.slow  # four starts of a process
def test_scores_are_made_on_the_first_process_and_its_error_ends_the_others(tmp_path):
    task = tmp_path / "task.py"
    task.write_text(SCORES)
    arguments = [f"--config={task}", f"--workdir={tmp_path / 'run'}"]
    ends = finish(slurm_pair(*arguments, FAIL=""))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert (tmp_path / "scored").read_text() == "process 0 of 21 and 21\n"
    assert '"valid/far": Infinity' in ends[0][1] or '"valid/far": "inf"' in ends[0][1]
    ends = finish(slurm_pair(*arguments, "--mode=eval", "--split=valid", FAIL="score"))
    assert [code for code, _, _ in ends] == [1, 1], ends
    assert "process 0 failed" in ends[1][2] and "cannot score" in ends[1][2]


@pytest.mark.slow
def test_scores_are_made_on_the_first_of_processes_that_the_program_connected(tmp_path):
    (tmp_path / "task.py").write_text(SCORES)
    (tmp_path / "train.py").write_text(CONNECTS)
    address = free_address()
    running = [
        start(address, i, tmp_path / "task.py", tmp_path / "run", program=tmp_path / "train.py", FAIL="")
        for i in range(2)
    ]
    ends = finish(running)
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert (tmp_path / "scored").read_text() == "process 0 of 21 and 21\n"


@pytest.mark.slow  # eight starts of a process
def test_a_signal_in_a_long_evaluation_ends_both_with_75_whoever_gets_it(tmp_path):
    (tmp_path / "task.py").write_text(SCORES)
    for mode, victim, number in (
        ("train", 1, signal.SIGTERM),
        ("eval", 1, signal.SIGINT),
        ("eval", 0, signal.SIGTERM),
        ("eval", 0, signal.SIGINT),
    ):
        place = f"--config={tmp_path / 'task.py'}", f"--workdir={tmp_path / 'run'}", f"--mode={mode}", "--split=valid"
        running = slurm_pair(*place, FAIL="wait")
        deadline = time.monotonic() + 120
        while not (tmp_path / "waiting").exists() and time.monotonic() < deadline and running[0].poll() is None:
            time.sleep(0.1)
        running[victim].send_signal(number)
        ends = finish(running)
        assert [code for code, _, _ in ends] == [75, 75], ends
        assert checkpoint_files.saved_steps(tmp_path / "run" / "checkpoints") == [2]
        (tmp_path / "waiting").unlink()


@pytest.mark.slow  # eight starts of a process
def test_a_signal_ends_both_with_75_while_predictions_are_written_or_shown_by_the_first(tmp_path):
    (tmp_path / "task.py").write_text(SCORES)
    place = f"--config={tmp_path / 'task.py'}", f"--workdir={tmp_path / 'run'}"
    assert [code for code, _, _ in finish(slurm_pair(*place, FAIL=""))] == [0, 0]
    for mode, victim, number in (
        ("predict", 1, signal.SIGTERM),
        ("show", 0, signal.SIGTERM),
        ("show", 1, signal.SIGINT),
    ):
        shown = f"--mode={mode}", "--split=valid", "--config.show_count=3"
        running = slurm_pair(*place, *shown, FAIL="wait")
        deadline = time.monotonic() + 120
        while not (tmp_path / "waiting").exists() and time.monotonic() < deadline and running[0].poll() is None:
            time.sleep(0.1)
        running[victim].send_signal(number)
        ends = finish(running)
        assert [code for code, _, _ in ends] == [75, 75], (mode, victim, ends)
        (tmp_path / "waiting").unlink()


def disturb(port: int, over: threading.Event) -> None:
    """Connect to a port as strangers do, again and again, and leave some connections open."""
    with contextlib.ExitStack() as stack:
        words = (
            b"",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            os.urandom(999),
            b'{"process": 1, "proc',
            b"PRI * HTTP/2.0\r\n\r\nSM",
        )
        for turn in itertools.count():
            if over.wait(0.02):
                return
            with contextlib.suppress(OSError):
                stranger = socket.create_connection(("127.0.0.1", port), timeout=1)
                stranger.sendall(words[turn % len(words)])
                if turn % 7 or turn > 700:
                    stranger.close()
                else:
                    stack.enter_context(stranger)


@pytest.mark.slow
def test_strangers_at_the_coordinators_port_disturb_a_run_at_no_moment(tmp_path):
    address, over = free_address(), threading.Event()
    strangers = threading.Thread(target=disturb, args=(int(address.rpartition(":")[2]), over))
    strangers.start()
    try:
        joint = [*RUN, f"--workdir={tmp_path}", f"--coordinator={address}", "--num-processes=2", "--config.steps=100"]
        running = []
        for i in (1, 0):
            running.append(start(*joint, f"--process-id={i}", PACE="0.01"))
            time.sleep(2)
        ends = finish(running)
    finally:
        over.set()
        strangers.join()
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert checkpoint_files.saved_steps(tmp_path / "checkpoints")[-1] == 100


def test_a_process_that_hangs_is_named_to_those_that_wait_for_it(monkeypatch):
    ends = []

    class Service:
        def wait_at_barrier(self, name: str, milliseconds: int) -> None:
            raise jax.errors.JaxRuntimeError(  # as of jaxlib 0.10.2
                "DEADLINE_EXCEEDED: Barrier timed out. Id: b1::0.\n# of tasks that reached the barrier: 1/3.\n"
                "The first task at the barrier: 0. Some timed out task names:\n12\n2\n\n\nRPC: /xla.coordination 1"
            )

    monkeypatch.setattr(processes, "alone", lambda: False)
    monkeypatch.setattr(service, "_client", Service)
    monkeypatch.setattr(processes, "end", lambda *end: ends.append(end))
    processes.barrier()
    text = "error: the others have waited for processes 2, 12 for 2 hours. Run the same command again to resume"
    assert ends == [(text, 75)]


def test_who_does_not_come_is_named_and_the_time_out_is_kept(tmp_path):
    alone = [*RUN, f"--workdir={tmp_path}", f"--coordinator={free_address()}", "--num-processes=3", "--timeout=1"]
    running = [start(*alone, f"--process-id={i}") for i in (0, 2)]
    for code, output, errors in finish(running):
        assert (code, output) == (1, "")
        assert "error: process" in errors or "error: the coordinator" in errors
        assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())  # the token is gone too


def test_a_shell_in_an_allocation_trains_alone(tmp_path):
    allocation = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    result, errors = run(*RUN, f"--workdir={tmp_path}", "--config.steps=2", **allocation)
    assert result["step"] == 2
    assert "this process is alone: SLURM_NTASKS=8" in errors


@pytest.mark.slow
def test_two_folders_of_one_name_are_no_shared_folder(tmp_path):
    address = [*RUN, f"--coordinator={free_address()}", "--num-processes=2", "--config.steps=2", "--timeout=15"]
    running = [start(*address, f"--process-id={i}", f"--workdir={tmp_path / str(i)}") for i in range(2)]
    for code, output, errors in finish(running):
        assert (code, output) == (2, "")
        assert f"process 1 on {socket.gethostname()}: does not see" in errors
        assert "Traceback" not in errors
    assert not list(tmp_path.glob("*/*"))


def test_processes_that_were_started_with_other_commands_refuse_each_other_with_the_difference(tmp_path):
    address = [*RUN, f"--coordinator={free_address()}", "--num-processes=2", f"--workdir={tmp_path / 'run'}"]
    running = [start(*address, f"--process-id={i}", f"--config.seed={i}", "--config.steps=2") for i in range(2)]
    for code, output, errors in finish(running):
        assert (code, output) == (2, "")
        assert "process 1 was started with another command than process 0:\n  config.seed: process 0 has 0" in errors
        assert "Traceback" not in errors
    assert not list((tmp_path / "run").glob("*"))


def test_the_check_of_a_task_refuses_several_processes(capfd):
    place = ["--num-processes=2", "--process-id=0", f"--coordinator={free_address()}"]
    assert cli.run([*LINEAR, "--mode=check", *place]) == 2
    assert "--mode=check runs in one process" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", None, None), "--num-processes, --process-id missing"),
        (("localhost:1", 2, 2), "--process-id=2 must be at least 0 and below --num-processes=2"),
        (("localhost:1", 2, 1, 0.0), "--timeout=0 must be more than 0 seconds"),
        (("localhost", 2, 1), "--coordinator=localhost must be HOST:PORT"),
    ],
)
def test_a_half_given_run_of_several_is_an_error(arguments, message):
    with pytest.raises(ConfigError, match=message):
        processes.start(*arguments)


def test_a_process_alone_agrees_with_itself():
    assert processes.alone()
    assert processes.first()
    assert processes.broadcast_from_first(lambda: 7) == 7


def test_one_process_is_alone_whatever_the_environment_says(monkeypatch):
    for name, value in {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert processes.find(None, 1, None) is None
    assert processes.find("b:2", 3, 0) == ("the command line", "b:2", 3, 0, None, "")
    assert processes.find(None, None, None) == ("the environment", "a:1", 2, 1, None, "")
