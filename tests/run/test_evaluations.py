"""Further evaluations, their best checkpoints, and the end of a run that does not improve any more."""

import json
import pathlib
import re
import types

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from task_head import HEAD

from jtasks import cli
from jtasks import config as configs
from jtasks.errors import ConfigError, DataError
from jtasks.run import checkpoint, checkpoint_files, patience, watch
from jtasks.run.hooks import Hooks
from jtasks.run.loop import train

# A linear model that learns `slope`; the loss of valid falls first, and then rises as w passes `config.data.slope`.
TASK = (
    HEAD
    + """
def defaults():
    return {"data.slope": 1.0, "data.n": 64, "data.fails": ""}

def dataset(split, config):
    if config.data.n == 0: return None
    x = np.random.default_rng(len(split)).normal(size=config.data.n).astype(np.float32)
    return {"x": x, "y": x * (3.0 if split == "train" else config.data.slope)}

def init(rng, batch, config):
    return {"w": jnp.zeros(())}

def loss_fn(params, batch, rng, config):
    metrics = {"loss": Mean.of(jnp.square(batch["x"] * params["w"] - batch["y"]), batch["mask"])}
    return metrics["loss"].value, metrics

def predict_fn(params, batch, rng, config):
    return {"y": batch["x"] * params["w"]}

def score_fn(examples, outputs, config):
    return {"slope": config.data.slope, "worst": max(float(abs(e["y"] - o["y"])) for e, o in zip(examples, outputs))}
"""
)
EVALS = """
    config.evals = dict(steep=dict(data=dict(slope=2.5), every=8, best="loss"), flat=dict(data=dict(n=9)))
    return config
"""
RUN = [
    "--config.optim.lr=0.03",
    "--config.steps=40",
    "--config.eval_every=4",
    "--config.save_every=6",
    "--config.data.slope=1.5",
]
STOP = ["--config.stop.metric=valid/loss", "--config.stop.patience=2"]


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(TASK.replace("    return config\n", EVALS, 1))
    return str(path)


def records(workdir: pathlib.Path, split: str, file: str = "metrics.jsonl") -> dict[int, dict]:
    lines = map(json.loads, (workdir / file).read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == split}


def rule(patience, mode="min", min_delta=0.0, **more):
    return types.SimpleNamespace(metric="valid/loss", patience=patience, mode=mode, min_delta=min_delta, **more)


def train_until_killed(config, workdir, step):
    """Train as a process does that is gone after `step`: it saves nothing more."""
    original = Hooks.hold

    def hold(self, state, now):
        original(self, state, now)
        if now == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hooks, "hold", hold)
        patch.setattr(Hooks, "_save_and_wait", Hooks._wait_for_save)
        with pytest.raises(KeyboardInterrupt):
            train(config, workdir)


def test_each_evaluation_has_its_rows_its_best_checkpoint_and_its_place_in_the_result(task, tmp_path):
    workdir = tmp_path / "run"
    result = train(configs.load(task, [*RUN, "--config.keep=1", "--config.save_every=4"]), workdir)
    assert [*records(workdir, "steep")] == [8, 16, 24, 32, 40]
    assert [*records(workdir, "flat")] == [*records(workdir, "valid")] == [*range(4, 41, 4)]
    assert {"step", "valid/loss", "test/loss", "steep/loss", "flat/worst"} <= result.keys()
    assert (result["steep/slope"], result["flat/slope"]) == (2.5, 1.5)  # each sees its own config.data
    losses = {step: line["loss"] for step, line in records(workdir, "steep").items()}
    best = min(losses, key=lambda step: losses[step])
    assert best < 40 and checkpoint_files.saved_steps(workdir / "checkpoints") == [best, 40]


def test_the_command_evaluates_one_by_its_name_and_the_best_checkpoint_of_one(task, tmp_path, capfd):
    command = [f"--config={task}", f"--workdir={tmp_path / 'run'}", *RUN, "--config.save_every=4"]
    assert cli.run(command) == 0
    trained = json.loads(capfd.readouterr().out)
    assert cli.run([*command, "--mode=eval", "--eval=steep"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found == {name: value for name, value in trained.items() if name.partition("/")[0] in ("step", "steep")}
    assert cli.run([*command, "--mode=eval", "--eval=flat", "--checkpoint=best:steep"]) == 0
    losses = {step: line["loss"] for step, line in records(tmp_path / "run", "steep").items()}
    assert json.loads(capfd.readouterr().out)["step"] == min(losses, key=lambda step: losses[step]) < 40
    for wrong, said in (
        (["--eval=steeep"], "--eval=steeep is not among config.evals, which has flat, steep"),
        (["--eval=flat", "--split=test"], "instead of --split"),
        (["--checkpoint=best:flat"], "--checkpoint=best:flat needs config.evals.flat.best"),
    ):
        assert cli.run([*command, "--mode=eval", *wrong]) == 2
        assert said in capfd.readouterr().err


def test_other_data_of_an_evaluation_is_refused_when_the_run_goes_on(task, tmp_path):
    train(configs.load(task, [*RUN, "--config.steps=8"]), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"(?s)the data differs.*flat: 9 -> 10 examples"):
        train(configs.load(task, [*RUN, "--config.evals.flat.data.n=10"]), tmp_path / "run")
    more = [*RUN, "--config.evals.flat.data.n=10", "--config.data.allow_changes=True"]
    assert train(configs.load(task, more), tmp_path / "run")["step"] == 40


def test_a_run_stops_at_the_same_step_with_the_same_bits_however_often_it_is_killed(task, tmp_path, capfd):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = configs.load(task, [*RUN, *STOP])
    result = train(config, whole)
    losses = {step: line["loss"] for step, line in records(whole, "valid").items()}
    best = min(losses, key=lambda step: losses[step])
    assert result["step"] == best + 8 == max(losses) < 40
    assert {"test/worst", "valid/worst", "steep/loss", "flat/worst"} <= result.keys()
    assert max(records(whole, "train")) == result["step"], "the metrics of the last training steps are lost"
    for step in (7, 12, 13, 18, 20):
        train_until_killed(config, parts, step)
    assert train(config, parts) == result == train(config, parts)
    one, two = (checkpoint.arrays(folder / "checkpoints" / str(result["step"])) for folder in (whole, parts))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    without_times = [[r.get("crc32") for r in records(folder, "valid").values()] for folder in (whole, parts)]
    assert without_times[0] == without_times[1]
    assert "valid/loss has not improved in 2 evaluations; the last time was at step 12" in capfd.readouterr().err
    assert train(configs.load(task, [*RUN, *STOP, "--config.stop.patience=100"]), parts)["step"] == 40


def test_a_plateau_lowers_the_rate_and_a_run_killed_five_times_has_the_same_rates_and_bits(task, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ["--config.plateau.metric=valid/loss", "--config.plateau.patience=2", "--config.plateau.min_factor=0.2"]
    config = configs.load(task, [*RUN, *more, "--config.optim.schedule=linear", "--config.optim.momentum=0.3"])
    result = train(config, whole)
    losses = {step: line["loss"] for step, line in records(whole, "valid").items()}
    reduced, best, waited, factor = {}, float("inf"), 0, 1.0
    for step, loss in losses.items():
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        factor = max(factor * 0.5, 0.2) if waited and waited % 2 == 0 else factor
        reduced[step] = factor
    assert set(reduced.values()) == {1.0, 0.5, 0.25, 0.2}
    plain = np.float32(0.03) * (1 - np.arange(40, dtype=np.float32) / 40)
    rates = [plain[step - 1] * reduced.get((step - 1) // 4 * 4, 1.0) for step in range(1, 41)]
    found = records(whole, "train")
    np.testing.assert_allclose([found[step]["lr"] for step in range(1, 41)], rates, rtol=1e-5)
    assert "<title>step 1\nschedule 0.03\nlr" in re.sub("train 0.03", "lr", (whole / "report.html").read_text())
    for at, step in enumerate((7, 12, 20, 31, 36)):
        train_until_killed(config, parts, step)
        if at == 3:  # what the checkpoint notes is enough
            (parts / "metrics.jsonl").unlink()
    assert train(config, parts) == result
    one, two = (checkpoint.arrays(folder / "checkpoints" / "40") for folder in (whole, parts))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert not any("lr_factor" in name for name in one)
    assert train(configs.load(task, [*RUN, "--config.optim.momentum=0.3", "--config.steps=42"]), parts)["step"] == 42


@pytest.mark.parametrize(
    "fields", [["--config.mesh.data=1", "--config.mesh.fsdp=8"], ["--config.accumulate=4"]], ids=str
)
def test_a_plateau_is_the_same_however_a_batch_is_split(task, tmp_path, fields):
    more = [*RUN, "--config.plateau.metric=valid/loss", "--config.plateau.patience=1", "--config.steps=24"]
    rates = []
    for name, split in (("one", []), ("other", fields)):
        train(configs.load(task, [*more, *split]), tmp_path / name)
        rates.append([line["lr"] for line in records(tmp_path / name, "train").values()])
    assert rates[0] == rates[1] and min(rates[0]) < max(rates[0])


def test_a_score_can_stop_a_run_and_choose_its_checkpoint(task, tmp_path):
    more = ["--config.stop.metric=steep/worst", "--config.stop.patience=1", "--config.best=steep/worst"]
    result = train(configs.load(task, [*RUN, *more, "--config.steps=80"]), tmp_path / "run")
    worst = {step: line["worst"] for step, line in records(tmp_path / "run", "steep").items()}
    assert result["step"] == max(worst) < 80 and min(worst.values()) < result["steep/worst"]
    assert "worst" not in records(tmp_path / "run", "valid")[4]


def test_another_process_evaluates_the_checkpoints_as_they_come_and_training_keeps_the_best(task, tmp_path):
    workdir, steps = tmp_path / "run", iter((8, 24, 40))
    fields = [*RUN, "--config.eval_every=0", "--config.save_every=8", "--config.keep=5", "--config.evals.steep.every=0"]
    config = configs.load(task, fields)

    def wait(seconds):  # training goes on meanwhile
        step = next(steps)
        train(config, workdir) if step == 40 else train_until_killed(config, workdir, step + 1)

    result = watch.run(config, workdir, wait)
    assert next(steps, None) is None
    watched = records(workdir, "valid", "watch.jsonl")
    assert [*watched] == [8, 16, 24, 32, 40] and [*records(workdir, "test", "watch.jsonl")][-1] == 40
    assert {"steep/worst", "flat/loss", "valid/worst", "test/loss"} <= result.keys()
    trained = records(workdir, "valid")
    assert {step: line["loss"] for step, line in watched.items() if step in trained} == {
        step: line["loss"] for step, line in trained.items()
    }
    assert watch.run(config, workdir, wait) == result  # nothing is evaluated again
    best = min(watched, key=lambda step: watched[step]["loss"])
    more = [*fields, "--config.steps=48", "--config.keep=1", "--config.best=valid/loss"]
    train(configs.load(task, more), workdir)
    assert best not in trained and best in checkpoint_files.saved_steps(workdir / "checkpoints")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["stop.metric=loss"], "config.stop.metric='loss' must be valid/METRIC or flat/METRIC or steep/METRIC"),
        (["stop.metric=test/loss"], "must be valid/METRIC"),
        (["stop.metric=valid/lost"], "config.stop.metric=valid/lost: expected one of valid/loss"),
        (["stop.metric=valid/loss", "eval_every=0"], "config.stop.metric=valid/loss needs evaluations on the way"),
        (["stop.patience=0"], "config.stop.patience must be at least 1, not 0"),
        (["plateau.factor=1.0"], "config.plateau.factor must be in (0, 1), not 1.0"),
        (["evals.flat.every=-1"], "config.evals.flat.every must be at least 0"),
        (["evals.flat.split=valdi"], "config.evals.flat.split must be train, valid or test, not 'valdi', did you mean"),
        (["evals.flat.best=lost"], "config.evals.flat.best=lost: expected one of flat/loss"),
        (["evals.flat.data.n=0"], "config.evals.flat: the task has no valid split of this data"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_a_wrong_field_is_one_clear_message_before_the_first_step(task, tmp_path, fields, said):
    with pytest.raises((ConfigError, DataError)) as error:
        train(configs.load(task, [*RUN, *(f"--config.{field}" for field in fields)]), tmp_path / "run")
    assert said in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("evals", "said"),
    [
        ({"valid": {}}, "config.evals.valid: a name has letters, digits, - and _, and is not the name of a split"),
        ({"a b": {}}, "config.evals.a b: a name has letters"),
        ({"a": {"evry": 2}}, "unknown field config.evals.a.evry, did you mean config.evals.a.every?"),
        ({"a": {"data": {"slop": 2}}}, "unknown field config.evals.a.data.slop, did you mean"),
        ({"a": {"data": {"tokenizer": "x"}}}, "config.data.tokenizer is the same for the whole run"),
        ({"a": {"data": {"slope": "x"}}}, "config.evals.a.data.slope must be float, not str"),
        ({"a": {"data": 3}}, "config.evals.a.data must be a dict of fields, not 3"),
        ({"a": 3}, "config.evals.a must be a dict of fields, not 3"),
    ],
    ids=str,
)
def test_a_wrong_evaluation_is_named(task, evals, said):
    with pytest.raises(ConfigError) as error:
        configs.freeze({"task": task, "steps": 1, "evals": evals})
    assert said in str(error.value)


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, float("nan"), float("inf")]), max_size=12),
    st.integers(1, 4),
    st.sampled_from(["min", "max"]),
    st.sampled_from([0.0, 0.7]),
)
def test_patience_ends_as_it_is_defined(values, count, mode, delta):
    """Against the definition read aloud: some `count` evaluations in a row, none better than all before them."""
    sign = 1 if mode == "min" else -1
    ended, best, row = False, float("inf"), 0
    for value in values:
        if sign * value < best - delta:
            best, row = sign * value, 0
        else:
            row += 1
            ended = ended or row == count
    history = {10 * step: value for step, value in enumerate(values, 1)}
    assert patience.is_exhausted(history, rule(count, mode, delta)) == ended
