"""Scores of generated sentences against references: BLEU, ROUGE-L, CIDEr and METEOR, as in COCO's evaluator.

Each item, such as a caption or an answer in a dialogue, has one or several references. The numbers are those of
coco-caption (Chen et al. 2015, arXiv:1504.00325), which the field reports, without its Java tokenizer. Only METEOR is a
Java program; it runs if Java and the package pycocoevalcap are installed. `jtasks.metrics.submissions` writes the
official formats of results: `dstc7_results(dialogs, answers)` and `coco_results(ids, captions)`.
"""

import collections
import importlib.util
import pathlib
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import IO

import numpy as np

from jtasks.console import warn
from jtasks.errors import ConfigError, DataError
from jtasks.metrics.words import words

METRICS = ("bleu", "rouge_l", "cider", "meteor")
PROTOCOLS = ("plain", "dstc7")

Words = list[str]
Counts = collections.Counter[tuple[str, ...]]
Results = dict[str, tuple[float, np.ndarray]]  # by name: the score of the corpus, and scores [n] of the items


def scores(
    hypotheses: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    protocol: str = "plain",
    metrics: Sequence[str] = METRICS,
) -> dict[str, float]:
    """Compute the scores of a corpus: `bleu_1` ... `bleu_4`, `rouge_l`, `cider` and `meteor`.

    Scores lie between 0 and 1, except CIDEr, which goes up to 10. CIDEr weights words by their rarity in the references
    of the whole corpus and is 0 for a single item. METEOR is left out, with a warning, if it cannot run.

    Args:
      hypotheses: [n] texts.
      references: [n], each one text or several.
      protocol: `dstc7` drops words of one character from the hypotheses, not from the references, as the official
        evaluator of the seventh Dialog System Technology Challenge does: its list of stop words holds a full stop,
        which it uses as a regular expression. `plain` drops nothing.
      metrics: some of METRICS.

    Raises:
      ConfigError: the protocol or a metric is unknown.
      DataError: there are no items, or one has no reference.

    >>> corpus = scores(["a man sits"], [["a man sits down", "he sits"]], metrics=["bleu", "rouge_l"])
    >>> {name: round(score, 3) for name, score in corpus.items()}
    {'bleu_1': 1.0, 'bleu_2': 1.0, 'bleu_3': 1.0, 'bleu_4': 0.032, 'rouge_l': 0.836}
    """
    return {name: whole for name, (whole, _) in _compute(hypotheses, references, protocol, metrics).items()}


def item_scores(
    hypotheses: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    protocol: str = "plain",
    metrics: Sequence[str] = METRICS,
) -> list[dict[str, float]]:
    """Compute the `scores` of each item; CIDEr's weights come from all items."""
    results = _compute(hypotheses, references, protocol, metrics)
    return [{name: float(each[i]) for name, (_, each) in results.items()} for i in range(len(hypotheses))]


def reference_lists(hypotheses: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """Return the references of each hypothesis, [n] lists of at least one.

    Raises:
      DataError: there are no hypotheses, not as many lists of references, or a hypothesis has no reference.

    >>> reference_lists(["he sits", "yes"], ["he sits down", ["yes", "sure"]])
    [['he sits down'], ['yes', 'sure']]
    """
    several = [[texts] if isinstance(texts, str) else list(texts) for texts in references]
    if not several or len(several) != len(hypotheses):
        raise DataError(f"{len(hypotheses)} hypotheses for {len(several)} lists of references; expected one for each")
    if lacking := [i for i, texts in enumerate(several) if not texts]:
        raise DataError(f"items {lacking[:5]} ({len(lacking)} in all) have no reference; leave them out")
    return several


def meteor_missing() -> str:
    """Say what METEOR lacks on this machine; "" if nothing."""
    if shutil.which("java") is None:
        return "METEOR is a Java program, and there is no java on the PATH: install a Java runtime"
    if _meteor_jar() is None:
        return "METEOR comes with pycocoevalcap, which is not installed: pip install 'jtasks[captions]'"
    return ""


def _compute(
    hypotheses: Sequence[str], references: Sequence[str | Sequence[str]], protocol: str, metrics: Sequence[str]
) -> Results:
    if protocol not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {protocol!r} of caption scores; there are {', '.join(PROTOCOLS)}")
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ConfigError(f"unknown caption metrics {unknown}; there are {', '.join(METRICS)}")
    several = reference_lists(hypotheses, references)
    if protocol == "dstc7":
        hypotheses = [" ".join(word for word in text.split() if len(word) > 1) for text in hypotheses]
    mine, theirs = [words(text) for text in hypotheses], [[words(text) for text in texts] for texts in several]
    measures = {"bleu": _bleu, "rouge_l": _rouge_l, "cider": _cider, "meteor": _meteor}
    results: Results = {}
    for name in metrics:
        results |= measures[name](mine, theirs)
    return results


def _counts(sentence: Words, n: int) -> Counts:
    return collections.Counter(tuple(sentence[i : i + n]) for i in range(len(sentence) - n + 1))


def _bleu(hypotheses: list[Words], references: list[list[Words]]) -> Results:
    """Compute BLEU (Papineni et al. 2002); the brevity penalty uses the closest length, the shorter of two."""
    matches, possible, closest = np.zeros((len(hypotheses), 4)), np.zeros((len(hypotheses), 4)), []
    for i, (hypothesis, texts) in enumerate(zip(hypotheses, references, strict=True)):
        for n in range(1, 5):
            counts, most = _counts(hypothesis, n), Counts()
            for text in texts:
                most |= _counts(text, n)  # the largest count in any reference
            matches[i, n - 1], possible[i, n - 1] = (counts & most).total(), counts.total()
        closest.append(min((abs(len(text) - len(hypothesis)), len(text)) for text in texts)[1])
    lengths, nearest = np.array([[len(sentence)] for sentence in hypotheses]), np.array(closest)[:, None]
    each = _bleu_of(matches, possible, lengths, nearest)
    whole = _bleu_of(matches.sum(0), possible.sum(0), lengths.sum(0), nearest.sum(0))
    return {f"bleu_{n + 1}": (float(whole[n]), each[:, n]) for n in range(4)}


def _bleu_of(matches: np.ndarray, possible: np.ndarray, length: np.ndarray, closest: np.ndarray) -> np.ndarray:
    """Compute BLEU-1 to 4 from counts [..., 4] and lengths [..., 1]; the small constants against 0 / 0 are COCO's."""
    precisions = np.cumprod((matches + 1e-15) / (possible + 1e-9), axis=-1) ** (1 / np.arange(1, 5))
    ratio = (length + 1e-15) / (closest + 1e-9)
    return precisions * np.exp(np.minimum(0, 1 - 1 / ratio))


def _rouge_l(hypotheses: list[Words], references: list[list[Words]], beta: float = 1.2) -> Results:
    """Compute ROUGE-L (Lin 2004) of sentences; precision and recall are each the best over the references.

    COCO's evaluator gives texts without words one empty word, so such texts equal each other.
    """

    def score(hypothesis: Words, texts: list[Words]) -> float:
        hypothesis, texts = hypothesis or [""], [text or [""] for text in texts]
        common = [_longest_common_subsequence(hypothesis, text) for text in texts]
        precision = max(common) / len(hypothesis)
        recall = max(length / len(text) for length, text in zip(common, texts, strict=True))
        return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision else 0.0

    each = np.array([score(*pair) for pair in zip(hypotheses, references, strict=True)])
    return {"rouge_l": (float(each.mean()), each)}


def _longest_common_subsequence(first: Words, second: Words) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def _cider(hypotheses: list[Words], references: list[list[Words]], sigma: float = 6.0) -> Results:
    """Compute CIDEr-D (Vedantam et al. 2015), which COCO's evaluator calls CIDEr."""

    def all_counts(sentence: Words) -> list[Counts]:
        return [_counts(sentence, n) for n in range(1, 5)]

    known = [[all_counts(text) for text in texts] for texts in references]
    documents: Counts = Counts()  # number of items with the n-gram in any reference
    for counted in known:
        documents.update({gram for counts in counted for some in counts for gram in some})
    total = np.log(len(known))

    def weigh(counts: list[Counts]) -> list[dict[tuple[str, ...], float]]:
        return [{gram: n * (total - np.log(max(documents[gram], 1))) for gram, n in some.items()} for some in counts]

    def norms(vectors: list[dict[tuple[str, ...], float]]) -> list[float]:
        return [np.sqrt(sum(weight**2 for weight in vector.values())) for vector in vectors]

    def score(hypothesis: Words, texts: list[Words], counted: list[list[Counts]]) -> float:
        mine = weigh(all_counts(hypothesis))
        lengths, similarity = norms(mine), 0.0
        for text, counts in zip(texts, counted, strict=True):
            theirs = weigh(counts)
            # COCO counts bigrams here, so zero words and one word are equally long.
            difference = max(len(hypothesis) - 1, 0) - max(len(text) - 1, 0)
            penalty = np.exp(-(difference**2) / (2 * sigma**2))
            for one, other, a, b in zip(mine, theirs, lengths, norms(theirs), strict=True):
                product = sum(min(weight, other[gram]) * other[gram] for gram, weight in one.items() if gram in other)
                similarity += penalty * product / (a * b) if a and b else 0.0
        return 10 * similarity / 4 / len(texts)

    each = np.array([score(*item) for item in zip(hypotheses, references, known, strict=True)])
    return {"cider": (float(each.mean()), each)}


def _meteor(hypotheses: list[Words], references: list[list[Words]]) -> Results:
    """Compute METEOR 1.5 (Denkowski and Lavie 2014) with its authors' program; empty, with a warning, without it."""
    if reason := meteor_missing():
        warn(f"no METEOR: {reason}")
        return {}
    jar = _meteor_jar()
    assert jar is not None
    # By itself the program does not find this file in a folder with blanks.
    paraphrases = ["-a", str(jar.parent / "data" / "paraphrase-en.gz")]
    command = ["java", "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm", *paraphrases]
    parts = [[*texts, sentence] for sentence, texts in zip(hypotheses, references, strict=True)]
    lines = [" ||| ".join(["SCORE", *(" ".join(part).replace("|||", "") for part in item)]) for item in parts]
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
        ) as program:
            assert program.stdin is not None and program.stdout is not None
            # One question at a time: all at once would fill both pipes.
            statistics = [_ask(line, program.stdin, program.stdout) for line in lines]
            first = _ask(" ||| ".join(["EVAL", *statistics]), program.stdin, program.stdout)
            *each, whole = [float(first), *(float(program.stdout.readline()) for _ in lines)]
    except (OSError, ValueError) as error:
        raise DataError(f"METEOR's program ended without an answer ({error}); try it: {shlex.join(command)}") from error
    return {"meteor": (whole, np.array(each))}


def _ask(line: str, questions: IO[str], answers: IO[str]) -> str:
    print(line, file=questions, flush=True)
    return answers.readline().strip()


def _meteor_jar() -> pathlib.Path | None:
    package = importlib.util.find_spec("pycocoevalcap")
    folders = package.submodule_search_locations if package else None
    jars = [jar for folder in folders or () for jar in pathlib.Path(folder).glob("meteor/meteor-*.jar")]
    return jars[0] if jars else None
