"""Claims about a loaded run: what it answers is what --mode=predict writes, for any inputs, without the data."""

import json
import pathlib
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from front_door import ROOT

import jtasks
from jtasks import config as configs
from jtasks.errors import CheckpointError, ConfigError, DataError
from jtasks.run import evaluate, predict

FILE = ROOT / "tests" / "data_tasks" / "samples.py"
TEXTS = [f"{i} is a number" for i in range(7)]  # the valid split
WIDE = {"mesh.data": 1, "mesh.fsdp": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A run of two steps, with the predictions of its valid split."""
    workdir = tmp_path_factory.mktemp("inference") / "a b[1]"
    config = configs.load(str(FILE))
    jtasks.train(config, workdir)
    predict.run(config, workdir, "valid")
    return workdir


@pytest.fixture(scope="module")
def run(folder) -> jtasks.Run:
    return jtasks.load(folder)


def written(folder):
    return [json.loads(line)["sum"] for line in (folder / "predictions-valid.jsonl").read_text().splitlines()]


def sums(results):
    return [float(value) for result in results for value in result["sum"]]


def test_predictions_are_those_of_the_mode(run, folder):
    assert sums(run.predict(TEXTS)) == written(folder)
    assert sums(run.predict([{"text": text} for text in TEXTS])) == written(folder)
    assert run.predict(TEXTS)[1]["text"] == "1 is"  # of its first window, as all windows of an input have one answer


def test_random_numbers_are_those_of_the_row_and_not_of_the_batch(run, folder):
    assert sums([run.predict(TEXTS[0])]) == written(folder)[:4]
    assert sums(run.predict(TEXTS[:3])) == written(folder)[:12]
    streamed = list(run.stream(iter(TEXTS)))
    assert [index for index, _ in streamed] == list(range(7)) and sums(row for _, row in streamed) == written(folder)


def test_a_list_is_many_inputs_and_anything_else_is_one(run):
    assert run.predict([]) == []
    assert isinstance(run.predict("a"), dict) and len(run.predict(["a"])) == 1
    pair = run.predict(("ab", "c"))
    assert pair["sum"].shape == (1,) and pair["text"] == "ab c"


def test_embeddings_are_arrays_and_the_mean_of_an_inputs_examples(run):
    weights = np.asarray(run.params["w"])
    features = run.embed(["abcdefgh", "ab"])["letters"]
    assert features.shape == (2, 4) and features.dtype == np.float32
    mean = (np.frombuffer(b"abcd", np.uint8) + np.frombuffer(b"efgh", np.uint8).astype(np.float32)) / 2
    np.testing.assert_allclose(features[0], mean * weights, rtol=1e-6)
    assert np.array_equal(run.embed("ab")["letters"], features[1])
    assert run.embed([]) == {}


def test_generation_takes_other_options_and_names_unknown_ones(run):
    weights = np.asarray(run.params["w"])
    np.testing.assert_allclose(run.generate("abcd", scale=0)["sum"], [weights @ list(b"abcd")], rtol=1e-5)
    assert not np.array_equal(run.generate("abcd", scale=0.5)["sum"], run.predict("abcd")["sum"])
    assert run.config.sample.scale == 1
    with pytest.raises(ConfigError, match=r"no option 'skale'.*did you mean scale"):
        run.generate("abcd", skale=1)
    with pytest.raises(ConfigError, match=r"config.sample.scale must be at least 0"):
        run.generate("abcd", scale=-1)


def test_a_bad_input_is_named_by_its_number_or_skipped(run):
    with pytest.raises(DataError, match=r"^input 2: 7 is no ASCII text$"):
        run.predict(["a", "b", 7, None])
    with pytest.raises(DataError, match=r"^7 is no ASCII text$"):
        run.predict(7)
    with pytest.raises(DataError, match=r"^input 9: 'ä'"):
        list(run.stream([*"abcdefghi", "ä"]))
    bad = []
    results = dict(run.stream(iter(["a", 7, "b", "ä"]), skip=lambda index, error: bad.append((index, str(error)))))
    assert list(results) == [0, 2] and [index for index, _ in bad] == [1, 3]
    assert bad[0][1] == "input 1: 7 is no ASCII text"


def test_an_example_of_another_shape_and_an_error_of_the_task_are_named(run, monkeypatch):
    def examples(inputs, config):
        return [{"letters": np.zeros(len(text), np.int32)} for text in inputs]

    monkeypatch.setattr(run.task, "examples", examples)
    with pytest.raises(DataError, match=r"^input 1: letters of the example has the shape \[2\], in training \[4\]$"):
        run.predict(["abcd", "ab"])
    bad = []
    assert [i for i, _ in run.stream(["abcd", "ab"], skip=lambda index, error: bad.append(index))] == [0] and bad == [1]
    with pytest.raises(DataError, match=r"^examples raised TypeError: object of type 'int' has no .* at .*py:\d+, in"):
        run.predict(7)


def test_answers_come_while_inputs_still_arrive(run):
    answered = threading.Event()

    def inputs():
        yield "a"
        assert answered.wait(60)  # a batch has room for more
        yield "b"
        raise DataError("the file ends in the middle")

    stream = run.stream(inputs())
    assert next(stream)[0] == 0
    answered.set()
    assert next(stream)[0] == 1
    with pytest.raises(DataError, match="in the middle"):
        next(stream)


def test_evaluation_is_that_of_the_mode(run, folder):
    assert run.evaluate("valid") == evaluate.run(configs.load(str(FILE)), folder, "valid")
    with pytest.raises(DataError, match="no test split"):
        run.evaluate()
    with pytest.raises(ConfigError, match="there is no split 'tst'; the splits are train, valid, test"):
        run.evaluate("tst")


def test_a_mesh_and_a_checkpoint_are_chosen(run, folder):
    wide = jtasks.load(folder, overrides=WIDE | {"batch_size": 16})
    np.testing.assert_allclose(sums(wide.predict(TEXTS)), written(folder), rtol=1e-5)
    one = jtasks.load(folder / "checkpoints" / "2")
    assert one.step == jtasks.load(folder, checkpoint=2).step == run.step == 2
    assert jax.tree.all(jax.tree.map(np.array_equal, one.params, run.params))
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        jtasks.load(folder, checkpoint=5)
    with pytest.raises(ConfigError, match="give one of them"):
        jtasks.load(folder / "checkpoints" / "2", checkpoint="best")


def test_what_is_no_run_says_so(folder, tmp_path):
    for path in (tmp_path, tmp_path / "absent", FILE):
        with pytest.raises(ConfigError, match=r"holds no config.json of a run"):
            jtasks.load(path)
    with pytest.raises(ConfigError, match=r"holds a run with another config:\n  config.data.labels"):
        jtasks.load(folder, overrides={"data": {"labels": ("a", "b")}})
    with pytest.raises(ConfigError, match=r"unknown field config.batch_siz, did you mean config.batch_size"):
        jtasks.load(folder, overrides={"batch_siz": 1})
    for overrides in (["x"], ["--config.steps"], "--config.steps=3"):
        with pytest.raises(ConfigError, match=r"override '.*': expected --config.NAME=VALUE"):
            jtasks.load(folder, overrides=overrides)
    with pytest.raises(ConfigError, match="the run's folder is empty"):
        jtasks.load("")
    with pytest.raises(ConfigError, match="workdir is empty"):
        jtasks.train(configs.load(str(FILE)), "")
    with pytest.raises(ConfigError, match=r"the config is the text 'x.py': give a dict, or jtasks.config.load"):
        jtasks.train("x.py", tmp_path / "run")
    with pytest.raises(ConfigError, match="which has its own config"):
        jtasks.load(folder, config={})
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "batch.json").unlink()
    with pytest.raises(ConfigError, match=r"batch.json is missing"):
        jtasks.load(copy)


def test_a_task_without_examples_takes_examples(tmp_path):
    config = configs.load(str(ROOT / "tests" / "data_tasks" / "rows.py"))
    jtasks.train(config, tmp_path / "run")
    run = jtasks.load(tmp_path / "run")
    assert run.predict({"x": [1, 2, 3]})["twice"].tolist() == [2, 4, 6]
    assert len(run.predict([{"x": np.ones(3)}] * 11)) == 11
    with pytest.raises(DataError, match=r"input 0: x is int64\[2\], expected float32\[3\]"):
        run.predict([{"x": [1, 2]}])
    with pytest.raises(DataError, match=r"expected an example, a dict with the entries .*'x': 'float32\[3\]'"):
        run.predict("text")
    with pytest.raises(DataError, match=r"an example has the entries \['z'\], the first one \['x'\]"):
        run.predict([{"x": [1, 2, 3]}, {"z": 1}])
    with pytest.raises(DataError, match="the task reads the entry 'x', which the inputs lack"):
        run.predict({"z": 1})
    with pytest.raises(ConfigError, match="does not decode"):
        run.generate({"x": [1, 2, 3]})
    with pytest.raises(ConfigError, match="has no embed_fn"):
        run.embed({"x": [1, 2, 3]})


def test_the_import_takes_no_jax():
    code = "import sys, jtasks; print('jax' in sys.modules); jtasks.load; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"] and not done.stderr


def test_a_hugging_face_model_needs_no_run():
    golden = ROOT / "tests" / "golden" / "vit_classification"
    run = jtasks.load(f"hf:{golden}")
    images = [np.full((16, 16, 3), level, np.uint8) for level in (0, 90, 200)]
    answers = run.predict(images)
    assert [answer["class"] for answer in answers] == [f"LABEL_{answer['label']}" for answer in answers]
    assert run.embed(images)["token"].shape == (3, 48)
    with pytest.raises(ConfigError, match="a model without data"):
        run.evaluate()
    with pytest.raises(ConfigError, match="there is no"):
        jtasks.load(f"hf:{golden}/absent/x/y")
