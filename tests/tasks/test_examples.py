"""Claims about examples(inputs, config), embed_fn and answers of the shipped tasks."""

import csv
import functools
import json
import pathlib

import finetune
import jax
import made_dialogues
import numpy as np
import pytest
import tiny
from front_door import ROOT
from PIL import Image

from jtasks import config as configs
from jtasks import models
from jtasks.data import pipeline, tokenizers
from jtasks.data.pictures import decode
from jtasks.errors import DataError
from jtasks.interop import huggingface, model_config
from jtasks.run import job
from jtasks.testing import contract, determinism, people

SENTENCES = ["the cat sat on the mat", "a dog ran over the hill", "birds sing in the tall green tree"]
MODEL = ["--config.model.width=16", "--config.model.depth=2", "--config.model.heads=2"]
TEXTS = {"classify": "sst2.py", "tag": "wnut17.py", "qa": "squad.py:small", "choice": "swag.py:small"}
IMAGES = ("mnist", "vit", "igpt", "classifier")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> pathlib.Path:
    """A folder with files for every task of text."""
    folder = tmp_path_factory.mktemp("inputs data")
    documents = ["\n".join(SENTENCES[i % 3] for i in range(n, n + 4)) for n in range(12)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    (folder / "avsd").mkdir()
    made_dialogues.write(folder / "avsd", {"train": 8, "valid": 4, "test": 3})
    return folder


@functools.cache
def made(name: str, folder: pathlib.Path, *changes: str) -> job.Job:
    """The job of a tiny model of a task."""
    if name in IMAGES:
        return tiny.job(name, 1)
    if name in TEXTS:
        return job.prepare(finetune.config(TEXTS[name], folder, *changes))
    config = {"lm": "shakespeare_char", "bert": "bert:tiny", "avsd": "avsd:small"}[name]
    overrides = {
        "lm": ["data.files=text.txt", "data.length=16", "sample.length=6"],
        "bert": [
            "data.files=text.txt",
            "data.valid_fraction=0.0",
            "data.length=24",
            "data.tokenizer=wordpiece:60",
            "data.max_predictions=4",
        ],
        "avsd": ["data.features=('near', 'far')"],
    }[name]
    fields = [f"--config.{change}" for change in (*overrides, *changes)]
    file, _, preset = config.partition(":")
    path = f"{ROOT}/configs/{file}.py" + (f":{preset}" if preset else "")
    place = folder / "avsd" if name == "avsd" else folder
    common = made_dialogues.TINY if name == "avsd" else MODEL
    return job.prepare(configs.load(path, [*common, f"--config.data.dir={place}", *fields]))


def equal(ours, theirs, names):
    for name in names:
        a, b = np.asarray(ours[name]), np.asarray(theirs[name])
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        np.testing.assert_array_equal(a, b, name)


def batch(made, examples, rows=4):
    plan = pipeline.BatchPlan(pipeline.size(examples), 0, rows, shuffle=False)
    return pipeline.batch_at(examples, plan, 0, made.collate)


def params(made, batch):
    return tiny.drawn(lambda b: made.task.init(jax.random.key(0), b, made.config), batch)


def embedded(made, params, batch):
    return jax.jit(lambda p, b: made.task.embed_fn(p, b, None, made.config))(params, batch)


def predicted(made, params, batch, count):
    outputs = jax.jit(lambda p, b: made.task.predict_fn(p, b, jax.random.key(0), made.config))(params, batch)
    return [jax.tree.map(lambda x, i=i: np.asarray(x)[i], outputs) for i in range(count)]


def rows_of(examples):
    return [pipeline.read(examples, i) for i in range(pipeline.size(examples))]


# the same row, the same arrays


def test_rows_of_a_table_are_the_rows_of_the_file(data):
    sst2 = made("classify", data)
    lines = (data / "dev.tsv").read_text().splitlines()
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    theirs = sst2.task.dataset("valid", sst2.config)
    for inputs in (rows, [row["sentence"] for row in rows], [{"text": row["sentence"], "id": 1} for row in rows]):
        ours = sst2.task.examples(inputs, sst2.config)
        assert ours.keys() == theirs.keys() - {"label"}
        equal(ours, theirs, ours)


def test_pairs_are_pairs_of_texts_or_dicts(tmp_path):
    rows = [{"a": f"x {i}", "b": f"y z {i}", "label": i % 2} for i in range(4)]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = ["data.train=train.jsonl", "data.valid=dev.jsonl", "data.test=", "data.text=a", "data.text_pair=b"]
    mnli = job.prepare(finetune.config("sst2.py", tmp_path, *files, "data.tokenizer=wordpiece:80"))
    theirs = mnli.task.dataset("valid", mnli.config)
    for inputs in (rows, [(r["a"], r["b"]) for r in rows], [{"text": r["a"], "text_pair": r["b"]} for r in rows]):
        ours = mnli.task.examples(inputs, mnli.config)
        equal(ours, theirs, ours)
    for bad in ("alone", ("a", "b", "c"), {"a": "x"}, ("x", None), (" ", ""), 3):
        with pytest.raises(DataError, match="expected a pair of texts, or a dict with 'a' and 'b'"):
            mnli.task.examples([bad], mnli.config)


def test_tagged_words_are_lists_or_texts(data):
    wnut = made("tag", data)
    theirs = wnut.task.dataset("valid", wnut.config)
    words = [row["words"] for row in (pipeline.read(theirs, i) for i in range(pipeline.size(theirs)))]
    for inputs in (
        words,
        [" \t".join(w) for w in words],
        [{"tokens": w} for w in words],
        [{"text": " ".join(words[0])}],
    ):
        ours = wnut.task.examples(inputs, wnut.config)
        equal(ours, {k: v[: len(inputs)] for k, v in theirs.items()}, ("tokens", "segment_ids", "starts", "sentence"))


def test_questions_become_the_windows_of_their_context(data):
    squad = made("qa", data)
    theirs = squad.task.dataset("valid", squad.config)
    asked = {q.name: q for q in theirs["question"]}.values()
    for inputs in ([(q.text, q.context) for q in asked], [{"question": q.text, "context": q.context} for q in asked]):
        ours = squad.task.examples(inputs, squad.config)
        equal(ours, theirs, ("tokens", "token_types", "segment_ids", "begin"))
        names = list(dict.fromkeys(q.name for q in theirs["question"]))
        assert ours["input"].tolist() == [names.index(q.name) for q in theirs["question"]]


def test_choices_are_rows_of_swag_or_a_context_with_choices(data):
    swag = made("choice", data)
    theirs = swag.task.dataset("valid", swag.config)
    rows = [json.loads(line) for line in (data / "val.jsonl").read_text().splitlines()]
    pairs = [(row["context"], list(row["choices"])) for row in (pipeline.read(theirs, i) for i in range(len(rows)))]
    for inputs in (rows, pairs, [{"context": a, "endings": b} for a, b in pairs]):
        ours = swag.task.examples(inputs, swag.config)
        equal(ours, theirs, ours)
    with pytest.raises(DataError, match="2 and 4 choices"):
        swag.task.examples([pairs[0], ("a", ["b", "c"])], swag.config)


def test_a_prompt_has_the_tokens_of_the_text(data):
    lm = made("lm", data)
    theirs = lm.task.dataset("train", lm.config)["tokens"]
    text = (data / "text.txt").read_text()
    ours = lm.task.examples([text[:16], text[:5], {"prompt": text[:30]}], lm.config)
    np.testing.assert_array_equal(ours["tokens"][0, :16], theirs[0, :16])
    assert ours["tokens"].dtype == theirs.dtype and ours["given"].tolist() == [16, 5, 16]
    np.testing.assert_array_equal(ours["tokens"][2, :16], theirs[14, :16])  # a long prompt loses its beginning
    with pytest.raises(DataError, match="no tokens"):
        lm.task.examples([""], lm.config)


def test_a_pair_of_sentences_is_a_pair_of_pretraining(data):
    bert = made("bert", data)
    pairs, sentence = bert.task.dataset("train", bert.config), "the cat sat on the mat"
    theirs = pipeline.read(pairs, 0)
    separators = np.flatnonzero(theirs["tokens"] == bert.config.model.separator)
    tokenizer = tokenizers.of(bert.config, bert.task.texts)
    texts = [
        tokenizer.decode(part.tolist())
        for part in np.split(theirs["tokens"], [1, separators[0], separators[0] + 1, separators[1]])[1:4:2]
    ]
    ours = bert.task.examples([tuple(texts), sentence], bert.config)
    np.testing.assert_array_equal(ours["tokens"][0], theirs["tokens"])
    equal({k: v[0] for k, v in ours.items()}, theirs, ("token_types", "segment_ids"))


def test_dialogues_are_the_turns_of_the_official_file(data):
    avsd = made("avsd", data)
    theirs = avsd.task.dataset("test", avsd.config)
    official = json.loads((data / "avsd" / "avsd_test.json").read_text())["dialogs"]
    parts = [{**d, "dialog": d["dialog"][:1], "question": d["dialog"][1]["question"]} for d in official]
    last = {name: array[1::2] for name, array in theirs.items()}
    for inputs in (official, parts):
        ours = avsd.task.examples(inputs, avsd.config)
        equal(ours, last, ("context", "kinds", "answer", "answered", "turn"))
        equal(batch(avsd, ours), batch(avsd, last), ("video", "frames"))
    features = batch(avsd, last)["video"][0][: int(batch(avsd, last)["frames"][0])]
    own = {**{k: parts[0][k] for k in ("caption", "summary", "dialog", "question")}, "features": features}
    np.testing.assert_allclose(
        batch(avsd, avsd.task.examples([own], avsd.config))["video"][0, : len(features)], features
    )
    for bad in ("which color ?", {**own, "features": features[:, :2]}, {**parts[0], "image_id": "none"}):
        with pytest.raises(DataError, match=r"features"):
            avsd.task.examples([bad], avsd.config)


@pytest.mark.parametrize("name", IMAGES)
def test_pictures_are_the_images_of_the_data(name, data):
    digits = made(name, data)
    theirs = digits.task.dataset("valid", digits.config)["image"][:3]
    for inputs in (
        list(theirs),
        [image[..., 0] for image in theirs],
        [{"image": image, "label": 1} for image in theirs],
    ):
        equal(digits.task.examples(inputs, digits.config), {"image": theirs}, ["image"])


# pictures as people hold them


def pictures(folder) -> dict[str, Image.Image]:
    gray = np.arange(0, 256, 2, np.uint8).reshape(8, 16)
    color = np.stack([gray, gray[::-1], 255 - gray], -1)
    turned = Image.fromarray(color)
    turned.getexif()[274] = 6
    return {
        "rgb.png": Image.fromarray(color),
        "gray.png": Image.fromarray(gray),
        "sixteen.png": Image.fromarray(gray.astype(np.uint16) * 257),
        "alpha.png": Image.fromarray(np.dstack([color, gray])),
        "palette.gif": Image.fromarray(color).convert("P"),
        "turned.jpg": turned,
    }


@pytest.mark.parametrize("file", pictures(None))
def test_a_picture_is_decoded_like_the_files_of_a_data_set(file, tmp_path, data):
    path = tmp_path / "a b[1]" / file
    path.parent.mkdir()
    pictures(None)[file].save(path, **({"exif": pictures(None)[file].getexif()} if file == "turned.jpg" else {}))
    vit = tiny.job("vit", 1, data__name=f"folder:{tmp_path}", model__shape=decode(str(path)).shape[:2])
    want = decode(str(path))[None]
    with Image.open(path) as picture:
        for given in (path, str(path), picture, {"path": path}, {"file": str(path)}):
            equal(vit.task.examples([given], vit.config), {"image": want}, ["image"])


def test_a_large_color_picture_becomes_a_small_gray_one(data):
    vit = made("vit", data)  # digits: 8 x 8, levels 0 to 16
    white = Image.new("RGB", (50, 30), "white")
    assert (vit.task.examples([white], vit.config)["image"] == 16).all()
    with pytest.raises(DataError, match="level 255; the data has 0 to 16"):
        vit.task.examples([np.asarray(white)], vit.config)


@pytest.mark.parametrize(
    "bad", [3, None, np.zeros((8, 8)), np.zeros((2, 2, 2), np.uint8), {"label": 1}, "absent.png", "\0", "\ud800"]
)
def test_what_is_no_picture_is_refused_with_what_it_was(bad, data):
    with pytest.raises(DataError, match="expected"):
        made("mnist", data).task.examples([bad], made("mnist", data).config)


# features


def test_features_are_of_each_example_alone(data):
    own = made("classify", data)
    examples = own.task.dataset("train", own.config)
    first = batch(own, examples, 4)
    weights = params(own, first)
    features = embedded(own, weights, first)
    backwards = embedded(own, weights, {k: v[::-1] for k, v in first.items()})
    others = {k: np.concatenate([v[:1], v[:1], v[:1], v[:1]]) for k, v in first.items()}
    for kind, value in features.items():
        assert value.shape[0] == 4 and value.ndim == 2 and value.dtype == np.float32 and np.isfinite(value).all()
        np.testing.assert_allclose(backwards[kind][::-1], value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(embedded(own, weights, others)[kind][0], value[0], rtol=1e-5, atol=1e-6)
        assert np.abs(value[0] - value[1]).max() > 1e-3


def test_the_mean_leaves_out_padding(data):
    own = made("classify", data)
    examples = own.task.examples(["good film", "the film was seen by many people"], own.config)
    short = {k: v[:1, : int(examples["segment_ids"][0].sum())] for k, v in examples.items() if v.ndim == 2}
    weights = params(own, short)
    padded = embedded(own, weights, {k: examples[k][:1] for k in short})
    for kind, value in embedded(own, weights, short).items():
        np.testing.assert_allclose(padded[kind], value, rtol=1e-5, atol=1e-6)
    assert set(padded) == {"cls", "mean", "pooled"}


def test_the_mean_is_that_of_transformers_hidden_states():
    golden = ROOT / "tests" / "golden" / "bert_pretraining"
    arrays, (params, _) = np.load(golden / "io.npz"), huggingface.from_hf(golden)
    model = models.BERT(**model_config.model_fields(golden))
    inputs = [arrays[name].astype(np.int32) for name in ("input_ids", "token_type_ids", "attention_mask")]
    features = jax.jit(lambda params, *inputs: models.apply(model, params, *inputs, method="embed"))(params, *inputs)
    hidden, real = arrays["last_hidden_state"], arrays["attention_mask"][:, :, None]
    np.testing.assert_allclose(features["mean"], (hidden * real).sum(1) / real.sum(1), atol=1e-5)
    np.testing.assert_allclose(features["cls"], hidden[:, 0], atol=1e-5)


def test_a_prompt_has_the_features_of_its_tokens(data):
    own = made("lm", data)
    long = own.task.examples(["the cat sat"], own.config)
    weights = params(own, long)
    features = embedded(own, weights, long)
    alone = own.task.examples(["the"], own.config)
    cut = {"tokens": long["tokens"], "given": np.array([3], np.int32)}
    for kind, value in embedded(own, weights, alone).items():
        np.testing.assert_allclose(embedded(own, weights, cut)[kind], value, rtol=1e-6)
        assert np.abs(value - features[kind]).max() > 1e-3


# answers


def test_a_class_is_its_name(data):
    own = made("classify", data)
    examples = own.task.examples(["good", "bad"], own.config)
    answers = own.task.answers(rows_of(examples), [{"label": 1}, {"label": 0}], own.config)
    names = json.loads(own.task.assets(own.config)["labels.json"])
    assert [answer["class"] for answer in answers] == names[::-1]


def test_entities_have_their_place_in_the_text(data):
    own = made("tag", data)
    text = "  Ada  Lovelace went to Rome  "
    examples = own.task.examples([text, ["Ada", "Lovelace"]], own.config)
    tags = json.loads(own.task.assets(own.config)["labels.json"])
    outputs = []
    for starts, words in zip(examples["starts"], examples["words"], strict=True):
        guess = np.zeros(len(starts), int)
        names = {"Ada": "B-person", "Lovelace": "I-person", "Rome": "B-location"}
        guess[np.flatnonzero(starts)] = [tags.index(names.get(word, "O")) for word in words]
        outputs.append({"tag": guess})
    first, second = own.task.answers(rows_of(examples), outputs, own.config)
    assert first == {
        "entities": [
            {"type": "person", "text": "Ada  Lovelace", "start": 2, "end": 15},
            {"type": "location", "text": "Rome", "start": 24, "end": 28},
        ]
    }
    assert second == {"entities": [{"type": "person", "text": "Ada Lovelace", "start": 0, "end": 12}]}


def test_all_windows_of_a_question_have_its_answer(data):
    own = made("qa", data)
    context = " ".join(["the film was seen by many people"] * 12) + " in Rome"
    examples = own.task.examples([("where ?", context), ("who ?", "many people")], own.config)
    rows = rows_of(examples)
    assert examples["input"].tolist() == [0] * (len(rows) - 1) + [1] and len(rows) > 3
    none = {"start": np.zeros(1, int), "end": np.zeros(1, int), "score": np.array([-1e30]), "none": -9.0}
    last = len(rows) - 2
    place = int(rows[last]["begin"]) + len(rows[last]["offsets"]) - 1
    there = none | {"score": np.array([5.0]), "start": np.array([place]), "end": np.array([place])}
    answers = own.task.answers(rows, [*[none] * last, there, none], own.config)
    assert (
        len({a["answer"] for a in answers[:-1]}) == 1 and answers[0]["answer"] in "Rome" and answers[-1]["answer"] == ""
    )


def test_masks_are_filled_where_they_stand(data):
    own = made("bert", data)
    examples = own.task.examples(["The [MASK] sat on [MASK]!", "no mask", ("a [MASK]", "b")], own.config)
    assert (examples["places"] > 0).sum(1).tolist() == [2, 0, 1]
    tokenizer = tokenizers.of(own.config, own.task.texts)
    cat, more = (tokenizer.token_to_id(piece) for piece in ("a", "##a"))
    assert None not in (cat, more)
    outputs = [{"places": places, "ids": np.array([cat, more, 0, 0])} for places in examples["places"]]
    answers = own.task.answers(rows_of(examples), outputs, own.config)
    assert [a["filled"] for a in answers] == ["The a sat ona!", "no mask", "a a b"]
    with pytest.raises(DataError, match=r"5 .MASK.s"):
        own.task.examples(["[MASK] " * 5], own.config)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_a_prompt_is_continued_alike_with_and_without_padding(packed, data):
    changes = ["sample.temperature=0.0", "sample.length=12"]
    own = made("lm", data, *changes, *(["data.packed=True", "data.documents=blank"] if packed else []))
    short = own.task.examples(["the c"], own.config)
    weights = params(own, short)
    (padded,) = predicted(own, weights, short | {"seed": np.zeros(1, np.uint32)}, 1)
    ids = padded["tokens"][-12:]
    text = np.concatenate([short["tokens"][0, :5], ids]).astype(np.int32)
    model = models.build(models.GPT, own.config, outputs=own.config.model.vocab)
    logits = model.apply({"params": weights}, text[None, :8])
    assert logits[0, 4:7].argmax(-1).tolist() == ids[:3].tolist()


# Other tests run the whole kit on the other tasks.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "avsd"])
def test_inputs_features_and_answers_pass_the_checks_of_the_kit(name, data):
    own = made(name, data)
    subject, _ = contract.subject(own.task, own.config)
    assert people.features(subject)
    assert people.inputs(subject).startswith("8 rows of the dataset")
    assert "answers" in determinism.predictions(subject)
