"""Claims about SQuAD's metrics, worked out by the rules of the official scripts of 1.1 and 2.0."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtasks.metrics import spans

# found, true, exact, F1
PAIRS = [
    ("Denver Broncos", "The Denver Broncos!", 1, 1),
    ("a Broncos", "Denver Broncos", 0, 2 / 3),
    ("the the cat", "cat", 1, 1),
    ("cat cat dog", "cat dog dog", 0, 2 / 3),  # as multisets
    ("U.S.A", "usa", 1, 1),
    ("theatre", "atre", 0, 0),  # an article is a whole word
    ("6½", "6½ ", 1, 1),
    ("«Rome»", "Rome", 0, 0),  # only ASCII punctuation goes
    ("", "Rome", 0, 0),
    ("the", "a", 1, 0),  # nothing is left: alike, and without a word in common
    ("x\ty\n z", "x y z", 1, 1),
]


@pytest.mark.parametrize(("found", "true", "exact", "f1"), PAIRS)
def test_pairs(found, true, exact, f1):
    assert spans.exact(found, true) == exact
    assert spans.f1(found, true) == pytest.approx(f1)
    assert spans.f1(true, found) == pytest.approx(f1)


def test_version_1_takes_the_best_answer_and_counts_what_is_missing_as_wrong():
    answers = {"one": ["Denver", "Denver Broncos"], "two": ["gold"], "three": ["blue cheese"], "four": ["x"]}
    found = {"one": "the Denver Broncos", "two": "silver", "three": "cheese"}
    assert spans.scores(found, answers) == {"exact": 25.0, "f1": pytest.approx(100 * (1 + 0 + 2 / 3 + 0) / 4)}


def test_version_2_parts_questions_with_and_without_answers():
    answers = {"a": ["Rome", "in Rome"], "b": [], "c": [], "d": ["blue cheese"], "e": ["the"]}
    found = {"a": "Rome", "b": "", "c": "Paris", "d": "cheese", "e": ""}
    assert spans.scores_with_unanswerable(found, answers) == pytest.approx(
        {
            "exact": 60.0,  # an answer of nothing but an article counts as none
            "f1": 100 * (1 + 1 + 0 + 2 / 3 + 1) / 5,
            "answerable_exact": 200 / 3,
            "answerable_f1": 100 * (1 + 2 / 3 + 1) / 3,
            "unanswerable_exact": 50.0,
            "unanswerable_f1": 50.0,
        }
    )


def brute_force(found, answers, odds):
    """The best mean F1 over every threshold, by answering anew at each."""
    best = 0.0
    for threshold in [-1.0, *odds.values()]:
        said = {name: "" if odds[name] > threshold else text for name, text in found.items()}
        best = max(best, spans.scores_with_unanswerable(said, answers)["f1"])
    return best


QUESTIONS = st.lists(
    st.tuples(
        st.sampled_from(["x", "x y", "z"]),  # found
        st.sampled_from([[], ["x"], ["x y z"]]),  # true
        st.integers(0, 50),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda q: q[2],
)


@given(QUESTIONS)
def test_the_best_threshold_is_the_best_there_is(questions):
    names = [str(i) for i in range(len(questions))]
    found, answers, odds = ({n: q[k] for n, q in zip(names, questions, strict=True)} for k in range(3))
    result = spans.scores_with_unanswerable(found, answers, odds)
    assert result["best_f1"] == pytest.approx(brute_force(found, answers, odds))
    threshold = result["best_f1_threshold"]
    said = {name: "" if odds[name] > threshold else text for name, text in found.items()}
    if result["best_f1"] > spans.scores_with_unanswerable(dict.fromkeys(names, ""), answers)["f1"]:
        assert spans.scores_with_unanswerable(said, answers)["f1"] == pytest.approx(result["best_f1"])
