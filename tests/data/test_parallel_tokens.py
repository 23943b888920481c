"""Claims about pairs as tokens: stored once, padded, cut with their end kept, the same for inputs."""

import pickle

import numpy as np
import pytest

from jtasks.config import Config
from jtasks.data import parallel, parallel_tokens, tokenizers
from jtasks.errors import ConfigError, DataError

END, PAD = 256, 257


def encoded(folder, split="train", source="ab\n\nabcdefgh\n", target="x\nyy\n\n", **data):
    (folder / "a.en").write_text(source)
    (folder / "a.ja").write_text(target)
    made, sides = sided(folder, **{split: "a.en,a.ja"} | data)
    return parallel_tokens.encode(split, made, *sides)


def sided(folder, **data):
    fields = {name.removeprefix("data."): field.default for name, field in parallel.FIELDS.items()}
    small = {"source_length": 6, "target_length": 4, "dir": str(folder)}
    made = Config({"data": fields | small | data})
    lengths, prefixes = (made.data.source_length, made.data.target_length), (made.data.prefix, "")
    marks = tokenizers.load("bytes"), END, PAD
    sides = [parallel_tokens.Side(marks[0], length, *marks[1:], p) for length, p in zip(lengths, prefixes, strict=True)]
    return made, sides


def ids(text, size):
    row = [*text.encode(), END]
    return row + [PAD] * (size - len(row))


def test_texts_end_with_their_mark_and_too_long_ones_are_cut_before_it(tmp_path, capsys):
    pairs = encoded(tmp_path)
    assert len(pairs) == 3 and pairs.lengths.tolist() == [[3, 2], [1, 3], [6, 1]]
    assert [row["source"].tolist() for row in pairs] == [ids("ab", 6), ids("", 6), ids("abcde", 6)]
    assert [row["target"].tolist() for row in pairs] == [ids("x", 4), ids("yy", 4), ids("", 4)]
    assert pairs[-1]["source_text"] == "abcdefgh" and pairs[0]["references"] == ("x",)
    for row, lengths in zip(pairs, pairs.lengths, strict=True):
        assert [row[f"{side}_segment_ids"].sum() for side in ("source", "target")] == lengths.tolist()
    encoded(tmp_path)
    said = capsys.readouterr().err
    assert said.count("1 of the 3 sources of train are longer than config.data.source_length=6 tokens") == 1


def test_several_references_stay_and_the_first_is_the_target(tmp_path):
    (tmp_path / "b.ja").write_text("1\n2\n3\n")
    pairs = encoded(tmp_path, "valid", valid="a.en,a.ja,b.ja", prefix="p")
    assert pairs[1]["references"] == ("yy", "2") and pairs[1]["target"].tolist() == ids("yy", 4)
    assert pairs[0]["source"].tolist() == ids("pab", 6) and pairs[0]["source_text"] == "ab"


def test_inputs_are_sources_without_targets_and_so_are_rows_without_references(tmp_path):
    made, sides = sided(tmp_path, test="a.csv")
    (tmp_path / "a.csv").write_text("source\nab\n")
    row, given = (parallel_tokens.encode("test", made, *sides)[0], parallel_tokens.encode_inputs(["ab"], *sides)[0])
    assert row["references"] == () and not row["target_segment_ids"].any() and "target" not in given
    np.testing.assert_array_equal(row["source"], given["source"])
    assert parallel_tokens.lengths([row, given]).tolist() == [[3, 0], [3, 0]]
    assert set(parallel_tokens.collate([given])) == {"source", "source_segment_ids"}


def test_stored_tokens_are_those_of_the_files_as_they_are(tmp_path):
    first = encoded(tmp_path, source="a\nb\nc\n")
    copy = pickle.loads(pickle.dumps(first))
    assert [row["source_text"] for row in copy] == ["a", "b", "c"] and len(pickle.dumps(first)) < 3000
    assert encoded(tmp_path, source="a\nb\nccc\n")[2]["source_text"] == "ccc"


def test_nothing_is_stored_of_files_that_do_not_fit(tmp_path):
    with pytest.raises(DataError, match=r"has 2 lines, .* has 3 lines"):
        encoded(tmp_path, source="a\nb\n")
    assert not list((tmp_path / "prepared").iterdir())


def test_a_length_without_room_for_text_is_refused():
    side = parallel_tokens.Side(tokenizers.load("bytes"), 1, END, PAD)
    with pytest.raises(ConfigError, match="no room"):
        side.encode(["a"])
