"""A command, config or task that is wrong is one sentence with exit code 2, and leaves no folder."""

import pathlib

import pytest
from tiny import ROOT

from jtasks import cli

DIGITS, VIT = "--config=configs/igpt_digits.py", "--config=configs/vit_digits.py"
CONFIG = """
import ml_collections
def get_config():
    config = ml_collections.ConfigDict()
    config.task, config.steps = {task!r}, 3
    {line}
    return config
"""
TASK = """
import jax.numpy as jnp, numpy as np
from jtasks.metrics import Mean
def dataset(split, config):
    return {"x": np.ones([8, 3], np.float32)} if split == "train" else None
def init(rng, batch, config):
    return {"w": jnp.zeros(3)}
def eval_fn(params, batch, config):
    return {"loss": Mean.of(batch["x"] @ params["w"], batch["mask"])}
def loss_fn(params, batch, rng, config):
    metrics = eval_fn(params, batch, config)
    return metrics["loss"].value, metrics
"""
METRICS = """
from jtasks.metrics import Loss
def loss_fn(params, batch, rng, config):
    metrics = {{{}: Mean.of(batch["x"] @ params["w"], batch["mask"])}}
    return jnp.sum(params["w"]), {{"nats": Loss.of(batch["x"] @ params["w"], batch["mask"])}} | metrics
"""
PREDICT = """
def dataset(split, config):
    return {"x": np.ones([8, 3], np.float32)}
def predict_fn(params, batch, rng, config):
    return {"y": batch["x"] @ params["w"]}
"""


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def refused(arguments, workdir: pathlib.Path, capfd) -> str:
    """The message of a command that ends with code 2, no traceback and no folder; it is the last line."""
    assert cli.run([*arguments, f"--workdir={workdir}"]) == 2
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err and captured.out == "" and not workdir.exists()
    *before, last = captured.err.splitlines()
    assert last.startswith("error: ") and not any(line.startswith("error: ") for line in before)
    return last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DIGITS, "--config.task=jtasks.tasks.igtp"], "did you mean jtasks.tasks.igpt?"),
        ([DIGITS, "--config.task=nope.py"], "no such file"),
        ([DIGITS, "--config.task=os"], "lacks dataset(split, config)"),
        ([DIGITS, "--config.task=.."], "'..' is neither a dotted module name nor the path of a .py file"),
        ([DIGITS, "--config.mesh.data=4096"], "asks for 4096"),
        ([DIGITS, "--config.best=valid/los"], "expected one of valid/bits, valid/loss"),
        ([DIGITS, "--config.epochs=1e300"], "more than 2e9"),
        ([DIGITS, "--config.optim.freeze=.*"], "nothing is left to train"),
        ([DIGITS, "--config.data.name="], "config.data.name is empty"),
        ([DIGITS, "--config.model.num_colors=5"], "config.model.num_colors=5 must be 17"),
        ([DIGITS, "--config.model.shape=(4,4)"], "config.model.shape=(4, 4) must be (8, 8)"),
        ([DIGITS, "--config.model.shape=8"], "config.model.shape=(8,) must be (height, width)"),
        ([DIGITS, "--config.model.max_length=5"], "config.model.max_length=5 must be at least 64"),
        ([VIT, "--config.model.classes=9"], "config.model.classes=9 must be at least 10"),
        ([DIGITS, "--config.init_from=/nowhere"], "no checkpoint in config.init_from=/nowhere"),
        ([DIGITS, "--config.init_from=configs"], "no checkpoint in config.init_from=configs"),
        ([DIGITS, "--config.init_from=hf:configs"], "no config.json of a model in configs"),
        ([DIGITS, "--config.init_from=hf:"], "no config.json of a model"),
        ([DIGITS, "--mode=train", "--mode=eval"], "--mode is given 2 times: give it once"),
        ([DIGITS, "--mode=eval", "--checkpoint="], "--checkpoint=: expected newest, best, best:NAME, or the step"),
        ([DIGITS, "--mode=predict", "--output=~no_such_user/x"], "--output=~no_such_user/x: there is no such user"),
    ],
)
def test_a_wrong_command_leaves_no_folder(arguments, message, tmp_path, capfd):
    assert message in refused(arguments, tmp_path / "run", capfd)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import sys; sys.exit(0)", "get_config failed: SystemExit: 0"),
        ("config.own = config", "holds a dict or a list that holds itself"),
        ("config.own = []; config.own.append(config.own)", "a list that holds itself"),
    ],
)
def test_a_config_file_that_exits_or_holds_itself_is_refused(line, message, tmp_path, capfd):
    path = tmp_path / "experiment.py"
    path.write_text(CONFIG.format(task="jtasks.tasks.igpt", line=line))
    assert message in refused([f"--config={path}"], tmp_path / "run", capfd)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("import sys; sys.exit(0)", "line 13: SystemExit: 0"),
        ("loss_fn = None", "lacks loss_fn(params, batch, rng, config)"),
        ("LOSSES = ('other',)", "LOSSES has no meaning any more"),
        ("HF_ARCHITECTURE = 3", "HF_ARCHITECTURE must be the name of a class"),
        ("def model_args(config): return 3", "must return {field of config.model: value}, not 3"),
        ("def model_args(config): return None", "must return {field of config.model: value}, not None"),
        ("def model_args(config): return {4: 3}", "has the field 4"),
        ("def model_args(config): return {'x': print}", "config.model.x is a builtin_function_or_method"),
        ("def defaults(): return ['a']", "defaults must return {\"group.field\": default}, not ['a']"),
        ("def defaults(): return {3: 1}", "the field 3: a name is FIELD or GROUP.FIELD"),
        ("def defaults(): return {'a.b.c': 1}", "the field 'a.b.c': a name is FIELD or GROUP.FIELD"),
        ("def defaults(): return {'steps': 1}", "the field 'steps', but config.steps belongs to every config"),
        ("def defaults(): return {'optim.mine': 1}", "config.optim.mine belongs to every config"),
        ("def defaults(): return {'optim': 1}", "config.optim belongs to every config"),
        (METRICS.format("'step'"), "loss_fn calls a metric 'step', which the library measures itself"),
        (METRICS.format("'a\\nb'"), "loss_fn calls a metric 'a\\nb'"),
        (
            METRICS.format("'x': Loss.of(batch['x'][:, 0], batch['mask']), 'loss'"),
            "metric 'loss' is no Loss, but nats, x",
        ),
        (PREDICT + "def score_fn(e, o, c): return {'wall': 1.0}", "score_fn calls a metric 'wall'"),
        ("def assets(config): return ['x']", "must return {file name: text}, not ['x']"),
        ("def assets(config): return {'x': b'x'}", "must return {file name: text}"),
        ("def assets(config): return {'../x': 'x'}", "returned the name '../x'"),
    ],
)
def test_a_task_that_is_no_task_leaves_no_folder(lines, message, tmp_path, capfd):
    path, config = tmp_path / "own.py", tmp_path / "experiment.py"
    path.write_text(TASK + lines)
    config.write_text(CONFIG.format(task=str(path), line="config.batch_size = 8"))
    refused_with = cli.run([f"--config={config}", f"--workdir={tmp_path / 'run'}"])
    captured = capfd.readouterr()
    assert refused_with == 2 and message in captured.err and "Traceback" not in captured.err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_stays_and_so_does_what_a_task_put_into_a_new_one(tmp_path, capfd):
    (tmp_path / "old").mkdir()
    assert cli.run([DIGITS, "--config.best=valid/los", f"--workdir={tmp_path / 'old'}"]) == 2
    assert (tmp_path / "old").is_dir()
    path, config, data = tmp_path / "own.py", tmp_path / "experiment.py", tmp_path / "run" / "data"
    path.write_text(
        TASK
        + f"""
import pathlib
def prepare(config): pathlib.Path({str(data)!r}).mkdir(parents=True)
def model_args(config): return 3
"""
    )
    config.write_text(CONFIG.format(task=str(path), line=""))
    assert cli.run([f"--config={config}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["data"]
