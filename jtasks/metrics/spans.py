"""Exact match and F1 of extracted answers, as the official scripts of SQuAD 1.1 and 2.0 count them.

(Rajpurkar et al. 2016; Rajpurkar, Jia and Liang 2018. All scores are percentages.)
"""

import collections
import re
import string
from collections.abc import Mapping, Sequence

Answers = Mapping[str, Sequence[str]]


def normalized(text: str) -> str:
    """Lower case, without punctuation (ASCII) and articles, blanks made single.

    >>> normalized("The  cat's  hat, a hat!")
    'cats hat hat'
    """
    kept = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact(found: str, true: str) -> float:
    """1 if the two are the same once normalized, else 0."""
    return float(normalized(found) == normalized(true))


def f1(found: str, true: str) -> float:
    """The harmonic mean of precision and recall of the words; 0 if either has none.

    >>> f1("the black cat", "a cat sat")
    0.5
    """
    words, expected = normalized(found).split(), normalized(true).split()
    common = sum((collections.Counter(words) & collections.Counter(expected)).values())
    return 2 * common / (len(words) + len(expected)) if common else 0.0


def scores(found: Mapping[str, str], answers: Answers) -> dict[str, float]:
    """`exact` and `f1` of SQuAD 1.1, the best over the true answers of each question.

    Args:
      found: the answer to each question, by its id; a question without one counts as wrong.
      answers: the true answers of each question, at least one.

    >>> scores({"q": "Denver Broncos"}, {"q": ["The Denver Broncos!", "Broncos"]})
    {'exact': 100.0, 'f1': 100.0}
    """
    pairs = [(found.get(name), true) for name, true in answers.items()]
    return {
        "exact": _percent([max(exact(text, t) for t in true) if text is not None else 0.0 for text, true in pairs]),
        "f1": _percent([max(f1(text, t) for t in true) if text is not None else 0.0 for text, true in pairs]),
    }


def scores_with_unanswerable(
    found: Mapping[str, str], answers: Answers, odds: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The metrics of SQuAD 2.0, where "" says that a question has no answer.

    Args:
      found: the answer to each question, by its id.
      answers: the true answers of each question, none for one that is unanswerable.
      odds: how much speaks against any answer, by id, on any scale; then `found` should hold the best answer to each
        question, and the threshold of these odds at which "" is said instead is sought too.

    Returns:
      `exact` and `f1`, and both of the questions with (`answerable_`) and without answers (`unanswerable_`); with
      `odds`, the `best_exact` and `best_f1` that a threshold can reach, and the `best_f1_threshold`.
    """
    golden = {name: [t for t in true if normalized(t)] or [""] for name, true in answers.items()}
    each = {
        "exact": {name: max(exact(found[name], t) for t in true) for name, true in golden.items()},
        "f1": {name: max(_f1_or_both_empty(found[name], t) for t in true) for name, true in golden.items()},
    }
    result: dict[str, float] = {}
    for prefix, wanted in (("", (True, False)), ("answerable_", (True,)), ("unanswerable_", (False,))):
        names = [name for name, true in answers.items() if bool(true) in wanted]
        if names:
            result |= {f"{prefix}{kind}": _percent([score[name] for name in names]) for kind, score in each.items()}
    if odds is not None:
        result["best_exact"], _ = best_threshold(each["exact"], found, answers, odds)
        result["best_f1"], result["best_f1_threshold"] = best_threshold(each["f1"], found, answers, odds)
    return result


def best_threshold(
    each: Mapping[str, float], found: Mapping[str, str], answers: Answers, odds: Mapping[str, float]
) -> tuple[float, float]:
    """The best mean score (in percent) over all thresholds of `odds`, and the lowest threshold that has it.

    A question whose odds are above the threshold gets "" for an answer.

    Args:
      each: the score of `found` for each question, from 0 to 1.
      found: the answers where something is said.
      answers: the true ones, none for a question that is unanswerable.
      odds: how much speaks against any answer.
    """
    score = best = float(sum(not true for true in answers.values()))  # that of saying nothing
    threshold = 0.0
    for name in sorted(odds, key=lambda name: odds[name]):
        score += each[name] if answers[name] else -float(bool(found[name]))
        if score > best:
            best, threshold = score, odds[name]
    return 100 * best / len(answers), threshold


def _f1_or_both_empty(found: str, true: str) -> float:
    words, expected = normalized(found), normalized(true)
    return f1(found, true) if words and expected else float(words == expected)


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values) if values else 0.0
