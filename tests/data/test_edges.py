"""Claims about odd files and classes: each gives what it means, or one message that says what is wrong."""

import bz2
import gzip
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jtasks import console, data
from jtasks.data import targets, text, values
from jtasks.errors import ConfigError, DataError

NFC, NFD = "caf\xe9", "cafe\u0301"


def pictures(folder: pathlib.Path, *classes: str) -> str:
    """A folder of pictures, with one black picture in each of `SPLIT/CLASS`; its name for config.data.name."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / name / "0.png")
    return f"folder:{folder}"


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (["train/a"], ConfigError, r"has the classes \['a'\]; expected at least two"),
        ([f"train/{NFC}", f"valid/{NFD}", "train/b"], DataError, r"'cafe\\u0301' and 'caf\\xe9', one name in two Unic"),
    ],
)
def test_a_folder_of_pictures_without_two_distinct_classes_is_refused(classes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        data.class_names(pictures(tmp_path, *classes))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"id": 3, "text": "red sun"}\n\n{"id": 4, "text": "blue\\nmoon"}\n'),
        ("a.csv", 'text,label\nred sun,pos\n"blue\nmoon",neg\n'),
        ("a.tsv", "sentence\nred sun\nblue moon\n"),
    ],
)
def test_the_text_of_a_table_is_its_column_and_not_its_syntax(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    documents = list(text.documents([tmp_path / name], "line"))
    assert [document.split() for document in documents] == [["red", "sun"], ["blue", "moon"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"a,b\nred,sun\n", "line 2: the columns are a, b; expected one of text, with the name 'text'"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "line 2: no column 'text'; there are body"),
        (
            "a.txt",
            gzip.compress(b"red sun", mtime=0),
            "a.txt is a compressed file: expected text in UTF-8; unpack it first",
        ),
        ("a.txt", bz2.compress(b"red sun"), "a.txt is a compressed file: expected text in UTF-8; unpack it first"),
    ],
)
def test_a_file_without_a_column_of_text_or_compressed_says_so(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        list(text.documents([tmp_path / name], "line"))


def test_labels_in_two_unicode_forms_are_refused():
    with pytest.raises(DataError, match=r"config.data.label='kind' has the classes 'cafe\\u0301' and 'caf\\xe9'"):
        targets.class_names((), [NFC, "b", NFD], "single_label", "kind")


@pytest.mark.parametrize("number", ["1e39", -1e300, 10**400, float("nan")])
def test_a_number_that_float32_does_not_hold_is_refused(number):
    with pytest.raises(DataError, match=r"row 3: expected a finite number of at most 3.403e\+38, not"):
        values.number(number, "row 3")


def test_classes_without_training_pictures_and_files_that_are_passed_over_are_told_once(tmp_path, capfd):
    console.say_once.cache_clear()
    name = pictures(tmp_path, "train/a", "train/b", "valid/a", "valid/c")
    (tmp_path / "train/a/x.svg").write_text("<svg/>")
    (tmp_path / "train/a/notes.txt").write_text("no picture")
    for _ in range(2):
        assert data.class_names(name) == ("a", "b", "c")
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith(f"WARNING: {tmp_path}/train/a/x.svg is passed over: a picture ends in one of .bmp, ")
    assert second == f"WARNING: {name} has no picture for train of the class 'c'"


def test_the_order_of_classes_with_one_number_does_not_depend_on_the_hash_seed():
    program = (
        "from jtasks.data import targets; print(targets.class_names((), ['1', '01', '001', '2'], 'single_label', ''))"
    )
    for seed in "0", "1", "5":
        run = subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, timeout=120
        )
        assert run.stdout == "('001', '01', '1', '2')\n"
