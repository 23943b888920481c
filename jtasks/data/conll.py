"""Sentences of tagged words in CoNLL format: a word per line, its tag in a column, then an empty line."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jtasks.data import arrow, encoding, tables, tokenizers, values
from jtasks.errors import ConfigError, DataError
from jtasks.metrics import entities

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Sentence(NamedTuple):
    """Words and their tags in the BIO scheme; no tags if the file has none."""

    words: list[str]
    tags: list[str]


def sentences(text: str, name: str, *, word: int = 0, tag: int = -1) -> list[Sentence]:
    """Parse the sentences of a file; tags in IOB1 and IOBES become BIO.

    A file with one column has no tags. LF or CRLF ends a line. Tabs separate the columns of a line that has tabs, ASCII
    blanks those of other lines. A line of only tabs and blanks ends a sentence; U+00A0, U+3000, U+0085 and U+2028 are
    parts of words. Quotes have no meaning. A byte order mark and lines of `-DOCSTART-` are skipped.

    Args:
      text: contents of the file.
      name: name of the file, for messages.
      word: column of the words; negative numbers count from the last.
      tag: column of the tags.

    Raises:
      DataError: a line lacks a column, holds a single CR, or differs from the line before in its number of columns; a
        word is empty, a tag is malformed, or there is no sentence.
    """
    parsed: list[Sentence] = []
    words, tags = list[str](), list[str]()
    before = 0  # number of columns in the sentence's previous line
    for number, line in enumerate([*text.removeprefix("\ufeff").split("\n"), ""], 1):
        line = line.removesuffix("\r")
        columns = line.split("\t") if "\t" in line else [column for column in line.split(" ") if column]
        if not line.strip(values.BLANKS):
            if words:
                parsed.append(Sentence(words, entities.bio(tags)))
            words, tags, before = [], [], 0
        elif columns[0] != "-DOCSTART-":
            where = f"{name}, line {number}"
            places = {i + len(columns) if i < 0 else i for i in (word, tag)}
            untagged = len(columns) == 1 or len(places) == 1
            _check_columns(columns, before, (word,) if untagged else (word, tag), line, where)
            before = len(columns)
            words.append(columns[word])
            if not words[-1]:
                raise DataError(f"{where}: the word in column {word} is empty")
            tags += [] if untagged else [columns[tag]]
            if tags and not _is_tag(tags[-1]):
                raise DataError(f"{where}: {tags[-1]!r} is not a tag such as B-person, I-person or O")
            if parsed and bool(tags) != bool(parsed[0].tags):
                raise DataError(f"{where} has {len(columns)} columns: either all words have tags or none")
    if not parsed:
        raise DataError(f"{name} holds no sentence: expected a word and its tag on each line")
    return parsed


def table_sentences(name: str, split: str, *, word: int, tag: int, folder: str | None) -> list[Sentence]:
    """Read the sentences of a table that `arrow.find` reads: each row has a list of words and perhaps one of tags.

    Args:
      name: name of the table.
      split: `train`, `valid` or `test`.
      word: number of the column of words; negative numbers count from the last.
      tag: number of the column of tags; the same as `word` if there are no tags.
      folder: config.data.dir.

    Raises:
      ConfigError: there is no such table, split or column.
      DataError: words and tags differ in number, a word is empty, a tag is malformed, or there is no sentence.
    """
    table = tables.require_table(name, split, folder)
    columns = table.columns
    if max(i + 1 if i >= 0 else -i for i in (word, tag)) > len(columns):
        raise ConfigError(
            f"{name} has the columns {', '.join(columns)}: config.data.word={word} and tag={tag} must be among them"
        )
    words, tags = columns[word], columns[tag]
    parsed = []
    for where, row in arrow.rows(table, (words, tags)):
        place = f"{name}, {where}"
        own = values.contents(row[words], f"{place}, column {words!r}")
        told = values.contents(row[tags], f"{place}, column {tags!r}") if words != tags else []
        if told and len(told) != len(own):
            raise DataError(f"{place}: {len(own)} words and {len(told)} tags")
        if odd := [name for name in told if not _is_tag(name)]:
            raise DataError(f"{place}: {odd[0]!r} is not a tag such as B-person, I-person or O")
        if own:
            parsed.append(Sentence(own, entities.bio(told)))
    if not parsed:
        raise DataError(f"{name} holds no sentence")
    return parsed


def classes(types: Sequence[str]) -> tuple[str, ...]:
    """Return the tags of entities of these types: `O`, and `B` and `I` of each.

    >>> classes(["person"])
    ('O', 'B-person', 'I-person')
    """
    return ("O", *(f"{kind}-{name}" for name in types for kind in "BI"))


def windows(
    tokenizer: "Tokenizer", given: Sequence[Sentence], tags: Sequence[str], length: int
) -> dict[str, np.ndarray]:
    """Encode sentences as arrays [n, length]; a sentence that is too long is split between words into several windows.

    Each word's first piece bears the label. Each word is in one window, with as many of its pieces as fit. A word
    without pieces becomes the unknown token.

    Returns:
      `tokens` int32; `segment_ids` uint8, 0 for padding; `starts` uint8, 1 at each word's first piece; `labels` int32,
      indices into `tags`, -1 for no label, unless the sentences have no tags; `sentence` int32 [n], index of each
      window's sentence; and lists of its `words` and true `tags`.

    Raises:
      ConfigError: no piece fits into `length`.
    """
    room = length - 2
    if room < 1:
        raise ConfigError(f"config.data.length={length} must be at least 3")
    marked, unknown = encoding.marks(tokenizer), tokenizers.special(tokenizer, "[UNK]", "<unk>")
    encoded = tokenizers.encode(tokenizer, [s.words for s in given], split=True)
    numbers = {tag: i for i, tag in enumerate(tags)}
    rows: list[tuple[int, int, int, list[int], list[int]]] = []  # sentence, first and last word, pieces, labels
    for number, (sentence, encoded_sentence) in enumerate(zip(given, encoded, strict=True)):
        pieces: list[list[int]] = [[] for _ in sentence.words]
        for word, piece in zip(encoded_sentence.word_ids, encoded_sentence.ids, strict=True):
            if word is not None:
                pieces[word].append(piece)
        for word, tag in enumerate(sentence.tags or ("O",) * len(sentence.words)):
            own = (pieces[word] or [unknown])[:room]
            if not word or len(rows[-1][3]) + len(own) > room:
                rows.append((number, word, word, [], []))
            _, first, _, line, known = rows[-1]
            rows[-1] = (number, first, word, line + own, known + [numbers[tag]] + [-1] * (len(own) - 1))
    arrays = encoding.stack([[row[3]] for row in rows], marked, length)
    labels = np.full((len(rows), length), -1, np.int32)
    for i, row in enumerate(rows):
        labels[i, 1 : 1 + len(row[4])] = row[4]
    return {
        "tokens": arrays["tokens"],
        "segment_ids": arrays["segment_ids"],
        "starts": (labels >= 0).astype(np.uint8),
        **({"labels": labels} if given and given[0].tags else {}),
        "sentence": np.array([row[0] for row in rows], np.int32),
        "words": _lists([given[row[0]].words[row[1] : row[2] + 1] for row in rows]),
        "tags": _lists([given[row[0]].tags[row[1] : row[2] + 1] for row in rows]),
    }


def _lists(values: Sequence[list[str]]) -> np.ndarray:
    """Return an array [n] of lists; numpy would convert lists of equal length to a matrix."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _check_columns(columns: Sequence[str], before: int, wanted: Sequence[int], line: str, where: str) -> None:
    if "\r" in line:
        raise DataError(f"{where} has a CR inside: expected LF or CRLF at the end of each line")
    if max(i + 1 if i >= 0 else -i for i in wanted) > len(columns):
        fields = " and ".join(f"config.data.{k}={i}" for k, i in zip(("word", "tag"), wanted, strict=False))
        raise DataError(f"{where} has {len(columns)} columns; {fields} need more")
    if before and len(columns) != before:
        raise DataError(f"{where} has {len(columns)} columns, the line before has {before}")


def _is_tag(tag: str) -> bool:
    return tag == "O" or (tag[:1] in tuple("BIES") and (len(tag) == 1 or (tag[1] == "-" and len(tag) > 2)))
