"""Claims about entities in tag sequences; the golden scores are seqeval's (1.2.2, default mode)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtasks.metrics import entities

TAGS = ["O", "B-per", "I-per", "B-loc", "I-loc", "E-loc", "S-per", "B", "I"]
SEQUENCES = st.lists(st.sampled_from(TAGS), max_size=12)

# tags, the entities that seqeval finds
GOLDEN = [
    ("B-per I-per O B-loc", [("per", 0, 1), ("loc", 3, 3)]),
    ("I-per I-per O I-loc", [("per", 0, 1), ("loc", 3, 3)]),  # IOB1
    ("I-per B-per I-per", [("per", 0, 0), ("per", 1, 2)]),  # IOB1: B parts neighbors
    ("B-per B-per I-loc", [("per", 0, 0), ("per", 1, 1), ("loc", 2, 2)]),
    ("B-per I-loc I-per", [("per", 0, 0), ("loc", 1, 1), ("per", 2, 2)]),
    ("S-per B-loc I-loc E-loc E-loc", [("per", 0, 0), ("loc", 1, 3), ("loc", 4, 4)]),  # IOBES
    ("E-loc I-loc S-loc I-loc", [("loc", 0, 0), ("loc", 1, 1), ("loc", 2, 2), ("loc", 3, 3)]),
    ("B-creative-work I-creative-work I-work", [("creative-work", 0, 1), ("work", 2, 2)]),
    ("B I O I", [("_", 0, 1), ("_", 3, 3)]),
    ("O O", []),
]


@pytest.mark.parametrize(("tags", "expected"), GOLDEN)
def test_entities_are_those_of_seqeval(tags, expected):
    assert entities.entities(tags.split()) == expected


# truth, prediction, seqeval's precision, recall and F1
SCORES = [
    (["B-per I-per O B-loc"], ["B-per I-per O B-org"], (0.5, 0.5, 0.5)),
    (["B-per I-per O", "B-loc O"], ["B-per O O", "B-loc B-loc"], (1 / 3, 0.5, 0.4)),
    (["O I-per I-per B-per", "I-loc"], ["O B-per I-per B-per", "B-loc"], (1.0, 1.0, 1.0)),
    (["B-per O"], ["O O"], (0.0, 0.0, 0.0)),
    (["O O"], ["B-per O"], (0.0, 0.0, 0.0)),
    (["B-per", "I-per"], ["B-per", "I-per"], (1.0, 1.0, 1.0)),  # sentences are apart
    (
        ["B-per I-per I-per O B-loc", "O B-org I-org O", "S-loc O"],
        ["B-per I-per O O B-loc", "B-org I-org I-org O", "B-loc I-loc"],
        (0.25, 0.25, 0.25),
    ),
]


@pytest.mark.parametrize(("truth", "found", "expected"), SCORES)
def test_scores_are_those_of_seqeval(truth, found, expected):
    got = entities.scores([t.split() for t in truth], [f.split() for f in found])
    assert tuple(got.values()) == pytest.approx(expected)
    assert list(got) == ["precision", "recall", "f1"]


@given(SEQUENCES)
def test_bio_has_the_same_entities_and_stays_as_it_is(tags):
    found = entities.bio(tags)
    assert entities.entities(found) == entities.entities(tags)
    assert entities.bio(found) == found
    assert {tag[0] for tag in found} <= set("BIO")


@given(SEQUENCES)
def test_entities_cover_all_tokens_but_o_once_and_in_order(tags):
    places = [place for _, first, last in entities.entities(tags) for place in range(first, last + 1)]
    assert places == [place for place, tag in enumerate(tags) if tag != "O"]


def test_sequences_of_other_lengths_are_an_error():
    with pytest.raises(ValueError, match="1 tags were predicted for a sequence of 2"):
        entities.scores([["O", "O"]], [["O"]])
