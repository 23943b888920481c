"""Exact match and F1 of extracted answers, as in the official scripts of SQuAD 1.1 and 2.0.

(Rajpurkar et al. 2016; Rajpurkar, Jia and Liang 2018. All scores are percentages.)
"""

import collections
import re
import string
from collections.abc import Mapping, Sequence

Answers = Mapping[str, Sequence[str]]


def normalize(text: str) -> str:
    """Lower-case a text, and drop ASCII punctuation, articles and repeated blanks.

    >>> normalize("The  cat's  hat, a hat!")
    'cats hat hat'
    """
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact(predicted: str, true: str) -> float:
    """Return 1 if the two texts are equal after normalization, else 0."""
    return float(normalize(predicted) == normalize(true))


def f1(predicted: str, true: str) -> float:
    """Compute the harmonic mean of precision and recall of the words; 0 if a text has no words.

    >>> f1("the black cat", "a cat sat")
    0.5
    """
    words, expected = normalize(predicted).split(), normalize(true).split()
    common = sum((collections.Counter(words) & collections.Counter(expected)).values())
    return 2 * common / (len(words) + len(expected)) if common else 0.0


def scores(predicted: Mapping[str, str], answers: Answers) -> dict[str, float]:
    """Compute SQuAD 1.1's `exact` and `f1`, the best over the true answers of each question.

    Args:
      predicted: answer to each question, by id; a question without one counts as wrong.
      answers: true answers of each question, at least one.

    >>> scores({"q": "Denver Broncos"}, {"q": ["The Denver Broncos!", "Broncos"]})
    {'exact': 100.0, 'f1': 100.0}
    """
    pairs = [(predicted.get(name), true) for name, true in answers.items()]
    return {
        "exact": _percent([max(exact(text, t) for t in true) if text is not None else 0.0 for text, true in pairs]),
        "f1": _percent([max(f1(text, t) for t in true) if text is not None else 0.0 for text, true in pairs]),
    }


def scores_with_unanswerable(
    predicted: Mapping[str, str], answers: Answers, odds: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Compute the metrics of SQuAD 2.0, where "" predicts that a question has no answer.

    Args:
      predicted: answer to each question, by id.
      answers: true answers of each question; empty if unanswerable.
      odds: score against any answer, by id, on any scale. Then `predicted` should hold the best answer to each
        question, and the best threshold, above which "" is predicted instead, is searched for.

    Returns:
      `exact` and `f1` of all questions, of those with (`answerable_`) and of those without answers (`unanswerable_`);
      with `odds` also `best_exact` and `best_f1` over all thresholds, and `best_f1_threshold`.
    """
    golden = {name: [t for t in true if normalize(t)] or [""] for name, true in answers.items()}
    each = {
        "exact": {name: max(exact(predicted[name], t) for t in true) for name, true in golden.items()},
        "f1": {name: max(_f1_or_both_empty(predicted[name], t) for t in true) for name, true in golden.items()},
    }
    result: dict[str, float] = {}
    for prefix, wanted in (("", (True, False)), ("answerable_", (True,)), ("unanswerable_", (False,))):
        names = [name for name, true in answers.items() if bool(true) in wanted]
        if names:
            result |= {f"{prefix}{kind}": _percent([score[name] for name in names]) for kind, score in each.items()}
    if odds is not None:
        result["best_exact"], _ = best_threshold(each["exact"], predicted, answers, odds)
        result["best_f1"], result["best_f1_threshold"] = best_threshold(each["f1"], predicted, answers, odds)
    return result


def scores_at(
    threshold: float, best: Mapping[str, str], answers: Answers, odds: Mapping[str, float]
) -> dict[str, float]:
    """Compute the metrics of SQuAD 2.0 with "" in place of the best answers whose odds exceed the threshold.

    Args and Returns: as `scores_with_unanswerable` with odds, `best` being the best answer to each question.
    """
    predicted = {name: text if odds[name] <= threshold else "" for name, text in best.items()}
    searched = scores_with_unanswerable(best, answers, odds)
    kept = {name: value for name, value in searched.items() if name.startswith("best")}
    return scores_with_unanswerable(predicted, answers) | kept


def best_threshold(
    each: Mapping[str, float], predicted: Mapping[str, str], answers: Answers, odds: Mapping[str, float]
) -> tuple[float, float]:
    """Return the best mean score (percent) over all thresholds of `odds`, and the lowest threshold that reaches it.

    A question with odds above the threshold is answered with "".

    Args:
      each: score of the prediction for each question, from 0 to 1.
      predicted: answers below the threshold.
      answers: true answers; empty if unanswerable.
      odds: score against any answer.
    """
    score = best = float(sum(not true for true in answers.values()))  # the score of answering nothing
    threshold = 0.0
    for name in sorted(odds, key=lambda name: odds[name]):
        score += each[name] if answers[name] else -float(bool(predicted[name]))
        if score > best:
            best, threshold = score, odds[name]
    return 100 * best / len(answers), threshold


def _f1_or_both_empty(predicted: str, true: str) -> float:
    words, expected = normalize(predicted), normalize(true)
    return f1(predicted, true) if words and expected else float(words == expected)


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values) if values else 0.0
