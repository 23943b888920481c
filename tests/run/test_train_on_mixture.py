"""A run over a mixture: shares, metrics of each source, devices, resumption, tokenizer and class names of all."""

import json
import pathlib

import jax
import numpy as np
import pytest
from task_head import HEAD

import jtasks
from jtasks import config as configs
from jtasks.errors import ConfigError, DataError
from jtasks.run import checkpoint
from jtasks.run.job import prepare
from jtasks.run.loop import train

# A linear model; a source has its own numbers. The loss has two terms, one of them weighted.
TASK = (
    HEAD
    + """
from jtasks.metrics import Loss, total

def defaults():
    return {"data.n": 40, "data.slope": 1.0, "data.kind": "arrays", "data.splits": "train valid test"}

def get_config():
    config = ml_collections.ConfigDict()
    config.task, config.steps, config.batch_size, config.log_every, config.eval_every = __file__, 12, 24, 1, 4
    config.optim = dict(name="sgd", lr=0.01)
    config.data = dict(mix=dict(a=2, b=1), sources=dict(a=dict(slope=2.0), b=dict(n=13, slope=-1.0)))
    return config

SEEN = []

def dataset(split, config):
    data = config.data
    if split not in data.splits: return None
    x = np.random.default_rng(data.n).normal(size=(data.n, 3)).astype(np.float32)
    arrays = {"x": x, "y": data.slope * x.sum(1), "slope": np.full(data.n, data.slope, np.float32)}
    return arrays if data.kind == "arrays" else [{k: v[i] for k, v in arrays.items()} for i in range(data.n)]

def prepare(config):
    SEEN.append((config.data.n, config.data.slope))

def init(rng, batch, config):
    return {"w": jnp.zeros(3)}

def loss_fn(params, batch, rng, config):
    error = batch["x"] @ params["w"] - batch["y"]
    metrics = {
        "square": Loss.of(jnp.square(error), batch["mask"]),
        "small": Loss.of(jnp.abs(params["w"]).sum() + 0 * error, batch["mask"], weight=0.1),
        "slope": Mean.of(batch["slope"], batch["mask"]),
        "large": Mean(jnp.max(jnp.abs(error)), jnp.float32(1)),
    }
    return total(metrics), metrics

def predict_fn(params, batch, rng, config):
    return {"y": batch["x"] @ params["w"]}

def score_fn(examples, outputs, config):
    return {"rows": len(outputs), "mean": np.mean([e["slope"] for e in examples])}
"""
)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixture") / "task.py"
    path.write_text(TASK)
    return str(path)


@pytest.fixture(scope="module")
def whole(task):
    """A run in one part: its folder and its result."""
    workdir = pathlib.Path(task).parent / "whole"
    return workdir, train(configs.load(task, ["--config.save_every=5"]), workdir)


def records(workdir: pathlib.Path, split: str) -> dict[int, dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == split}


def test_each_source_has_its_share_and_its_own_exact_metrics(whole):
    workdir, result = whole
    for line in records(workdir, "train").values():
        assert (line["a/slope"], line["b/slope"], line["slope"]) == (2.0, -1.0, 1.0)  # 16 rows and 8
        np.testing.assert_allclose(line["square"], (2 * line["a/square"] + line["b/square"]) / 3, rtol=1e-5)
        np.testing.assert_allclose(line["a/loss"], line["a/square"] + 0.1 * line["a/small"], rtol=1e-5)
        assert "a/large" not in line  # no sum over examples
    weights = checkpoint.arrays(workdir / "checkpoints" / "12")["params/w"]
    for source, n, slope in (("a", 40, 2.0), ("b", 13, -1.0)):
        x = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
        exact = np.mean(np.square(x @ weights - slope * x.sum(1)))
        np.testing.assert_allclose(result[f"valid/{source}/square"], exact, rtol=1e-5)
        assert result[f"valid/{source}/rows"] == n and result[f"test/{source}/mean"] == slope
    assert result["valid/rows"] == 53
    whole = (40 * result["valid/a/square"] + 13 * result["valid/b/square"]) / 53
    np.testing.assert_allclose(result["valid/square"], whole, rtol=1e-6)


SPLITS = [
    (["--config.data.kind=rows"], 0),
    (["--config.accumulate=3"], 1e-5),
    (["--config.mesh.data=2", "--config.mesh.fsdp=4"], 1e-5),
    (["--config.mesh.data=8", "--config.shares=(2, 1, 1, 1, 1, 1, 1, 0)"], 1e-5),
]


@pytest.mark.parametrize(("fields", "tolerance"), SPLITS, ids=lambda x: str(x[-1]) if isinstance(x, list) else "")
def test_no_way_to_split_a_batch_changes_a_number(task, whole, tmp_path, fields, tolerance):
    train(configs.load(task, fields), tmp_path)
    one, other = (records(folder, "train") for folder in (whole[0], tmp_path))
    names = [name for name in one[1] if name.rpartition("/")[2] in ("square", "loss", "slope", "small")]
    assert len(names) == 12
    for step, line in one.items():
        for name in names:
            np.testing.assert_allclose(other[step][name], line[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_a_run_in_parts_has_the_bits_of_a_whole_one(task, whole, tmp_path):
    for steps in (3, 9):
        train(configs.load(task, [f"--config.steps={steps}"]), tmp_path / "parts")
    assert train(configs.load(task), tmp_path / "parts") == whole[1]
    one, two = (checkpoint.arrays(folder / "checkpoints" / "12") for folder in (whole[0], tmp_path / "parts"))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_loaded_run_evaluates_all_of_its_sources(whole):
    found = jtasks.load(whole[0]).evaluate("valid")
    assert {f"valid/{name}" for name in ("a/square", "b/square")} <= found.keys() <= whole[1].keys()
    assert all(whole[1][name] == value for name, value in found.items())


def test_a_best_checkpoint_and_the_end_can_follow_one_source_and_a_limit_holds_for_each(task, tmp_path):
    more = ["--config.best=valid/b/loss", "--config.stop.metric=valid/b/loss", "--config.stop.patience=1"]
    result = train(configs.load(task, [*more, "--config.eval_batches=1", "--config.optim.lr=0.1"]), tmp_path / "run")
    assert result["step"] == 8  # a is the larger part, away from b
    assert (result["valid/evaluated_examples"], result["valid/split_examples"]) == (24 + 13, 53)
    assert result["valid/b/rows"] == 13 and result["valid/a/rows"] == 24


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["data.mix.a=0"], "config.data.mix.a must be a weight above 0, not 0"),
        (["batch_tokens=64"], "config.batch_tokens=64 and config.data.mix exclude each other"),
        (["data.sources.b.n=0"], "the train split is empty"),
        (["data.splits=valid"], "config.data.sources.a has no train split"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_a_wrong_mixture_is_one_clear_message(task, tmp_path, fields, said):
    with pytest.raises((ConfigError, DataError)) as error:
        train(configs.load(task, [f"--config.{field}" for field in fields]), tmp_path / "run")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"mix": {"a": 1}}, "config.data.mix has 'a', but config.data.sources has not"),
        ({"sources": {"a": {}}}, "config.data.sources.a has no weight: give it in config.data.mix"),
        ({"mix": {"a": 1}, "sources": {"a": {"slop": 1}}}, "unknown field config.data.sources.a.slop, did you mean"),
        ({"mix": {"a": 1}, "sources": {"a": {"workers": 1}}}, "config.data.workers is the same for the whole run"),
        ({"mix": 3}, "config.data.mix must be a dict of fields, not 3"),
    ],
    ids=str,
)
def test_a_mixture_that_is_not_one_is_named(task, data, said):
    with pytest.raises(ConfigError) as error:
        configs.freeze({"task": task, "steps": 1, "data": data})
    assert said in str(error.value)


def test_tokenizer_and_class_names_are_those_of_all_sources(tmp_path):
    rows = {"films": "a fine film\tgood\na dull film\tbad\n", "food": "cold soup\tbad\nso so\tmixed\n"}
    files = {name: tmp_path / f"{name}.tsv" for name in rows}
    for name, file in files.items():
        file.write_text("sentence\tlabel\n" + rows[name] * 4)
    sources = {name: {"train": str(file), "valid": str(file)} for name, file in files.items()}
    data = {"mix": {"films": 1, "food": 3}, "sources": sources, "tokenizer": "wordpiece:60", "length": 16}
    config = {
        "task": "jtasks.tasks.classify",
        "steps": 2,
        "batch_size": 8,
        "data": data | {"dir": str(tmp_path)},
        "model": {"width": 8, "depth": 1, "heads": 1},
    }
    job = prepare(configs.freeze(config))
    stored = {name: json.loads(text) for name, text in job.assets().items()}
    assert stored["labels.json"] == ["bad", "good", "mixed"]
    assert set("afinedulcosp") <= set(stored["tokenizer.json"]["model"]["vocab"])
    assert (job.config.model.labels, job.config.model.max_length) == (3, 16)
    examples = job.require("train")
    assert examples["label"][np.arange(12)].tolist() == [1, 0] * 4 + [0, 2] * 2
    job = prepare(job.config)  # as a resumed run does
    assert {name: json.loads(text) for name, text in job.assets().items()} == stored
