"""The loop: what it keeps, what it skips, when it gives up."""

import json
import pathlib
import shutil

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image
from task_head import HEAD

from jtasks import cli
from jtasks import config as configs
from jtasks.errors import ConfigError
from jtasks.run import checkpoint, checkpoint_files
from jtasks.run.loop import train

# A linear model on made numbers; BAD is an expression that is true for the examples that spoil a step.
LINEAR = (
    HEAD
    + """
def dataset(split, config):
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    return {{"x": x, "y": x @ np.array([1, 2, 3], np.float32), "index": np.arange(64)}} if split != "test" else None

def init(rng, batch, config):
    return {{"w": jnp.zeros(3)}}

def eval_fn(params, batch, config):
    return {{"loss": Mean.of(jnp.square(batch["x"] @ params["w"] - batch["y"]), batch["mask"])}}

def loss_fn(params, batch, rng, config):
    index = batch["index"]
    loss = jnp.square(batch["x"] @ params["w"] - batch["y"]) * jnp.where({bad}, jnp.nan, 1.0)
    metrics = {{"loss": Mean.of(loss, batch["mask"])}}
    return metrics["loss"].value, metrics
"""
)


@pytest.fixture
def linear(tmp_path):
    def write(bad: str = "index < 0") -> str:
        path = tmp_path / "linear.py"
        path.write_text(LINEAR.format(bad=bad))
        return str(path)

    return write


def records(workdir: pathlib.Path, split: str = "train") -> dict[int, dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == split}


def test_a_step_that_is_not_finite_is_skipped_counted_and_training_goes_on(linear, tmp_path):
    found = train(configs.load(linear("index == 7")), tmp_path / "run")
    lines = records(tmp_path / "run")
    skipped = [step for step, line in lines.items() if line.get("skipped")]
    assert len(skipped) in (2, 3)  # 20 batches of 8 are two epochs and a half
    assert all("loss" not in lines[step] for step in skipped)
    assert all(np.isfinite(line["loss"]) for step, line in lines.items() if step not in skipped)
    assert found["valid/loss"] < lines[1]["loss"]


def test_too_many_bad_steps_in_a_row_end_the_run_with_the_step_the_examples_and_the_leaves(linear, tmp_path, capfd):
    arguments = [f"--config={linear('index >= 0')}", f"--workdir={tmp_path / 'run'}", "--config.max_bad_steps=3"]
    assert cli.run(arguments) == 1
    errors = capfd.readouterr().err
    assert "not finite in 3 steps in a row, the last of them step 3" in errors
    assert "metrics/loss" in errors
    assert "gradient/w" in errors
    listed = json.loads(errors.partition("examples of step 3: ")[2].partition("\n")[0])
    assert len(listed) == 8
    assert set(listed) <= set(range(64))
    assert "Traceback" not in errors


def test_bad_steps_that_are_not_in_a_row_do_not_end_the_run(linear, tmp_path):
    config = configs.load(linear("(index == 7) | (index == 9)"), ["--config.max_bad_steps=3", "--config.steps=30"])
    assert train(config, tmp_path / "run")["step"] == 30


def test_replaying_a_bad_step_tells_its_examples_and_where_it_went_wrong(linear, tmp_path, capfd):
    path = linear("index == 7")
    train(configs.load(path), tmp_path / "run")
    bad = next(step for step, line in records(tmp_path / "run").items() if line.get("skipped"))
    capfd.readouterr()
    arguments = [f"--config={path}", f"--workdir={tmp_path / 'run'}", "--mode=check", f"--config.check.step={bad}"]
    assert cli.run(arguments) == 0
    errors = capfd.readouterr().err
    assert "linear.py" in errors
    assert "7" in errors


def test_the_best_checkpoint_is_kept_beside_the_newest(linear, tmp_path):
    more = ["--config.optim.lr=0.3", "--config.eval_every=2", "--config.save_every=2", "--config.keep=1"]
    config = configs.load(linear(), [*more, "--config.best=valid/loss", "--config.optim.schedule=linear"])
    train(config, tmp_path / "run")
    losses = {step: line["loss"] for step, line in records(tmp_path / "run", "valid").items()}
    best = min(losses, key=lambda step: losses[step])
    assert checkpoint_files.saved_steps(tmp_path / "run" / "checkpoints") == sorted({best, 20})


def test_the_average_is_what_is_evaluated_and_saved(linear, tmp_path):
    path = linear()
    plain = train(configs.load(path), tmp_path / "plain")
    average = train(configs.load(path, ["--config.ema=0.9"]), tmp_path / "average")
    assert average["valid/loss"] > plain["valid/loss"]  # it lags behind
    saved = checkpoint.arrays(tmp_path / "average" / "checkpoints" / "20")
    last = checkpoint.arrays(tmp_path / "plain" / "checkpoints" / "20")["params/w"]
    np.testing.assert_array_equal(saved["params/w"], last)
    assert np.abs(saved["ema_params/w"]).max() < np.abs(last).max()


def test_a_run_in_two_parts_equals_one_in_a_single_part(linear, tmp_path):
    path = linear()
    whole = train(configs.load(path, ["--config.save_every=5"]), tmp_path / "whole")
    train(configs.load(path, ["--config.steps=10"]), tmp_path / "parts")
    assert train(configs.load(path), tmp_path / "parts") == whole
    one, two = (checkpoint.arrays(tmp_path / name / "checkpoints" / "20") for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_leads_to_the_same_end(linear, tmp_path, capfd):
    path, workdir = linear(), tmp_path / "run"
    whole = train(configs.load(path, ["--config.save_every=5"]), workdir)
    file = next(p for p in (workdir / "checkpoints" / "20").rglob("*") if p.is_file() and p.stat().st_size > 100)
    content = bytearray(file.read_bytes())
    content[50] ^= 4
    file.write_bytes(content)
    assert train(configs.load(path, ["--config.save_every=5"]), workdir) == whole
    errors = capfd.readouterr().err
    assert "WARNING: checkpoint" in errors
    assert file.name in errors
    assert "resumed from step 15" in errors


def test_only_damaged_checkpoints_are_an_error_and_no_fresh_start(linear, tmp_path, capfd):
    path, workdir = linear(), tmp_path / "run"
    train(configs.load(path), workdir)
    (workdir / "checkpoints" / "20" / "checksums.json").unlink()
    assert cli.run([f"--config={path}", f"--workdir={workdir}"]) == 1
    assert "no undamaged checkpoint is left" in capfd.readouterr().err


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> pathlib.Path:
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                folder / "train" / name / f"{i}.png"
            )
    (folder / "train" / "dog" / "3.png").write_bytes(b"no picture")
    return folder


def test_a_corrupt_picture_is_named_and_can_be_replaced_always_by_the_same(pictures, tmp_path, capfd):
    run = ["--config=configs/mnist.py", f"--config.data.name=folder:{pictures}", "--config.steps=4"]
    run += ["--config.batch_size=8", "--config.show_count=0"]
    assert cli.run([*run, f"--workdir={tmp_path / 'strict'}"]) == 1
    errors = capfd.readouterr().err
    assert "dog/3.png" in errors
    assert "example " in errors
    ends = []
    for name in ("one", "two"):
        assert cli.run([*run, f"--workdir={tmp_path / name}", "--config.data.skip_bad=1"]) == 0
        captured = capfd.readouterr()
        assert "replaced by another (1 of at most 1)" in captured.err
        ends.append(captured.out)
    assert ends[0] == ends[1]
    shutil.copy(pictures / "train" / "dog" / "3.png", pictures / "train" / "cat" / "3.png")
    assert cli.run([*run, f"--workdir={tmp_path / 'three'}", "--config.data.skip_bad=1"]) == 1
    assert "more than config.data.skip_bad=1 are bad" in capfd.readouterr().err


def test_a_loss_that_mixes_examples_refuses_to_be_split(linear, tmp_path, capfd):
    path = linear()
    pathlib.Path(path).write_text(pathlib.Path(path).read_text() + "\nMIXES_EXAMPLES = True\n")
    run = [f"--config={path}", f"--workdir={tmp_path / 'run'}", "--config.batch_size=16"]
    assert cli.run([*run, "--config.accumulate=2"]) == 2
    assert "mixes the examples of a batch" in capfd.readouterr().err
    assert cli.run(run) == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def eval_fn(params, batch, config):\n    return {'accuracy': Mean.of(batch['x'])}",
            "eval_fn have no term of the loss",
        ),
        (
            "def eval_fn(params, batch, config):\n    return {'loss': batch['x'].mean()}",
            "must be a dict of jtasks.metrics.Mean",
        ),
        ("def loss_fn(params, batch, rng, config):\n    return 0.0, {}", "so it has no gradient"),
    ],
)
def test_metrics_that_break_the_contract_are_told_in_its_words(body, message, linear, tmp_path, capfd):
    path = linear()
    pathlib.Path(path).write_text(pathlib.Path(path).read_text() + body + "\n")
    assert cli.run([f"--config={path}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert message in capfd.readouterr().err


def test_training_takes_a_config_made_in_python_and_a_workdir_as_text_and_checks_them(linear, tmp_path):
    made = configs.load(linear(), ["--config.steps=4"]).to_dict()
    found = train(ml_collections.ConfigDict(made), str(tmp_path / "run"))
    assert found["step"] == 4 and (tmp_path / "run" / "config.json").is_file()
    with pytest.raises(ConfigError, match=r"config\.steps must be at least 0"):
        train(made | {"steps": -3}, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_large_file_that_changed_since_the_save_is_found_on_resuming_and_the_run_goes_on_from_the_one_before(
    linear, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(checkpoint_files, "SMALL", 1)  # bytes: every file counts as large
    flags = ["--config.save_every=5", "--config.keep=3", "--config.eval_every=0"]
    train(configs.load(linear(), flags), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for step in (20, 15):
        path = max((tmp_path / "run/checkpoints" / str(step)).glob("ocdbt*/d/*"), key=lambda path: path.stat().st_size)
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    longer = configs.load(linear(), [*flags, "--config.steps=25"])
    ends = [train(longer, tmp_path / name) for name in ("whole", "run")]
    errors = capfd.readouterr().err
    assert all(f"checkpoints/{step} is damaged: ocdbt.process_0/d/" in errors for step in (20, 15))
    assert "resumed from step 10 of" in errors
    assert ends[0] == ends[1]
    assert records(tmp_path / "whole").keys() == records(tmp_path / "run").keys()
