"""Claims about the task multimodal_classify: a class of a text about one or two pictures."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from jtasks import config as configs
from jtasks.data import pipeline
from jtasks.errors import ConfigError, DataError
from jtasks.run import job as jobs
from jtasks.tasks import multimodal_classify as classify

RNG = jax.random.key(0)
N = 8  # a row for each device
COLORS = ((255, 0, 0), (0, 0, 255))
loss = jax.jit(jax.value_and_grad(classify.loss_fn, has_aux=True), static_argnames="config")
predict = jax.jit(classify.predict_fn, static_argnames="config")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs of squares, with a text and whether they have one color; test has no classes."""
    folder = tmp_path_factory.mktemp("a b[1]")
    for split in ("train", "valid", "test"):
        rows = []
        for i in range(N):
            names = [f"{split}-{i}-{side}.png" for side in range(2)]
            for name, color in zip(names, (COLORS[i % 2], COLORS[i // 2 % 2]), strict=True):
                Image.new("RGBA", (16, 16), color).save(folder / name)
            row = {
                "images": names,
                "sentence": f"the {'left' if i % 3 else 'right'} square",
                "label": i % 2 == i // 2 % 2,
            }
            rows.append({name: value for name, value in row.items() if split != "test" or name != "label"})
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return folder


@functools.cache
def made(folder, **data):
    full = configs.defaults(own=jobs.task.fields(classify))
    sizes = {f"{tower}_{name}": 8 for tower in ("image", "text") for name in ("width",)}
    with full.unlocked():
        full.update({"task": "jtasks.tasks.multimodal_classify", "steps": 2, "batch_size": N})
        full.data.update({"dir": str(folder), "tokenizer": "wordpiece:60", "length": 8, **data})
        full.model.update(sizes | {"image_depth": 1, "text_depth": 1, "image_heads": 2, "text_heads": 2, "patch": 8})
    return jobs.prepare(configs.Config(full))


def batch(own, split="train"):
    examples = own.require(split)
    return pipeline.batch_at(examples, own.plan(examples, shuffle=False), 0, own.collate)


@functools.cache
def params(folder):
    own = made(folder)
    return tiny.drawn(lambda b: classify.init(RNG, b, own.config), batch(own), std=0.5)


def test_the_model_reads_both_pictures_in_their_order_and_padding_counts_nothing(folder):
    own, rows = made(folder), batch(made(folder))
    assert rows["image"].shape == (N, 2, 16, 16, 3) and rows["label"].tolist() == [1, 0, 0, 1, 1, 0, 0, 1]
    assert (own.config.model.classes, own.config.model.pictures, own.config.model.shape) == (2, 2, (16, 16))
    found = predict(params(folder), rows, RNG, config=own.config)
    for changed in (rows["image"][:, ::-1], rows["image"][:, [0, 0]], rows["image"][:, [1, 1]]):
        other = predict(params(folder), rows | {"image": changed}, RNG, config=own.config)
        assert np.abs(np.asarray(other["probability"] - found["probability"])).max() > 1e-3
    rows["mask"][4:] = 0
    (value, metrics), gradient = loss(params(folder), rows, RNG, config=own.config)
    right = np.where(np.asarray(found["label"]) == rows["label"], found["probability"], 1 - found["probability"])
    np.testing.assert_allclose(value, -np.log(right[:4]).mean(), rtol=1e-4)
    assert metrics["accuracy"].count == 4
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["classifier"]))


def test_inputs_are_rows_of_the_data(folder):
    own = made(folder)
    rows = own.require("valid")
    given = json.loads((folder / "valid.json").read_text())
    paths = [[str(folder / name) for name in row["images"]] for row in given]
    texts = [row["sentence"] for row in given]
    for inputs in (
        [{"images": two, "text": text} for two, text in zip(paths, texts, strict=True)],
        [(*two, text) for two, text in zip(paths, texts, strict=True)],
        ["\t".join((*two, text)) for two, text in zip(paths, texts, strict=True)],
        [{"image": two[0], "image2": two[1], "sentence": text} for two, text in zip(paths, texts, strict=True)],
        [dict(rows[i]) for i in range(N)],
    ):
        ours = classify.examples(inputs, own.config)
        for name in ("image", "tokens", "segment_ids"):
            np.testing.assert_array_equal(ours[name], np.stack([rows[i][name] for i in range(N)]))
    for bad in (
        {"image": paths[0][0], "text": "one picture"},
        {"images": paths[0]},
        "no picture",
        3,
        (paths[0][0], "x"),
    ):
        with pytest.raises(DataError, match="expected a dict with 'images'"):
            classify.examples([bad], own.config)


def test_a_file_without_classes_is_predicted_for_and_not_evaluated(folder):
    own = made(folder)
    rows = batch(own, "test")
    assert "label" not in rows
    outputs = predict(params(folder), rows, RNG, config=own.config)
    found = [jax.tree.map(lambda x, i=i: np.asarray(x[i]), outputs) for i in range(N)]
    examples = [own.require("test")[i] for i in range(N)]
    assert {answer["class"] for answer in classify.answers(examples, found, own.config)} <= {"False", "True"}
    shown = classify.show_fn(examples, found, own.config)
    assert "the left square" in shown["labels"] and shown["images"].shape[1] > 2 * 64
    with pytest.raises(DataError, match="these examples have no 'label'"):
        classify.eval_fn(params(folder), rows, own.config)


def test_classes_are_those_of_the_config(folder):
    assert json.loads(classify.assets(made(folder).config)["labels.json"]) == ["False", "True"]
    config = made(folder, labels=("True", "False")).config
    assert json.loads(classify.assets(config)["labels.json"]) == ["True", "False"]
    assert classify.dataset("valid", config)[0]["label"] == 0
    with pytest.raises(DataError, match=r"the train split has the labels \['False'\]; the classes are \['True'\]"):
        classify.dataset("train", made(folder, labels=("True",)).config)
    one = [{"images": ["train-0-0.png"], "text": "x", "label": "a"}]
    (folder / "one.json").write_text(json.dumps(one))
    with pytest.raises(ConfigError, match="expected at least two"):
        made(folder, train="one.json", valid="valid.json", test="test.json")


@pytest.mark.slow
def test_features_are_of_each_example(folder):
    own, rows = made(folder), batch(made(folder))
    embed = jax.jit(lambda p, b: classify.embed_fn(p, b, None, own.config)["token"])
    features = embed(params(folder), {k: jnp.asarray(v) for k, v in rows.items()})
    backwards = embed(params(folder), {k: jnp.asarray(v[::-1]) for k, v in rows.items()})
    assert features.shape == (N, 8) and features.dtype == jnp.float32
    np.testing.assert_allclose(backwards[::-1], features, rtol=1e-5, atol=1e-6)
