"""Claims about texts as BERT reads them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks.data import encoding, tokenizers
from jtasks.errors import ConfigError, DataError

COUNT = st.integers(0, 12)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(40))]))
    return tokenizers.load(str(path))


def text(first, count):
    return " ".join(f"w{first + i}" for i in range(count))


def popped(a, b, room):
    """Devlin et al.'s own way: take the last token of the longer text until both fit."""
    a, b = list(a), list(b)
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop()
    return a, b


@settings(deadline=None, max_examples=100)
@given(COUNT, COUNT, st.integers(5, 20))
def test_pairs_are_cut_and_marked_as_bert_does(tokenizer, one, two, length):
    found = encoding.pairs(tokenizer, [text(0, one)], [text(20, two)], length)
    a, b = popped(range(5, 5 + one), range(25, 25 + two), length - 3)
    expected = [2, *a, 3, *b, 3]
    n = len(expected)
    assert found["tokens"][0].tolist() == expected + [0] * (length - n)
    assert found["token_types"][0].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (length - n)
    assert found["segment_ids"][0].tolist() == [1] * n + [0] * (length - n)


@settings(deadline=None, max_examples=30)
@given(COUNT, st.integers(3, 16))
def test_single_texts_lose_their_end(tokenizer, one, length):
    found = encoding.pairs(tokenizer, [text(0, one), "w1"], None, length)
    kept = min(one, length - 2)
    assert found["tokens"][0, : kept + 2].tolist() == [2, *range(5, 5 + kept), 3]
    assert found["segment_ids"].sum(1).tolist() == [kept + 2, 3]
    assert not found["token_types"].any()
    assert {x.shape for x in found.values()} == {(2, length)}
    assert {name: x.dtype for name, x in found.items()} == {
        "tokens": np.int32,
        "token_types": np.uint8,
        "segment_ids": np.uint8,
    }


def test_rows_have_the_tokenizers_own_special_tokens_or_a_given_end(tokenizer):
    texts = [text(0, 1), text(0, 9), ""]
    np.testing.assert_array_equal(
        encoding.rows(tokenizer, texts, 6, pad=0), encoding.pairs(tokenizer, texts, None, 6)["tokens"]
    )
    plain = tokenizers.load("bytes")
    assert encoding.frame(plain) == ([], [])
    assert encoding.rows(plain, ["ab", "abcdef"], 4, pad=7, end=256).tolist() == [[97, 98, 256, 7], [97, 98, 99, 256]]
    assert encoding.rows(plain, ["ab"], 3, pad=7).tolist() == [[97, 98, 7]]
    with pytest.raises(ConfigError, match=r"config.data.length=2 must be at least 3"):
        encoding.rows(tokenizer, texts, 2, pad=0)


def test_lengths_without_room_are_an_error(tokenizer):
    with pytest.raises(ConfigError, match=r"config.data.length=2 must be at least 3"):
        encoding.pairs(tokenizer, ["w1"], None, 2)
    with pytest.raises(ConfigError, match=r"config.data.length=4 must be at least 5"):
        encoding.pairs(tokenizer, ["w1"], ["w2"], 4)


def test_a_tokenizer_without_the_special_tokens_is_refused():
    with pytest.raises(DataError, match=r"no token \[CLS\] or <s>"):
        encoding.pairs(tokenizers.load("bytes"), ["a"], None, 8)
