"""Claims about questions about pictures: from the official files, an archive or a table, with everybody's answers."""

import json
import tarfile

import pytest
from PIL import Image

from jtasks.config import Config
from jtasks.data import questions
from jtasks.errors import ConfigError, DataError


def draw(folder, *names):
    """Pictures whose levels are their number."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (number,) * 3).save(folder / name)


def settings(folder, **data):
    fields = {name.removeprefix("data."): field.default for name, field in questions.FIELDS.items()}
    return Config({"seed": 0, "data": fields | {"dir": str(folder), "valid_fraction": 0.0} | data, "model": {}})


def read(folder, split="train", **data):
    return questions.read(split, settings(folder, **data))


def levels(rows):
    return [int(row["image"].max()) for row in rows]


def write_easy(folder):
    for split, count in (("train", 4), ("test", 2)):
        draw(folder / split / "images", *(f"{i}.png" for i in range(count)))
        asked = [[f"{split}: what is {i}?", f"{i}", i] for i in reversed(range(count))] * 2
        (folder / split / "questions.json").write_text(json.dumps(asked))


@pytest.mark.parametrize("form", ["folder", "tar", "xz", "found"])
def test_easy_vqa_is_read_extracted_or_not(tmp_path, form):
    write_easy(tmp_path / "easy_vqa")
    train = "easy_vqa"
    if form in ("tar", "xz"):
        train = f"easy.tar{'.xz' if form == 'xz' else ''}"
        with tarfile.open(tmp_path / train, "w:xz" if form == "xz" else "w") as tar:
            tar.add(tmp_path / "easy_vqa", "easy_vqa")
    rows = {
        split: read(tmp_path, split, train="" if form == "found" else train) for split in ("train", "test", "valid")
    }
    assert levels(rows["train"]) == [3, 2, 1, 0] * 2 and levels(rows["test"]) == [1, 0] * 2 and rows["valid"] is None
    expected = {"question": "test: what is 0?", "answers": ("0",), "question_id": 1, "kind": "", "file": "0.png"}
    assert rows["test"].entries[1] == expected
    parts = [read(tmp_path, split, train=train, valid_fraction=0.25) for split in ("train", "valid")]
    pictures = [set(levels(part)) for part in parts]
    assert list(map(len, pictures)) == [3, 1] and not pictures[0] & pictures[1]


VQA = {
    "data_subtype": "train2014",
    "questions": [
        {"question_id": 9, "image_id": 25, "question": "what?"},
        {"question_id": 8, "image_id": 30, "question": "is it?"},
    ],
}
ANSWERS = [
    {"question_id": 8, "answer_type": "yes/no", "answers": [{"answer": "yes"}] * 9 + [{"answer": "no"}]},
    {"question_id": 9, "answer_type": "other", "answers": [{"answer": "a cat"}] * 10},
]


def test_vqa_has_two_files_for_a_split(tmp_path):
    draw(tmp_path / "train2014", "COCO_train2014_000000000025.jpg", "COCO_train2014_000000000030.jpg")
    draw(tmp_path / "test2015", "COCO_test2015_000000000030.jpg")
    name = "v2_OpenEnded_mscoco_train2014_questions.json"
    (tmp_path / name).write_text(json.dumps(VQA))
    with pytest.raises(DataError, match=r"has no answers for the train split; .* file of annotations"):
        read(tmp_path)
    (tmp_path / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": ANSWERS}))
    hidden = {"data_subtype": "test2015", "questions": VQA["questions"][1:]}
    (tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json").write_text(json.dumps(hidden))
    for train in ("", name):
        rows, test = read(tmp_path, train=train), read(tmp_path, "test", train=train)
        assert [row["answers"] for row in rows.entries] == [("a cat",) * 10, ("yes",) * 9 + ("no",)]
        assert [row["kind"] for row in rows.entries] == ["other", "yes/no"] and levels(rows) == [0, 1]
        assert test.entries[0]["answers"] == () and test.entries[0]["question_id"] == 8 and levels(test) == [0]
    (tmp_path / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": ANSWERS[:1]}))
    with pytest.raises(DataError, match=r"question 0: the file of answers has none for the question_id 9"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "answers"),
    [
        ("x.json", [{"image": "1.jpg", "question": "what?", "answer": ["a", "b", "a"], "question_id": "q1"}], "aba"),
        ("x.json", {"q1": {"question": "what?", "answer": "a", "imageId": "1"}}, "a"),
        ("x.jsonl", {"image": "1.jpg", "question": "what?", "answers": ["a", "b"], "question_id": "q1"}, "ab"),
        ("x.csv", "image,question,answer,question_id\r\n1.jpg,what?,a,q1\r\n", "a"),
        ("x.tsv", "\ufefffile_name\tquestion\tanswer\tquestion_id\n1.jpg\twhat?\ta\tq1\n", "a"),
    ],
)
def test_other_files_give_the_same_rows(tmp_path, name, content, answers):
    draw(tmp_path / "images", "0.jpg", "1.jpg")
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    rows = read(tmp_path, train=name)
    expected = {"file": "1.jpg", "question": "what?", "question_id": "q1", "kind": "", "answers": tuple(answers)}
    assert rows.entries == [expected] and levels(rows) == [1]
    assert list(questions.texts(settings(tmp_path, train=name))) == ["what?", *answers]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "", r"x\.json is empty; expected questions about pictures"),
        ("x.json", "[]", "has no questions"),
        ("x.json", '{"a": 1}', "expected VQA's .* not an object without questions"),
        ("x.json", '[["what?", "a"]]', r"item 0: expected \[question, answer, number of the picture\]"),
        ("x.json", '[["what?", "a", true]]', r"item 0: expected \[question, answer, number of the picture\]"),
        ("x.json", '[["what?", 3, 0]]', "item 0, the answer: expected text, not the number 3"),
        ("x.json", '[{"image": "0.png", "question": 5}]', "item 0, 'question': expected text, not the number 5"),
        ("x.json", '[{"question": "what?"}]', "item 0 has 'question'; expected a picture, a question"),
        ("x.json", '[["what?", "a", 7]]', r"x\.json, item 0: there is no picture '7\.png'"),
        ("x.csv", "image,question,answer\n0.png,what?,a\n0.png,what?,\n", "line 3, 'answer' is empty"),
        (
            "x.csv",
            "image,question,answer,question_id\n0.png,a,b,1\n0.png,a,c,1\n",
            "line 3: the question_id '1' occurs",
        ),
        (
            "x.jsonl",
            '{"image": "0.png", "question": "a", "answer": {"b": 1}}',
            "'answer': expected text, not an object",
        ),
        ("x.txt", "0.png,what?\n", r"expected questions in \.json, \.jsonl, \.csv or \.tsv"),
    ],
)
def test_a_wrong_file_is_refused_where_it_is_wrong(tmp_path, name, content, message):
    draw(tmp_path, "0.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path, train=name)


def test_absent_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no questions about pictures for config\.data\.train\n .*easy_vqa\.tar"):
        read(tmp_path)
