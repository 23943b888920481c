"""Whatever fails in a run, what was trained is kept; what must fail fails before step 1."""

import json
import pathlib

import numpy as np
import pytest

from jtasks import cli
from jtasks import config as configs
from jtasks.run import checkpoint, checkpoint_files
from jtasks.run.loop import train

# A linear model; the file `fault` beside it holds a statement for each function that is to fail.
TASK = """
import json, pathlib
import jax, jax.numpy as jnp, ml_collections, numpy as np
from jtasks.metrics import Mean

def fault(name, **given):
    faults = json.loads(pathlib.Path(__file__).with_name("faults.json").read_text())
    exec(faults.get(name, ""), globals() | given)

def get_config():
    config = ml_collections.ConfigDict()
    config.task = __file__
    config.steps, config.batch_size, config.log_every, config.save_every = 6, 8, 2, 0
    config.optim = dict(name="sgd", lr=0.01)
    return config

class Rows:
    def __init__(self, split):
        self.split = split
    def __len__(self):
        return 16
    def __getitem__(self, i):
        fault("data", i=i, split=self.split)
        x = np.random.default_rng(i).normal(size=3).astype(np.float32)
        return {"x": x, "y": np.float32(x @ [1, 2, 3])}

def dataset(split, config):
    return Rows(split) if split != "test" else None

def init(rng, batch, config):
    return {"w": jnp.zeros(3)}

def eval_fn(params, batch, config):
    fault("eval_fn")
    return {"loss": Mean.of(jnp.square(batch["x"] @ params["w"] - batch["y"]), batch["mask"])}

def loss_fn(params, batch, rng, config):
    metrics = eval_fn(params, batch, config)
    return metrics["loss"].value, metrics

def predict_fn(params, batch, rng, config):
    return {"y": batch["x"] @ params["w"]}

def score_fn(examples, outputs, config):
    fault("score_fn", outputs=outputs)
    return {"error": np.mean([abs(e["y"] - o["y"]) for e, o in zip(examples, outputs)])}

def show_fn(examples, outputs, config):
    fault("show_fn", outputs=outputs)
    return {"text": str(len(outputs))}
"""
LATE = "if any(o['y'] != 0 for o in outputs): "  # not on the zeros before step 1


@pytest.fixture
def task(tmp_path):
    def write(**faults: str) -> str:
        (tmp_path / "faults.json").write_text(json.dumps(faults))
        path = tmp_path / "mishap.py"
        path.write_text(TASK)
        return str(path)

    return write


def saved(tmp_path: pathlib.Path, name: str = "run") -> list[int]:
    return checkpoint_files.saved_steps(tmp_path / name / "checkpoints")


@pytest.mark.parametrize(
    "faults",
    [
        {"score_fn": LATE + "raise KeyError('score')"},
        {"show_fn": LATE + "raise ValueError('no such picture')"},
        {"show_fn": LATE + "raise MemoryError"},
        {"data": "if split == 'valid' and pathlib.Path(__file__).with_name('run').joinpath('metrics.jsonl').exists():"
         " raise OSError(5, 'input/output error')"},
    ],
    ids=["score_fn", "show_fn", "memory", "data"],
)  # fmt: skip
def test_an_error_at_the_end_leaves_the_state_saved_and_the_same_command_ends_the_run(faults, task, tmp_path, capfd):
    arguments = [f"--config={task(**faults)}", f"--workdir={tmp_path / 'run'}", "--config.data.threads=1"]
    assert cli.run(arguments) == 1
    assert saved(tmp_path) == [6]
    assert "step 6 is saved: fix the error and run the same command again" in capfd.readouterr().err
    task()
    assert cli.run(arguments) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    whole = train(configs.load(task()), tmp_path / "whole")
    assert result == whole
    arrays = [checkpoint.arrays(tmp_path / name / "checkpoints" / "6")["params/w"] for name in ("run", "whole")]
    np.testing.assert_array_equal(*arrays)


@pytest.mark.parametrize(
    ("faults", "changes", "message"),
    [
        ({"show_fn": "raise KeyError('picture')"}, [], "show_fn raised KeyError: 'picture'"),
        ({"score_fn": "outputs.no_such_method()"}, [], "score_fn raised AttributeError"),
        ({"eval_fn": "undefined_name"}, [], "NameError"),
        ({}, ["--config.best=valid/accuracy"], "expected one of valid/error, valid/loss"),
    ],
)
def test_what_must_fail_fails_before_step_1(faults, changes, message, task, tmp_path, capfd):
    assert cli.run([f"--config={task(**faults)}", f"--workdir={tmp_path / 'run'}", *changes]) in (1, 2)
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'return metrics["loss"].value, metrics',
            'return metrics["loss"].value',
            "return (loss, metrics): a scalar and",
        ),
        ('return metrics["loss"].value, metrics', 'return 1.0, {"loss": 1.0}', "so it has no gradient"),
        ('return {"y": batch["x"] @ params["w"]}', 'return {"y": params["w"]}', "each with one row an example"),
        (
            "value, metrics",
            'value, {"other": metrics["loss"]}',
            "have no term of the loss; they are other",
        ),
        ('return {"x": x,', 'return {"x" if self.split == "train" else "z": x,', "'x' is absent, in train float32[3]"),
    ],
)
def test_a_task_that_breaks_the_contract_is_told_by_a_sentence(old, new, message, task, tmp_path, capfd):
    path = pathlib.Path(task())
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert cli.run([f"--config={path}", f"--workdir={tmp_path / 'run'}"]) in (1, 2)
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_scores_that_fail_on_zeros_alone_do_not_hold_up_a_run(task, tmp_path, capfd):
    path = task(score_fn="1 / sum(abs(o['y']) for o in outputs)")
    assert train(configs.load(path), tmp_path / "run")["step"] == 6
    assert "score_fn fails on outputs of zeros" in capfd.readouterr().err
