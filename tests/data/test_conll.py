"""Claims about files of tagged words: every word gets one label in one window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks.data import conll, tokenizers
from jtasks.errors import ConfigError, DataError

CONLL = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
British JJ I-NP B-MISC

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""
TAGS = ("O", "B-per", "I-per")
WORDS = st.lists(
    st.sampled_from(["film", "town", "Ünïcödé", "x" * 30, "\u200b", "don't", "a"]), min_size=1, max_size=20
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["the film of the town was seen", "a town in a film"] * 3
    return tokenizers.load("wordpiece:40", texts=lambda: iter(texts), folder=tmp_path_factory.mktemp("tokenizer"))


def test_iob1_is_read_and_documents_are_not_sentences():
    found = conll.sentences(CONLL, "eng.train")
    assert found == [
        (["EU", "rejects", "German", "British"], ["B-ORG", "O", "B-MISC", "B-MISC"]),
        (["Peter", "Blackburn"], ["B-PER", "I-PER"]),
    ]


def test_columns_are_parted_by_tabs_or_blanks_and_chosen_by_number():
    text = "New York\tB-loc\r\nis\tO\r\n\r\n\r\n1 Rome B-loc\n"
    assert conll.sentences(text, "x") == [(["New York", "is"], ["B-loc", "O"]), (["1"], ["B-loc"])]
    assert conll.sentences("1 Rome B-loc x\n", "x", word=1, tag=2) == [(["Rome"], ["B-loc"])]


@pytest.mark.parametrize("between", [" ", "  ", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_other_blanks_are_parts_of_words_and_end_no_sentence(between, end):
    words = ["a\u2028b", "10\u00a0000", "\u00a0", "\u3000", "\u0085", "\u200a.", '"']
    lines = [f"{word}{between}O" for word in words]
    text = "\ufeff" + end.join([*lines, " ", *lines, ""])
    assert conll.sentences(text, "x") == [(words, ["O"] * len(words))] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Rome LOC", "line 1: 'LOC' is not a tag"),
        ("Rome O\nParis B-", "line 2: 'B-' is not a tag"),
        ("\n\n", "holds no sentence"),
        ("Rome O\n\u3000\n", "line 2 has 1 columns, the line before has 2"),
        ("Rome O\n\n\u3000\n", "line 3 has 1 columns: either all words have tags or none"),
        ("Rome\n\nParis O\n", "line 3 has 2 columns: either all words have tags or none"),
        ("Rome O\nNew York B-loc", "line 2 has 3 columns, the line before has 2"),
        ("Rome\tO\n\tO", "line 2: the word in column 0 is empty"),
        ("Rome\tO \n", "line 1: 'O ' is not a tag"),
        ("Rome O\rParis O", "line 1 has a CR inside"),
    ],
)
def test_a_damaged_file_says_where(text, message):
    with pytest.raises(DataError, match=message):
        conll.sentences(text, "file.conll")
    with pytest.raises(DataError, match=r"file.conll, line 1 has 2 columns; config.data.word=0 and config.data.tag=3"):
        conll.sentences("Rome NNP\n", "file.conll", tag=3)


@pytest.mark.parametrize(
    ("text", "columns"), [("Rome\nis\n", {}), ("0 Rome\n1 is\n", {"word": 1}), ("Rome\nis", {"tag": 3})]
)
def test_words_without_tags_are_read_and_their_places_told(tokenizer, text, columns):
    given = conll.sentences(text, "file.conll", **columns)
    assert given == [conll.Sentence(["Rome", "is"], [])]
    told = conll.windows(tokenizer, [conll.Sentence(["Rome", "is"], ["O", "O"])], ("O",), 12)
    untold = conll.windows(tokenizer, given, ("O",), 12)
    assert "labels" not in untold
    np.testing.assert_array_equal(untold["starts"], told["labels"] >= 0)
    with pytest.raises(DataError, match=r"config.data.word=0 and config.data.tag=2 need more"):
        conll.sentences("Rome O\n", "file.conll", tag=2)


@settings(deadline=None, max_examples=60)
@given(st.lists(WORDS, min_size=1, max_size=4), st.integers(3, 40))
def test_every_word_has_one_label_in_one_window(tokenizer, texts, length):
    random = np.random.default_rng(0)
    given = [conll.Sentence(words, [TAGS[i] for i in random.integers(0, 2, len(words))]) for words in texts]
    found = conll.windows(tokenizer, given, TAGS, length)
    for number, sentence in enumerate(given):
        rows = np.flatnonzero(found["sentence"] == number)
        labels = [TAGS[label] for row in rows for label in found["labels"][row] if label >= 0]
        assert labels == sentence.tags
        assert [word for row in rows for word in found["words"][row]] == sentence.words
        assert [tag for row in rows for tag in found["tags"][row]] == sentence.tags
    assert (np.diff(found["sentence"]) >= 0).all()
    segment_ids, labels, tokens = found["segment_ids"], found["labels"], found["tokens"]
    assert (segment_ids.sum(1) <= length).all() and (labels[segment_ids == 0] == -1).all()
    assert (tokens[:, 0] == tokenizer.token_to_id("[CLS]")).all() and (labels[:, 0] == -1).all()
    assert (tokens[np.arange(len(tokens)), segment_ids.sum(1) - 1] == tokenizer.token_to_id("[SEP]")).all()


def test_a_sentence_that_fits_is_one_window_of_all_its_pieces(tokenizer):
    sentence = conll.Sentence(["the", "film", "of", "town"], ["O", "B-per", "I-per", "O"])
    found = conll.windows(tokenizer, [sentence], TAGS, 32)
    ids = tokenizer.encode("the film of town").ids
    assert found["tokens"][0, : len(ids)].tolist() == ids
    firsts = tokenizer.encode("the film of town").word_ids
    labels = [-1 if word is None or firsts[i - 1] == word else [0, 1, 2, 0][word] for i, word in enumerate(firsts)]
    assert found["labels"][0, : len(ids)].tolist() == labels


def test_a_long_sentence_is_cut_between_words(tokenizer):
    words = ["film", "town"] * 20
    found = conll.windows(tokenizer, [conll.Sentence(words, ["O"] * 40)], TAGS, 13)
    pieces = [len(tokenizer.encode(word, add_special_tokens=False).ids) for word in words[:2]]
    assert len(found["words"]) > 1
    for row, kept in enumerate(found["words"]):
        assert found["segment_ids"][row].sum() == 2 + sum(pieces[words.index(word)] for word in kept)


def test_no_room_is_an_error(tokenizer):
    with pytest.raises(ConfigError, match=r"config.data.length=2 must be at least 3"):
        conll.windows(tokenizer, [conll.Sentence(["film"], ["O"])], TAGS, 2)
