"""Entities in sequences of tags, and their precision, recall and F1 as CoNLL's conlleval script counts them.

(Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 Shared Task"; seqeval's default mode agrees.)
"""

from collections.abc import Iterable, Sequence

Entity = tuple[str, int, int]


def entities(tags: Sequence[str]) -> list[Entity]:
    """(type, first, last) of each entity in a sequence of tags such as `B-person`, `I-person`, `O`.

    It reads IOB1, IOB2 (BIO) and IOBES, and makes the best of sequences that are none: a token belongs to the entity
    before it if that goes on (`I` or `E` after `B` or `I` of the same type); any other tag but `O` begins an entity.

    >>> entities(["I-per", "I-per", "B-per", "O", "I-loc", "I-org"])
    [('per', 0, 1), ('per', 2, 2), ('loc', 4, 4), ('org', 5, 5)]
    """
    found: list[Entity] = []
    before = ("O", "")
    for place, tag in enumerate(tags):
        kind, name = tag[:1], tag[1:].removeprefix("-") or "_"
        if kind in "IE" and before[0] in "BI" and before[1] == name:
            found[-1] = (name, found[-1][1], place)
        elif kind != "O":
            found.append((name, place, place))
        before = (kind, name)
    return found


def bio(tags: Sequence[str]) -> list[str]:
    """The same entities as IOB2: `B-type` at the first token, `I-type` at the others.

    >>> bio(["I-per", "B-per", "I-per", "O"])
    ['B-per', 'B-per', 'I-per', 'O']
    """
    found = ["O"] * len(tags)
    for name, first, last in entities(tags):
        found[first : last + 1] = [f"B-{name}", *[f"I-{name}"] * (last - first)]
    return found


def scores(truth: Iterable[Sequence[str]], found: Iterable[Sequence[str]]) -> dict[str, float]:
    """`precision`, `recall` and `f1` of the entities of all sequences together; an entity is right as a whole or not.

    Args:
      truth: tags of each sequence.
      found: those predicted, as many.

    Returns:
      Shares from 0 to 1; 0 where there is nothing to divide by.

    >>> scores([["B-per", "I-per", "O", "B-loc"]], [["B-per", "I-per", "O", "B-org"]])
    {'precision': 0.5, 'recall': 0.5, 'f1': 0.5}
    """
    right = said = there = 0
    for tags, guess in zip(truth, found, strict=True):
        if len(tags) != len(guess):
            raise ValueError(f"{len(guess)} tags were predicted for a sequence of {len(tags)}")
        expected, given = set(entities(tags)), set(entities(guess))
        right, said, there = right + len(expected & given), said + len(given), there + len(expected)
    return {
        "precision": right / said if said else 0.0,
        "recall": right / there if there else 0.0,
        "f1": 2 * right / (said + there) if said + there else 0.0,
    }
