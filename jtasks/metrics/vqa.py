"""Accuracy of answers to questions about pictures, as VQA's evaluation script computes it (Antol et al. 2015).

Ten people answer each question of VQA. An answer that three of them give is right; one that fewer give is partly right.
The script's quirks are kept, because published scores contain them: a comma between digits deletes all punctuation
instead of replacing some with blanks, numbers and articles are normalized in predictions only, at most 32 full stops
are dropped, and people's answers stay as they are if all ten are the same.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = ("a", "an", "the")
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
PEOPLE = 3  # how many people must give an answer for full accuracy
FULL_STOPS = 32  # the script passes a regular expression's flag where their maximum number belongs

_FULL_STOP, _COMMA = re.compile(r"\.(?!\d)"), re.compile(r"\d,\d")

# Contractions by their spellings without an apostrophe, or with one of two.
_ONE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_TWO = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've you'd've
"""
# The script's other entries; one of them drops an apostrophe.
_OTHERS = {
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "somebody'd": "somebodyd",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}


def _contractions() -> dict[str, str]:
    spellings = {whole.replace("'", ""): whole for whole in _ONE.split()}
    for whole in _TWO.split():
        first, second, third = whole.split("'")
        spellings |= {f"{first}{second}'{third}": whole, f"{first}'{second}{third}": whole}
    return spellings | _OTHERS


_CONTRACTIONS = _contractions()


def normalize(answer: str) -> str:
    """Normalize a predicted answer: punctuation, case, numbers, articles, apostrophes.

    >>> normalize("The two T-shirts, dont you see?")
    "2 t shirts don't you see"
    """
    words = [NUMBERS.get(word, word) for word in strip_punctuation(_one_line(answer)).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def strip_punctuation(answer: str) -> str:
    """Replace each punctuation mark by a blank, or delete it if it has a blank beside it somewhere; drop full stops.

    Between digits, a comma deletes all marks, and a full stop stays.
    """
    stripped, number = answer, _COMMA.search(answer) is not None
    for mark in PUNCTUATION:
        alone = number or f"{mark} " in answer or f" {mark}" in answer
        stripped = stripped.replace(mark, "" if alone else " ")
    return _FULL_STOP.sub("", stripped, count=FULL_STOPS)


def accuracy(answer: str, people: Sequence[str]) -> float:
    """Return the accuracy of an answer in [0, 1]: the mean over people of the agreement with all the others.

    Args:
      answer: the prediction.
      people: the answers of two or more people; agreement is the number of the others who give `answer`, divided by
        three, at most 1.
    """
    given = [strip_punctuation(text) for text in people] if len(set(people)) > 1 else list(people)
    predicted = normalize(answer)
    agreeing = sum(text == predicted for text in given)
    rest = [min(1.0, (agreeing - (text == predicted)) / PEOPLE) for text in given]
    return sum(rest) / len(rest)


def exact(answer: str, expected: str) -> float:
    """Return 1 if an answer is the expected one, apart from case and blanks, else 0 (as for GQA and easy-VQA)."""
    return float(answer.lower().split() == expected.lower().split())


def scores(answers: Sequence[str], people: Sequence[Sequence[str]], kinds: Sequence[str] = ()) -> dict[str, float]:
    """Compute percentages over questions.

    Args:
      answers: the predictions.
      people: the answers of people to each question, one or more.
      kinds: of the questions, such as VQA's answer types; their accuracies follow under their names.

    Returns:
      `vqa_accuracy` of the questions with several answers and `exact` of the questions with one, if there are any.
    """
    points: dict[str, list[float]] = {}
    for index, (answer, given) in enumerate(zip(answers, people, strict=True)):
        single = len(given) == 1
        name, value = ("exact", exact(answer, given[0])) if single else ("vqa_accuracy", accuracy(answer, given))
        for key in (name, f"{name}/{kinds[index]}") if kinds and kinds[index] else (name,):
            points.setdefault(key, []).append(value)
    return {name: 100 * sum(values) / len(values) for name, values in sorted(points.items())}


def submission(names: Sequence[Any], answers: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return VQA's file of results: one {"question_id", "answer"} per question.

    >>> submission([7], ["yes"])
    [{'question_id': 7, 'answer': 'yes'}]
    """
    return [{"question_id": name, "answer": text} for name, text in zip(names, answers, strict=True)]


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
