"""Claims about the one door to a run: what was trained is what is looked at, or an error says why not."""

import json
import pathlib
import re
import shutil

import pytest

from jtasks import cli, python_files
from jtasks import config as configs
from jtasks.errors import ConfigError
from jtasks.run import checkpoint_files
from jtasks.run.evaluator import Evaluator
from jtasks.run.identity import recorded_splits
from jtasks.run.loop import train

LINE = """
import ml_collections
import numpy as np
from jtasks.metrics import Mean

def get_config():
    config = ml_collections.ConfigDict()
    config.task = __file__
    config.steps, config.batch_size, config.save_every, config.keep, config.eval_every = 6, 4, 2, 9, 2
    config.data = dict(n=10, slope=1.0)
    config.model = dict(scale=ml_collections.config_dict.placeholder(float))
    return config

def model_args(config): return {"scale": 1.0}
def dataset(split, config):
    if split == "test": return None
    x = np.arange(config.data.n, dtype=np.float32)
    return {"x": x, "y": x * config.data.slope}
def init(rng, batch, config): return {"w": np.zeros((), np.float32) + 0 * batch["x"][0]}
def loss_fn(params, batch, rng, config):
    metrics = eval_fn(params, batch, config)
    return metrics["loss"].value, metrics
def eval_fn(params, batch, config):
    error = (params["w"] * config.model.scale * batch["x"] - batch["y"]) ** 2
    return {"loss": Mean.of(error, batch["mask"])}
def predict_fn(params, batch, rng, config): return {"y": params["w"] * batch["x"], "index": batch["x"]}
def show_fn(examples, outputs, config): return {"text": str(len(outputs))}
def assets(config): return {"slope.txt": str(config.data.slope)}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run 20241101 of line.py, and what training printed."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "line.py").write_text(LINE)
    assert cli.run([f"--config={folder / 'line.py'}", f"--workdir={folder / '20241101'}"]) == 0
    return folder / "20241101"


@pytest.fixture
def door(trained, tmp_path, capfd):
    """Runs a command on a copy of the run, without --config; gives the exit code, the result and stderr."""
    workdir = tmp_path / "20241101"
    shutil.copytree(trained, workdir)

    def run(*arguments, config=None):
        given = [f"--config={config}"] if config else []
        code = cli.run([*given, f"--workdir={workdir}", *arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return code, json.loads(captured.out.splitlines()[-1]) if captured.out else None, captured.err

    run.workdir = workdir
    return run


def evaluations(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if record["split"] == "valid"}


@pytest.mark.parametrize("config", [True, False])
def test_without_a_config_that_of_the_run_is_taken(door, trained, config):
    code, result, errors = door("--mode=eval", "--split=valid", config=trained.parent / "line.py" if config else None)
    assert (code, errors) == (0, "")
    assert result == {"step": 6, "valid/loss": pytest.approx(evaluations(trained)[6])}


def test_a_run_without_its_config_is_told(door, trained):
    (door.workdir / "config.json").unlink()
    (door.workdir / "files.json").unlink()
    code, _, errors = door("--mode=eval", "--split=valid", config=trained.parent / "line.py")
    assert code == 0
    assert "WARNING: " in errors
    assert "has no config.json and no files.json" in errors


@pytest.mark.parametrize("name", ["config.json", "data.json", "slope.txt"])
@pytest.mark.parametrize("mode", ["train", "eval", "predict", "show", "check"])
def test_every_mode_refuses_a_run_of_which_a_file_is_lost_or_damaged(door, trained, mode, name):
    given = [f"--mode={mode}", "--split=valid", "--config.steps=8", f"--config.check.step={3 * (mode == 'check')}"]
    path = door.workdir / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, _, errors = door(*given, config=trained.parent / "line.py")
    assert (code, f"{path} is not what the run wrote\nrestore it from a copy" in errors) == (2, True)
    path.unlink()
    code, _, errors = door(*given, config=trained.parent / "line.py")
    assert (code, f"{path} is missing\nrestore it from a copy" in errors) == (2, True)
    shutil.copy(trained / name, path)
    assert door(*given)[0] == 0


def test_what_init_from_means_must_be_whole_too(door, trained, tmp_path):
    (door.workdir / "slope.txt").unlink()
    given = [f"--config={trained.parent / 'line.py'}", f"--config.init_from={door.workdir}"]
    code = cli.run([*given, f"--workdir={tmp_path / 'next'}"])
    assert code == 2


@pytest.mark.parametrize("text", ["null", "[1]", "{", '{"config.json": 3}', '{"config.json": ""}'])
def test_damaged_checksums_of_a_run_are_told(door, text):
    (door.workdir / "files.json").write_text(text)
    code, _, errors = door("--mode=eval", "--split=valid")
    assert code == 2
    assert "files.json is damaged" in errors or "is not what the run wrote" in errors


def test_training_goes_on_by_the_folder_alone(door):
    code, result, errors = door("--config.steps=8")
    assert (code, result["step"]) == (0, 8)
    assert "config.steps: 6 -> 8" in errors


@pytest.mark.parametrize("change", ["seed=1", "data.slope=2.0", "model.scale=2.0", "data.n=11"])
@pytest.mark.parametrize("mode", ["train", "eval", "predict", "show", "check"])
def test_every_mode_refuses_another_config_with_the_difference(door, mode, change):
    steps = ["--config.steps=8"] if mode == "train" else ["--config.check.step=3"] if mode == "check" else []
    code, _, errors = door(f"--mode={mode}", "--split=valid", f"--config.{change}", *steps)
    assert code == 2
    assert f"holds a run with another config:\n  config.{change.partition('=')[0]}: " in errors


@pytest.mark.parametrize("mode", ["train", "eval", "predict", "show"])
def test_every_mode_refuses_other_data_unless_that_is_allowed(door, mode):
    path = door.workdir.parent / "line.py"
    path.write_text(LINE.replace('return {"x": x,', 'x[7] += split == "valid"; return {"x": x,'))
    arguments = [f"--mode={mode}", "--split=valid", f"--config.task={path}", "--config.steps=8"]
    code, _, errors = door(*arguments)
    assert code == 2
    assert "valid: examples differ (x, y)" in errors
    code, _, errors = door(*arguments, "--config.data.allow_changes=True")
    assert code == 0
    assert "WARNING: the data differs from that of the run" in errors


def test_allowed_changes_of_the_data_do_not_reach_to_the_assets_or_further_parts_of_the_run(door):
    allowed = "--config.data.allow_changes=True"
    code, _, errors = door("--mode=eval", "--split=valid", "--config.data.slope=2.0", allowed)
    assert code == 2
    assert "slope.txt is not what this config makes" in errors
    assert door("--config.steps=8", "--config.data.n=11", allowed)[0] == 0
    assert door("--config.steps=8", "--config.data.n=12")[0] == 2
    assert door("--config.steps=10")[0] == 0  # with 11 examples, as the part before


def test_an_error_in_another_folder_than_that_of_the_run_names_both(door, trained, tmp_path, monkeypatch):
    here = pathlib.Path.cwd()
    monkeypatch.chdir(tmp_path)
    code, _, errors = door("--mode=eval", "--split=test")
    assert code == 1
    assert f"config.json are from {here}, where the run was started; this is {tmp_path}" in errors
    for folder, config in ((here, None), (tmp_path, trained.parent / "line.py")):
        monkeypatch.chdir(folder)
        assert "where the run was started" not in door("--mode=eval", "--split=test", config=config)[2]


def test_showing_no_examples_is_an_error(door):
    code, _, errors = door("--mode=show", "--config.show_count=0")
    assert code == 2 and "config.show_count=0 shows nothing" in errors


def test_the_asked_checkpoint_is_taken(door):
    losses = evaluations(door.workdir)
    for step in (2, 4, 6):
        _, result, _ = door("--mode=eval", "--split=valid", f"--checkpoint={step}")
        assert result == {"step": step, "valid/loss": pytest.approx(losses[step])}
    for mode, step in (("min", 6), ("max", 2)):
        _, result, _ = door(
            "--mode=eval",
            "--split=valid",
            "--checkpoint=best",
            "--config.best=valid/loss",
            f"--config.best_mode={mode}",
        )
        assert result["step"] == step


@pytest.mark.parametrize(
    ("which", "code", "message"),
    [
        ("best", 2, "--checkpoint=best needs config.best"),
        ("newset", 2, "--checkpoint=newset: expected newest, best, best:NAME, or the step"),
        ("²", 2, "expected newest, best, best:NAME, or the step"),
        ("5", 1, "no checkpoint of step 5"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_told(door, which, code, message):
    found, _, errors = door("--mode=eval", "--split=valid", f"--checkpoint={which}")
    assert found == code
    assert message in errors


def test_the_best_is_finite_and_kept_and_lines_that_are_lost_are_told(door):
    lines = (door.workdir / "metrics.jsonl").read_text().splitlines()
    lines = [re.sub(', "crc32": "[0-9a-f]{8}"', "", line) for line in lines]  # as of an older run
    lines = [line.replace('"loss": ', '"loss": "nan", "was": ') if '"step": 6' in line else line for line in lines]
    (door.workdir / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "spl']) + "\n")
    arguments = ["--mode=eval", "--split=valid", "--checkpoint=best"]
    _, result, errors = door(*arguments, "--config.best=valid/loss")
    assert result["step"] == 4
    assert "metrics.jsonl: 1 damaged line left out" in errors
    shutil.rmtree(door.workdir / "checkpoints" / "4")
    assert door(*arguments, "--config.best=valid/loss")[1]["step"] == 2
    code, _, errors = door(*arguments, "--config.best=valid/accuracy")
    assert code == 1
    assert "no finite valid/accuracy of a checkpoint that is kept (2, 6)" in errors


def test_nan_and_infinity_are_never_the_best():
    values = {10: float("nan"), 20: 0.5, 30: 0.4, 40: float("-inf"), 50: float("inf"), 60: 0.4}
    assert checkpoint_files.best(values, "min") == 30
    assert checkpoint_files.best(values, "max") == 20
    assert checkpoint_files.best({1: float("nan")}, "min") is None


@pytest.mark.parametrize("text", ["null", "3", "[]", "[1]", "{}", '{"a": 1}', "{"])
def test_checksums_of_another_kind_are_damage(door, text):
    path = door.workdir / "checkpoints" / "6" / "checksums.json"
    path.write_text(text)
    _, result, errors = door("--mode=eval", "--split=valid")
    assert result["step"] == 4
    assert "6 is damaged: " in errors
    code, _, errors = door("--mode=eval", "--split=valid", "--checkpoint=6")
    assert code == 1
    assert "6 is damaged: " in errors


@pytest.mark.parametrize("evaluated", [True, False])
def test_fewer_steps_than_the_run_has_give_what_is_true_of_its_state(door, evaluated):
    losses = evaluations(door.workdir)
    if not evaluated:
        (door.workdir / "metrics.jsonl").unlink()
    code, result, errors = door("--config.steps=3")
    assert code == 0
    assert result == {"step": 6, "valid/loss": pytest.approx(losses[6])}
    assert "holds step 6, past config.steps=3" in errors
    assert json.loads((door.workdir / "config.json").read_text())["steps"] == 6


@pytest.mark.parametrize("name", ["20241101", "2024", "²", "٣", "007", "0"])
@pytest.mark.parametrize("inner", ["", "checkpoints", "checkpoints/4"])
def test_a_run_whose_name_is_a_number_is_a_run(trained, tmp_path, name, inner):
    source = tmp_path / name / inner
    shutil.copytree(trained / inner, source)
    folder, step = checkpoint_files.locate(str(source))
    assert (folder, step) == (tmp_path / name / "checkpoints", "4" if inner.endswith("4") else "")
    assert checkpoint_files.saved_steps(folder) in ([2, 4, 6], [4])


def test_folders_of_odd_digits_are_no_checkpoints(trained, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    for name in ("²", "٣", "007", "0"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert checkpoint_files.saved_steps(tmp_path / "checkpoints") == [2, 4, 6]


def test_an_output_called_index_does_not_hide_the_index(door, tmp_path):
    _, result, _ = door("--mode=predict", "--split=valid", f"--output={tmp_path / 'out'}")
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions-valid.jsonl").read_text().splitlines()]
    assert result == {"predictions": str(tmp_path / "out" / "predictions-valid.jsonl")}
    assert [line["index"] for line in lines] == list(range(10))
    assert [line["output"]["index"] for line in lines] == list(map(float, range(10)))


@pytest.mark.parametrize("mode", ["predict", "show"])
def test_a_folder_that_cannot_be_written_to_is_told_first(door, tmp_path, mode):
    (tmp_path / "file").write_text("")
    code, _, errors = door(f"--mode={mode}", "--split=valid", f"--output={tmp_path / 'file' / 'x'}")
    assert code == 2
    assert "cannot be written to (Not a directory): give another one, --output=FOLDER" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=", "--mode=eval"], "--workdir= is empty"),
        (["--workdir=https://host/run"], "is a URL: give a local folder, s3://"),
        (["--workdir=hdfs://host/run", "--mode=eval"], "is a URL: give a local folder"),
        (["--mode=eval"], "needs --workdir=DIR"),
        (["--mode=check"], "--config=CONFIG[:PRESET] is missing: "),
        (["--workdir=nowhere", "--mode=eval"], "as nowhere holds no config.json"),
        (
            ["--workdir=nowhere", "--checkpoint=best"],
            "--checkpoint is for --mode=eval, predict, embed, probe, show, export",
        ),
    ],
)
def test_a_folder_that_is_none_is_told(arguments, message, capfd):
    assert cli.run(arguments) == 2
    assert message in capfd.readouterr().err


def test_a_task_that_moved_is_told_and_can_be_named(door):
    record = json.loads((door.workdir / "config.json").read_text())
    here = record["task"]
    (door.workdir / "config.json").write_text(json.dumps(record | {"task": "/gone/line.py"}))
    (door.workdir / "files.json").unlink()  # whose digest tells that the file was changed by hand
    code, _, errors = door("--mode=eval", "--split=valid")
    assert code == 2
    assert "names the task /gone/line.py, which is not there: give --config.task=FILE.py" in errors
    assert door("--mode=eval", "--split=valid", f"--config.task={here}")[0] == 0


COUNTED = (
    LINE.replace(
        'if split == "test": return None',
        'if split != "train": return Rows(split, config.data.slope)',
    )
    + """
READ, OFFSET = {"valid": 0, "test": 0}, 0.0

class Rows(list):
    def __init__(self, split, slope):
        super().__init__({"x": np.float32(i), "y": np.float32(i * slope + OFFSET)} for i in range(7))
        self.split = split

    def __getitem__(self, index):
        READ[self.split] += 1
        return super().__getitem__(index)
"""
)


def test_a_split_is_read_and_recorded_when_it_is_first_evaluated_and_compared_from_then_on(tmp_path, monkeypatch):
    path = str(tmp_path / "line.py")
    (tmp_path / "line.py").write_text(COUNTED)
    config = configs.load(path, ["--config.show_count=0"])
    seen = []

    def evaluated(self, state, step):
        module = self.job.task
        seen.append((step, dict(module.READ), set(recorded_splits(tmp_path / "run"))))
        if step != 2:
            original(self, state, step)

    original = Evaluator.run
    monkeypatch.setattr(Evaluator, "run", evaluated)
    train(config, tmp_path / "run")
    assert [(step, used) for step, read, used in seen] == [(2, {"train"}), (4, {"train"}), (6, {"train", "valid"})]
    reads = [(read["valid"], read["test"]) for step, read, used in seen]
    assert reads[0] == reads[1]  # a batch of each is tried before step 1
    assert reads[2][0] > reads[0][0] and reads[2][1] == reads[0][1]
    assert recorded_splits(tmp_path / "run") == {"train", "valid", "test"}
    monkeypatch.setattr(python_files.load(path), "OFFSET", 1.0)
    with pytest.raises(ConfigError, match=r"(?s)valid: examples differ.*test: examples differ"):
        train(configs.load(path, ["--config.steps=8"]), tmp_path / "run")
