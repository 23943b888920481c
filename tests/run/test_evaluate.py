"""Claims about jtasks.run.evaluate and jtasks.run.predict: batches and devices change nothing, and nothing is lost."""

import functools

import jax
import numpy as np
import pytest
import tiny

from jtasks import config as configs
from jtasks import metrics, task
from jtasks.distributed import processes
from jtasks.errors import ConfigError, DataError
from jtasks.run import evaluate, predict
from jtasks.run.job import Job

N = 97

CASES = [(1, 1), (7, 1), (64, 1), (N, 1), (7, 8), (64, 8)]

SCORED = """
import jax.numpy as jnp
import numpy as np
from jtasks.metrics import Mean

def dataset(split, config):
    numbers = np.arange(config.n)
    return None if split == "valid" else {"x": numbers.astype(np.float32), "name": numbers.astype(str)}
def init(rng, batch, config): return {"w": jnp.ones(())}
def eval_fn(params, batch, config): return {"loss": Mean.of(params["w"] * batch["x"], batch["mask"])}
def loss_fn(params, batch, rng, config):
    metrics = eval_fn(params, batch, config)
    return metrics["loss"].value, metrics
def predict_fn(params, batch, rng, config): return {"double": 2 * batch["x"], "more": {"seed": batch["seed"]}}
def score_fn(examples, outputs, config):
    assert [example["name"] for example in examples] == [str(i) for i in range(config.n)]
    assert [float(output["double"]) for output in outputs] == [2.0 * i for i in range(config.n)]
    return {"examples": len(examples), "last": outputs[-1]["double"]}
"""


@functools.cache
def sums(name, batch_size, devices):
    """What evaluation adds up, before it divides."""
    job, seen = tiny.job(name, devices, batch_size=batch_size), []
    original = metrics.values
    try:
        metrics.values = lambda means: seen.append(means) or original(means)
        evaluate.make(job)(tiny.params(name), tiny.digits(N))
    finally:
        metrics.values = original
    return seen[0]


@functools.cache
def whole(name):
    """eval_fn on the split as one batch, without any of the library's machinery."""
    config, module = tiny.config(name), task.load(f"jtasks.tasks.{tiny.module(name)}")
    batch = tiny.digits(N) | {"mask": np.ones(N, np.float32), "seed": np.zeros(N, np.uint32)}
    return jax.device_get(jax.jit(lambda p, b: module.eval_fn(p, b, config))(tiny.params(name), batch))


@pytest.mark.parametrize(("batch_size", "devices"), CASES)
@pytest.mark.parametrize("name", tiny.TASKS)
def test_evaluation_adds_up_the_same_in_any_batches_on_any_devices(name, batch_size, devices):
    found, expected = sums(name, batch_size, devices), whole(name)
    assert set(found) == set(expected)
    for metric, mean in expected.items():
        assert found[metric].count == mean.count
        np.testing.assert_allclose(found[metric].total, mean.total, rtol=3e-6)


@pytest.mark.parametrize("name", tiny.TASKS)
def test_the_counts_are_those_of_the_data(name):
    means = sums(name, 64, 8)
    counts = {
        "mnist": {"loss": N, "accuracy": N},
        "igpt": {"loss": N * 64, "bits": N * 64},
        "classifier": {"classification": N, "accuracy": N, "generation": N * 64, "bits": N * 64},
    }[name]
    assert {metric: mean.count for metric, mean in means.items()} == counts


def predictions(name, batch_size, devices, n=N):
    job = tiny.job(name, devices, batch_size=batch_size)
    return predict.make(job)(tiny.params(name), tiny.digits(n))


@pytest.mark.parametrize(("name", "n"), [("mnist", N), ("classifier", N), ("igpt", 10)])
def test_predictions_do_not_depend_on_batches_and_devices_and_keep_their_order(name, n):
    first = predictions(name, 64, 1, n)
    assert len(first) == n
    for batch_size, devices in ((7, 1), (16, 8)):
        other = predictions(name, batch_size, devices, n)
        assert len(other) == n
        for a, b in zip(first, other, strict=True):
            assert set(a) == set(b)
            for key in a:
                np.testing.assert_allclose(a[key], b[key], rtol=1e-4)
    if name == "igpt":
        assert len({output["tokens"].tobytes() for output in first}) == n
    else:
        assert len({float(output["probability"]) for output in first}) > n / 2


@pytest.fixture
def scored(tmp_path):
    """A job of a task that scores its own predictions, on 8 devices."""

    def make(n, text=SCORED, batch_size=16, report_metric=True):
        path = tmp_path / "scored.py"
        path.write_text(text)
        full = configs.defaults()
        with full.unlocked():
            full.task, full.batch_size, full.n, full.steps = str(path), batch_size, n, 1
            full.report_metric = report_metric
        return Job(task.load(str(path)), configs.Config(full), tiny.mesh())

    return make


@pytest.mark.parametrize(("n", "batch_size"), [(37, 16), (5, 16), (37, 64)])
def test_score_fn_gets_the_whole_split_in_order(scored, n, batch_size):
    job = scored(n, batch_size=batch_size)
    found = evaluate.scores(job, evaluate.predictors(job), {"w": np.ones(())}, job.require("test"))
    assert found == {"examples": n, "last": 2.0 * (n - 1)}
    assert all(type(value) is float for value in found.values())


def test_other_processes_than_the_first_predict_along_and_are_told_the_scores(scored, monkeypatch):
    job = scored(37)
    predictors = evaluate.predictors(job)
    monkeypatch.setattr(processes, "first", lambda: False)
    monkeypatch.setattr(processes, "broadcast_from_first", lambda decide: {"told": 0.5})
    assert evaluate.scores(job, predictors, {"w": np.ones(())}, job.require("test")) == {"told": 0.5}
    assert len(predictors.predict({"w": np.ones(())}, job.require("test"))) == 0


def test_a_task_without_score_fn_has_no_scores():
    assert evaluate.scores(tiny.job("mnist"), None, None, None) == {}


def test_nothing_is_predicted_where_no_scores_are_wanted(scored):
    def never(*_):
        raise AssertionError("predicted")

    assert evaluate.scores(scored(3, report_metric=False), never, None, None) == {}


def test_a_task_without_predict_fn_says_so(scored):
    with pytest.raises(ConfigError, match=r"has no predict_fn\(params, batch, rng, config\)"):
        predict.make(scored(3, SCORED.replace("predict_fn", "guess")))


def test_evaluation_is_exact_where_the_last_batch_is_mostly_padding(scored):
    job = scored(33)
    assert evaluate.make(job)({"w": np.float32(1)}, job.require("test")) == {"loss": 16.0}


def test_evaluation_of_many_batches_waits_for_each_of_them_once(scored):
    job = scored(2 * evaluate.AHEAD * 8 + 3, batch_size=8)
    polls = []
    found = evaluate.make(job, lambda: polls.append(1))({"w": np.float32(1)}, job.require("test"))
    assert found == {"loss": (job.config.n - 1) / 2} and len(polls) == 2 * evaluate.AHEAD + 1


COUNTING = """
import jax.numpy as jnp
import numpy as np
from jtasks.metrics import Mean

def dataset(split, config): return None
def init(rng, batch, config): return {"w": jnp.ones(())}
def loss_fn(params, batch, rng, config):
    metrics = {"loss": Mean.of(params["w"] * batch["x"], batch["mask"])}
    return metrics["loss"].value, metrics
"""


def test_evaluation_counts_beyond_what_float32_holds(scored):
    n, right = 2**24 + 3, 2**24 + 1  # float32 has neither
    examples = {"x": np.ones(n, np.uint8)}
    examples["x"][[5, n - 2]] = 0
    found = evaluate.make(scored(n, COUNTING, batch_size=2**20))({"w": np.float32(1)}, examples)
    assert found == {"loss": right / n} and found["loss"] != np.float32(right) / np.float32(n)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 5, 7, 18])
def test_an_evaluation_that_is_not_finite_names_metric_and_first_example(scored, row, bad):
    examples, found = {"x": np.ones(19, np.float32)}, []
    examples["x"][[row, 18]] = bad
    run = evaluate.make(scored(19, COUNTING, batch_size=8), report=found.append)
    run({"w": np.float32(1)}, examples, "valid")
    run({"w": np.float32(1)}, examples | {"id": np.arange(100, 119)}, "news")
    assert found == [
        f"valid: not finite: loss; the first such example is number {row}, counted from 0",
        f"news: not finite: loss; the first such example is number {row}, counted from 0 (id {100 + row})",
    ]


def test_a_nan_that_a_mask_does_not_leave_out_has_the_examples_of_its_batch(scored):
    mean, found = 'Mean.of(params["w"] * batch["x"], batch["mask"])', []
    own = COUNTING.replace(mean, 'Mean(batch["x"] @ batch["mask"], 1.0)')
    run = evaluate.make(scored(9, own, batch_size=4), report=found.append)
    run({"w": np.float32(1)}, {"x": np.r_[np.ones(5), np.nan, 1, 1, 1].astype(np.float32)}, "valid")
    assert found == ["valid: not finite: loss; first in the batch of the examples [4, 5, 6, 7], counted from 0"]


def test_evaluation_compiles_once_for_all_splits(scored):
    text = SCORED.replace(
        "def eval_fn(params, batch, config):", "def eval_fn(params, batch, config):\n    TRACES.append(1);"
    )
    job = scored(33, "TRACES = []\n" + text.replace("TRACES.append(1); return", "TRACES.append(1)\n    return"))
    run = evaluate.make(job)
    for split in ("train", "test"):
        run({"w": np.float32(1)}, job.require(split))
    assert len(job.task.TRACES) == 1


def test_a_split_that_the_task_lacks_or_that_is_empty_is_an_error(scored):
    with pytest.raises(DataError, match="has no valid split"):
        scored(3).require("valid")
    with pytest.raises(DataError, match="the test split is empty"):
        scored(0).examples("test")


def test_pictures_and_texts_are_written_by_name(tmp_path):
    shown = {"grid": np.zeros((3, 4, 3), np.uint8), "words": "a\nb"}
    paths = predict.write_shown(shown, tmp_path / "show", "test-5")
    assert [path.name for path in paths] == ["grid-test-5.png", "words-test-5.txt"]
    assert paths[1].read_text() == "a\nb\n" and paths[0].read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", tiny.TASKS)
def test_show_fn_pictures_the_first_examples(name):
    job = tiny.job(name, show_count=3)
    shown = predict.show(job, predict.make(job), tiny.params(name), tiny.digits(N))
    pictures = [value for value in shown.values() if not isinstance(value, str)]
    texts = [value for value in shown.values() if isinstance(value, str)]
    assert len(pictures) == 1 and pictures[0].dtype == np.uint8 and pictures[0].shape[2] == 3
    assert all(len(text.splitlines()) == 3 for text in texts) and len(texts) == (name != "igpt")
