"""Claims about SQuAD's files and windows."""

import json

import numpy as np
import pytest
from finetune import question
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks.data import squad, tokenizers
from jtasks.errors import ConfigError, DataError

WORDS = ["Rome", "met", "in", "1984", "(Italy)", "naïve", "don't", "½"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["Rome met in 1984 (Italy) naive don't", "who met where and when ?"] * 3
    return tokenizers.load("wordpiece:60", texts=lambda: iter(texts), folder=tmp_path_factory.mktemp("tokenizer"))


def write(folder, *paragraphs, name="x.json"):
    (folder / name).write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": list(paragraphs)}]}))
    return name


def test_questions_of_both_versions(tmp_path):
    context = "They met in Rome."
    qas = [question("1", context, "where?", "Rome", "in Rome"), question("2", context, "when?", is_impossible=True)]
    qas[1]["plausible_answers"] = [{"answer_start": 12, "text": "Rome"}]
    found = squad.questions(write(tmp_path, {"context": context, "qas": qas}), "train", folder=str(tmp_path))
    assert found == [("1", "where?", context, [(12, "Rome"), (9, "in Rome")]), ("2", "when?", context, [])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda qa: qa["answers"][0].update(answer_start=2),
            "question '1': the context has no 'Rome' at answer_start 2",
        ),
        (lambda qa: qa["answers"][0].update(answer_start=-4), "question '1': the context has no 'Rome' at .* -4"),
        (
            lambda qa: qa["answers"][0].update(answer_start="3"),
            "question '1', 'answer_start': .* whole number, not text",
        ),
        (lambda qa: qa["answers"][0].update(answer_start=3.0), "question '1', 'answer_start': .*, not the number 3.0"),
        (lambda qa: qa["answers"][0].update(answer_start=True), "question '1', 'answer_start': .*, not true"),
        (lambda qa: qa["answers"][0].update(text=""), "question '1', the answer's 'text' is empty"),
        (lambda qa: qa["answers"][0].update(text=None), "question '1', 'text': expected text, not null"),
        (lambda qa: qa["answers"].append("Rome"), "question '1': expected an object with 'text', not text"),
        (lambda qa: qa.update(answers="Rome"), "question '1', 'answers': expected a list, not text"),
        (lambda qa: qa.update(answers=None), "question '1', 'answers': expected a list, not null"),
        (
            lambda qa: qa.update(is_impossible="false"),
            "question '1', 'is_impossible': expected true or false, not text",
        ),
        (lambda qa: qa.update(question=None), "question '1', 'question': expected text, not null"),
        (lambda qa: qa.update(question=[]), "question '1', 'question': expected text, not a list"),
        (lambda qa: qa.update(question=" "), "question '1', 'question' is empty"),
        (lambda qa: qa.pop("id"), "x.json, article 0, paragraph 0, question 0 has no 'id'"),
        (
            lambda qa: qa.update(id=1),
            "x.json, article 0, paragraph 0, question 0, 'id': expected text, not the number 1",
        ),
    ],
)
def test_a_damaged_file_says_what_is_wrong(tmp_path, change, message):
    entry = question("1", "in Rome", "where?", "Rome")
    change(entry)
    with pytest.raises(DataError, match=message):
        squad.questions(write(tmp_path, {"context": "in Rome", "qas": [entry]}), "train", folder=str(tmp_path))


def test_questions_have_ids_of_their_own(tmp_path):
    entry = question("1", "in Rome", "where?", "Rome")
    with pytest.raises(DataError, match="the id '1' occurs twice"):
        squad.questions(write(tmp_path, {"context": "in Rome", "qas": [entry] * 2}), "train", folder=str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected an object with 'data', not a list"),
        ('{"data": {}}', "'data': expected a list, not an object"),
        ('{"data": []}', "has no questions"),
        (
            '{"data": [{"paragraphs": [{"context": null, "qas": []}]}]}',
            "paragraph 0, 'context': expected text, not null",
        ),
        ("[" * 100_000, "is not JSON"),
        ('{"data": [], "data": []}', "the key 'data' occurs twice"),
    ],
)
def test_another_file_is_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=message):
        squad.questions("x.json", "train", folder=str(tmp_path))


def test_questions_whose_answers_nobody_tells_are_windows_without_a_label(tmp_path, tokenizer):
    entry = question("1", "in Rome", "where?")
    del entry["answers"]
    (found,) = squad.questions(write(tmp_path, {"context": "in Rome", "qas": [entry]}), "test", folder=str(tmp_path))
    assert found.answers is None
    windows = squad.windows(tokenizer, [found], length=12, question=3, stride=2)
    assert windows["start"].tolist() == windows["end"].tolist() == [-1] * len(windows["tokens"])


def test_official_files_are_downloaded_by_hash_and_others_are_not(tmp_path, monkeypatch):
    asked = []

    def fetch(name, known_hash, mirrors, folder, *rest):
        asked.append((name, known_hash, folder))
        folder.mkdir()
        return folder / write(folder, {"context": "Rome", "qas": [question("1", "Rome", "?", "Rome")]}, name=name)

    monkeypatch.setattr(squad.files, "fetch", fetch)
    for _ in range(2):
        assert len(squad.questions("dev-v1.1.json", "valid", folder=str(tmp_path))) == 1
    assert asked == [("dev-v1.1.json", squad.OFFICIAL["dev-v1.1.json"], tmp_path / "squad")]
    with pytest.raises(ConfigError, match=r"no file 'dev\.json' \(config\.data\.valid\)"):
        squad.questions("dev.json", "valid", folder=str(tmp_path))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_windows_cover_the_context_and_hold_the_answer(tokenizer, data):
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=40))
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 3, len(words) - 1)))
    context, answer = "  ".join(words), "  ".join(words[first : last + 1])
    start = len("  ".join([*words[:first], ""]))
    entry = squad.Question("q", "who met where ?", context, [(start, answer)])
    length, stride = data.draw(st.integers(12, 40)), data.draw(st.integers(1, 6))
    found = squad.windows(tokenizer, [entry], length=length, question=3, stride=stride)
    whole = tokenizer.encode(context, add_special_tokens=False)
    asked = tokenizer.encode(entry.text, add_special_tokens=False).ids[:3]
    seen = set()
    for row in range(len(found["tokens"])):
        begin, offsets, segment_ids = int(found["begin"][row]), found["offsets"][row], found["segment_ids"][row]
        tokens = found["tokens"][row, begin : begin + len(offsets)]
        place = row * stride
        assert tokens.tolist() == whole.ids[place : place + len(offsets)]
        assert [tuple(pair) for pair in offsets] == whole.offsets[place : place + len(offsets)]
        assert found["tokens"][row, 1 : begin - 1].tolist() == asked
        assert segment_ids.sum() == begin + len(offsets) + 1 <= length
        assert found["token_types"][row].sum() == len(offsets) + 1 and found["token_types"][row, begin] == 1
        seen |= set(range(place, place + len(offsets)))
        if found["start"][row]:
            a, b = found["start"][row] - begin, found["end"][row] - begin
            assert context[offsets[a][0] : offsets[b][1]] == answer
    assert seen == set(range(len(whole.ids)))
    inside = [i for i, (a, b) in enumerate(whole.offsets) if b > start and a < start + len(answer)]
    holds = [row * stride <= inside[0] and inside[-1] < row * stride + len(o) for row, o in enumerate(found["offsets"])]
    assert (found["start"] > 0).tolist() == (found["end"] > 0).tolist() == holds


def test_a_question_without_an_answer_points_at_the_first_token(tokenizer):
    found = squad.windows(tokenizer, [squad.Question("q", "who ?", "Rome", [])], length=12, question=3, stride=2)
    assert (found["start"].tolist(), found["end"].tolist()) == ([0], [0])


def test_an_answer_inside_a_word_takes_the_whole_word(tokenizer):
    entry = squad.Question("q", "when ?", "in the 1984s", [(7, "1984")])
    found = squad.windows(tokenizer, [entry], length=30, question=3, stride=2)
    a, b = found["start"][0] - found["begin"][0], found["end"][0] - found["begin"][0]
    offsets = found["offsets"][0]
    assert offsets[a][0] <= 7 and offsets[b][1] >= 11


@pytest.mark.parametrize("sizes", [(8, 5, 1), (20, 8, 10), (20, 8, 0), (20, 0, 1)])
def test_lengths_that_leave_no_room_are_an_error(tokenizer, sizes):
    length, asked, stride = sizes
    with pytest.raises(ConfigError, match=rf"config\.data\.length={length} leaves {length - 3 - asked} tokens"):
        squad.windows(tokenizer, [squad.Question("q", "?", "Rome", [])], length=length, question=asked, stride=stride)


def test_xquad_is_read_as_it_is(shared):
    path = shared / "data" / "finetune" / "squad" / "xquad.en.json"
    found = squad.questions(str(path), "train")
    assert len(found) == 1190 and all(q.answers for q in found)
    vocabulary = tokenizers.load(str(shared / "data" / "text" / "bert_base_uncased_vocab.txt"))
    windows = squad.windows(vocabulary, found, length=384, question=64, stride=128)
    answers = [
        q.context[o[s - b][0] : o[e - b][1]]
        for q, o, s, e, b in zip(*(windows[k] for k in ("question", "offsets", "start", "end", "begin")), strict=True)
        if s
    ]
    true = [q.answers[0][1] for q, s in zip(windows["question"], windows["start"], strict=True) if s]
    assert np.mean([a == t for a, t in zip(answers, true, strict=True)]) > 0.98  # some answers end inside a word
    assert len({q.name for q, s in zip(windows["question"], windows["start"], strict=True) if s}) == 1190
