"""Claims about jtasks.data.dialogues."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks.data import dialogues
from jtasks.data.features import Features
from jtasks.errors import ConfigError, DataError

MARK = 99
TALK = {
    "image_id": "A",
    "caption": "c1 c2 c3",
    "summary": "s1",
    "dialog": [
        {"question": f"q{i}", "answer": f"a{i} b{i}", **({"references": ["x", "y"]} if i == 1 else {})}
        for i in range(4)
    ],
}
HIDDEN = {"image_id": "B", "dialog": [{"question": "q", "answer": "a"}, {"question": "q", "answer": "__UNDISCLOSED__"}]}


def talk(turn=None, **more):
    """A file of one dialogue of one turn, with changes."""
    dialog = [{"question": "q", "answer": "a", **(turn or {})}]
    return json.dumps({"dialogs": [{"image_id": "A", "caption": "c", "summary": "s", "dialog": dialog, **more}]})


def words(text):
    """An id for each word: caption 1.., summary 11.., questions 20.., answers 30.. and 40.."""
    starts = {"c": 0, "s": 10, "q": 20, "a": 30, "b": 40}
    return [starts[word[0]] + int(word[1:] or 0) for word in text.split()]


def context(size=40, **options):
    ids, kinds = dialogues.context((TALK, 3), words, MARK, size=size, **{"max_turns": 2, "use_caption": True} | options)
    assert ids.shape == kinds.shape == (size,) and (ids[kinds == 0] == 0).all()
    count = int((kinds > 0).sum())
    assert (kinds[:count] > 0).all()
    return ids[:count].tolist(), kinds[:count].tolist()


def test_a_context_is_caption_turns_and_question_each_with_its_kind():
    ids, kinds = context()
    assert ids == [MARK, 1, 2, 3, 11, MARK, 21, MARK, 31, 41, MARK, 22, MARK, 32, 42, MARK, 23]
    assert kinds == [1] * 5 + [2] * 2 + [3] * 3 + [2] * 2 + [3] * 3 + [2] * 2


def test_a_context_has_as_many_turns_as_it_may():
    assert context(max_turns=0)[0] == [MARK, 1, 2, 3, 11, MARK, 23]
    assert context(max_turns=9, use_caption=False)[0][:5] == [MARK, 20, MARK, 30, 40]


def test_what_is_too_long_loses_old_turns_then_the_captions_end_then_the_questions_beginning():
    assert context(size=16)[0] == [MARK, 1, 2, 3, 11, MARK, 22, MARK, 32, 42, MARK, 23]
    assert context(size=11)[0] == [MARK, 1, 2, 3, 11, MARK, 23]
    assert context(size=5)[0] == [MARK, 1, 2, MARK, 23]
    assert context(size=1)[0] == [23]


def test_an_undisclosed_turn_is_no_part_of_a_context():
    later = {"image_id": "C", "dialog": [*HIDDEN["dialog"], {"question": "q7", "answer": "a"}]}
    ids, kinds = dialogues.context((later, 2), words, MARK, size=9, max_turns=3, use_caption=False)
    assert ids[kinds > 0].tolist() == [MARK, 20, MARK, 30, MARK, 27]


def test_an_answer_is_marked_at_both_ends_and_cut():
    ids, count = dialogues.answer((TALK, 1), words, MARK, size=5)
    assert ids.tolist() == [MARK, 31, 41, MARK, MARK, MARK] and count == 3
    ids, count = dialogues.answer((TALK, 1), words, MARK, size=2)
    assert ids.tolist() == [MARK, 31, 41] and count == 2
    ids, count = dialogues.answer((HIDDEN, 1), words, MARK, size=2)
    assert ids.tolist() == [MARK] * 3 and count == 0


def test_turns_can_be_all_the_last_or_those_asked_for():
    def chosen(which):
        return [(dialogue["image_id"], turn) for dialogue, turn in dialogues.turns([TALK, HIDDEN], which)]

    assert chosen("all") == [("A", 0), ("A", 1), ("A", 2), ("A", 3), ("B", 0), ("B", 1)]
    assert chosen("last") == [("A", 3), ("B", 1)]
    assert chosen("asked") == [("A", 1), ("B", 1)]
    with pytest.raises(ConfigError, match=r"config\.data\.turns='some'"):
        chosen("some")


def test_references_are_the_files_or_the_answer_or_none():
    found = [dialogues.references(turn) for turn in ((TALK, 1), (TALK, 0), (HIDDEN, 1))]
    assert found == [["x", "y"], ["a0 b0"], []]


def test_undisclosed_answers_are_no_text():
    assert list(dialogues.texts([HIDDEN])) == ["", "q", "a", "q"]


def test_a_split_is_found_by_its_official_names_and_may_lack(tmp_path):
    (tmp_path / "avsd").mkdir()
    assert dialogues.locate("valid", "", tmp_path) is None
    for name in ("avsd/avsd_valid.json", "valid_set4DSTC7-AVSD.json"):
        (tmp_path / name).write_text("{}")
        assert dialogues.locate("valid", "", tmp_path) == tmp_path / name
    assert dialogues.locate("valid", "avsd_valid.json", tmp_path) == tmp_path / "avsd" / "avsd_valid.json"


@pytest.mark.parametrize(("split", "name"), [("train", ""), ("valid", "mine.json")])
def test_a_file_that_must_be_there_is_named_with_the_ways_out(split, name, tmp_path):
    with pytest.raises(ConfigError) as error:
        dialogues.locate(split, name, tmp_path)
    for part in (
        name or "train_set4DSTC7-AVSD.json",
        str(tmp_path / "avsd"),
        f"config.data.{split}",
        "config.data.dir",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no dialogues"),
        ('{"dialogs": []}', "has no dialogues"),
        ('{"dialogs": [{"dialog": []}]}', "dialogue 0 has no image_id"),
        ("[" * 100_000, "is not JSON"),
        (talk(), None),
        (talk(caption=None), None),
        (talk(caption=["a"]), r"dialogue 0 \(A\), 'caption': expected text, not a list"),
        (talk(summary=1), r"dialogue 0 \(A\), 'summary': expected text, not the number 1"),
        (talk(image_id="../../x"), "dialogue 0: the image_id '../../x' is not a file name"),
        (talk(image_id="/etc/x"), "is not a file name"),
        (talk(image_id="a\x1b[2J"), "is not a file name"),
        (talk(image_id=".."), "is not a file name"),
        (talk(image_id=""), "is not a file name"),
        (talk({"references": "a man"}), r"dialogue 0 \(A\), turn 0, 'references': expected a list of texts, not text"),
        (talk({"references": [None, "a"]}), r"turn 0, 'references', item 0: expected text, not null"),
        (talk({"references": None}), r"turn 0, 'references': expected a list of texts, not null"),
        (talk({"references": ["a", ""]}), r"turn 0, 'references', item 1 is empty"),
        (talk({"answer": ["a"]}), r"turn 0, 'answer': expected text, not a list"),
        (talk({"question": None}), r"turn 0, 'question': expected text, not null"),
        ('{"dialogs": [{"image_id": "A", "dialog": []}]}', r"dialogue 0 \(A\) has no turns"),
        ('{"dialogs": [{"image_id": "A", "dialog": [{"question": "q"}]}]}', r"dialogue 0 \(A\), turn 0: expected"),
    ],
)
def test_a_file_of_another_form_is_refused(text, message, tmp_path):
    (tmp_path / "wrong.json").write_text(text)
    if message is None:
        assert len(dialogues.read(tmp_path / "wrong.json")) == 1
        return
    with pytest.raises(DataError, match=message):
        dialogues.read(tmp_path / "wrong.json")


def test_a_file_is_read(tmp_path):
    (tmp_path / "right.json").write_text(json.dumps({"dialogs": [TALK, HIDDEN]}))
    assert dialogues.read(tmp_path / "right.json") == [TALK, HIDDEN]


def stored(folder, **arrays):
    for kind, array in arrays.items():
        (folder / kind).mkdir()
        np.save(folder / kind / "A.npy", array)
    return Features(folder, tuple(arrays), frames=4)


@settings(max_examples=30, deadline=None)
@given(lengths=st.tuples(st.integers(1, 12), st.integers(1, 12)), frames=st.integers(1, 9))
def test_kinds_are_aligned_to_the_shortest(tmp_path_factory, lengths, frames):
    ramps = [np.linspace(0, 1, length)[:, None].astype(np.float32) for length in lengths]
    features = stored(tmp_path_factory.mktemp("features"), one=ramps[0], two=2 * ramps[1] + 3)
    found = Features(features.folder, features.kinds, frames).align("A")
    length = min(*lengths, frames)
    assert found.shape == (length, 2) and found.dtype == np.float32
    expected = np.linspace(0, 1, length)  # a straight line stays one, from its first to its last value
    if min(lengths) > 1:
        np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)
        np.testing.assert_allclose(found[:, 1], 2 * expected + 3, atol=1e-5)


def test_a_batch_has_zeros_behind_the_last_frame(tmp_path):
    features = stored(tmp_path, one=np.arange(6.0).reshape(3, 2), two=np.arange(5.0)[:, None])
    np.save(tmp_path / "one" / "B.npy", np.ones((9, 2), np.float16))
    np.save(tmp_path / "two" / "B.npy", np.ones((7, 1)))
    video, frames = features.batch(["A", "B", "A"])
    assert video.shape == (3, 4, 3) and video.dtype == np.float32 and frames.tolist() == [3, 4, 3]
    assert video[0].tolist() == video[2].tolist() == [[0, 1, 0], [2, 3, 2], [4, 5, 4], [0, 0, 0]]
    assert (video[1] == 1).all()
    assert features.width("A") == 3


def test_missing_features_are_listed_before_anything_is_read(tmp_path):
    features = stored(tmp_path, one=np.ones((2, 2)))
    features.require(["A", "A"])
    with pytest.raises(DataError) as error:
        features.require(["A", *(f"V{i}" for i in range(9))])
    assert "9 of 10 files" in str(error.value) and str(tmp_path / "one" / "V4.npy") in str(error.value)
    assert "V5.npy" not in str(error.value) and "--config.data.features='()'" in str(error.value)


@pytest.mark.parametrize("array", [np.ones(3), np.ones((0, 2)), np.array([["a"]])])
def test_features_of_another_form_are_refused(array, tmp_path):
    with pytest.raises(DataError, match=r"A\.npy .*expected"):
        stored(tmp_path, one=array).batch(["A"])


def test_features_of_different_widths_are_refused(tmp_path):
    features = stored(tmp_path, one=np.ones((2, 2)))
    np.save(tmp_path / "one" / "B.npy", np.ones((2, 3)))
    with pytest.raises(DataError, match=r"different widths, \[2, 3\]"):
        features.batch(["A", "B"])
