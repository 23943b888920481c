"""What people and scripts rely on: the command, its output, its exit codes, its messages."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from front_door import DIGITS, LINEAR, ROOT, TINY_GPT, records, run
from PIL import Image

from jtasks import cli, modes
from jtasks import config as configs
from jtasks.run import checkpoint, signals
from jtasks.run.loop import train

SHORT = ["--config.steps=4", "--config.batch_size=8", "--config.log_every=2", "--config.show_count=2"]
CONFIGS = {
    "igpt_digits.py": TINY_GPT,
    "igpt_mnist.py": [*TINY_GPT, "--config.data.name=digits", "--config.data.num_colors=4"],
    "mnist.py": ["--config.data.name=digits"],
    "igpt_cifar.py": [*TINY_GPT, "--config.data.num_colors=8"],
    "igpt_cifar_classify.py": [*TINY_GPT, "--config.data.num_colors=8"],
    "vit_digits.py": ["--config.model.width=16", "--config.model.depth=2"],
    "vit_cifar.py": ["--config.model.width=18", "--config.model.depth=2", "--config.data.augment=imagenet"],
    "igpt_cifar_probe.py": [*TINY_GPT, "--config.data.num_colors=8", "--config.model.layer=1"],
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> pathlib.Path:
    """A folder of 8x8 color pictures of two classes."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 9)):
        for label, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(128 * label, 128 * (label + 1), (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def size(path: pathlib.Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


FAST = ("igpt_digits.py", "igpt_cifar_classify.py", "vit_digits.py", "mnist.py")  # one of each task and head


@pytest.mark.parametrize(
    "config", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in CONFIGS]
)
def test_every_config_trains_evaluates_and_shows_on_eight_devices(config, pictures, tmp_path):
    data = [f"--config.data.name=folder:{pictures}"] if "cifar" in config else []
    arguments = [f"--config=configs/{config}", f"--workdir={tmp_path}", *CONFIGS[config], *data, *SHORT]
    result, errors = run(*arguments, devices=8)
    assert result["step"] == 4
    assert np.isfinite([result["valid/loss"], result["test/loss"]]).all()
    assert {(record["step"], record["split"]) for record in records(tmp_path)} == {
        (2, "train"),
        (4, "train"),
        (4, "valid"),
        (4, "test"),
    }
    assert "8 x cpu" in errors
    assert "\x1b" not in errors
    assert (tmp_path / "checkpoints" / "4").is_dir()
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 8
    assert list((tmp_path / "tensorboard").iterdir())
    assert size(next((tmp_path / "show").glob("*-test-4.png")))[0] > 100


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[pathlib.Path, dict]:
    """A finished run."""
    workdir = tmp_path_factory.mktemp("trained")
    changes = [*DIGITS[1:], "--config.steps=6", "--config.save_every=2", "--config.keep=2"]
    return workdir, train(configs.load("configs/igpt_digits.py", changes), workdir)


@pytest.fixture
def command(capfd):
    """Runs a command in this process; gives the last line of stdout as JSON, and stderr."""

    def command(*arguments: str, code: int = 0) -> tuple[dict, str]:
        assert cli.run(arguments) == code
        output, errors = capfd.readouterr()
        return json.loads(output.splitlines()[-1]) if output else {}, errors

    return command


def test_a_finished_run_says_so_and_gives_the_same_result(trained, command):
    workdir, result = trained
    again, errors = command(*DIGITS, f"--workdir={workdir}", "--config.steps=6")
    assert again == result
    assert "finished" in errors
    assert "parameters" not in errors


def test_the_newest_checkpoints_are_kept(trained):
    assert sorted(p.name for p in (trained[0] / "checkpoints").iterdir()) == ["4", "6"]


def test_eval_gives_what_training_gave_on_other_devices_too(trained):
    workdir, result = trained
    evaluated, _ = run(f"--workdir={workdir}", "--mode=eval", "--split=valid", devices=2)
    assert evaluated["step"] == 6
    assert evaluated["valid/loss"] == pytest.approx(result["valid/loss"], rel=1e-5)


def test_predict_writes_a_line_an_example_in_order(trained, command):
    workdir, _ = trained
    result, _ = command(*DIGITS, f"--workdir={workdir}", "--mode=predict", "--config.steps=6")
    lines = [json.loads(line) for line in pathlib.Path(result["predictions"]).read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(360))
    assert np.shape(lines[0]["tokens"]) == (1, 64)


def test_show_writes_a_grid_of_given_samples_and_original(trained, command):
    workdir, _ = trained
    result, _ = command(*DIGITS, f"--workdir={workdir}", "--mode=show", "--split=train", "--config.steps=6")
    (path,) = map(pathlib.Path, result["shown"])
    assert path == workdir / "show" / "completions-train-6.png"
    assert size(path) == (3 * 68 + 4, 2 * 68 + 20)


def test_a_task_in_a_file_of_the_users_own_has_equal_metrics_on_one_and_four_devices(tmp_path):
    arguments = [*LINEAR, "--config.steps=20", "--config.log_every=5"]
    one, _ = run(*arguments, f"--workdir={tmp_path / 'one'}", devices=1)
    four, _ = run(*arguments, f"--workdir={tmp_path / 'four'}", devices=4)
    assert one == pytest.approx(four, rel=1e-4)


def test_the_library_imports_nothing_by_itself():
    heavy = "{'jax', 'numpy', 'flax', 'absl'} & {m.partition('.')[0] for m in sys.modules}"
    code = f"import sys, jtasks, jtasks.cli; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)


def test_list_gives_each_shipped_config_with_what_it_is(capsys):
    assert cli.run(["--list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["mnist"].startswith("MNIST with the classic two-convolution network")
    assert lines.keys() == {path.stem for path in (ROOT / "configs").glob("*.py")}


def failing(tmp_path: pathlib.Path, name: str, body: str) -> str:
    path = tmp_path / name
    path.write_text(body)
    return str(path)


GOOD = "import ml_collections\ndef get_config():\n  c = ml_collections.ConfigDict()\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--config=configs/igpt_digit.py"], 2, "did you mean configs/igpt_digits.py"),
        (["--config=configs/igpt_cifar.py:xl"], 2, "preset 'xl'"),
        ([*DIGITS, "--config.model.widht=3"], 2, "config.model.widht, did you mean config.model.width"),
        ([*DIGITS, "--config.stpes=3"], 2, "did you mean config.steps"),
        ([*DIGITS, "--config.steps=many"], 2, "steps"),
        ([*DIGITS, "--config.precision=float64"], 2, "float32 or bfloat16"),
        ([*DIGITS, "--config.optim.name=adamm"], 2, "did you mean adam"),
        ([*DIGITS, "--config.optim.schedule=cosinus"], 2, "did you mean cosine"),
        ([*DIGITS, "--config.shares=3,1"], 2, "has 2 numbers, but config.mesh.data has 8 devices"),
        ([*DIGITS, "--config.mesh.fsdp=8", "--config.sharding=(('head', ('fsdp',)), ('head', 'x'))"], 2, "not an axis"),
        ([*DIGITS, "--config.data.name=digit"], 2, "digits"),
        ([*DIGITS, "--config.data.name=cifar10", "--config.data.dir=/nowhere"], 1, "cifar-10-binary.tar.gz"),
        ([*DIGITS, "--config.data.palette=/nowhere.npy"], 2, "no palette at /nowhere.npy"),
        ([*DIGITS, "--config.init_from=/nowhere"], 2, "no checkpoint in config.init_from=/nowhere"),
        ([*DIGITS, "--config.data.name=folder:/absent"], 2, "no folder of pictures at /absent"),
        ([*DIGITS, "--config.best=valid/lost"], 2, "expected one of valid/bits, valid/loss"),
        ([*DIGITS, "--config.mesh.data=3"], 2, "there are 8 devices"),
        ([*DIGITS, "--mode=eval"], 1, "no checkpoint in"),
        ([*DIGITS, "--wrokdir=x"], 2, "unknown argument --wrokdir=x"),
    ],
)
def test_bad_input_gives_one_clear_message_and_the_exit_code(arguments, code, message, tmp_path, capfd):
    assert cli.run([*arguments, f"--workdir={tmp_path / 'run'}", *SHORT[:1]]) == code
    captured = capfd.readouterr()
    assert message in captured.err.splitlines()[-1] or message in captured.err
    assert "error: " in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("def get_config(:\n", 2, "line 1"),
        ("import absent_module\n", 2, "absent_module"),
        ("x = 1\n", 2, "has no get_config()"),
        (GOOD + "  c.task = 'jtasks.tasks.minst'\n  c.steps = 1\n  return c\n", 2, "did you mean jtasks.tasks.mnist"),
        (GOOD + "  c.task = __file__\n  c.steps = 1\n  return c\n", 2, "lacks dataset(split, config); init"),
        (GOOD + "  c.stepz = 1\n  return c\n", 2, "did you mean config.steps"),
        (GOOD + "  c.steps = 'many'\n  return c\n", 2, "config.steps must be int, not str"),
        (GOOD + "  c.task = 'jtasks.tasks.mnist'\n  return c\n", 2, "config.steps is 0 and so is config.epochs"),
        ("def get_config():\n  return {}\n", 2, "must return a ml_collections.ConfigDict, not dict"),
    ],
)
def test_a_bad_config_file_is_told_by_name(body, code, message, tmp_path, capfd):
    path = failing(tmp_path, "wrong.py", body)
    assert cli.run([f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == code
    errors = capfd.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(("file", "folder"), [("checkpoints", ""), ("", "config.json"), ("", "metrics.jsonl")])
def test_a_file_in_the_place_of_a_folder_is_told_before_training(file, folder, tmp_path, capfd):
    (tmp_path / file).touch()
    (tmp_path / folder).mkdir(exist_ok=True)
    assert cli.run([*DIGITS, f"--workdir={tmp_path}"]) == 2
    assert f"{tmp_path / (file or folder)} is a f" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["a file", "unwritable", "a name that is too long"])
def test_a_workdir_that_cannot_be_one_is_told(place, tmp_path, capfd):
    workdir = pathlib.Path("/proc/jtasks") if place == "unwritable" else tmp_path / ("x" * 300)
    if place == "a file":
        workdir = tmp_path / "file"
        workdir.write_text("")
    assert cli.run([*DIGITS, f"--workdir={workdir}"]) == 2
    assert f"--workdir={workdir}" in capfd.readouterr().err


def test_an_error_inside_a_task_is_told_with_its_line_and_no_traceback(tmp_path, capfd):
    source = (ROOT / "tests/data_tasks/rotation.py").read_text()
    path = failing(tmp_path, "broken.py", source + "\ndef init(rng, batch, config):\n    raise KeyError('oops')\n")
    assert cli.run([f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == 1
    errors = capfd.readouterr().err
    assert "error: init raised KeyError: 'oops'\nat " in errors and "raise KeyError('oops')" in errors
    assert "Traceback" not in errors


def test_another_model_is_refused_with_the_difference(trained, command):
    wider = [argument.replace("width=16", "width=32") for argument in DIGITS]
    _, errors = command(*wider, f"--workdir={trained[0]}", "--config.steps=6", code=2)
    assert "config.model.width: 16 -> 32" in errors


def test_another_optimizer_is_allowed_and_reported(trained, command, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    result, errors = command(*DIGITS, f"--workdir={workdir}", "--config.steps=8", "--config.optim.lr=0.01")
    assert result["step"] == 8
    assert "config.optim.lr: 0.003 -> 0.01" in errors
    assert "config.steps: 6 -> 8" in errors
    assert "resumed from step 6" in errors


def test_pretrained_parameters_are_taken_over_and_reported(trained, command, tmp_path):
    workdir, _ = trained
    arguments = ["--config=configs/igpt_cifar_probe.py", "--config.data.name=digits", "--config.data.num_colors=0"]
    arguments += [*TINY_GPT, *SHORT, "--config.model.layer=1", f"--config.init_from={workdir}"]
    _, errors = command(*arguments, f"--workdir={tmp_path}")
    assert "init_from: 17 parameters taken" in errors
    assert "init_from: 2 parameters left\n  classifier/bias float32[10]\n  classifier/kernel float32[16, 10]" in errors
    assert "frozen" in errors
    before, after = checkpoint.arrays(workdir / "checkpoints" / "6"), checkpoint.arrays(tmp_path / "checkpoints" / "4")
    for name in (name for name in before if name.startswith("params/")):
        np.testing.assert_array_equal(after[name], before[name])
    assert np.abs(after["params/classifier/bias"]).max() > 0
    assert not any("mu/blocks" in name for name in after)


def test_names_from_files_command_no_terminal(tmp_path, capfd):
    (tmp_path / "a\x1b]0;title\x07\x9b2J\u202e.py").write_text("raise ValueError('\\x1b[31m\\rred')")
    assert cli.run(["--mode=check", f"--config={next(tmp_path.iterdir())}"]) != 0
    written = capfd.readouterr().err
    assert "error: " in written and r"\x1b" in written
    assert not set("\x1b\x07\x9b\u202e\r") & set(written)


def test_what_a_stopped_run_could_not_send_to_its_bucket_is_printed(monkeypatch, capsys):
    def stop(*_):
        stopped = signals.Stopped("stopped at step 3 of 9")
        stopped.add_note("what is not in the bucket is in /kept")
        raise stopped

    monkeypatch.setattr(modes, "run", stop)
    assert cli.run(["--config=mnist", "--workdir=run"]) == 75
    assert capsys.readouterr().err == "stopped at step 3 of 9\nwhat is not in the bucket is in /kept\n"
