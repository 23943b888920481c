"""Claims about the task `tag`."""

import jax
import numpy as np
import pytest
from finetune import config, prepared

from jtasks import task
from jtasks.data import conll
from jtasks.errors import DataError
from jtasks.metrics import entities
from jtasks.run import predict

TAG = task.load("jtasks.tasks.tag")


def outputs_of(examples, tags, names):
    """What a model would say that gives word i of the whole split tags[i]; junk where no word begins."""
    left, found = iter(tags), []
    for labels in examples["labels"]:
        guess = np.full(len(labels), 1)
        guess[labels >= 0] = [names.index(next(left)) for _ in range((labels >= 0).sum())]
        found.append({"tag": guess[: (labels >= 0).nonzero()[0].max() + 1]})  # as short as a bucket may make it
    return found


def rows(examples):
    return [{name: x[i] for name, x in examples.items()} for i in range(len(examples["tokens"]))]


@pytest.mark.parametrize("length", [12, 24])
def test_scores_are_those_of_the_sentences_however_they_are_cut(tmp_path, length):
    made = prepared("wnut17.py", tmp_path, f"data.length={length}", f"data.buckets=({length},)")
    examples = made.require("valid")
    sentences = conll.sentences((tmp_path / "valid.conll").read_text(), "valid")
    assert (len(examples["tokens"]) > len(sentences)) == (length == 12)
    names = list(conll.classes(("location", "person")))
    random = np.random.default_rng(0)
    guess = [[tag if random.random() < 0.8 else str(random.choice(names)) for tag in s.tags] for s in sentences]
    outputs = outputs_of(examples, [tag for tags in guess for tag in tags], names)
    result = TAG.score_fn(rows(examples), outputs, made.config)
    assert result == entities.scores([s.tags for s in sentences], guess)
    assert 0 < result["f1"] < 1
    perfect = outputs_of(examples, [tag for s in sentences for tag in s.tags], names)
    assert TAG.score_fn(rows(examples), perfect, made.config) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    text = TAG.export_fn(rows(examples), outputs, made.config)["tags.conll"]
    columns = [[line.split() for line in part.splitlines()] for part in text.split("\n\n")]
    assert [[line[0] for line in part] for part in columns] == [s.words for s in sentences]
    assert [[line[1:] for line in part] for part in columns] == [
        [list(pair) for pair in zip(s.tags, g, strict=True)] for s, g in zip(sentences, guess, strict=True)
    ]


def test_labels_stand_on_first_pieces_and_count_once_a_word(tmp_path):
    made = prepared("wnut17.py", tmp_path)
    examples = made.require("train")
    batch = {name: x[:4] for name, x in examples.items() if x.dtype != object}
    batch |= {"mask": np.array([1, 1, 0, 1], np.float32), "seed": np.zeros(4, np.uint32)}
    params = jax.jit(lambda b: TAG.init(jax.random.key(0), b, made.config))(batch)
    metrics = jax.jit(lambda p, b: TAG.eval_fn(p, b, made.config))(params, batch)
    words = sum(len(examples["words"][i]) for i in (0, 1, 3))
    assert float(metrics["loss"].count) == float(metrics["accuracy"].count) == words
    np.testing.assert_allclose(metrics["loss"].value, np.log(5), rtol=0.2)
    outputs = predict.make(made)(params, examples)
    assert len(outputs) == len(examples["tokens"])
    right = sum(
        (
            outputs[i]["tag"][:24][examples["labels"][i][: len(outputs[i]["tag"])] >= 0]
            == examples["labels"][i][examples["labels"][i] >= 0]
        ).sum()
        for i in (0, 1, 3)
    )
    assert float(metrics["accuracy"].total) == right


def test_entities_that_train_lacks_are_named(tmp_path):
    settings = config("wnut17.py", tmp_path)
    (tmp_path / "valid.conll").write_text("Ada\tB-person\nacts\tO\n\nACME\tB-corporation\n")
    with pytest.raises(DataError, match=r"the valid split has the tags \['B-corporation'\], which train lacks"):
        TAG.dataset("valid", settings)
    settings = config("wnut17.py", tmp_path, "data.labels=('person', 'location', 'corporation')")
    assert TAG.model_args(settings)["labels"] == 7


def test_what_is_shown_has_words_and_entities(tmp_path):
    made = prepared("wnut17.py", tmp_path)
    example = {"words": ["Ada", "met", "Bo"], "tags": ["B-person", "O", "B-person"], "sentence": 0}
    example["labels"] = np.array([-1, 3, 0, -1, 3, -1])
    example["starts"] = example["labels"] >= 0
    shown = TAG.show_fn([example], [{"tag": np.array([0, 3, 0, 4, 1, 0])}], made.config)["entities"]
    assert shown.split("\n") == [
        "Ada met Bo",
        "  found: Ada (person), Bo (location)",
        "  truly: Ada (person), Bo (person)",
    ]


def test_wnut17_is_read_as_it_is(shared):
    folder = shared / "data" / "finetune" / "wnut17"
    found = {
        name: conll.sentences((folder / name).read_text(), name) for name in ("wnut17train.conll", "emerging.dev.conll")
    }
    counts = {name: sum(len(entities.entities(s.tags)) for s in sentences) for name, sentences in found.items()}
    assert counts == {"wnut17train.conll": 1975, "emerging.dev.conll": 836}  # as many as tags that begin with B
    assert [len(sentences) for sentences in found.values()] == [3394, 1009]


def test_words_without_tags_are_predicted_for_and_shown_but_not_evaluated(tmp_path):
    made = prepared("wnut17.py", tmp_path)
    tagged = conll.sentences((tmp_path / "valid.conll").read_text(), "valid")
    (tmp_path / "valid.conll").write_text("\n\n".join("\n".join(s.words) for s in tagged))
    examples = TAG.dataset("valid", made.config)
    arrays = {name: examples[name] for name in ("tokens", "segment_ids", "starts")}
    params = jax.eval_shape(lambda: TAG.init(jax.random.key(0), arrays, made.config))
    tags = jax.eval_shape(lambda p: TAG.predict_fn(p, arrays, None, made.config), params)["tag"]
    outputs = [{"tag": row} for row in np.zeros(tags.shape, int)]
    lines = TAG.export_fn(rows(examples), outputs, made.config)["tags.conll"].split("\n\n")[0].split("\n")
    assert [line.split()[0] for line in lines if line] == tagged[0].words and {len(line.split()) for line in lines} <= {
        0,
        2,
    }
    assert "truly: (not told)" in TAG.show_fn(rows(examples), outputs, made.config)["entities"]
    with pytest.raises(DataError, match="these examples have no 'labels'"):
        jax.eval_shape(lambda p: TAG.eval_fn(p, arrays, made.config), params)
    (tmp_path / "train.conll").write_text((tmp_path / "valid.conll").read_text())
    with pytest.raises(DataError, match=r"train.conll has words without tags, which training needs"):
        TAG.dataset("train", made.config)
    (tmp_path / "train.conll").write_text("all\tO\noutside\tO\n")
    with pytest.raises(DataError, match=r"train.conll has no entity: all words have the tag O"):
        TAG.dataset("train", made.config)
