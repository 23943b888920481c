"""Nothing that happens between steps loses a run: errors of the user's, steps that are not finite, lost folders."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from task_head import HEAD

from jtasks import cli
from jtasks import config as configs
from jtasks.errors import CheckpointError
from jtasks.run import checkpoint, checkpoint_files, checkpoint_writer
from jtasks.run.compile import Compiled
from jtasks.run.loop import train

# A linear model on made numbers. While the file `fault` holds a function's name, that function fails once steps are
# logged, for what fails earlier is found before step 1.
TASK = (
    HEAD
    + """
FAULT = pathlib.Path(__file__).with_name("fault")

def fault(function):
    told = FAULT.exists() and FAULT.with_name("run").joinpath("environment.json").exists() and FAULT.read_text()
    if told == function:
        raise KeyError("picture")
    if told == f"{function} exits":
        sys.exit(0)

class Rows:
    def __init__(self, arrays): self.arrays, self.read = arrays, 0
    def __len__(self): return 64
    def __getitem__(self, i):
        self.read += 1
        if self.read > 100: fault("data")
        return {k: v[i] for k, v in self.arrays.items()}

def dataset(split, config):
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    arrays = {"x": x, "y": x @ np.array([1, 2, 3], np.float32), "index": np.arange(64)}
    return None if split == "test" else Rows(arrays) if split == "train" else arrays

def init(rng, batch, config):
    return {"w": jnp.zeros(3), "unused": jnp.zeros(2)}

def loss_fn(params, batch, rng, config):
    loss = jnp.square(batch["x"] @ params["w"] - batch["y"])
    metrics = {"loss": Mean.of(loss, batch["mask"])}
    return metrics["loss"].value, metrics

def eval_fn(params, batch, config):
    fault("eval_fn")
    return loss_fn(params, batch, None, config)[1]

def predict_fn(params, batch, rng, config):
    fault("predict_fn")
    return {"y": batch["x"] @ params["w"]}

def score_fn(examples, outputs, config):
    fault("score_fn")
    return {"error": float(np.mean([abs(e["y"] - o["y"]) for e, o in zip(examples, outputs)]))}

def show_fn(examples, outputs, config):
    fault("show_fn")
    return {"y": str([float(o["y"]) for o in outputs])}
"""
)


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(TASK)
    return path


@pytest.fixture
def traced_again(monkeypatch):
    """The checks before step 1 leave no trace, as in a resumed run: the functions can still fail later."""

    def shapes(self, *arguments):
        return jax.eval_shape(lambda *given: self.function.__wrapped__(*given), *arguments)

    monkeypatch.setattr(Compiled, "shapes", shapes)


def records(workdir: pathlib.Path, split: str = "train") -> dict[int, dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == split}


def assert_same_end(one: pathlib.Path, two: pathlib.Path) -> None:
    ends = (checkpoint.arrays(folder / "checkpoints" / "20") for folder in (one, two))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert records(one, "valid").keys() == records(two, "valid").keys()


@pytest.mark.parametrize("place", ["eval_fn", "predict_fn", "score_fn", "show_fn", "show_fn exits", "data"])
def test_an_error_in_a_function_of_the_task_leaves_the_state_saved_and_the_mended_run_goes_on(
    place, task, tmp_path, capfd, traced_again
):
    command, fault = [f"--config={task}", f"--workdir={tmp_path / 'run'}"], task.with_name("fault")
    train(configs.load(str(task)), tmp_path / "whole")
    fault.write_text(place)
    assert cli.run(command) == 1
    errors = capfd.readouterr().err
    steps = checkpoint_files.saved_steps(tmp_path / "run" / "checkpoints")
    if place == "data":
        assert steps and 0 < steps[0] < 20
    else:
        assert steps == [2 if place in ("eval_fn", "predict_fn") else 20]  # they are traced beside step 2
        first = next(line for line in errors.splitlines() if line.startswith("error: "))
        assert place.split()[0] in first
        assert "SystemExit" in first or "KeyError: 'picture'" in first
    assert f"step {steps[0]} is saved: fix the error and run the same command again" in errors
    fault.unlink()
    assert cli.run(command) == 0
    assert f"resumed from step {steps[0]}" in capfd.readouterr().err
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_an_error_between_saves_saves_too(task, tmp_path, capfd, traced_again):
    command = [f"--config={task}", f"--workdir={tmp_path / 'run'}", "--config.eval_every=7"]
    train(configs.load(str(task), command[2:]), tmp_path / "whole")
    task.with_name("fault").write_text("eval_fn")
    assert cli.run(command) == 1
    assert "step 2 is saved" in capfd.readouterr().err
    task.with_name("fault").unlink()
    assert cli.run(command) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_an_update_that_is_not_finite_is_skipped_and_a_run_of_nothing_else_fails(task, tmp_path, capfd):
    # 0 / 0 in the update of a parameter without gradient
    command = [f"--config={task}", f"--workdir={tmp_path / 'run'}", "--config.optim.name=adam", "--config.optim.eps=0"]
    assert cli.run([*command, "--config.steps=8", "--config.save_every=2"]) == 1
    output, errors = capfd.readouterr()
    assert not output
    assert "the update was not finite in 8 steps in a row" in errors
    assert "step 2 is not saved: it is one of 2 in a row" in errors
    assert checkpoint_files.saved_steps(tmp_path / "run" / "checkpoints") == []


def test_bad_steps_never_push_good_checkpoints_out(task, tmp_path):
    spoiled = task.read_text().replace('- batch["y"])\n    metrics', '- batch["y"]) / FINITE\n    metrics')
    more = ["--config.save_every=2", "--config.keep=2", "--config.steps=10"]
    task.write_text(spoiled + "\nFINITE = 1.0\n")
    train(configs.load(str(task), more), tmp_path / "run")
    bad = tmp_path / "bad" / "task.py"
    bad.parent.mkdir()
    bad.write_text(spoiled + "\nFINITE = 0.0\n")
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    (tmp_path / "again" / "files.json").unlink()  # config.json is edited
    (tmp_path / "again" / "config.json").write_text(
        (tmp_path / "again" / "config.json").read_text().replace(str(task), str(bad))
    )
    arguments = [f"--config={bad}", f"--workdir={tmp_path / 'again'}", *more, "--config.steps=40"]
    assert cli.run(arguments) == 1
    assert checkpoint_files.saved_steps(tmp_path / "again" / "checkpoints") == [8, 10]


def test_bad_steps_in_a_row_are_found_long_before_the_next_line_of_the_log(task, tmp_path, capfd):
    command = [f"--config={task}", f"--workdir={tmp_path / 'run'}", "--config.optim.name=adam", "--config.optim.eps=0"]
    assert cli.run([*command, "--config.steps=5000", "--config.log_every=5000"]) == 1
    errors = capfd.readouterr().err
    assert "not finite in 10 steps in a row, the last of them step 10" in errors


def test_the_rate_that_is_logged_is_the_one_of_the_update(task, tmp_path):
    task.write_text(
        task.read_text().replace('- batch["y"])\n', "- batch[\"y\"]) * jnp.where(batch['index'] == 9, jnp.nan, 1)\n")
    )
    train(configs.load(str(task), ["--config.optim.schedule=linear"]), tmp_path / "run")
    lines = records(tmp_path / "run")
    made = 0
    for line in lines.values():
        assert line["lr"] == pytest.approx(0.01 * (1 - made / 20), rel=1e-5)
        made += not line.get("skipped")
    assert made < 20


def test_the_result_is_json_whatever_the_numbers(task, tmp_path, capfd):
    task.write_text(
        task.read_text().replace(
            'return {"error": float(', 'return {"worst": float("inf"), "error": float("nan") * float('
        )
    )
    assert cli.run([f"--config={task}", f"--workdir={tmp_path / 'run'}"]) == 0
    line = json.loads(capfd.readouterr().out.splitlines()[-1], parse_constant=pytest.fail)
    assert line["valid/error"] == "nan"
    assert line["valid/worst"] == "inf"


def test_a_folder_that_is_deleted_meanwhile_is_not_made_again(task, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    with checkpoint_writer.Checkpoints(folder) as checkpoints:
        folder.parent.rmdir()
        with pytest.raises(CheckpointError, match="cannot be saved"):
            checkpoints.save({"x": jax.numpy.ones(3)}, 1)
    assert not folder.parent.exists()


def test_a_run_whose_folder_is_deleted_meanwhile_ends_with_an_error_and_makes_no_other(task, tmp_path, capfd):
    workdir = tmp_path / "run"
    task.write_text(
        task.read_text()
        .replace("import pathlib, sys", "import pathlib, shutil, sys")
        .replace('    fault("eval_fn")\n', f"    shutil.rmtree({str(workdir)!r}, ignore_errors=True)\n")
    )
    run = [f"--config={task}", f"--workdir={workdir}", "--config.eval_every=5", "--config.save_every=10"]
    assert cli.run(run) == 1
    errors = capfd.readouterr().err
    assert "step 20 cannot be saved" in errors
    assert "No such file or directory" in errors
    assert not workdir.exists()
