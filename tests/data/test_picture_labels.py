"""Claims about pictures with several labels or a number: label files, class folders, tables, and built-in data."""

import json
import pickle

import data_tables
import numpy as np
import pytest
from PIL import Image

from jtasks.data import class_names, images
from jtasks.data.targets import MULTI, NUMBER, Target
from jtasks.errors import ConfigError, DataError

SEVERAL = Target(MULTI)
ROWS = 'file_name,labels,count\na 1.png,"red,blue",2\nb.png,,0\nc.png,red,1\n'


def picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path):
    for level, name in enumerate(("a 1", "b", "c")):
        picture(tmp_path / "x" / "train" / "images" / f"{name}.png", level)
    picture(tmp_path / "x" / "test" / "a 1.png", 9)
    (tmp_path / "x" / "train" / "labels.csv").write_text(ROWS)
    (tmp_path / "x" / "test" / "metadata.jsonl").write_text(json.dumps({"image": "a 1.png", "label": ["blue"]}))
    return tmp_path / "x"


def labels(examples):
    return [np.asarray(example["label"]).tolist() for example in examples]


def test_a_label_file_gives_each_picture_its_classes(folder):
    train = images(f"folder:{folder}", "train", valid=0, target=SEVERAL)
    assert class_names(f"folder:{folder}", target=SEVERAL) == ("blue", "red")
    assert labels(train) == [[1, 1], [0, 0], [0, 1]] and train[0]["label"].dtype == np.uint8
    assert [int(example["image"][0, 0, 0]) for example in pickle.loads(pickle.dumps(train))] == [0, 1, 2]
    assert labels(images(f"folder:{folder}", "test", target=SEVERAL)) == [[1, 0]]
    chosen = Target(MULTI, names=("red", "green", "blue"))
    assert labels(images(f"folder:{folder}", "train", valid=0, target=chosen)) == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(DataError, match=r"the train split has the labels \['blue'\]; the classes are \['red'\]"):
        images(f"folder:{folder}", "train", target=Target(MULTI, names=("red",)))


def test_a_column_of_numbers_is_a_regression_and_one_of_names_has_classes(folder):
    (folder / "test" / "metadata.jsonl").unlink()
    numbers = images(f"folder:{folder}", "train", valid=0, target=Target(NUMBER, "count"))
    assert labels(numbers) == [2, 0, 1] and numbers[0]["label"].dtype == np.float32
    assert class_names(f"folder:{folder}", target=Target(NUMBER, "count")) == ("count",)
    assert labels(images(f"folder:{folder}", "train", valid=0, target=Target(column="count"))) == [2, 0, 1]


def test_one_file_may_tell_the_splits_and_the_labels_of_a_picture_on_several_lines(folder):
    (folder / "train" / "labels.csv").unlink()
    (folder / "test" / "metadata.jsonl").unlink()
    lines = [
        "image\tlabel\tsplit",
        "train/images/c.png\tx\ttrain",
        "test/a 1.png\ty\ttest",
        "train/images/c.png\ty\ttrain",
    ]
    (folder / "labels.tsv").write_text("\n".join(lines))
    assert labels(images(f"folder:{folder}", "train", valid=0, target=SEVERAL)) == [[1, 1]]
    assert labels(images(f"folder:{folder}", "test", target=SEVERAL)) == [[0, 1]]
    with pytest.raises(DataError, match=r"line 4: the picture 'train/images/c.png' occurs in .*line 2 too"):
        images(f"folder:{folder}", "train")


@pytest.mark.parametrize(
    ("text", "target", "error", "message"),
    [
        (
            ROWS,
            Target(MULTI, "kind"),
            ConfigError,
            "line 2 has the columns file_name, labels, count; expected 'kind' of",
        ),
        (ROWS.replace("b.png", "d.png"), SEVERAL, DataError, "line 3: there is no picture 'd.png'"),
        (ROWS.replace("red,blue", "red,red"), SEVERAL, DataError, "line 2, column 'labels': a label occurs twice"),
        (ROWS, Target(NUMBER, "labels"), DataError, "line 2, column 'labels': expected a number, not 'red,blue'"),
        ("file_name,labels\n", SEVERAL, DataError, "labels.csv has no rows"),
        (ROWS.replace("labels", "caption"), SEVERAL, ConfigError, "expected label or labels of labels"),
    ],
)
def test_a_wrong_label_file_says_where(folder, text, target, error, message):
    (folder / "test" / "metadata.jsonl").unlink()
    (folder / "train" / "labels.csv").write_text(text)
    with pytest.raises(error, match=message):
        images(f"folder:{folder}", "train", target=target)


def test_equal_files_in_the_folders_of_several_classes_are_one_picture(tmp_path):
    for name, kinds in {"1.png": "ab", "2.png": "b"}.items():
        for kind in kinds:
            picture(tmp_path / kind / name, int(name[0]))
    picture(tmp_path / "a" / "2.png", 5)  # another picture of that name
    several = images(f"folder:{tmp_path}", "train", valid=0, target=SEVERAL)
    assert {int(e["image"][0, 0, 0]): e["label"].tolist() for e in several} == {1: [1, 1], 2: [0, 1], 5: [1, 0]}
    assert len(several) == 3 and len(images(f"folder:{tmp_path}", "train", valid=0)) == 4
    with pytest.raises(ConfigError, match=r"the class 'a' of folder:.*expected a number"):
        images(f"folder:{tmp_path}", "train", target=Target(NUMBER))
    with pytest.raises(ConfigError, match=r"config.data.label='kind': folder:.* has no file with such a column"):
        images(f"folder:{tmp_path}", "train", target=Target(MULTI, "kind"))


def test_names_of_classes_may_be_in_another_order_but_not_half_known(tmp_path):
    for kind in "ab":
        picture(tmp_path / kind / "1.png", 1)

    def read(*names):
        return labels(images(f"folder:{tmp_path}", "train", valid=0, target=Target(names=names)))

    assert read() == [0, 1] == read("x", "y") and read("b", "c", "a") == [2, 0]
    with pytest.raises(ConfigError, match="lacks the class 'b'"):
        read("a", "c")
    with pytest.raises(ConfigError, match=r"names 3 classes, but folder:.* has 2: a, b"):
        read("x", "y", "z")


@pytest.mark.parametrize("named", [True, False])
def test_tables_have_lists_of_labels(tmp_path, named):
    (tmp_path / "x").mkdir()
    content = (tmp_path / "1.png", 3)
    picture(*content)
    cell = {"bytes": content[0].read_bytes(), "path": None}
    features = {"labels": {"feature": data_tables.class_label("b", "a"), "_type": "List"}} if named else {}
    rows = [[1], [], [0, 1]] if named else [["a"], [], ["b", "a"]]
    made = data_tables.table({"image": [cell] * 3, "labels": rows}, {"image": {"_type": "Image"}} | features)
    (tmp_path / "x" / "train.parquet").write_bytes(data_tables.parquet(made))
    order = (1, 0) if named else (0, 1)
    got = images("hf:x", "train", folder=str(tmp_path), valid=0, target=SEVERAL)
    assert labels(got) == [[int(i == order[0]) for i in (0, 1)], [0, 0], [1, 1]]
    assert class_names("hf:x", folder=str(tmp_path), target=SEVERAL) == (("b", "a") if named else ("a", "b"))
    with pytest.raises(DataError, match=r"the label is a list; config.problem=multi_label reads"):
        list(images("hf:x", "train", folder=str(tmp_path), valid=0))


def test_built_in_data_have_numbers_by_the_names_of_their_classes():
    plain, numbers, hot = (images("digits", "test", target=t) for t in (Target(), Target(NUMBER), SEVERAL))
    np.testing.assert_array_equal(numbers["label"], plain["label"].astype(np.float32))
    np.testing.assert_array_equal(hot["label"].argmax(1), plain["label"])
