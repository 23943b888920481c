"""Claims about the task `choice`."""

import csv
import json

import jax
import numpy as np
import pytest
from finetune import config, prepared

from jtasks import task
from jtasks.errors import ConfigError, DataError

CHOICE = task.load("jtasks.tasks.choice")


def test_swag_reads_the_endings_behind_the_sentence(tmp_path):
    made = prepared("swag.py:small", tmp_path)
    examples = made.require("valid")
    assert examples["tokens"].shape == examples["token_types"].shape == examples["segment_ids"].shape == (9, 4, 24)
    assert examples["label"].tolist() == [i % 4 for i in range(9)]
    assert examples["choices"].shape == (9, 4) and examples["choices"][0, 1].startswith("so ")
    for row in examples["tokens"]:
        assert len({tuple(choice) for choice in row}) > 1
    assert made.config.model.labels == 1


def test_csv_is_read_as_swag_has_it(tmp_path):
    made = config("swag.py:small", tmp_path, "data.train=train.csv")
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    with (tmp_path / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["", "fold-ind", *rows[0]], restval="7")
        writer.writeheader()
        writer.writerows(rows)
    one = CHOICE.dataset("train", made)
    two = CHOICE.dataset("train", config("swag.py:small", tmp_path))
    for name in ("tokens", "token_types", "label"):
        np.testing.assert_array_equal(one[name], two[name])


def race(folder, *rows):
    (folder / "race.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return config("swag.py:small", folder, "data.fields=race", "data.train=race.jsonl", "data.tokenizer=wordpiece:60")


def row(question="Who met ?", options=("Ada", "Bo", "Cy"), answer="C"):
    return {"article": "Ada met Cy in town.", "question": question, "options": options, "answer": answer}


def test_race_fills_blanks_and_asks_questions(tmp_path):
    examples = CHOICE.dataset("train", race(tmp_path, row(), row("Ada met _ in _ .", answer="A")))
    assert examples["choices"].tolist() == [
        ["Who met ? Ada", "Who met ? Bo", "Who met ? Cy"],
        ["Ada met Ada in Ada .", "Ada met Bo in Bo .", "Ada met Cy in Cy ."],
    ]
    assert examples["label"].tolist() == [2, 0] and examples["tokens"].shape == (2, 3, 24)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row(options=("Ada", "Bo")), "example 1 has 2 choices, the first has 3"),
        (row(answer="D"), "the answer of example 1 is none of its 3 choices"),
        (row(answer=""), "race.jsonl, line 2, column 'answer' is empty"),
        (row(answer=None), "line 2, column 'answer': expected a label"),
        (row(options="Ada"), "line 2, column 'options': expected a list of texts, not text"),
        (row(options=("Ada", None, "Cy")), "line 2, column 'options', item 1: expected text, not null"),
        (row(question=3), "line 2, column 'question': expected text, not the number 3"),
        (row(answer=-1), "the answer of example 1 is none of its 3 choices"),
    ],
)
def test_examples_unlike_the_others_are_named(tmp_path, wrong, message):
    with pytest.raises(DataError, match=message):
        CHOICE.dataset("train", race(tmp_path, row(), wrong))


def test_the_first_example_is_checked_too(tmp_path):
    with pytest.raises(DataError, match="the answer of example 0"):
        CHOICE.dataset("train", race(tmp_path, row(answer="E"), row()))


def test_unknown_fields_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"config.data.fields must be swag or race, not 'rase'"):
        CHOICE.dataset("train", config("swag.py:small", tmp_path, "data.fields=rase"))


def test_choices_are_scored_alone_and_compared(tmp_path):
    made = prepared("swag.py:small", tmp_path)
    examples = made.require("valid")
    batch = {name: x for name, x in examples.items() if x.dtype != object}
    batch |= {"mask": np.ones(9, np.float32), "seed": np.zeros(9, np.uint32)}
    shapes = jax.eval_shape(lambda b: CHOICE.init(jax.random.key(0), b, made.config), batch)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: (0.3 * random.normal(size=x.shape)).astype(np.float32), shapes)
    run = jax.jit(lambda p, b: (CHOICE.predict_fn(p, b, None, made.config), CHOICE.eval_fn(p, b, made.config)))
    outputs, metrics = run(params, batch)
    np.testing.assert_allclose(outputs["probabilities"].sum(1), 1, rtol=1e-5)
    assert float(metrics["accuracy"].total) == (np.asarray(outputs["label"]) == batch["label"]).sum()
    order = np.array([2, 0, 3, 1])
    moved, _ = run(params, batch | {name: batch[name][:, order] for name in CHOICE.INPUTS})
    np.testing.assert_allclose(moved["probabilities"], outputs["probabilities"][:, order], rtol=1e-4)
    chosen = np.take_along_axis(np.asarray(outputs["probabilities"]), batch["label"][:, None], 1)
    np.testing.assert_allclose(metrics["loss"].value, -np.log(chosen).mean(), rtol=1e-5)


def test_what_is_shown_marks_the_models_choice_and_the_right_one(tmp_path):
    settings = config("swag.py:small", tmp_path)
    example = {"context": "Ada sits.", "choices": np.array(["so x", "so y"], object), "label": 0}
    output = {"label": np.int32(1), "probabilities": np.array([0.25, 0.75])}
    assert CHOICE.show_fn([example], [output], settings)["choices"].split("\n") == [
        "Ada sits.",
        "   * 0.250 so x",
        "  >  0.750 so y",
    ]


@pytest.mark.parametrize("told", [{}, {"label": -1}])
def test_choices_without_answers_are_predicted_for_but_not_evaluated(tmp_path, told):
    made = prepared("swag.py:small", tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "val.jsonl").read_text().splitlines()[:2]]
    for line in lines:
        del line["label"]
    (tmp_path / "val.jsonl").write_text("\n".join(json.dumps(line | told) for line in lines))
    examples = CHOICE.dataset("valid", made.config)
    shown = CHOICE.show_fn(
        [{"context": "a", "choices": ["b", "c"]}], [{"label": 1, "probabilities": [0.1, 0.9]}], made.config
    )
    assert "*" not in shown["choices"]
    arrays = {name: examples[name] for name in CHOICE.INPUTS}
    params = jax.eval_shape(lambda: CHOICE.init(jax.random.key(0), arrays, made.config))
    jax.eval_shape(lambda p: CHOICE.predict_fn(p, arrays, None, made.config), params)
    with pytest.raises(DataError, match="these examples have no 'label'"):
        jax.eval_shape(lambda p: CHOICE.eval_fn(p, arrays, made.config), params)
    (tmp_path / "val.jsonl").write_text("\n".join(json.dumps(line | {"label": i - 1}) for i, line in enumerate(lines)))
    with pytest.raises(DataError, match="the answer of example 0 is none of its 4 choices"):
        CHOICE.dataset("valid", made.config)
