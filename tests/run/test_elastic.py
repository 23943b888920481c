"""A run goes on, on other devices, with the very same examples and the same losses."""

import json
import pathlib
import re
import socket
import subprocess

import pytest
from front_door import records, run, start

# Each step tells which examples it saw; dropout shows whether randomness depends on devices.
TASK = """
import jax, jax.numpy as jnp, ml_collections, numpy as np
from jtasks.metrics import Mean

def get_config():
    config = ml_collections.ConfigDict()
    config.task, config.batch_size = __file__, 16
    config.log_every, config.save_every, config.show_count = 1, 1000, 0
    config.optim = dict(name="adamw", lr=0.01)
    config.ema = 0.9
    return config

def dataset(split, config):
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    return {"x": x, "index": np.arange(50)} if split != "test" else None

def init(rng, batch, config):
    keys = jax.random.split(rng)
    return {"up": jax.random.normal(keys[0], (8, 32)) / 3, "down": jax.random.normal(keys[1], (32, 8)) / 6}

def metrics(params, batch, rng):
    hidden = jax.nn.relu(batch["x"] @ params["up"])
    if rng is not None:
        hidden = jnp.where(jax.random.bernoulli(rng, 0.7, hidden.shape), hidden / 0.7, 0.0)
    error = jnp.square(hidden @ params["down"] - batch["x"])
    names = {"index": batch["index"], "square": batch["index"] ** 2, "seed": batch["seed"] % 1000}
    return {"loss": Mean.of(error, batch["mask"])} | {k: Mean.of(v, batch["mask"]) for k, v in names.items()}

def eval_fn(params, batch, config): return metrics(params, batch, None)

def loss_fn(params, batch, rng, config):
    found = metrics(params, batch, rng)
    return found["loss"].value, found

def predict_fn(params, batch, rng, config): return {"first": (batch["x"] @ params["up"])[:, 0]}
"""


def train(
    task: pathlib.Path, workdir: pathlib.Path, steps: int, devices: list[int], *fields: str, program: object = "main.py"
) -> str:
    """Train to a step on processes that hold so many devices each; returns what the first said."""
    arguments = [f"--config={task}", f"--workdir={workdir}", f"--config.steps={steps}", *fields]
    if len(devices) == 1:
        return run(*arguments, devices=devices[0])[1]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    joint = [*arguments, f"--coordinator={address}", f"--num-processes={len(devices)}"]
    running = [start(*joint, f"--process-id={i}", program=program, devices=n, NPROC="8") for i, n in enumerate(devices)]
    try:
        ends = [process.communicate(timeout=240) for process in running]
    except subprocess.TimeoutExpired:
        raise AssertionError("a process did not end") from None
    finally:
        for process in running:
            process.kill()  # SIGTERM is only noted by a process of several
    assert [process.returncode for process in running] == [0] * len(running), ends
    assert json.loads(ends[0][0].splitlines()[-1])["step"] == steps
    return ends[0][1]


def curve(workdir: pathlib.Path) -> dict[tuple[str, int], dict[str, float]]:
    names = ("loss", "index", "square", "seed")
    return {(r["split"], r["step"]): {name: r[name] for name in names} for r in records(workdir)}


def same(found: pathlib.Path, expected: pathlib.Path) -> None:
    one, other = curve(found), curve(expected)
    last = max(step for _, step in one)
    assert [key for key in one if key[0] == "train"] == [("train", step) for step in range(1, last + 1)]
    assert last <= max(step for _, step in other)
    for key in one.keys() & other.keys():
        assert one[key] == pytest.approx(other[key], rel=1e-5), key


@pytest.fixture(scope="session")
def task(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("elastic") / "autoencoder.py"
    path.write_text(TASK)
    return path


@pytest.fixture(scope="session")
def alone(task, tmp_path_factory) -> pathlib.Path:
    """The run on one device, without a break."""
    workdir = tmp_path_factory.mktemp("elastic") / "alone"
    train(task, workdir, 15, [1])
    return workdir


def test_a_run_of_processes_with_unequal_devices_goes_on_on_a_single_device(task, alone, tmp_path):
    train(task, tmp_path, 5, [3, 1])
    train(task, tmp_path, 8, [1])
    same(tmp_path, alone)


def mesh(**sizes: int) -> list[str]:
    return [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layouts",
    [
        [([2, 2], mesh(data=2, fsdp=2)), ([1], []), ([2, 2], mesh(data=1, fsdp=4))],
        [([2, 2], []), ([8], mesh(data=1, fsdp=8)), ([3, 1], [])],
        [([3, 1], mesh(data=1, fsdp=4)), ([2, 2], mesh(tensor=2)), ([3], [])],
        [([3], []), ([1, 2], []), ([2, 1], mesh(data=1, fsdp=-1))],
    ],
)
def test_a_run_goes_on_on_any_devices(layouts, task, alone, tmp_path):
    for part, (devices, fields) in enumerate(layouts, 1):
        said = train(task, tmp_path, 5 * part, devices, *fields)
        assert part == 1 or f"resumed from step {5 * (part - 1)}" in said
    same(tmp_path, alone)


# The command, with so little host memory that a restore reads the state in several groups, two of them at once.
GROUPS = """
import sys
from jtasks.run import checkpoint
checkpoint.HOST_BYTES = 1024
group = checkpoint._groups
def groups(sizes, limit):
    found = group(sizes, limit)
    print(f"{len(found)} groups", file=sys.stderr)
    return found
checkpoint._groups = groups
from jtasks.__main__ import main
main()
"""


@pytest.mark.slow
def test_processes_restore_a_state_in_groups_onto_another_mesh(task, alone, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(GROUPS)
    layouts = ([2, 2], mesh(data=1, fsdp=4)), ([1, 1], mesh(data=1, fsdp=2)), ([2, 2], mesh(data=1, fsdp=2, tensor=2))
    for part, (devices, fields) in enumerate(layouts, 1):
        said = train(task, tmp_path / "run", 5 * part, devices, *fields, program=program)
        assert part == 1 or re.search(r"^([4-9]|\d\d) groups$", said, re.M), said
    same(tmp_path / "run", alone)


@pytest.mark.slow
def test_unequal_shares_over_processes_follow_one_device(task, tmp_path):
    shares = "--config.shares=(2,0,1,3)"
    train(task, tmp_path / "shares", 5, [3, 1], shares)
    train(task, tmp_path / "shares", 10, [1], "--config.accumulate=6")
    train(task, tmp_path / "shares", 15, [1, 1], "--config.shares=(5,1)")
    train(task, tmp_path / "alone", 15, [1], "--config.accumulate=6")
    same(tmp_path / "shares", tmp_path / "alone")


@pytest.mark.slow
def test_measured_shares_are_agreed_upon_and_remembered(task, tmp_path):
    said = train(task, tmp_path, 4, [2, 1], "--config.shares=auto")
    shares = json.loads((tmp_path / "shares.json").read_text())["shares"]
    assert f"shares {', '.join(map(str, shares))}: " in said
    assert "as recorded in" in train(task, tmp_path, 6, [2, 1], "--config.shares=auto")
    assert "as recorded in" not in train(task, tmp_path, 8, [1, 1], "--config.shares=auto")


@pytest.mark.slow  # eight starts of a process
def test_a_divided_checkpoint_serves_every_mode_on_other_devices(task, tmp_path):
    train(task, tmp_path, 5, [2, 2], "--config.mesh.fsdp=4", "--config.mesh.data=1")
    for mode, count in (("eval", 4), ("predict", 50)):
        found = []
        for devices, fields in ((1, []), (3, []), (8, ["--config.mesh.fsdp=4"])):
            arguments = [f"--config={task}", f"--workdir={tmp_path}", f"--mode={mode}", "--split=valid"]
            result, _ = run(*arguments, "--config.steps=5", *fields, devices=devices)
            path = tmp_path / "predictions-valid.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()] if mode == "predict" else []
            found.append([line["first"] for line in lines] or [v for k, v in result.items() if k != "step"])
        assert found[0] == pytest.approx(found[1], rel=1e-5)
        assert found[0] == pytest.approx(found[2], rel=1e-5)
        assert len(found[0]) == count


@pytest.mark.slow  # three runs
def test_four_devices_of_a_cpu_train_on_a_mesh_of_two_axes(tmp_path):
    arguments = ["--config=configs/igpt_digits.py", "--config.show_count=0"]
    arguments += ["--config.model.width=32", "--config.model.depth=2", "--config.model.heads=2"]
    arguments += ["--config.steps=12", "--config.batch_size=16", "--config.eval_every=12"]
    two_axes = ["--config.mesh.data=2", "--config.mesh.fsdp=2"]
    one, *others = (
        run(*arguments, *fields, f"--workdir={tmp_path / str(i)}", devices=devices)[0]["valid/loss"]
        for i, (devices, fields) in enumerate(((1, []), (4, two_axes), (4, [*two_axes, "--config.accumulate=2"])))
    )
    assert others == pytest.approx([one, one], rel=1e-4)
