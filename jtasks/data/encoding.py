"""Texts in BERT's format, `[CLS] first [SEP] second [SEP]`, padded to one length (Devlin et al. 2019, 3)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jtasks.data import sentence_pieces, tokenizers
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import Field

if TYPE_CHECKING:
    from tokenizers import Tokenizer


# Fields of config.data of the tasks that read text files with a BERT, for their `defaults`.
FIELDS = {
    "data.train": Field(str, None, ""),  # the file of each split, or tfds:NAME; "": none
    "data.valid": Field(str, None, ""),
    "data.test": Field(str, None, ""),
    "data.source": Field(str, None, ""),  # where to get these files, for messages
    "data.tokenizer": Field(str, None, "wordpiece:8000"),  # a file, a folder, or the kind to train
    "data.length": Field(int, "[3, 2e9]", 128),  # tokens of an example
}


TOGETHER = 10_000  # texts that are encoded at once: the tokenizer's results take some 30 times the text


class Marks(NamedTuple):
    """Ids of the special tokens."""

    start: int
    separator: int
    padding: int


def marks(tokenizer: "Tokenizer") -> Marks:
    """Return the ids of `[CLS]`, `[SEP]` and `[PAD]` or of RoBERTa's equivalents; DataError if one is missing."""
    names = ("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[PAD]", "<pad>")
    return Marks(*(tokenizers.special(tokenizer, *name) for name in names))


def ids(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text, without special tokens."""
    whole = sentence_pieces.needs_tokens(tokenizer)
    return sentence_pieces.ids(tokenizer, tokenizers.encode(tokenizer, texts, offsets=whole))


def words(tokenizer: "Tokenizer", tokens: np.ndarray, segment_ids: np.ndarray) -> list[str]:
    """Return the tokens [t] of one text as texts, without the marks before and after it and without padding."""
    inner = np.asarray(tokens)[np.asarray(segment_ids) > 0][1:-1]
    return [tokenizer.decode([token]) for token in inner.tolist()]


def before_end(tokens: Any, end: int) -> list[int]:
    """Return the ids of `tokens` [t] before the first `end`."""
    ids: list[int] = np.asarray(tokens).tolist()
    return ids[: ids.index(end)] if end in ids else ids


def decode(tokenizer: "Tokenizer", rows: Iterable[Any], end: int, *, skip_special_tokens: bool = True) -> list[str]:
    """Return the texts of rows of ids [t], each up to its first `end`, without surrounding blanks."""
    ids = [before_end(row, end) for row in rows]
    return [text.strip() for text in tokenizer.decode_batch(ids, skip_special_tokens=skip_special_tokens)]


def pairs(
    tokenizer: "Tokenizer", first: Sequence[str], second: Sequence[str | None] | None, length: int
) -> dict[str, np.ndarray]:
    """Encode texts, or pairs of texts, as arrays [n, length]; a text whose second text is None stands alone.

    If a pair is too long, the longer text loses tokens from its end until both fit.

    Returns:
      `tokens` int32; `token_types` uint8, 1 in the second text; `segment_ids` uint8, 0 for padding and else 1.

    Raises:
      ConfigError: `length` leaves no room for a token of each text.
    """
    partners = [None] * len(first) if second is None else list(second)
    count = 1 if all(partner is None for partner in partners) else 2
    if length - 1 - count < count:
        raise ConfigError(f"config.data.length={length} must be at least {1 + 2 * count}")
    marked = marks(tokenizer)
    arrays = stack([], marked, length, count=len(first))
    for start in range(0, len(first), TOGETHER):
        some = slice(start, start + TOGETHER)
        for name, part in stack(_cut(tokenizer, first[some], partners[some], length), marked, length).items():
            arrays[name][some] = part
    return arrays


def _cut(
    tokenizer: "Tokenizer", first: Sequence[str], partners: Sequence[str | None], length: int
) -> Iterator[list[list[int]]]:
    """Yield the tokens of each text or pair of texts, cut so that they fit."""
    encoded = zip(ids(tokenizer, first), ids(tokenizer, [partner or "" for partner in partners]), strict=True)
    for (a, b), partner in zip(encoded, partners, strict=True):
        room = length - 2 if partner is None else length - 3
        kept = min(len(a), max(room - len(b), room - room // 2))
        yield [a[:kept]] if partner is None else [a[:kept], b[: room - kept]]


def rows(tokenizer: "Tokenizer", texts: Sequence[str], length: int, *, pad: int, end: int | None = None) -> np.ndarray:
    """Encode texts with the tokenizer's own special tokens, cut or filled up with `pad`: int32 [n, length].

    These are the ids of transformers with `padding="max_length"` and `truncation=True`: `<|startoftext|> ...
    <|endoftext|>` of CLIP, `... </s>` of SigLIP. A text that is too long loses tokens from its end.

    Args:
      end: id after each text if the tokenizer adds no special tokens.

    Raises:
      ConfigError: `length` leaves no room for a token of the text.
    """
    before, after = frame(tokenizer)
    if not before and not after and end is not None:
        after = [end]
    room = length - len(before) - len(after)
    if room < 1:
        raise ConfigError(f"config.data.length={length} must be at least {length - room + 1}: special tokens take room")
    tokens = np.full((len(texts), length), pad, np.int32)
    for row, text_ids in zip(tokens, ids(tokenizer, texts), strict=True):
        line = [*before, *text_ids[:room], *after]
        row[: len(line)] = line
    return tokens


def frame(tokenizer: "Tokenizer") -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer's own file puts before and after a text."""
    whole, bare = (tokenizer.encode("a", add_special_tokens=special).ids for special in (True, False))
    starts = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
    return whole[: starts[0]], whole[starts[0] + len(bare) :]


def stack(
    rows: Iterable[Sequence[Sequence[int]]], marked: Marks, length: int, *, count: int | None = None
) -> dict[str, np.ndarray]:
    """Encode rows of one or two token lists that fit as the arrays of `pairs`, with special tokens.

    `count` is the number of rows of the arrays; those after `rows` are padding. None: as many as `rows`.
    """
    rows = list(rows)
    count = len(rows) if count is None else count
    tokens = np.full((count, length), marked.padding, np.int32)
    token_types, segment_ids = np.zeros((2, count, length), np.uint8)
    for row, texts in enumerate(rows):
        line = [marked.start]
        for number, text in enumerate(texts):
            token_types[row, len(line) : len(line) + len(text) + 1] = number
            line += [*text, marked.separator]
        tokens[row, : len(line)] = line
        segment_ids[row, : len(line)] = 1
    return {"tokens": tokens, "token_types": token_types, "segment_ids": segment_ids}


def require_labels(batch: Mapping[str, Any], name: str) -> Any:
    """Return the labels `name` of a batch; DataError if the file of its split has no labels."""
    if name not in batch:
        raise DataError(
            f"these examples have no {name!r}: a file without labels can be predicted for (--mode=predict, --mode=show,"
            " with --config.data.allow_changes=True), but not trained on or evaluated"
        )
    return batch[name]
