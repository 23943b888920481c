"""Claims about tables of text: values are what their columns are said to hold, or an error says where."""

import json
import zipfile

import pytest

from jtasks.data import tables, values
from jtasks.errors import ConfigError, DataError


def rows(folder, name, content, fields, **options):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    checks = fields if isinstance(fields, dict) else dict.fromkeys(fields, values.text)
    return tables.rows(name, "train", checks, folder=str(folder), **options)


CHECKS = {"sentence": values.content, "label": values.label}


def test_tsv_has_a_header_and_quotes_mean_nothing(tmp_path):
    content = 'sentence\tlabel\n"half a quote\t1\n\nsaid "so" \t0\r\n'
    assert rows(tmp_path, "a.tsv", content, ["label", "sentence"]) == [
        {"label": "1", "sentence": '"half a quote'},
        {"label": "0", "sentence": 'said "so" '},
    ]


def test_numbers_are_columns_of_a_file_without_a_header(tmp_path):
    assert rows(tmp_path, "cola.tsv", "gj04\t1\t\tThey left.\ngj05\t0\t*\tThey leaved.\n", ["3", "1"]) == [
        {"3": "They left.", "1": "1"},
        {"3": "They leaved.", "1": "0"},
    ]


def test_csv_knows_quotes_and_line_breaks_inside_them(tmp_path):
    assert rows(tmp_path, "a.csv", 'x,y\n"one, two","a\nb"\n', ["x", "y"]) == [{"x": "one, two", "y": "a\nb"}]


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_line_ends_and_separators_part_and_a_byte_order_mark_is_no_text(tmp_path, name, end):
    words = ["a\u00a0b", "\u3000", "a\u0085b", "a\u2028b", "\u00a0a ", "é" * 200_000]
    if name == "a.jsonl":
        lines = [json.dumps({"sentence": word, "label": 1}, ensure_ascii=False) for word in words]
    else:
        between = "\t" if name == "a.tsv" else ","
        lines = [f"sentence{between}label", *(f"{word}{between}1" for word in words)]
    content = "\ufeff" + end + (end * 2).join(lines) + end
    found = rows(tmp_path, name, content, {"sentence": values.text, "label": values.label})
    assert found == [{"sentence": word, "label": "1"} for word in words]


def test_an_old_line_end_ends_a_row_of_tsv_and_csv(tmp_path):
    for name, between in (("a.tsv", "\t"), ("a.csv", ",")):
        assert rows(tmp_path, name, f"x{between}y\ra{between}b\r", ["x"]) == [{"x": "a"}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"sentence": null, "label": 1}', "line 3, column 'sentence': expected text, not null"),
        ('{"sentence": ["sun", "moon"], "label": 1}', "line 3, column 'sentence': expected text, not a list"),
        ('{"sentence": {"a": 1}, "label": 1}', "line 3, column 'sentence': expected text, not an object"),
        ('{"sentence": 5, "label": 1}', "line 3, column 'sentence': expected text, not the number 5"),
        ('{"sentence": true, "label": 1}', "line 3, column 'sentence': expected text, not true"),
        ('{"sentence": " ", "label": 1}', "line 3, column 'sentence' is empty"),
        ('{"sentence": "\\ud83d", "label": 1}', "line 3, column 'sentence' holds half a surrogate pair"),
        ('{"sentence": "a", "label": null}', "line 3, column 'label': expected a label, .* not null"),
        ('{"sentence": "a", "label": [1]}', "line 3, column 'label': .* not a list"),
        ('{"sentence": "a", "label": false}', "line 3, column 'label': .* not false"),
        ('{"sentence": "a", "label": 0.5}', "line 3, column 'label': .* not the number 0.5"),
        ('{"sentence": "a", "label": 1e999}', "line 3, column 'label': .* not the number inf"),
        ('{"sentence": "a", "label": ""}', "line 3, column 'label' is empty"),
        ('{"sentence": "a", "label": "NaN"}', "line 3, column 'label' is 'NaN', which stands for a missing label"),
        ('{"sentence": "a", "label": NaN}', "line 3 is not JSON: NaN is not a JSON number"),
        ('{"sentence": "a", "label": 1, "label": 0}', "line 3 is not JSON: the key 'label' occurs twice"),
        ('{"sentence": "a", "more": {"x": 1, "x": 1}, "label": 0}', "line 3 is not JSON: the key 'x' occurs twice"),
        ('{"sentence": "a"}', "line 3: no column 'label'"),
        ("[" * 100_000, "line 3 is not JSON"),
        ('{"sentence": "a", "label": 1}\r{"sentence": "b", "label": 1}', "line 3 is not JSON"),
        ("\u00a0", "line 3 is not JSON"),
        ("null", "line 3: expected a JSON object, not null"),
        ('"text"', "line 3: expected a JSON object, not text"),
    ],
)
def test_values_of_another_kind_in_jsonl_are_named_by_line_and_column(tmp_path, value, message):
    with pytest.raises(DataError, match=rf"a\.jsonl, {message}"):
        rows(tmp_path, "a.jsonl", f'{{"sentence": "a", "label": 1}}\n\n{value}\n', CHECKS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "sentence,label\na,\n", "line 2, column 'label' is empty"),
        ("a.csv", "sentence,label\n,\n", "line 2, column 'sentence' is empty"),
        ("a.csv", 'sentence,label\n"",1\n', "line 2, column 'sentence' is empty"),
        ("a.csv", "sentence,label\na,nan\n", "line 2, column 'label' is 'nan'"),
        ("a.csv", "sentence,label,label\na,1,0\n", "line 1: the column 'label' occurs twice"),
        ("a.tsv", "sentence\tlabel\tx\tx\na\t1\t2\t3\n", "line 1: the column 'x' occurs twice"),
        ("a.csv", "sentence,label\na,b,1\n", "line 2: 3 columns, expected 2"),
        ("a.tsv", "sentence\tlabel\na\n", "line 2: 1 columns, expected 2"),
        ("a.tsv", "sentence\tlabel\n\t\n", "line 2, column 'sentence' is empty"),
        ("a.csv", 'sentence,label\n"a,1\nb,0\n', "line 3: unexpected end of data; expected quotes around whole"),
        ("a.csv", 'sentence,label\n"a"b,1\n', "line 2: ',' expected after '\"'"),
        ("a.csv", "", "a.csv has no rows"),
        ("a.tsv", "sentence\tlabel\n", "a.tsv has no rows"),
        ("a.jsonl", "\n \n", "a.jsonl has no rows"),
        ("a.csv", b"sentence,label\na\0b,1\n", "line 2: a zero byte"),
        ("a.csv", b"sentence,label\na\xffb,1\n", "line 2: byte 1 is not UTF-8"),
        ("a.jsonl", '{"sentence": "a", "label": 1}'.encode("utf-16"), "a.jsonl is in UTF-16 or UTF-32"),
        ("a.tsv", "sentence\tlabel\na\t1\n".encode("utf-16-le"), "line 1: a zero byte"),
    ],
)
def test_damaged_tables_say_where(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        rows(tmp_path, name, content, CHECKS)


def test_a_whole_number_is_one_class_however_it_is_spelled(tmp_path):
    labels = ("1", "1.0", '"1"', '" 1.00 "', "0", '"none"')
    lines = [f'{{"sentence": "a", "label": {label}}}' for label in labels]
    assert [row["label"] for row in rows(tmp_path, "a.jsonl", "\n".join(lines), CHECKS)] == [*"1111", "0", "none"]
    assert [row["label"] for row in rows(tmp_path, "a.csv", "sentence,label\na,1\nb, 1.0\n", CHECKS)] == ["1", "1"]


@pytest.mark.parametrize("damage", ["encrypted", "short", "crc", "declared"])
def test_a_damaged_encrypted_or_overlarge_archive_is_named(tmp_path, damage, monkeypatch):
    path = tmp_path / "SST-2.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("SST-2/train.tsv", "sentence\tlabel\nfine\t1\n" * 99)
    data = bytearray(path.read_bytes())
    if damage == "encrypted":
        data[6] |= 1
        data[data.index(b"PK\1\2") + 8] |= 1
    elif damage == "short":
        del data[len(data) // 2 :]
    elif damage == "crc":
        data[60] ^= 1
    else:
        monkeypatch.setattr(tables.files, "LIMIT", 99)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"SST-2\.zip: (cannot read )?SST-2/train\.tsv"):
        tables.rows("SST-2/train.tsv", "train", CHECKS, folder=str(tmp_path))


def test_a_file_is_found_in_the_zip_archive_of_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "SST-2.zip", "w") as archive:
        archive.writestr("SST-2/train.tsv", "sentence\tlabel\nfine\t1\n")
    found = tables.rows("SST-2/train.tsv", "train", {"label": values.label}, folder=str(tmp_path))
    assert found == [{"label": "1"}]
    with pytest.raises(DataError, match=r"SST-2\.zip: cannot read SST-2/dev\.tsv .*no item named"):
        tables.rows("SST-2/dev.tsv", "valid", {"label": values.label}, folder=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.tsv", "sentence\tlabel\nx\t1\n", ConfigError, r"line 2: no column 'lable'.* did you mean label\?"),
        ("a.tsv", "lable\tx\n1\n", DataError, "line 2: 1 columns, expected 2"),
        ("a.jsonl", '{"lable": "1"}\n{"lable": \n', DataError, "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", DataError, "line 1: expected a JSON object, not a list"),
        (
            "a.txt",
            "x",
            ConfigError,
            r"config.data.train='a.txt' must be a .tsv, .csv, .jsonl or .parquet file, shards",
        ),
    ],
)
def test_mistakes_say_where(tmp_path, name, content, error, message):
    with pytest.raises(error, match=message):
        rows(tmp_path, name, content, ["lable"])


def test_an_absent_file_tells_where_it_was_looked_for_and_had(tmp_path):
    with pytest.raises(ConfigError) as caught:
        tables.rows("SST-2/train.tsv", "train", CHECKS, folder=str(tmp_path), source="https://example.org/SST-2.zip")
    for part in ("config.data.train", f"{tmp_path}/SST-2/train.tsv", f"{tmp_path}/SST-2.zip", "https://example.org"):
        assert part in str(caught.value)


def test_text_of_tfds_is_read_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"sentence": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(n) for split, n in (("train", 4), ("validation", 2), ("extra", 1))}

        def _generate_examples(self, n):
            for i in range(n):
                yield i, {"sentence": f"é {n} {i}", "label": i % 2}

    TinyTexts(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    read = [
        tables.rows(f"tfds:tiny_texts{more}", split, CHECKS, folder=str(tmp_path))
        for more, split in (("", "train"), ("", "valid"), ("#extra", "valid"))
    ]
    assert [len(found) for found in read] == [4, 2, 1]
    assert sorted(row["sentence"] for row in read[1]) == ["é 2 0", "é 2 1"]
    assert {row["label"] for row in read[0]} == {"0", "1"}
    assert any("train" in path.name for path in tables.paths("tfds:tiny_texts", "train", folder=str(tmp_path)))
    with pytest.raises(DataError, match=r"has the splits .*; config.data.test names none of them"):
        tables.rows("tfds:tiny_texts", "test", CHECKS, folder=str(tmp_path))


@pytest.mark.parametrize("name", ["a.TSV", "a.Csv", "a.JSONL"])
def test_suffixes_are_known_in_any_case(tmp_path, name):
    (tmp_path / name).write_text(
        '{"text": "\\"x"}' if name == "a.JSONL" else 'text\n"x\n' if name == "a.TSV" else 'text\n"""x"\n'
    )
    assert tables.rows(name, "train", {"text": values.content}, folder=str(tmp_path)) == [{"text": '"x'}]
