"""A run is refused another config, another task's assets or other data than its own."""

import json
import pathlib

import ml_collections
import numpy as np
import pytest
import tiny

from jtasks import config as configs
from jtasks.data import fingerprint, pipeline
from jtasks.errors import ConfigError, DataError
from jtasks.run import identity

CONFIGS = sorted(path for path in pathlib.Path("configs").glob("[a-z]*.py"))


def test_assets_are_written_whole_and_the_run_must_have_the_same(tmp_path):
    identity.record_assets({"a.txt": "ä\r\n", "b.json": "{}"}, tmp_path)
    assert (tmp_path / "a.txt").read_bytes() == "ä\r\n".encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.json", "files.json"]
    identity.compare_assets({"a.txt": "ä\r\n", "new.txt": "x"}, tmp_path)
    with pytest.raises(ConfigError, match=r"a.txt is not what this config makes: the run so far used another a.txt"):
        identity.compare_assets({"a.txt": "ä\n"}, tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff")  # torn within a character
    with pytest.raises(ConfigError, match="the run so far used another"):
        identity.compare_assets({"a.txt": "ä\r\n"}, tmp_path)


@pytest.mark.parametrize("name", ["../a.txt", "folder/a.txt", "", "/a.txt", "a\nb", "config.json", "checkpoints"])
def test_an_asset_is_a_file_of_the_run_folder_itself(name, tmp_path):
    for function in (identity.record_assets, identity.compare_assets):
        with pytest.raises(ConfigError, match=r"expected a file name without a folder|a file of the run itself"):
            function({name: "x"}, tmp_path / "run")


def changed(capsys, before, after, folder, **arguments):
    identity.record_config(before, folder)
    identity.compare_config(after, folder, **arguments)
    return capsys.readouterr().err


def test_a_field_that_makes_another_run_is_refused_and_others_are_told(tmp_path, capsys):
    config = tiny.config("mnist")
    assert changed(capsys, config, config, tmp_path) == ""
    assert "config.optim.lr: 0.001 -> 0.5" in changed(capsys, config, tiny.config("mnist", optim__lr=0.5), tmp_path)
    assert changed(capsys, config, tiny.config("mnist", batch_size=3), tmp_path, free=("config.batch_size",)) == ""
    assert changed(capsys, config, tiny.config("mnist", data__workers=3, data__dir="x"), tmp_path)
    for changes in ({"seed": 7}, {"batch_size": 3}, {"model__classes": 11}, {"data__name": "mnist"}, {"task": "x"}):
        with pytest.raises(ConfigError, match=r"holds a run with another config:\n  config"):
            identity.compare_config(tiny.config("mnist", **changes), tmp_path)


def test_changes_of_the_data_alone_can_be_allowed_and_that_is_not_kept(tmp_path, capsys):
    config = tiny.config("mnist")
    other = tiny.config("mnist", data__name="mnist", data__allow_changes=True)
    assert 'config.data.name: "digits" -> "mnist"' in changed(capsys, config, other, tmp_path)
    with pytest.raises(ConfigError, match=r"config.seed: 0 -> 7"):
        identity.compare_config(tiny.config("mnist", seed=7, data__allow_changes=True), tmp_path)
    identity.record_config(other, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["allow_changes"] is False


def test_a_run_of_before_a_field_was_invented_has_its_default(tmp_path, capsys):
    identity.record_config(tiny.config("mnist"), tmp_path)
    old = json.loads((tmp_path / "config.json").read_text())
    del old["data"]["buckets"], old["ema"], old["data"]["mixup"]  # the last is the task's own
    (tmp_path / "config.json").write_text(json.dumps(old))
    identity.compare_config(tiny.config("mnist"), tmp_path)
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match=r"config.data.buckets"):
        identity.compare_config(tiny.config("mnist", data__buckets=(8,)), tmp_path)


def test_a_task_file_may_have_moved(tmp_path, capsys):
    before = tiny.config("mnist", task="here/rotation.py")
    assert changed(capsys, before, tiny.config("mnist", task="/there/rotation.py"), tmp_path) == ""
    with pytest.raises(ConfigError, match=r"config.task"):
        identity.compare_config(tiny.config("mnist", task="/there/other.py"), tmp_path)


@pytest.mark.parametrize("text", ["null", "3", "[]", "[1]", "{}", '"x"', "{", "\xff", "[" * 100_000])
def test_a_file_of_json_of_another_kind_is_damaged(text, tmp_path):
    for name in ("config.json", "data.json"):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config.json is damaged"):
        identity.compare_config(tiny.config("mnist"), tmp_path)
    with pytest.raises(ConfigError, match=r"data.json is damaged"):
        identity.compare_data({}, tmp_path, allow=True)
    with pytest.raises(ConfigError, match=r"config.json"):
        configs.load(str(tmp_path / "config.json"))


@pytest.mark.parametrize("text", ['{"train": 3}', '{"valid": {}}', '{"train": {"entries": {}, "hashes": 3}}'])
def test_splits_of_another_kind_are_damaged(text, tmp_path):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ConfigError, match=r"data.json is damaged"):
        identity.compare_data({"train": fingerprint.of(images(3))}, tmp_path, allow=True)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_config_of_a_run_comes_back_as_it_was(path, tmp_path, capsys):
    config = configs.load(str(path))
    full = ml_collections.ConfigDict(config)
    with full.unlocked():  # values as fill() gives them, and of every kind that a file may have
        full.model.palette, full.shares, full.accumulate = ((0.5,), (2.0,)), (3, 1), 1
        if path.stem == "mnist":  # a task of the user's may have more fields
            full.task = str(tmp_path / "own.py")
            full.extra, full.none = {"a": [1, (2, "x")], "b": {}}, None
            functions = ("dataset(split, config)", "init(rng, batch, config)", "loss_fn(params, batch, rng, config)")
            (tmp_path / "own.py").write_text("".join(f"def {function}: ...\n" for function in functions))
    config = configs.Config(full)
    identity.record_config(config, tmp_path)
    again = configs.load(str(tmp_path / "config.json"))
    assert again.to_dict() == config.to_dict()
    identity.compare_config(again, tmp_path)
    assert capsys.readouterr().err == ""
    more = configs.load(str(tmp_path / "config.json"), ["--config.steps=7", "--config.shares=(1,2)"])
    assert (more.steps, more.epochs, more.shares) == (7, 0.0, (1, 2))


def images(n):
    return {"image": np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2), "label": np.arange(n)}


def texts(n):
    return {"text": np.array([f"text {i}" for i in range(n)], object), "x": np.arange(n, dtype=np.float32)}


def rows(n):
    return [{"words": ["a", "b" * i], "image": np.full((2, i % 3), i), "label": i} for i in range(n)]


@pytest.mark.parametrize("make", [images, texts, rows])
def test_a_split_that_grew_or_changed_is_told(make, tmp_path, capsys):
    def compare(examples, allow=False):
        identity.compare_data({"valid": fingerprint.of(examples)}, tmp_path, allow=allow)

    compare(make(50))  # nothing is known yet
    identity.record_data({"train": fingerprint.of(make(9)), "valid": fingerprint.of(make(50))}, tmp_path, fresh=True)
    compare(make(50))
    with pytest.raises(ConfigError, match="valid: 50 -> 51 examples"):
        compare(make(51))
    examples = make(50)
    if isinstance(examples, dict):
        first = next(iter(examples))
        examples[first][17] = examples[first][16]
    else:
        examples[17]["words"][0] = "c"
    with pytest.raises(ConfigError, match=r"valid: examples differ \("):
        compare(examples)
    compare(examples, allow=True)
    assert "WARNING: the data differs from that of the run" in capsys.readouterr().err
    identity.record_data({"valid": fingerprint.of(examples)}, tmp_path, fresh=False)
    compare(examples)
    assert set(json.loads((tmp_path / "data.json").read_text())) == {"train", "valid"}


def test_entries_that_changed_are_named():
    old = fingerprint.of({"x": np.zeros((5, 2)), "y": np.zeros(5)})
    new = fingerprint.of({"x": np.zeros((5, 3)), "z": np.zeros(5)})
    assert fingerprint.changes(old, new) == [
        "entry x: float64[2] -> float64[3]",
        "entry y: float64[] -> absent",
        "entry z: absent -> float64[]",
    ]


def test_of_a_large_split_few_examples_are_read(tmp_path):
    class Endless:
        def __init__(self):
            self.read = []

        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            self.read.append(index)
            if index == 10**9 - 1:
                raise DataError("damaged")
            return {"x": index}

    examples = Endless()
    found = fingerprint.of(pipeline.Tolerant(examples, 3, pytest.fail))
    assert len(examples.read) <= fingerprint.SAMPLE
    assert {0, 10**9 - 1} <= set(examples.read)
    assert "[0]" in found["hashes"]
    assert f"[{10**9 - 1}]" not in found["hashes"]
    large = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (2**27, 2))
    before = fingerprint.of({"x": large})
    large[-1] = 1
    assert fingerprint.changes(before, fingerprint.of({"x": large})) == [f"examples differ (x[{2**27 - 1}])"]


def test_the_runs_own_tokenizer_is_no_other_one_and_is_taken_where_the_text_may_change(tmp_path, capsys):
    (tmp_path / "tokenizer.json").write_text("{}")
    config = tiny.config("mnist", data__tokenizer="bpe:300")
    own = tiny.config("mnist", data__tokenizer=str(tmp_path))
    assert changed(capsys, config, own, tmp_path) == ""
    identity.record_config(own, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["tokenizer"] == "bpe:300"
    for spec, taken in (("bpe:300", True), ("characters", True), ("bytes", False), ("vocab.txt", False)):
        allowed = tiny.config("mnist", data__tokenizer=spec, data__allow_changes=True)
        assert identity.own_names(allowed, tmp_path).data.tokenizer == (str(tmp_path) if taken else spec)
    assert identity.own_names(config, tmp_path) is config
    allowed = tiny.config("mnist", data__allow_changes=True)  # a task without one
    assert identity.own_names(allowed, tmp_path) is allowed
