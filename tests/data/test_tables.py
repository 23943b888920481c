"""Claims about tables of text."""

import zipfile

import pytest

from jtasks.data import tables
from jtasks.errors import ConfigError, DataError


def rows(folder, name, content, fields, **options):
    (folder / name).write_text(content, encoding="utf-8")
    return tables.rows(name, "train", fields, folder=str(folder), **options)


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


def test_jsonl_keeps_what_json_says_and_a_byte_order_mark_is_none_of_it(tmp_path):
    assert rows(tmp_path, "a.jsonl", '\ufeff{"x": [1, "é"], "y": 2}\n\n{"x": null, "y": 3}', ["x"]) == [
        {"x": [1, "é"]},
        {"x": None},
    ]


def test_a_file_is_found_in_the_zip_archive_of_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "SST-2.zip", "w") as archive:
        archive.writestr("SST-2/train.tsv", "sentence\tlabel\nfine\t1\n")
    found = tables.rows("SST-2/train.tsv", "train", ["label"], folder=str(tmp_path))
    assert found == [{"label": "1"}]
    with pytest.raises(DataError, match=r"SST-2\.zip.*no item named 'SST-2/dev\.tsv'"):
        tables.rows("SST-2/dev.tsv", "valid", ["label"], folder=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.tsv", "sentence\tlabel\nx\t1\n", ConfigError, r"line 2: no column 'lable'.* did you mean 'label'\?"),
        ("a.tsv", "lable\tx\n1\n", DataError, "line 2: 1 columns, expected 2"),
        ("a.jsonl", '{"lable": 1}\n{"lable": \n', DataError, "line 2 is no JSON"),
        ("a.jsonl", "[1]\n", DataError, "line 1 is no JSON object but list"),
        ("a.txt", "x", ConfigError, r"config.data.train='a.txt' must be a .tsv, .csv or .jsonl file, or tfds:NAME"),
    ],
)
def test_mistakes_say_where(tmp_path, name, content, error, message):
    with pytest.raises(error, match=message):
        rows(tmp_path, name, content, ["lable"])


def test_an_absent_file_tells_where_it_was_looked_for_and_had(tmp_path):
    with pytest.raises(DataError) as caught:
        tables.rows("SST-2/train.tsv", "train", ["x"], folder=str(tmp_path), source="https://example.org/SST-2.zip")
    for part in ("config.data.train", f"{tmp_path}/SST-2/train.tsv", f"{tmp_path}/SST-2.zip", "https://example.org"):
        assert part in str(caught.value)


def test_text_that_is_not_utf_8_is_an_error(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"x\ty\n\xff\t1\n")
    with pytest.raises(DataError, match=r"expected a\.tsv as text in UTF-8"):
        tables.rows("a.tsv", "train", ["x"], folder=str(tmp_path))


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
        tables.rows(f"tfds:tiny_texts{more}", split, ["label", "sentence"], folder=str(tmp_path))
        for more, split in (("", "train"), ("", "valid"), ("#extra", "valid"))
    ]
    assert [len(found) for found in read] == [4, 2, 1]
    assert sorted(row["sentence"] for row in read[1]) == ["é 2 0", "é 2 1"]
    assert {int(row["label"]) for row in read[0]} == {0, 1}
    with pytest.raises(DataError, match=r"has the splits .*; config.data.test names none of them"):
        tables.rows("tfds:tiny_texts", "test", ["label"], folder=str(tmp_path))
