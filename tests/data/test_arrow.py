"""Claims about tables in Parquet and Arrow files, local and on the hub."""

import io
import json
import pickle

import data_tables
import numpy as np
import pyarrow as pa
import pytest
from data_tables import TEXT, class_label, parquet, sequence, table
from hub_server import patched
from PIL import Image

from jtasks.data import conll, hub, squad, table_files, tables, text, values
from jtasks.data.images import class_names, images
from jtasks.errors import ConfigError, DataError

FEATURES = {"sentence": TEXT, "label": class_label("negative", "positive")}
CHECKS = {"sentence": values.content, "label": values.label}


def reviews(n, features=FEATURES, start=0):
    return table(
        {"sentence": [f"text {i}" for i in range(start, start + n)], "label": [i % 2 for i in range(n)]}, features
    )


@pytest.fixture
def server(tmp_path, monkeypatch):
    with patched(tmp_path, monkeypatch) as own:
        yield own


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The same rows in each form."""
    monkeypatch.chdir(tmp_path)
    splits = {"train": reviews(20), "validation": reviews(5, start=50)}
    (tmp_path / "a.parquet").write_bytes(parquet(splits["train"], 3))
    with pa.ipc.new_file(tmp_path / "a.arrow", splits["train"].schema) as file:
        file.write_table(splits["train"], max_chunksize=6)
    data_tables.save_to_disk(tmp_path / "saved", splits["train"][:9], splits["train"][9:])
    data_tables.save_splits(tmp_path / "splits [1]", splits)
    for name in ("hub/data", "plain"):
        (tmp_path / name).mkdir(parents=True)
        for split, part in splits.items():
            (tmp_path / name / f"{split}-00000-of-00001.parquet").write_bytes(parquet(part))
    return tmp_path


NAMES = ["a.parquet", "a.arrow", "saved", "splits [1]", "hub", "plain", "hf:hub", "hf:splits [1]", "splits [1]/train"]


@pytest.mark.parametrize("name", NAMES)
def test_every_form_has_the_same_rows_and_named_classes(places, name):
    rows = tables.rows(name, "train", CHECKS)
    assert [row["sentence"] for row in rows] == [f"text {i}" for i in range(20)]
    assert [row["label"] for row in rows] == ["negative", "positive"] * 10
    assert tables.class_names(name, "train", "label") == ("negative", "positive")
    assert tables.rows(name, "train", CHECKS, folder=str(places)) == rows


def test_splits_go_by_their_usual_names_or_by_the_given_one(places):
    for name in ("splits [1]", "hub", "hf:plain"):
        assert tables.rows(name, "valid", CHECKS)[0]["sentence"] == "text 50"
        assert tables.rows(f"{name}#validation", "test", CHECKS)[0]["sentence"] == "text 50"
        with pytest.raises(ConfigError, match=r"config.data.test=.* has no split test: give another one as .*#SPLIT"):
            tables.rows(name, "test", CHECKS)
        with pytest.raises(ConfigError, match=r"has .*split.*'dev'"):
            tables.rows(f"{name}#dev", "test", CHECKS)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("train.parquet", ("", "train")),
        ("data/train-00000-of-00001-0123456789abcdef.parquet", ("", "train")),
        ("data/test.parquet", ("", "test")),
        ("mnli/validation_matched-00000-of-00001.parquet", ("mnli", "validation_matched")),
        ("default/partial-train/0003.parquet", ("default", "train")),
        ("en/data/dev_2.parquet", ("en", "dev")),
        ("wiki2.parquet", ("", "wiki2")),
    ],
)
def test_the_split_and_the_config_are_in_the_path(path, place):
    config, split = place
    assert table_files.choose([path], config, "train", split, "") == [path]
    with pytest.raises(ConfigError, match="none is 'other'"):
        table_files.choose([path], "other", "train", "", "x")


def test_files_without_names_of_splits_are_train():
    assert table_files.choose(["part-1.parquet", "part-0.parquet"], "", "train", "", "") == [
        "part-0.parquet",
        "part-1.parquet",
    ]
    assert table_files.choose(["part-0.parquet"], "", "valid", "", "") is None


def test_without_features_classes_are_numbers_and_absent_ones_minus_one(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet(reviews(4, None)))
    assert [row["label"] for row in tables.rows("a.parquet", "train", CHECKS, folder=str(tmp_path))] == ["0", "1"] * 2
    assert tables.class_names("a.parquet", "train", "label", folder=str(tmp_path)) is None
    hidden = table({"sentence": ["a", "b"], "label": [-1, -1]}, FEATURES)
    (tmp_path / "b.parquet").write_bytes(parquet(hidden))
    assert [row["label"] for row in tables.rows("b.parquet", "test", CHECKS, folder=str(tmp_path))] == ["-1", "-1"]


def test_features_beside_the_arrow_file_count_too(tmp_path):
    data_tables.save_to_disk(tmp_path / "saved", reviews(4, None), features=FEATURES)
    assert tables.class_names("saved", "train", "label", folder=str(tmp_path)) == ("negative", "positive")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", DataError, r"a\.parquet is not a Parquet or Arrow file, or is damaged"),
        (b"PAR1 and more", DataError, r"a\.parquet is not a Parquet or Arrow file, or is damaged"),
        (parquet(reviews(4))[:-9], DataError, r"a\.parquet is not a Parquet or Arrow file, or is damaged"),
        (parquet(table({"text": ["a"]})), ConfigError, "row 0: no column 'sentence'; there are 'text'"),
        (parquet(reviews(0)), DataError, "a.parquet has no rows"),
        (parquet(table({"sentence": [1], "label": [0]})), DataError, "row 0, column 'sentence': expected text"),
        (
            parquet(table({"sentence": ["a"], "label": [7]}, FEATURES)),
            DataError,
            "row 0, column 'label': the class is 7",
        ),
        (parquet(table({"sentence": [None], "label": [0]})), DataError, "row 0, column 'sentence': .* not null"),
    ],
)
def test_damaged_tables_say_where(tmp_path, content, error, message):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(error, match=message):
        tables.rows("a.parquet", "train", CHECKS, folder=str(tmp_path))


def test_a_state_that_names_files_elsewhere_is_refused(tmp_path):
    data_tables.save_to_disk(tmp_path / "saved", reviews(4))
    for name in ("../a.arrow", "absent.arrow"):
        (tmp_path / "saved" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match=r"state\.json names .*, which is not a file of the folder"):
            tables.rows("saved", "train", CHECKS, folder=str(tmp_path))


def test_parts_with_other_columns_are_refused(tmp_path):
    other = table({"sentence": ["a"], "label": ["0"]})
    data_tables.save_to_disk(tmp_path / "saved", reviews(4), other)
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: the column 'label' is string, in data-00000"):
        tables.rows("saved", "train", CHECKS, folder=str(tmp_path))


def test_tagged_words_come_in_lists(tmp_path):
    for kind in ("List", "Sequence"):
        features = {
            "id": TEXT,
            "tokens": sequence(TEXT, kind),
            "tags": sequence(class_label("O", "B-PER", "I-PER"), kind),
        }
        made = table({"id": ["x"], "tokens": [["Ada", "Love", "saw"]], "tags": [[1, 2, 0]]}, features)
        (tmp_path / "a.parquet").write_bytes(parquet(made))
        (sentence,) = conll.table_sentences("a.parquet", "train", word=1, tag=-1, folder=str(tmp_path))
        assert sentence == (["Ada", "Love", "saw"], ["B-PER", "I-PER", "O"])
        assert conll.table_sentences("a.parquet", "test", word=1, tag=1, folder=str(tmp_path))[0].tags == []
    with pytest.raises(ConfigError, match=r"has the columns id, tokens, tags: config\.data\.word=3"):
        conll.table_sentences("a.parquet", "train", word=3, tag=-1, folder=str(tmp_path))
    with pytest.raises(DataError, match="row 0, column 'id': expected a list"):
        conll.table_sentences("a.parquet", "train", word=0, tag=-1, folder=str(tmp_path))


def test_questions_come_with_the_columns_of_squad(tmp_path):
    answers = [{"text": ["Rome"], "answer_start": [8]}, {"text": [], "answer_start": []}]
    made = {"id": ["a", "b"], "question": ["where ?"] * 2, "context": ["they in Rome"] * 2, "answers": answers}
    (tmp_path / "a.parquet").write_bytes(parquet(table(made)))
    first, second = squad.questions("a.parquet", "train", folder=str(tmp_path))
    assert first == ("a", "where ?", "they in Rome", [(8, "Rome")]) and second.answers == []
    (tmp_path / "a.parquet").write_bytes(parquet(table(made | {"id": ["a", "a"]})))
    with pytest.raises(DataError, match="the id 'a' occurs twice"):
        squad.questions("a.parquet", "train", folder=str(tmp_path))
    answers[0]["answer_start"] = [7]
    (tmp_path / "a.parquet").write_bytes(parquet(table(made)))
    with pytest.raises(DataError, match="question 'a': the context has no 'Rome' at answer_start 7"):
        squad.questions("a.parquet", "train", folder=str(tmp_path))


def test_rows_of_text_are_lines(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet(table({"id": [0, 1, 2], "text": ["one\ntwo", "", "three"]})))
    paths = text.locate("*.parquet", tmp_path)
    assert list(text.documents(paths, "line")) == ["one\ntwo", "three"]
    assert list(text.documents(paths, "blank")) == ["one\ntwo", "three"]
    assert list(text.documents(paths, "file")) == ["one\ntwo\n\nthree"]
    (tmp_path / "a.parquet").write_bytes(parquet(table({"x": ["a"], "y": ["b"]})))
    with pytest.raises(DataError, match="has the columns x, y; expected one of text, with the name 'text'"):
        list(text.documents(paths, "line"))


def picture(level, format="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), level, np.uint8)).save(buffer, format)
    return {"bytes": buffer.getvalue(), "path": None}


def pets(n, name="image", **more):
    features = {name: {"_type": "Image"}, "label": class_label("cat", "dog")}
    return table({name: [picture(i) for i in range(n)], "label": [i % 2 for i in range(n)], **more}, features)


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_pictures_are_decoded_as_they_are_read_in_any_order(tmp_path, form):
    if form == "parquet":
        (tmp_path / "pets").mkdir()
        (tmp_path / "pets" / "train-0.parquet").write_bytes(parquet(pets(20, "img"), 3))
        (tmp_path / "pets" / "test-0.parquet").write_bytes(parquet(pets(5, "img")))
    else:
        data_tables.save_splits(tmp_path / "pets", {"train": pets(20), "test": pets(5)})
    train, valid, test = (images("hf:pets", s, folder=str(tmp_path)) for s in ("train", "valid", "test"))
    assert [len(split) for split in (train, valid, test)] == [18, 2, 5]
    levels = [int(example["image"][0, 0, 0]) for example in (*valid, *train)]
    assert sorted(levels) == list(range(20))
    copied = pickle.loads(pickle.dumps(train))
    assert len(pickle.dumps(train)) < 2000
    for i in (17, 0, 9):
        assert copied[i]["label"] == copied[i]["image"][0, 0, 0] % 2 and copied[i]["image"].shape == (4, 5, 3)
    assert class_names("hf:pets", folder=str(tmp_path)) == ("cat", "dog")
    assert len(list(tmp_path.glob("prepared/*"))) == (2 if form == "parquet" else 0)


def test_labels_without_names_are_their_own_names(tmp_path):
    (tmp_path / "x").mkdir()
    made = table({"image": [picture(i) for i in range(3)], "label": ["b", "a", "b"]})
    (tmp_path / "x" / "train.parquet").write_bytes(parquet(made))
    data = images("hf:x", "train", folder=str(tmp_path), valid=0)
    assert [int(example["label"]) for example in data] == [1, 0, 1]
    assert class_names("hf:x", folder=str(tmp_path)) == ("a", "b")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            table({"image": [{"bytes": b"no picture", "path": None}], "label": [0]}),
            "example 0 of hf:x: cannot decode the",
        ),
        (
            table({"image": [{"bytes": None, "path": "/etc/passwd"}], "label": [0]}),
            "row 0 holds no picture, but {'bytes': N",
        ),
        (table({"image": [1], "label": [0]}), "has the columns image, label; expected one of pictures"),
        (table({"image": [picture(0)], "kind": [0]}), "has the columns image, kind; expected .* one of labels"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, made, message):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "train.parquet").write_bytes(parquet(made))
    with pytest.raises(DataError, match=message):
        list(images("hf:x", "train", folder=str(tmp_path), valid=0))


def test_a_data_set_on_the_hub_is_fetched_by_split_and_pinned(server):
    files = {"README.md": b"x"} | {f"data/{s}-0.parquet": parquet(reviews(n)) for s, n in (("train", 9), ("test", 3))}
    commit = server.add("me/reviews", files, "datasets")
    pinned = hub.pin("hf:me/reviews", "dataset")
    assert pinned == f"hf:me/reviews@{commit}"
    assert len(tables.rows(pinned, "test", CHECKS)) == 3 and server.fetched() == ["test-0.parquet"]
    assert len(tables.rows(pinned, "train", CHECKS)) == 9
    server.requests.clear()
    server.add("me/reviews", {}, "datasets")
    assert len(tables.rows(pinned, "train", CHECKS)) == 9 and tables.class_names(pinned, "train", "label")
    assert server.requests == []


def test_a_data_set_without_parquet_files_is_read_from_its_converted_copy(server):
    server.add("me/old", {"script.py": b"x"}, "datasets")
    copy = server.add("me/old", {"mnli/train/0000.parquet": parquet(reviews(4))}, "datasets", "refs/convert/parquet")
    assert hub.pin("hf:me/old/mnli#train", "dataset") == f"hf:me/old/mnli@{copy}#train"
    assert len(tables.rows("hf:me/old/mnli", "train", CHECKS)) == 4
    with pytest.raises(ConfigError, match="has the configs 'mnli'; none is 'qnli'"):
        tables.rows("hf:me/old/qnli", "train", CHECKS)
    server.add("me/none", {"script.py": b"x"}, "datasets")
    with pytest.raises(ConfigError, match="no Parquet files, and the hub has no copy in Parquet"):
        tables.rows("hf:me/none", "train", CHECKS)


def test_several_configs_need_a_choice(server):
    server.add(
        "me/two", {f"{name}/train-0.parquet": parquet(reviews(n)) for name, n in (("a", 2), ("b", 3))}, "datasets"
    )
    with pytest.raises(ConfigError, match="has the configs 'a', 'b'; give one of them, as in hf:NAME/CONFIG"):
        tables.rows("hf:me/two", "train", CHECKS)
    assert len(tables.rows("hf:me/two/b", "train", CHECKS)) == 3
