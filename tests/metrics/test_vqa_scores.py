"""Claims about the accuracy of answers to questions about pictures."""

import pytest

from jtasks.metrics import vqa


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes.", "yes"),
        ("The  dogs, two of them", "dogs 2 of them"),
        ("T-shirt", "t shirt"),  # no blank beside the mark
        ("a t-shirt -blue", "tshirt blue"),  # a blank beside one of the same marks deletes all of them
        ("10,000 / 3;4", "10000 34"),  # a comma between digits deletes every mark
        ("10,a/b", "10 b"),
        ("3.5 kg.", "3.5 kg"),
        ("2.", "2"),
        (".5", ".5"),
        ("none", "0"),
        ("ten an one", "10 1"),
        ("dont whos theyd've", "don't who's they'd've"),
        ("somebody'd", "somebodyd"),  # as in the script
        ("IM here", "im here"),  # the script has Im, which no lower-cased word is
        ("what's\nup\ttoday ", "what's up today"),
        ("don't", "don't"),
        ("rock 'n' roll: yes", "rock 'n' roll: yes"),  # neither apostrophes nor colons are marks
        ("." * 40 + "a", "." * 8 + "a"),
        ("", ""),
    ],
)
def test_a_prediction_is_normalized_as_by_the_official_script(answer, normal):
    assert vqa.normalize(answer) == normal


@pytest.mark.parametrize(("times", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)])
def test_the_accuracy_is_the_mean_over_all_choices_of_nine_people(times, expected):
    people = ["cat"] * times + [f"dog {i}" for i in range(10 - times)]
    assert vqa.accuracy("Cat", people) == pytest.approx(expected)


def test_answers_of_people_lose_punctuation_only_if_they_differ():
    assert vqa.accuracy("tee shirt", ["tee-shirt"] * 9 + ["blouse"]) == 1
    assert vqa.accuracy("tee-shirt", ["tee-shirt"] * 10) == 0  # the prediction becomes "tee shirt"
    assert vqa.accuracy("2", ["two"] * 5 + ["2"] * 5) == 1  # their numbers stay words
    assert vqa.accuracy("two", ["two"] * 9 + ["3"]) == 0


def test_one_answer_is_compared_whole():
    assert vqa.exact("Red  ball", "red ball") == 1
    assert vqa.exact("red", "red ball") == vqa.exact("two", "2") == 0


def test_scores_are_percentages_of_all_questions_and_of_each_kind():
    answers, people = ["yes", "2", "red", "blue"], [["yes"] * 10, ["3"] * 8 + ["2"] * 2, ["red"], ["green"]]
    result = vqa.scores(answers, people, ["yes/no", "number", "", ""])
    wanted = {"exact": 50, "vqa_accuracy": 80, "vqa_accuracy/number": 60, "vqa_accuracy/yes/no": 100}
    assert result == pytest.approx(wanted)
    assert vqa.scores(answers[2:], people[2:]) == {"exact": 50}
    assert vqa.submission([5, "a"], ["yes", "no"]) == [
        {"question_id": 5, "answer": "yes"},
        {"question_id": "a", "answer": "no"},
    ]
