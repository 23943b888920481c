"""Scores of translations and summaries against references: BLEU, chrF, ROUGE and exact match.

Each hypothesis has one or several references, not necessarily as many as another one. BLEU and chrF are computed by
sacrebleu (Post 2018, arXiv:1804.08771), ROUGE by rouge-score (Lin 2004), so the numbers are those that papers report.
Both libraries come with `pip install 'jtasks[translation]'`. An empty text is a text without words.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any

from jtasks.errors import ConfigError
from jtasks.metrics.captions import reference_lists
from jtasks.ranges import did_you_mean

# sacrebleu's tokenizers. The last six need further packages or a download.
TOKENIZERS = ("none", "13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "spm", "flores101", "flores200", "spBLEU-1K")
METRICS = ("bleu", "chrf", "rouge", "exact_match")
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")

References = Sequence[str | Sequence[str]]


def scores(
    hypotheses: Sequence[str],
    references: References,
    *,
    metrics: Sequence[str] = ("bleu", "chrf"),
    tokenize: str = "13a",
    lowercase: bool = False,
    stem: bool = False,
) -> tuple[dict[str, float], dict[str, str]]:
    """Compute scores of a corpus by name, and sacrebleu's signatures of `bleu` and `chrf`.

    Args:
      hypotheses: [n] texts.
      references: [n], each one text or several.
      metrics: some of METRICS; `rouge` gives the four scores of ROUGE.
      tokenize: for `bleu`.
      lowercase: for `bleu`, `chrf` and `exact_match`; ROUGE always ignores case.
      stem: for `rouge`.

    Raises:
      ConfigError: a metric or a tokenizer is unknown, or a library is missing.
      DataError: there are no hypotheses, or one has no reference.
    """
    values: dict[str, float] = {}
    signatures: dict[str, str] = {}
    for name in metrics:
        if name == "bleu":
            values[name], signatures[name] = bleu(hypotheses, references, tokenize=tokenize, lowercase=lowercase)
        elif name == "chrf":
            values[name], signatures[name] = chrf(hypotheses, references, lowercase=lowercase)
        elif name == "rouge":
            values |= rouge(hypotheses, references, stem=stem)
        elif name == "exact_match":
            values[name] = exact_match(hypotheses, references, lowercase=lowercase)
        else:
            hint = did_you_mean(name, METRICS)
            raise ConfigError(f"unknown score {name!r} of texts{hint or '; there are ' + ', '.join(METRICS)}")
    return values, signatures


def bleu(
    hypotheses: Sequence[str], references: References, *, tokenize: str = "13a", lowercase: bool = False
) -> tuple[float, str]:
    """Compute the BLEU of a corpus (Papineni et al. 2002), from 0 to 100, and sacrebleu's signature.

    The signature names all settings; a score without its signature compares with no other score.

    Args:
      hypotheses: [n] texts.
      references: [n], each one text or several.
      tokenize: one of TOKENIZERS. `13a` is WMT's for detokenized text, `none` splits at blanks, for text that is
        tokenized already. Chinese and Japanese need `zh`, `char` or `ja-mecab`.
      lowercase: ignore case.

    Raises:
      ConfigError: sacrebleu, the tokenizer or what the tokenizer needs is missing.
      DataError: there are no hypotheses, or one has no reference.

    >>> score, signature = bleu(["the dog bit the man"], [["the dog bit the man .", "a dog bit the man"]])
    >>> round(score, 2), signature.rpartition("|")[0]
    (100.0, 'nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp')
    """
    streams = _streams(hypotheses, references)
    library = _library("sacrebleu.metrics", "BLEU")
    if tokenize not in TOKENIZERS:
        raise ConfigError(f"unknown tokenizer {tokenize!r} of BLEU; sacrebleu has {', '.join(TOKENIZERS)}")
    try:
        metric = library.BLEU(tokenize=tokenize, lowercase=lowercase, force=tokenize == "none")
    except (ImportError, RuntimeError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"BLEU's tokenizer {tokenize!r} cannot be made: {reason}") from None
    return metric.corpus_score(hypotheses, streams).score, str(metric.get_signature())


def chrf(
    hypotheses: Sequence[str], references: References, *, word_order: int = 0, lowercase: bool = False
) -> tuple[float, str]:
    """Compute the chrF of a corpus, the F2 of its character n-grams, from 0 to 100, and sacrebleu's signature.

    Args:
      hypotheses: [n] texts.
      references: [n], each one text or several.
      word_order: largest n of word n-grams; 2 for chrF++ (Popovic 2015, 2017).
      lowercase: ignore case.

    Raises:
      ConfigError: sacrebleu is missing.
      DataError: there are no hypotheses, or one has no reference.
    """
    streams = _streams(hypotheses, references)
    metric = _library("sacrebleu.metrics", "chrF").CHRF(word_order=word_order, lowercase=lowercase)
    return metric.corpus_score(hypotheses, streams).score, str(metric.get_signature())


def rouge(hypotheses: Sequence[str], references: References, *, stem: bool = False) -> dict[str, float]:
    """Compute the mean F-measures `rouge1`, `rouge2`, `rougeL` and `rougeLsum`, from 0 to 1.

    Each hypothesis counts with the reference that gives the highest F-measure, chosen for each score by itself. This is
    ROUGE for English: words are runs of a-z and 0-9 after lower-casing, and all other characters separate words, so a
    text in another alphabet scores 0. ROUGE-Lsum takes the lines of a text as its sentences: write a line feed after
    each sentence of hypotheses and references. Of texts of one line it is ROUGE-L.

    Args:
      hypotheses: [n] texts.
      references: [n], each one text or several.
      stem: compare words of more than three letters by their stems (Porter 1980).

    Raises:
      ConfigError: rouge-score is missing.
      DataError: there are no hypotheses, or one has no reference.

    >>> corpus = rouge(["the cat sat", "yes"], [["a cat sat down", "it sat"], "no"])
    >>> {name: round(score, 3) for name, score in corpus.items()}
    {'rouge1': 0.286, 'rouge2': 0.2, 'rougeL': 0.286, 'rougeLsum': 0.286}
    """
    several = reference_lists(hypotheses, references)
    scorer = _library("rouge_score.rouge_scorer", "ROUGE").RougeScorer(list(ROUGE), use_stemmer=stem)
    each = [scorer.score_multi(texts, text) for text, texts in zip(hypotheses, several, strict=True)]
    return {name: math.fsum(scores[name].fmeasure for scores in each) / len(each) for name in ROUGE}


def exact_match(hypotheses: Sequence[str], references: References, *, lowercase: bool = False) -> float:
    """Compute the fraction of hypotheses that equal one of their references, without blanks at both ends.

    Raises:
      DataError: there are no hypotheses, or one has no reference.

    >>> exact_match(["yes ", "No"], [["yes", "sure"], "no"])
    0.5
    """
    several = reference_lists(hypotheses, references)
    fold = str.lower if lowercase else str
    pairs = zip(hypotheses, several, strict=True)
    return sum(fold(text).strip() in [fold(each).strip() for each in texts] for text, texts in pairs) / len(several)


def _streams(hypotheses: Sequence[str], references: References) -> list[list[str | None]]:
    """Return references [r][n] as sacrebleu reads them, None where a hypothesis has fewer than r."""
    several = reference_lists(hypotheses, references)
    return [[texts[k] if k < len(texts) else None for texts in several] for k in range(max(map(len, several)))]


def _library(module: str, score: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0].replace("_", "-")
        raise ConfigError(
            f"{score} is computed by {package}, which cannot be imported ({error}): pip install 'jtasks[translation]'"
        ) from None
