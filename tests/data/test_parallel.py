"""Claims about pairs of texts: line n of each file is pair n, every character stays, and a fault is named."""

import json

import pytest

from jtasks.config import Config
from jtasks.data import parallel
from jtasks.data.parallel import Pair
from jtasks.errors import ConfigError, DataError


def config(folder, **data):
    fields = {name.removeprefix("data."): field.default for name, field in parallel.FIELDS.items()}
    return Config({"data": fields | {"dir": str(folder)} | data})


def read(folder, split="valid", **data):
    return list(parallel.read(split, config(folder, **data)))


def write(folder, **contents):
    for name, content in contents.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def lines(folder, *rows):
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "end"])
def test_each_line_of_parallel_files_is_a_text_with_all_its_characters(tmp_path, end, last):
    sources = ["one", "", " t\u2028w\u0085o\f", "a\rb", "three\t"]
    text = end.join(sources) + (end if last else "")
    (tmp_path / "a b[1].en").write_bytes(b"\xef\xbb\xbf" + text.encode())
    write(tmp_path, x__ja="1\n2\n3\n\n5")
    pairs = read(tmp_path, valid="a b[1].en,x.ja")
    assert pairs == [Pair(*pair) for pair in zip(sources, [("1",), ("2",), ("3",), ("",), ("5",)], strict=True)]


def test_further_files_are_references_and_in_training_pairs_of_their_own(tmp_path):
    write(tmp_path, a__en="x\ny\n", b__ja="1\n2\n", **{"c,2": "3\n4\n"})
    names = r"a.en, b.ja, c\,2"
    assert read(tmp_path, valid=names) == [Pair("x", ("1", "3")), Pair("y", ("2", "4"))]
    assert [pair.references for pair in read(tmp_path, "train", train=names)] == [("1",), ("3",), ("2",), ("4",)]


def test_a_missing_line_names_both_files_and_their_numbers_of_lines(tmp_path):
    write(tmp_path, a__en="x\ny\nz\n", a__ja="x\ny")
    with pytest.raises(DataError, match=r"a\.en has 3 lines, .*a\.ja has 2 lines: expected the same number"):
        read(tmp_path, valid="a.en,a.ja")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("empty,empty", DataError, "empty,empty has no pairs of texts"),
        ("a.en,empty", DataError, "a.en has 2 lines, .*empty has 0 lines"),
        ("a.en,latin", DataError, r"latin, line 2: byte 1 is not UTF-8"),
        ("a.en,absent", ConfigError, r"no file 'absent' \(config.data.valid\)"),
        ("a.en,folder", ConfigError, "'folder' is not a file; expected files such as train.en,train.ja"),
        ("a.en,", ConfigError, "'' is not a file"),
        ("a.en", ConfigError, "config.data.valid='a.en' must be two parallel files, such as train.en,train.ja, a .tsv"),
        ("bad.tsv", DataError, r"bad.tsv, line 3: 3 columns, expected 2: \['source', 'target'\]"),
        ("twice.csv", DataError, "line 1: the column 'source' occurs twice"),
        ("bad.jsonl", DataError, "bad.jsonl, line 2 is not JSON"),
        ("number.jsonl", DataError, "number.jsonl, line 1, column 'source': expected text, not the number 5"),
        ("lacks.jsonl", DataError, "lacks.jsonl, line 2: no column 'summary', which the first row has"),
        ("names.csv", ConfigError, "line 2: no column of the source under a usual name; there are 'x', 'y'; name one"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path, name, error, message):
    (tmp_path / "folder").mkdir()
    write(tmp_path, empty="", a__en="x\ny\n", latin=b"a\nb\xff\n", bad__tsv="source\ttarget\na\tb\na\tb\tc\n")
    write(tmp_path, twice__csv="source,source\na,b\n", bad__jsonl='{"source": "a", "target": "b"}\n{bad\n')
    write(tmp_path, number__jsonl='{"source": 5, "target": "b"}', names__csv="x,y\n1,2\n")
    write(tmp_path, lacks__jsonl='{"article": "a", "summary": "b"}\n{"article": "a"}\n')
    with pytest.raises(error, match=message):
        read(tmp_path, valid=name)


def test_columns_have_their_usual_names_or_those_of_the_config(tmp_path):
    write(tmp_path, a__tsv='ja\ten\n1\t"x\n\ty\n', b__csv='id,article,highlights\n1,"x, y","1\n2"\n', c__tsv="x\t1\n")
    assert read(tmp_path, valid="a.tsv") == [Pair("1", ('"x',)), Pair("", ("y",))]
    assert read(tmp_path, valid="a.tsv", source_column="en") == [Pair('"x', ("1",)), Pair("y", ("",))]
    assert read(tmp_path, valid="b.csv") == [Pair("x, y", ("1\n2",))]
    assert read(tmp_path, valid="c.tsv", source_column="0", target_column="1") == [Pair("x", ("1",))]
    with pytest.raises(ConfigError, match=r"no column 'articel'; there are .*did you mean article"):
        read(tmp_path, valid="b.csv", source_column="articel")


def test_entries_of_a_column_may_be_the_languages(tmp_path):
    lines(tmp_path, {"id": "1", "translation": {"en": "x", "ja": "1"}})
    assert read(tmp_path, valid="a.jsonl") == [Pair("x", ("1",))]
    assert read(tmp_path, valid="a.jsonl", target_column="en") == [Pair("1", ("x",))]


def test_sentences_are_joined_and_summaries_are_references(tmp_path):
    lines(
        tmp_path,
        {"source": ["A b.", "C."], "source_labels": [0, 1], "target": ["1", "2"]},
        {"source": [], "target": []},
    )
    assert read(tmp_path, valid="a.jsonl") == [Pair("A b. C.", ("1", "2")), Pair("", ())]
    with pytest.raises(DataError, match="line 2, column 'target' is an empty list; expected a text for training"):
        read(tmp_path, "train", train="a.jsonl")


def test_only_training_needs_targets(tmp_path):
    write(tmp_path, a__csv="document,id\nx,1\n")
    assert read(tmp_path, valid="a.csv") == [Pair("x", ())]
    assert parallel.read("test", config(tmp_path)) is None
    with pytest.raises(ConfigError, match="no column of the target"):
        read(tmp_path, "train", train="a.csv")


def test_parquet_reads_no_other_columns(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "data"
    folder.mkdir()
    columns = {"id": [b"\xff"], "translation": [{"en": "x", "ja": "1"}]}
    pq.write_table(pa.table(columns), folder / "train-00000-of-00001.parquet")
    assert read(tmp_path, "train", train=f"hf:{folder}") == [Pair("x", ("1",))]
    pq.write_table(pa.table({"document": ["x"], "summary": ["1"], "other": [1]}), tmp_path / "a.parquet")
    assert read(tmp_path, valid="a.parquet") == [Pair("x", ("1",))]


def test_inputs_are_texts_or_rows_of_the_data(tmp_path):
    given = ["x", {"source": ["y", "z"], "target": 5}, {"translation": {"en": "w", "ja": "1"}}]
    assert parallel.sources([*given, {"en": "v"}], config(tmp_path)) == ["x", "y z", "w", "v"]
    assert parallel.sources(given[2:], config(tmp_path, source_column="ja")) == ["1"]
    for wrong in (5, {"a": "x"}, {"question": "x", "id": "y"}, {"source": 5}):
        with pytest.raises(DataError, match="expected"):
            parallel.sources([wrong], config(tmp_path))
