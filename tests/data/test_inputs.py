"""Claims about inputs: each has its place, order is kept, and a bad one does not hide the next."""

import json
import os
import pathlib
import re
import tracemalloc

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from jtasks.data import inputs, unlabeled
from jtasks.errors import ConfigError, DataError

MIXED = b'\xef\xbb\xbfid,text\r\n1,"two\r\nlines"\r\n\r\n2,a,b\r\n3,\xff\r\n4,"a"b\r\n5,a\x00b\r\n6,caf\xc3\xa9\r\n'


def read(folder, name, content=None, kind=None):
    if content is not None:
        (folder / name).write_bytes(content)
    return list(inputs.read(str(folder / name), kind))


def test_a_csv_keeps_rows_and_lines_and_goes_on_after_bad_ones(tmp_path):
    *rows, last = read(tmp_path, "a b[1].csv", MIXED)
    assert (rows[0].value, last.value) == ({"id": "1", "text": "two\r\nlines"}, {"id": "6", "text": "café"})
    assert [item.place.removeprefix(f"{tmp_path}/") for item in (*rows, last)] == [
        f"a b[1].csv, line {number}" for number in (3, 5, 6, 7, 8, 9)
    ]
    for item, message in zip(rows[1:], ("3 columns", "not UTF-8", "',' expected after", "zero byte"), strict=True):
        assert isinstance(item.value, DataError) and f"{item.place}: " in str(item.value)
        assert message in str(item.value)


def test_a_picture_in_a_table_lies_here_or_beside_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("here.png", "far/here.png", "far/there.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    rows = [{"image": name, "text": name} for name in ("here.png", "there.png", "no.png")] + [{"images": ["there.png"]}]
    (tmp_path / "far" / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = list(inputs.read("far/x.jsonl"))
    assert [item.fields for item in items] == rows
    found = [item.given.get("image", item.given.get("images")) for item in items]
    assert found == ["here.png", "far/there.png", "no.png", ["far/there.png"]]
    assert items[1].given["text"] == "there.png"


def test_a_table_without_a_header_has_numbered_columns(tmp_path):
    (tmp_path / "a.csv").write_text("one,1\ntwo,2\n")
    rows = [item.value for item in inputs.read(str(tmp_path / "a.csv"), bare=True)]
    assert rows == [{"0": "one", "1": "1"}, {"0": "two", "1": "2"}]


def test_json_lines_and_plain_lines_skip_empty_lines_and_count_them(tmp_path):
    jsonl = read(tmp_path, "a.jsonl", b'{"text": "a", "n": 1}\r\n\n[1]\n{"text"\n{"text": "b"}')
    assert [(item.place[-1], type(item.value)) for item in jsonl] == [
        ("1", dict),
        ("3", DataError),
        ("4", DataError),
        ("5", dict),
    ]
    lines = read(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\n \rtwo, 2\x85\rthr\xc3\xa9e")
    assert [item.place[-1] for item in lines] == ["1", "3", "4"]
    assert [item.value for item in lines[::2]] == ["one", "thrée"] and isinstance(lines[1].value, DataError)
    assert lines[0].fields == {"input": "one"}


def test_the_rows_of_parquet_are_numbered(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "a.parquet")
    first, second = read(tmp_path, "a.parquet")
    assert (first.value, second.value) == ({"text": "a"}, {"text": None}) and second.place.endswith("a.parquet, row 1")
    with pytest.raises(DataError, match="not a Parquet or Arrow file"):
        read(tmp_path, "b.parquet", b"PAR1")


def test_pictures_come_sorted_from_any_depth(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/b/c.png", ".hidden/d.png", "notes.txt", "z.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name, "png")
    os.mkfifo(tmp_path / "y.png")
    items = read(tmp_path, ".")
    names = [item.place.removeprefix(f"{tmp_path}/") for item in items]
    assert names == ["b.png", "y.png", "z.gif", "a/z.JPG", "a/b/c.png"]
    assert isinstance(items[1].value, DataError) and items[0].value == pathlib.Path(tmp_path / "b.png")
    assert [item[:2] for item in read(tmp_path, "b.png")] == [(str(tmp_path / "b.png"), tmp_path / "b.png")]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("absent.csv", None, ConfigError, "there is no such file or folder"),
        ("a.xlsx", b"PK", ConfigError, "or give --input-format=jsonl|csv|tsv|lines"),
        ("a.csv", b"", DataError, "holds no input: expected at least a row or a line"),
        ("a.csv", b"id,text\n", DataError, "holds no input"),
        ("a.csv", b"id,id\n", DataError, "line 1: the column 'id' occurs twice"),
        ("a.tsv", b"\xff\xfei\0d\0", DataError, "is in UTF-16 or UTF-32"),
        ("a.txt", b" \n", DataError, "holds no input"),
    ],
)
def test_a_wrong_file_is_one_message(name, content, error, message, tmp_path):
    with pytest.raises(error) as failure:
        read(tmp_path, name, content)
    assert message in str(failure.value) and name in str(failure.value)


def test_a_folder_without_pictures_says_what_it_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"holds no input: expected at least a picture \(.bmp"):
        read(tmp_path, ".")


@pytest.mark.parametrize(("content", "kind", "value"), [
    (b'\n {"text": "a"}\n', None, {"text": "a"}),
    (b"a {b}\n", None, "a {b}"),
    (b"{x\n", "lines", "{x"),
    (b"text\na\n", "csv", {"text": "a"}),
])  # fmt: skip
def test_a_stream_is_json_if_it_begins_so(content, kind, value):
    ours, theirs = os.pipe()
    with open(theirs, "wb") as file:
        file.write(content)
    assert inputs.is_stream(f"/dev/fd/{ours}")
    (item,) = inputs.read(f"/dev/fd/{ours}", kind)
    assert item.value == value
    os.close(ours)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "lines"])
def test_a_long_file_is_never_in_memory(kind, tmp_path):
    line = {"csv": b"1,text\n", "jsonl": b'{"id": 1, "text": "text"}\n', "lines": b"text\n"}[kind]
    (tmp_path / "long").write_bytes(line * 8_000)
    tracemalloc.start()
    assert sum(1 for _ in inputs.read(str(tmp_path / "long"), kind)) >= 7_999
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize("given", [{"image": "x.png", "text": "what?"}, ("x.png", "what?"), "x.png\twhat?"])
def test_a_picture_comes_with_a_text(given):
    assert unlabeled.picture_and_text(given, ("question", "text"), needed=True)[1] == "what?"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("x.png", "str 'x.png' has no question; expected a dict with 'image' and 'question', a pair"),
        ({"image": "x.png", "text": None}, "a dict with 'image', 'text' has no question"),
        (("x.png", "what?", "no"), "expected a dict with 'image' and 'question'"),
        ({"image": "x.png", "question": 3}, "the question: expected text, not the number 3"),
        ("x.png\t ", "the question is empty"),
    ],
)
def test_a_picture_without_its_text_is_refused(given, message):
    with pytest.raises(DataError, match=re.escape(message)):
        unlabeled.picture_and_text(given, ("question", "text"), needed=True)


def test_a_picture_may_stand_alone_and_comes_in_color(tmp_path):
    Image.new("LA", (9, 6), (100, 255)).save(tmp_path / "a b[1].png")
    path = str(tmp_path / "a b[1].png")
    held = [path, pathlib.Path(path), pathlib.Path(path).read_bytes(), Image.open(path), np.full((6, 9), 100, np.uint8)]
    pairs = [unlabeled.picture_and_text(given, ("question",), needed=False) for given in [*held, {"image": path}]]
    assert {text for _, text in pairs} == {None}
    pictures = unlabeled.pictures_rgb([picture for picture, _ in pairs], size=4)
    assert pictures.shape == (6, 4, 4, 3) and (pictures == 100).all()
