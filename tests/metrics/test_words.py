"""Claims about jtasks.metrics.words; the expected words are what Stanford's PTBTokenizer 3.4.1 printed."""
# ruff: noqa: RUF001 - typographic characters are what some of these are about

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtasks.metrics.words import PUNCTUATION, words

SAID = [
    ("Don't you think he'll cannot go?", "do n't you think he 'll can not go"),
    ("It's the cat's. I'm gonna wanna see.", "it 's the cat 's i 'm gon na wan na see"),
    ("I gotta gimme lemme cannot", "i got ta gim me lem me can not"),
    ("U.S. and Mr. Smith's dog, e.g. here i.e. there etc.", "u.s. and mr. smith 's dog e.g. here i.e. there etc."),
    ("A (small) [red] {thing}: \"quoted\" text", "a -lrb- small -rrb- -lsb- red -rsb- -lcb- thing -rcb- quoted text"),
    ("'single' quoted—dash -- more... end....", "single quoted dash more end"),
    ("$5.99 and 50% off, 1,000 people at 3:00 p.m.", "$ 5.99 and 50 % off 1,000 people at 3:00 p.m."),
    ("a t-shirt and/or 1/2 cup 20's the '90s", "a t-shirt and/or 1/2 cup 20 's the '90s"),
    ("two-way man&woman AT&T m&m", "two-way man & woman at&t m & m"),
    ("doesnt cant dont ive", "doesnt cant dont ive"),
    ("mail foo@bar.com or http://a.com/x?y=1 #tag", "mail foo@bar.com or http://a.com/x?y=1 #tag"),
    ("isn't can't won't ain't y'all", "is n't ca n't wo n't ai n't y' all"),
    ("'tis late , 'twas cold", "'t is late 't was cold"),
    ("who's there?! yes!!", "who 's there ?! yes !!"),
    ("the man 's hat , can 't see .", "the man 's hat can t see"),
    ("his parents' house", "his parents house"),
    ("rock 'n' roll o'clock c'mon", "rock 'n' roll o'clock c'mon"),
    ("naïve café’s — “yes”, ‘no’ …", "naïve café 's yes no"),
    ("<b>10-year-old</b> man's e-mail &amp; more", "<b> 10-year-old </b> man 's e-mail & more"),
    ("tv. yes.there is one, no. 5 and no.", "tv yes.there is one no. 5 and no"),
    ("A. B. Smith has 20 - 30 of -1", "a. b. smith has 20 30 of -1"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), SAID)
def test_words_are_those_of_the_fields_tokenizer(text, expected):
    assert words(text) == expected.split()


@given(st.text(max_size=60))
def test_any_text_splits_into_lower_case_words_that_are_no_punctuation(text):
    found = words(text)
    assert all(word == word.lower() and word not in PUNCTUATION and word.split() for word in found if word.isascii())


@given(st.lists(st.from_regex(r"[a-z]{5,9}", fullmatch=True), max_size=8))
def test_plain_words_are_kept_as_they_are(plain):
    kept = [word for word in plain if word not in ("gonna", "gotta", "lemme", "gimme", "wanna")]
    assert words(" , ".join(kept)) == words(" ".join(kept)) == kept


def test_what_is_returned_may_be_changed():
    words("a man sits").append("down")
    assert words("a man sits") == ["a", "man", "sits"]
