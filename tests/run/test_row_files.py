"""Claims about files of results: what was put in comes out of the formats' own readers, whole or not at all."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jtasks.data import tables, values
from jtasks.errors import ConfigError, DataError
from jtasks.run import row_files

TEXTS = ['plain, "quoted"', "two\nlines", "", "é\u2028"]
ROWS = [{"index": i, "text": text, "label": i % 2, "scores": [0.5, i]} for i, text in enumerate(TEXTS)]


def write(path, *parts):
    with row_files.open_rows(path) as add:
        for part in parts:
            add(part)


def test_the_input_loses_nothing_to_the_answer():
    fields = {"index": "a", "label": "b", "text": "c", "input": "d"}
    row = row_files.join(7, fields, {"label": 1})
    assert row == {"index": 7, "text": "c", "input": {"index": "a", "label": "b", "input": "d"}, "label": 1}
    assert row_files.join(7, {"label": "b"}, {"label": 1, "input": 2})["inputs"] == {"label": "b"}


def test_what_people_read_comes_before_arrays():
    row = row_files.join(0, {"text": "a"}, {"tokens": np.arange(3), "label": np.int32(1), "class": "b"})
    assert list(row) == ["index", "text", "label", "class", "tokens"]


def test_rows_come_back_from_each_format(tmp_path):
    from pyarrow import parquet

    for suffix in (".jsonl", ".csv", ".parquet"):
        write(tmp_path / f"rows{suffix}", ROWS[:3], ROWS[3:])
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == ROWS
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == ROWS
    with open(tmp_path / "rows.csv", newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == TEXTS
    write(tmp_path / "rows.tsv", [{"index": 0, "text": 'a "b', "p": np.float32("nan")}, {"index": 1, "text": "c"}])
    assert (tmp_path / "rows.tsv").read_text() == 'index\ttext\tp\n0\ta "b\tnan\n1\tc\t\n'
    read = tables.rows(str(tmp_path / "rows.tsv"), "test", {"index": values.text, "text": values.text})
    assert read == [{"index": "0", "text": 'a "b'}, {"index": "1", "text": "c"}]


def test_embeddings_come_back_bit_for_bit(tmp_path):
    from pyarrow import parquet

    features = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    rows = [{"index": i, "text": "é", "mean": x, "max": -x[:2]} for i, x in enumerate(features)]
    for suffix in (".parquet", ".safetensors"):
        write(tmp_path / f"rows{suffix}", rows[:2], rows[2:])
    arrays = load_file(tmp_path / "rows.safetensors")
    assert set(arrays) == {"index", "mean", "max"} and arrays["index"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(arrays["mean"], features)
    np.testing.assert_array_equal(arrays["max"], -features[:, :2])
    table = parquet.read_table(tmp_path / "rows.parquet")
    np.testing.assert_array_equal(np.stack(table["mean"].to_numpy()), features)
    assert str(table.schema.field("mean").type) == "fixed_size_list<element: float>[3]"


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("a.csv", {"index": 1, "text": "", "more": 1}, "row 1 has 'more', which the first row lacks"),
        ("a.tsv", {"index": 1, "text": "a\tb"}, "row 1 holds a tab"),
        ("a.parquet", {"index": 1, "text": 5}, "rows 0 to 1 do not fit Parquet"),
        ("a.safetensors", {"index": 1, "text": np.ones(2)}, "row 1 has the arrays"),
    ],
)
def test_a_row_that_does_not_fit_leaves_no_file(name, row, message, tmp_path):
    with pytest.raises(DataError, match=message):
        write(tmp_path / name, [{"index": 0, "text": ""}, row])
    assert not list(tmp_path.iterdir())


def test_a_name_of_unknown_kind_is_refused(tmp_path):
    for name in (tmp_path / "a.xlsx", tmp_path / "a.safetensors", tmp_path):
        with pytest.raises(ConfigError, match="give a file that ends in "):
            row_files.check_suffix(name, arrays=False)
    row_files.check_suffix(tmp_path / "a.SAFETENSORS", arrays=True)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
def test_lines_are_json_of_arrays_too_and_of_what_is_not_finite(tmp_path, dtype):
    row = {"index": 3, "x": np.array([1.5, np.nan, np.inf, -np.inf], dtype), "y": dtype(np.nan)}
    mixed = {
        "index": np.int32(4),
        "z": [np.array([True]), np.complex64(complex(1, np.inf))],
        "w": {"v": np.zeros((0, 2))},
    }
    write(tmp_path / "rows.jsonl", [row, mixed])
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert first == {"index": 3, "x": [1.5, "nan", "inf", "-inf"], "y": "nan"}
    assert second == {"index": 4, "z": [[True], [1.0, "inf"]], "w": {"v": []}}
