"""Claims about the task `classify`."""

import json
import pathlib

import finetune
import jax
import numpy as np
import pytest
from finetune import config, prepared

from jtasks import task, testing
from jtasks.data import tables, targets, values
from jtasks.errors import ConfigError, DataError

CLASSIFY = task.load("jtasks.tasks.classify")


def test_texts_become_tokens_with_the_labels_of_the_config(tmp_path):
    made = prepared("sst2.py", tmp_path)
    examples = made.require("valid")
    assert {k: (v.shape, v.dtype.kind) for k, v in examples.items()} == {
        "tokens": ((21, 16), "i"),
        "token_types": ((21, 16), "u"),
        "segment_ids": ((21, 16), "u"),
        "label": ((21,), "i"),
        "text": ((21,), "O"),
    }
    assert examples["label"].tolist() == [i % 2 for i in range(21)]
    assert (made.config.model.max_length, made.config.model.labels) == (16, 2)
    assert examples["tokens"].max() < made.config.model.vocab <= 150
    np.testing.assert_array_equal(made.lengths(examples), (examples["tokens"] != 0).sum(1))


def rows(folder, **columns):
    """The same rows as train and dev."""
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    for split in ("train", "valid"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    changes = ["data.train=train.jsonl", "data.valid=valid.jsonl", "data.test=", "data.labels=()"]
    return [
        *changes,
        "data.text=premise",
        "data.text_pair=hypothesis",
        "data.label=gold",
        "data.tokenizer=wordpiece:80",
    ]


def test_pairs_with_named_classes_in_alphabetical_order(tmp_path):
    changes = rows(tmp_path, premise=["a b", "c", "d"], hypothesis=["e", "f g", "h"], gold=["yes", "no", "maybe"])
    made = prepared("sst2.py", tmp_path, *changes)
    examples = made.require("train")
    assert examples["label"].tolist() == [2, 1, 0] and made.config.model.labels == 3
    assert examples["token_types"].sum(1).tolist() == [2, 3, 2]  # the second text and its [SEP]
    assert examples["text_pair"].tolist() == ["e", "f g", "h"]
    assert made.examples("test") is None


def test_numbers_are_sorted_as_numbers(tmp_path):
    changes = rows(tmp_path, premise=list("abc"), hypothesis=list("def"), gold=[10, 9, 2])
    assert prepared("sst2.py", tmp_path, *changes).require("train")["label"].tolist() == [2, 1, 0]


def test_a_label_without_a_class_is_named(tmp_path):
    changes = rows(tmp_path, premise=["a", "b"], hypothesis=["c", "d"], gold=["yes", "no"])
    with pytest.raises(DataError, match=r"the train split has the labels \['no'\]; the classes are \['yes', 'nay'\]"):
        CLASSIFY.dataset("train", config("sst2.py", tmp_path, *changes, "data.labels=('yes', 'nay')"))
    changes = rows(tmp_path, premise=["a", "b"], hypothesis=["c", "d"], gold=["yes", "yes"])
    with pytest.raises(ConfigError, match=r"has the values \['yes'\]; expected at least two"):
        CLASSIFY.dataset("train", config("sst2.py", tmp_path, *changes))


def scored(truth, found, classes):
    examples = [{"label": np.int32(label)} for label in truth]
    outputs = [{"label": np.int32(label)} for label in found]
    made = finetune.configs.Config({"problem": "single_label", "model": {"labels": classes}})
    return CLASSIFY.score_fn(examples, outputs, made)


def test_two_classes_are_scored_by_f1_of_the_second_and_matthews():
    truth, found = [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1, 0, 0]  # 2 hits, 2 misses, 1 false alarm, 3 rejections
    result = scored(truth, found, 2)
    assert result["f1"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))
    assert result["matthews"] == pytest.approx((2 * 3 - 1 * 2) / np.sqrt(3 * 4 * 4 * 5))


def test_more_classes_are_scored_by_the_mean_f1_of_all_of_them():
    result = scored([0, 1, 1], [0, 1, 0], 3)  # F1 of 2/3, 2/3, and 0 for the class that never comes
    assert result["f1"] == pytest.approx((2 / 3 + 2 / 3) / 3)
    assert result["matthews"] == pytest.approx(0.5)  # sklearn's matthews_corrcoef


def test_nothing_but_one_class_is_scored_without_a_warning():
    assert scored([0, 0], [0, 0], 2) == {"f1": 0.0, "matthews": 0.0}


def test_what_is_shown_names_the_classes(tmp_path):
    made = prepared("sst2.py", tmp_path)
    examples = [{"text": "fine ", "label": 1}, {"text": "poor", "label": 0}]
    outputs = [{"label": 1, "probability": 0.75}, {"label": 1, "probability": 0.5}]
    assert CLASSIFY.show_fn(examples, outputs, made.config)["labels"].split("\n") == [
        "1 (0.750), truly 1: fine",
        "1 (0.500), truly 0: poor",
    ]


def test_sst2_of_glue_is_read_as_it_is(shared):
    folder = str(shared / "data" / "finetune" / "sst2")
    for split, count in (("train", 60_614), ("dev", 6_735)):
        found = tables.rows(f"{split}.tsv", split, {"sentence": values.content, "label": values.label}, folder=folder)
        assert len(found) == count and {row["label"] for row in found} == {"0", "1"}


def test_a_pair_may_lack_one_text_but_not_both(tmp_path):
    settings = config("sst2.py", tmp_path, "data.text_pair=more")
    (tmp_path / "train.tsv").write_text("sentence\tmore\tlabel\na\t\t1\n\tb\t0\n")
    assert CLASSIFY.dataset("train", settings)["text_pair"].tolist() == ["", "b"]
    (tmp_path / "train.tsv").write_text("sentence\tmore\tlabel\na\tb\t1\n\t \t0\n")
    with pytest.raises(DataError, match=r"train\.tsv: both texts of example 1 are empty"):
        CLASSIFY.dataset("train", settings)


@pytest.mark.parametrize("text", ["sentence\nfine\npoor\n", "sentence\tlabel\nfine\t-1\npoor\t-1\n"])
def test_a_file_without_labels_is_predicted_for_and_shown_but_not_trained_on_or_evaluated(tmp_path, text):
    made = prepared("sst2.py", tmp_path)
    (tmp_path / "dev.tsv").write_text(text)
    examples = CLASSIFY.dataset("valid", made.config)
    assert "label" not in examples and examples["text"].tolist() == ["fine", "poor"]
    shown = CLASSIFY.show_fn([{"text": "fine"}], [{"label": 1, "probability": 0.5}], made.config)
    assert shown["labels"] == "1 (0.500), truly (not told): fine"
    arrays = {name: examples[name] for name in CLASSIFY.SEQUENCE_KEYS}
    params = jax.eval_shape(lambda: CLASSIFY.init(jax.random.key(0), arrays, made.config))
    jax.eval_shape(lambda p: CLASSIFY.predict_fn(p, arrays, None, made.config), params)
    with pytest.raises(DataError, match=r"these examples have no 'label'.*--mode=predict.*not trained on or evaluated"):
        jax.eval_shape(lambda p: CLASSIFY.eval_fn(p, arrays, made.config), params)
    (tmp_path / "train.tsv").write_text(text)
    with pytest.raises((ConfigError, DataError), match=r"no column 'label'|has the labels \['-1'\]"):
        CLASSIFY.dataset("train", made.config)


def test_labels_that_only_some_rows_have_are_refused(tmp_path):
    settings = config("sst2.py", tmp_path, "data.valid=dev.jsonl")
    (tmp_path / "dev.jsonl").write_text('{"sentence": "fine"}\n{"sentence": "poor", "label": 0}\n')
    with pytest.raises(DataError, match=r"dev.jsonl, line 2: there is a column 'label', which the first row lacks"):
        CLASSIFY.dataset("valid", settings)
    (tmp_path / "dev.jsonl").write_text('{"sentence": "fine", "label": 0}\n{"sentence": "poor"}\n')
    with pytest.raises(DataError, match=r"dev.jsonl, line 2: no column 'label'"):
        CLASSIFY.dataset("valid", settings)


def abstract(made, examples):
    """Shapes of the parameters, and a batch."""
    arrays = {name: examples[name][:2] for name in (*CLASSIFY.SEQUENCE_KEYS, "label")}
    return jax.eval_shape(lambda: CLASSIFY.init(jax.random.key(0), arrays, made.config)), arrays


MOODS = [["joy"], ["anger", "fear"], [], ["joy", "fear"], ["anger"], ["fear"], [], ["anger", "joy"]]
PROBLEMS = {
    "regression": {"score": [0.5 * i for i in range(8)]},
    "multi_label": {"moods": MOODS},
}


def problem(name: str, folder: pathlib.Path) -> list[str]:
    """Write texts with numbers or with several classes; return overrides of configs/sst2.py."""
    (label, column), texts = next(iter(PROBLEMS[name].items())), finetune.sentences(8, 0)
    lines = [json.dumps({"sentence": a, label: b}) for a, b in zip(texts * 3, column * 3, strict=True)]
    for split in ("train", "valid"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    files = ["data.train=train.jsonl", "data.valid=valid.jsonl", "data.test=", "data.labels=()"]
    return [f"problem={name}", f"data.label={label}", *files]


def test_a_number_is_learned_scored_and_shown(tmp_path):
    made = prepared("sst2.py", tmp_path, *problem("regression", tmp_path))
    examples = made.require("valid")
    assert examples["label"].dtype == np.float32 and examples["label"].tolist() == PROBLEMS["regression"]["score"] * 3
    assert made.config.model.labels == 1 and json.loads(made.assets()["labels.json"]) == ["score"]
    rows = [{"label": label, "text": "so"} for label in (0.0, 1.0, 3.0)]
    outputs = [{"value": value} for value in (0.0, 1.0, 2.0)]
    scores = CLASSIFY.score_fn(rows, outputs, made.config)
    assert scores["spearman"] == pytest.approx(1) and scores["pearson"] == pytest.approx(0.98198, abs=1e-5)
    assert CLASSIFY.answers(rows, outputs, made.config) == [{}] * 3
    assert CLASSIFY.show_fn(rows, outputs, made.config)["labels"].splitlines()[2] == "2.000, truly 3: so"
    shaped = finetune.configs.Config(
        made.config.to_dict() | {"loss": {"smoothing": 0.1, "focal": 0.0, "class_weights": ()}}
    )
    with pytest.raises(ConfigError, match=r"config.loss=\{'smoothing': 0.1\} is for the loss of classes"):
        jax.eval_shape(lambda p, b: CLASSIFY.loss_fn(p, b, jax.random.key(0), shaped), *abstract(made, examples))
    (tmp_path / "train.jsonl").write_text('{"sentence": "a", "score": "1.5"}\n{"sentence": "b", "score": "good"}')
    with pytest.raises(DataError, match=r"train.jsonl, line 2, column 'score': expected a number, not 'good'"):
        CLASSIFY.dataset("train", made.config)


def test_texts_may_have_any_number_of_classes(tmp_path):
    made = prepared("sst2.py", tmp_path, *problem("multi_label", tmp_path))
    examples = made.require("train")
    assert json.loads(made.assets()["labels.json"]) == ["anger", "fear", "joy"] and made.config.model.labels == 3
    assert examples["label"][:4].tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 0], [0, 1, 1]]
    rows = [{"label": label, "text": "so"} for label in examples["label"][:2]]
    outputs = [{"probabilities": np.array(p)} for p in ([0.1, 0.2, 0.9], [0.8, 0.4, 0.1])]
    assert CLASSIFY.score_fn(rows, outputs, made.config)["f1_micro"] == pytest.approx(4 / 5)
    assert CLASSIFY.answers(rows, outputs, made.config) == [{"classes": ["joy"]}, {"classes": ["anger"]}]
    assert CLASSIFY.show_fn(rows, outputs, made.config)["labels"].splitlines()[1] == "anger, truly anger, fear: so"
    assert values.labels("b, a", "here") == ["b", "a"] and values.labels("", "here") == []
    with pytest.raises(DataError, match="a label occurs twice"):
        values.labels(["a", "a"], "here")
    named = config("sst2.py", tmp_path, *problem("multi_label", tmp_path), "data.labels=('joy', 'fear')")
    with pytest.raises(DataError, match=r"the train split has the labels \['anger'\]; the classes are"):
        CLASSIFY.dataset("train", named)


def test_the_kind_of_labels_is_that_of_a_folder_of_transformers():
    for name in targets.PROBLEMS:
        assert targets.from_transformers({"problem_type": targets.transformers_name(name)}, None) == name
    assert targets.from_transformers({}, ["LABEL_0"]) == "regression" and targets.from_transformers({}, None)[0] == "s"


def test_sts_b_is_read_as_it_is(shared):
    files = [f"data.{split}={split}.csv" for split in ("train", "test")]
    columns = ["data.text=0", "data.text_pair=1", "data.label=2", "data.valid=dev.csv", "data.tokenizer=wordpiece:200"]
    folder = f"data.dir={shared / 'data' / 'stsb'}"
    settings = finetune.configs.load(
        f"{finetune.ROOT}/configs/stsb.py", [f"--config.{c}" for c in (folder, *files, *columns)]
    )
    labels = [row["2"] for row in CLASSIFY._rows("valid", settings)]
    assert len(labels) == 1500 and (min(labels), max(labels)) == (0, 5)


@pytest.mark.slow
def test_several_classes_with_every_field_of_the_loss_keep_the_contract(tmp_path):
    shaped = ["loss.smoothing=0.1", "loss.focal=2.0", "loss.class_weights=(1.0, 2.0, 0.5)"]
    results = testing.run(config("sst2.py", tmp_path, *problem("multi_label", tmp_path), *shaped))
    assert all(result.passed for result in results), testing.table(results)
