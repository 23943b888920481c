"""Entities in sequences of tags; precision, recall and F1 as in CoNLL's conlleval script.

(Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 Shared Task"; seqeval's default mode agrees.)
"""

from collections.abc import Iterable, Sequence

Entity = tuple[str, int, int]


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return (type, first, last) of each entity in a sequence of tags such as `B-person`, `I-person`, `O`.

    Reads IOB1, IOB2 (BIO) and IOBES. In malformed sequences a token continues the entity before it if its tag does (`I`
    or `E` after `B` or `I` of the same type); any other tag but `O` begins an entity.

    >>> entities(["I-per", "I-per", "B-per", "O", "I-loc", "I-org"])
    [('per', 0, 1), ('per', 2, 2), ('loc', 4, 4), ('org', 5, 5)]
    """
    spans: list[Entity] = []
    before = ("O", "")
    for place, tag in enumerate(tags):
        kind, name = tag[:1], tag[1:].removeprefix("-") or "_"
        if kind in "IE" and before[0] in "BI" and before[1] == name:
            spans[-1] = (name, spans[-1][1], place)
        elif kind != "O":
            spans.append((name, place, place))
        before = (kind, name)
    return spans


def bio(tags: Sequence[str]) -> list[str]:
    """Convert tags to IOB2: `B-type` at the first token of an entity, `I-type` at the others.

    >>> bio(["I-per", "B-per", "I-per", "O"])
    ['B-per', 'B-per', 'I-per', 'O']
    """
    converted = ["O"] * len(tags)
    for name, first, last in entities(tags):
        converted[first : last + 1] = [f"B-{name}", *[f"I-{name}"] * (last - first)]
    return converted


def scores(truth: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> dict[str, float]:
    """Compute `precision`, `recall` and `f1` of the entities of all sequences; only whole entities count as correct.

    Args:
      truth: true tags of each sequence.
      predicted: predicted tags of each sequence.

    Returns:
      Fractions from 0 to 1; 0 instead of 0 / 0.

    Raises:
      ValueError: a sequence and its prediction differ in length.

    >>> scores([["B-per", "I-per", "O", "B-loc"]], [["B-per", "I-per", "O", "B-org"]])
    {'precision': 0.5, 'recall': 0.5, 'f1': 0.5}
    """
    right = said = there = 0
    for tags, guess in zip(truth, predicted, strict=True):
        if len(tags) != len(guess):
            raise ValueError(f"{len(guess)} tags were predicted for a sequence of {len(tags)}")
        expected, given = set(entities(tags)), set(entities(guess))
        right, said, there = right + len(expected & given), said + len(given), there + len(expected)
    return {
        "precision": right / said if said else 0.0,
        "recall": right / there if there else 0.0,
        "f1": 2 * right / (said + there) if said + there else 0.0,
    }
