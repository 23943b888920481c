"""Claims that hold for every fine-tuning task: classify, tag, qa, choice."""

import functools
import re

import finetune
import jax
import numpy as np
import pytest
import tiny
from finetune import ROOT, config, prepared
from front_door import records, run, untimed

from jtasks import optim, task, testing
from jtasks.data import pipeline
from jtasks.data.batch_plan import BatchPlan
from jtasks.distributed import sharding
from jtasks.errors import ConfigError
from jtasks.faults import Fault
from jtasks.metrics import Mean
from jtasks.run import checkpoint, evaluate, job, step
from jtasks.run.compile import Compiled
from jtasks.run.loop import train
from jtasks.run.restore import open_run
from jtasks.testing import contract, padding

CONFIGS = pytest.mark.parametrize("name", finetune.CONFIGS)
BY_LENGTH = pytest.mark.parametrize("name", [name for name in finetune.CONFIGS if "swag" not in name])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@functools.cache
def parameters(name, folder):
    """A job, its first batch, and parameters that all show in the output."""
    made = prepared(name, folder)
    examples = made.require("train")
    batch = made.batch_at(examples, BatchPlan(pipeline.size(examples), 0, 8, shuffle=True), 0)
    params = tiny.drawn(lambda b: made.task.init(jax.random.key(0), b, made.config), batch, std=0.1)
    return made, batch, params


@BY_LENGTH
def test_what_is_cut_off_is_nothing(name, folder):
    made, batch, params = parameters(name, folder)
    lengths = np.asarray(batch["segment_ids"].sum(1))
    short = lengths <= np.sort(lengths)[1]
    batch, length = batch | {"mask": batch["mask"] * short}, lengths[short].max()
    assert length < batch["segment_ids"].shape[1]
    cut = {key: x[:, :length] if key in made.task.SEQUENCE_KEYS else x for key, x in batch.items()}
    sums = jax.jit(lambda params, batch: made.task.eval_fn(params, batch, made.config))
    whole, short = (jax.device_get(sums(params, b)) for b in (batch, cut))
    for key in whole:
        assert whole[key].count == short[key].count
        np.testing.assert_allclose(whole[key].total, short[key].total, rtol=2e-5, err_msg=key)


@BY_LENGTH
def test_evaluation_and_predictions_are_the_same_by_length_and_by_rows(name, folder):
    made, _, params = parameters(name, folder)
    by_rows = job.Job(made.task, prepared(name, folder, "batch_tokens=0", "batch_size=8").config, made.mesh)
    examples = made.require("valid")
    assert made.plan(examples, shuffle=False).varies and not by_rows.plan(examples, shuffle=False).varies
    one, two = (evaluate.make(each)(params, examples) for each in (made, by_rows))
    assert one.keys() == two.keys()
    for key, value in one.items():
        np.testing.assert_allclose(value, two[key], rtol=2e-5, err_msg=key)
    one, two = (evaluate.scores(each, evaluate.predictors(each), params, examples) for each in (made, by_rows))
    assert one == pytest.approx(two, rel=1e-4) and one


@CONFIGS
def test_padding_rows_are_nothing(name, folder):
    made, batch, params = parameters(name, folder)
    keep = np.arange(len(batch["mask"])) < 5
    masked = batch | {"mask": batch["mask"] * keep}
    alone = {key: x[:5] for key, x in batch.items()}
    sums = jax.jit(lambda params, batch: made.task.eval_fn(params, batch, made.config))
    for key, mean in jax.device_get(sums(params, masked)).items():
        assert isinstance(mean, Mean)
        np.testing.assert_allclose(mean.total, sums(params, alone)[key].total, rtol=2e-5, err_msg=key)
        assert mean.count == sums(params, alone)[key].count


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name[:2] == "ss" else pytest.mark.slow) for name in finetune.CONFIGS],
)
def test_every_config_runs_through_the_front_door_on_eight_devices(name, tmp_path):
    overrides = [f"--config.{change}" for change in finetune.CONFIGS[name](tmp_path)]
    short = ["--config.steps=3", "--config.batch_size=8", "--config.log_every=1", "--config.show_count=2"]
    result, errors = run(
        f"--config=configs/{name}",
        f"--workdir={tmp_path / 'run'}",
        *overrides,
        *short,
        devices=8,
    )
    assert result["step"] == 3 and np.isfinite(list(result.values())).all()
    assert {split for split in ("valid", "test") if f"{split}/loss" in result} == {"valid", "test"}
    assert len(list((tmp_path / "run" / "show").glob("*-test-3.txt"))) == 1
    assert (tmp_path / "run" / "tokenizer.json").exists()
    assert errors.count("padding: ") == ("swag" not in name)


ALONE = ["data.valid=", "data.test=", "show_count=0"]  # nothing to evaluate, and so to compile
RUN = ["epochs=2.0", "save_every=2", "log_every=1", *ALONE]


@pytest.mark.slow
def test_a_run_by_length_compiles_once_a_bucket_and_resumes_bit_for_bit(tmp_path, monkeypatch, capsys):
    steps = []
    make = Compiled.__init__
    monkeypatch.setattr(Compiled, "__init__", lambda self, *rest: (steps.append(self), make(self, *rest))[0])
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    fixed = [*RUN[1:], "optim.decay_steps=99"]
    first = train(config("sst2.py", tmp_path, "epochs=2.0", *fixed), whole)
    errors = capsys.readouterr().err
    made = prepared("sst2.py", tmp_path, *RUN)
    examples = made.require("train")
    plan = made.plan(examples, shuffle=True)
    assert first["step"] == plan.steps(2.0) >= 5
    assert len(steps[0].programs) == len(plan.shapes()) == 2

    # The padding told at the start is what the batches hold.
    lengths = made.lengths(examples)
    batches = [pipeline.batch_at(examples, plan, s)["tokens"].size for s in range(plan.steps(1))]
    told = re.search(r"padding: ([\d.]+)% of the tokens in batches by length, ([\d.]+)% at 16", errors)
    assert float(told[1]) == pytest.approx(100 * (1 - lengths.sum() / sum(batches)), abs=0.051)
    assert float(told[2]) == pytest.approx(100 * (1 - lengths.sum() / (16 * 64)), abs=0.051)

    train(config("sst2.py", tmp_path, *fixed, "epochs=0.0", "steps=3"), halves)
    with pytest.raises(ConfigError, match=r"config.batch_tokens: 256 -> 512"):
        train(config("sst2.py", tmp_path, "epochs=2.0", *fixed, "batch_tokens=512"), halves)
    assert train(config("sst2.py", tmp_path, "epochs=2.0", *fixed), halves) == first
    assert untimed(halves) == untimed(whole) and len(untimed(whole)) == first["step"]
    newest = f"checkpoints/{first['step']}"
    one, two = (checkpoint.arrays(run / newest) for run in (whole, halves))
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    assert all(r["tokens_per_second"] > r["examples_per_second"] > 0 for r in records(whole)[2:])


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_devices_change_nothing_but_rounding(accumulate, folder):
    made, _, params = parameters("sst2.py", folder)
    quiet = ["model.dropout=0.0", "model.attention_dropout=0.0", "model.classifier_dropout=0.0"]
    settings = prepared("sst2.py", folder, *quiet, f"accumulate={accumulate}").config
    examples = made.require("train")
    losses = []
    for devices in (1, 8):
        here = job.Job(made.task, settings, tiny.mesh(devices))
        plan = here.plan(examples, shuffle=True)
        optimizer, schedule = optim.optimizer(settings.optim, 4, params)
        trainable = optim.trainable(settings.optim, params)
        run = jax.jit(step.make_train_step(made.task, settings, optimizer, schedule, trainable, here.mesh))
        state = step.init_state(jax.device_put(params, sharding.replicated_sharding(here.mesh)), optimizer, ema=False)
        losses.append([])
        for batch in here.batches(examples, plan, range(4)):
            state, report = run(state, batch)
            losses[-1].append(float(report.metrics["loss"].value))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.slow
def test_a_body_is_taken_from_another_run_with_its_tokenizer(tmp_path, capsys):
    source = tmp_path / "source"
    train(config("sst2.py", tmp_path, "steps=2", "epochs=0.0", "data.length=24", *ALONE), source)
    capsys.readouterr()
    changes = ["steps=2", "epochs=0.0", f"init_from={source}", f"data.tokenizer={source}", *ALONE]
    train(config("wnut17.py", tmp_path, *changes), tmp_path / "tagger")
    report = capsys.readouterr().err
    left = re.search(r"init_from: 2 parameters left\n(.*?)init_from", report, re.DOTALL)
    assert re.findall(r"^  (\S+)", left[1], re.MULTILINE) == ["classifier/bias", "classifier/kernel"]
    unused = re.search(r"init_from: 4 parameters unused\n(.*?)\n\w", report, re.DOTALL)
    assert {name.split("/")[0] for name in re.findall(r"^  (\S+)", unused[1], re.MULTILINE)} == {"classifier", "pooler"}


def test_a_task_that_tells_no_lengths_cannot_go_by_tokens(tmp_path):
    made = prepared("swag.py:small", tmp_path, "batch_tokens=512", "data.buckets=(24,)")
    with pytest.raises(ConfigError, match="does not give the lengths of its examples"):
        made.plan(made.require("train"), shuffle=True)


def test_lengths_come_with_the_names_of_what_is_cut(tmp_path):
    path = tmp_path / "bad.py"
    functions = ["dataset(split, config)", "init(rng, batch, config)", "loss_fn(params, batch, rng, config)"]
    functions += ["eval_fn(params, batch, config)", "lengths(examples, config)"]
    path.write_text("".join(f"def {function}: pass\n" for function in functions))
    with pytest.raises(ConfigError, match="lengths needs SEQUENCE_KEYS"):
        task.load(str(path))


@pytest.mark.slow
def test_layers_are_frozen_and_slowed_in_a_run(tmp_path):
    changes = [
        "optim.freeze=^(tokens|position|type|norm)/|^blocks/0/",
        "optim.layer_decay=0.9",
        "steps=3",
        "epochs=0.0",
    ]
    settings = config("sst2.py", tmp_path, *changes, *ALONE)
    train(settings, tmp_path / "run")
    made = prepared("sst2.py", tmp_path, *changes)
    examples = made.require("train")
    batch = made.batch_at(examples, made.plan(examples, shuffle=True), 0)
    start = jax.jit(lambda b: made.task.init(jax.random.key(0), b, made.config))(batch)
    end = open_run(settings, tmp_path / "run").params()
    for name in ("tokens", "position", "type", "norm"):
        jax.tree.map(np.testing.assert_array_equal, start[name], end[name])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), start["blocks"], end["blocks"])
    moved = jax.tree.map(lambda a, b: bool((a[1] != b[1]).any()), start["blocks"], end["blocks"])
    assert all(jax.tree.leaves(moved))


def test_the_kit_finds_lengths_that_are_too_short(tmp_path, monkeypatch):
    settings = config("sst2.py", tmp_path)
    subject, _ = contract.subject(settings.task, settings)
    assert "the metrics stay" in padding.lengths_are_true(subject)
    true = subject.job.lengths(subject.examples)
    monkeypatch.setattr(subject.task, "lengths", lambda examples, config: true - 2, raising=False)
    with pytest.raises(Fault, match=r"'loss' is .* when \['tokens', 'token_types', 'segment_ids'\] are cut to"):
        padding.lengths_are_true(subject)
    monkeypatch.setattr(subject.task, "lengths", lambda examples, config: true[:5])
    with pytest.raises(Fault, match=r"lengths is int64\[5\]"):
        padding.lengths_are_true(subject)


@pytest.mark.slow
@CONFIGS
def test_the_tasks_keep_the_contract(name, tmp_path):
    results = testing.run(config(name, tmp_path))
    assert all(result.passed for result in results), testing.table(results)


def test_configs_are_where_the_tests_look():
    assert all((ROOT / "configs" / name.partition(":")[0]).exists() for name in finetune.CONFIGS)
