"""Pairs of texts for BERT's pre-training from tokenized documents of sentences (Devlin et al. 2019, appendix A.2)."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jtasks.data import files, store, text, tokenizers, values
from jtasks.data.shuffle import draws
from jtasks.data.tokens import batches, token_dtype
from jtasks.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHORT = 0.1  # fraction of pairs with a shorter target length, which prepares for fine-tuning on short texts
_BATCH = 8192  # number of sentences tokenized in parallel


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs(Sequence[dict[str, Any]]):
    """Pairs `[CLS] first [SEP] second [SEP]`, cut from the stream of tokens on access.

    An example has `tokens` [t]; `token_types` uint8 [t], 1 from the second text on; `segment_ids` uint8 [t], 0 for
    padding; and `next` int32, 0 if the second text follows the first, 1 if it is from elsewhere. If `begins` is given
    for each id, the example also has `begins` uint8 [t] for each token.
    """

    stream: np.ndarray  # [n] ids
    spans: np.ndarray  # [pairs, 4]: bounds of both texts in the stream
    labels: np.ndarray  # [pairs]
    length: int
    first: int  # [CLS]
    separator: int
    begins: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: Any) -> Any:
        a, b, c, d = self.spans[index]
        left, right = b - a + 2, b - a + d - c + 3  # ends of both texts
        tokens = np.zeros(self.length, self.stream.dtype)
        tokens[0], tokens[left - 1], tokens[right - 1] = self.first, self.separator, self.separator
        tokens[1 : left - 1], tokens[left : right - 1] = self.stream[a:b], self.stream[c:d]
        places = np.arange(self.length)
        example = {
            "tokens": tokens,
            "token_types": ((places >= left) & (places < right)).astype(np.uint8),
            "segment_ids": (places < right).astype(np.uint8),
            "next": np.int32(self.labels[index]),
        }
        return example if self.begins is None else example | {"begins": self.begins[tokens]}


def tokenize(
    paths: Sequence[pathlib.Path], split: str, tokenizer: "Tokenizer", *, seed: int, valid: float, folder: pathlib.Path
) -> store.Arrays:
    """Tokenize the documents of one part of the text, once and in parallel.

    Returns:
      `tokens` [n] of all sentences; `sentences` int64 [s + 1], start of each in `tokens`, and the end; and `documents`
      int64 [d + 1], start of each in `sentences`, and the end.

    Raises:
      DataError: the text has fewer than 2 documents.
    """

    def write(writer: store.Writer) -> None:
        kind = token_dtype(tokenizers.size(tokenizer))
        tokens = sentences = written = 0
        writer.append("sentences", np.zeros(1, np.int64))
        writer.append("documents", np.zeros(1, np.int64))
        for batch in batches(_lines(text.documents(paths, "blank", split, seed=seed, valid=valid)), _BATCH):
            ids: list[int] = []
            ends: dict[str, list[int]] = {"sentences": [], "documents": []}
            encoded = iter(tokenizers.encode(tokenizer, [line for line in batch if line], offsets=False))
            for line in batch:
                if line and (new := next(encoded).ids):
                    ids += new
                    tokens, sentences = tokens + len(new), sentences + 1
                    ends["sentences"].append(tokens)
                elif not line and sentences > written:
                    ends["documents"].append(sentences)
                    written = sentences
            writer.append("tokens", np.array(ids, kind))
            for name, places in ends.items():
                writer.append(name, np.array(places, np.int64))

    parts = [files.identity(paths, "sentences", split, seed, valid), tokenizer.to_str()]
    arrays, _ = store.load_or_make("sentences", parts, folder, write)
    if len(arrays["documents"]) < 3:
        raise DataError(
            f"the {split} part of the text has {len(arrays['documents']) - 1} documents; at least 2 are needed, to pair"
            " sentences of different ones: give more text, with one sentence a line and blank lines between documents"
        )
    return arrays


def make_pairs(
    sources: store.Arrays, parts: Sequence[object], *, length: int, duplicates: int, seed: int, folder: pathlib.Path
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return the pairs of `duplicates` passes over the documents, made once; each pass draws different pairs.

    An epoch thus holds every text `duplicates` times with different partners, as in the paper's data. Masks are drawn
    for each epoch anyway.

    Args:
      sources: arrays of `tokenize`.
      parts: everything that `sources` depend on.
      length: length of an example, including its three special tokens.

    Returns:
      Spans int64 [n, 4] and labels uint8 [n] for `Pairs`; and facts: `padding` (fraction of all positions), `follows`
      (fraction of pairs whose second text follows the first), `pairs`.

    Raises:
      ConfigError: `length` has no room for two texts.
    """
    if length < 5:
        raise ConfigError(f"config.data.length={length} must be at least 5, for two texts and three special tokens")

    def write(writer: store.Writer) -> None:
        used = follows = pairs = 0
        for duplicate in range(duplicates):
            for document in range(len(sources["documents"]) - 1):
                rows = _pairs(sources, document, length - 3, draws(seed, duplicate, document))
                spans = np.array([row[:4] for row in rows], np.int64).reshape(-1, 4)
                labels = np.array([row[4] for row in rows], np.uint8)
                writer.append("spans", spans)
                writer.append("labels", labels)
                used += int((spans[:, 1] - spans[:, 0] + spans[:, 3] - spans[:, 2] + 3).sum())
                follows, pairs = follows + int((labels == 0).sum()), pairs + len(labels)
        writer.facts |= {"padding": 1 - used / (pairs * length), "follows": follows / pairs, "pairs": pairs}

    arrays, facts = store.load_or_make("sentence-pairs", [*parts, length, duplicates, seed], folder, write)
    return arrays["spans"], arrays["labels"], facts


def _lines(documents: Iterator[str]) -> Iterator[str]:
    """Yield the sentences of the documents, and "" after each document."""
    for document in documents:
        yield from (line for line in document.split("\n") if line.strip(values.BLANKS))
        yield ""


def _pairs(
    sources: store.Arrays, document: int, room: int, random: Iterator[int]
) -> list[tuple[int, int, int, int, int]]:
    """Draw the pairs of one pass over a document: bounds of both texts, and the label.

    At least two sentences are collected until they reach the target length. A random number of them, from the start, is
    the first text. The second is the rest, or in half of the cases sentences from a random position of another
    document; the rest is then used again.
    """
    starts, ends = sources["documents"][document : document + 2].tolist()
    bounds = sources["sentences"]
    rows = []
    at = starts
    while at < ends:
        aim = 2 + next(random) % (room - 1) if next(random) < SHORT * 2**64 else room
        reached = int(np.searchsorted(bounds, bounds[at] + aim))  # the sentence that completes `aim` tokens
        stop = min(max(reached, at + 2), ends)
        split = at + 1 if stop - at < 3 else at + 1 + next(random) % (stop - at - 1)
        a, b = int(bounds[at]), int(bounds[split])
        if stop - at == 1 or next(random) < 2**63:
            c, d = _elsewhere(sources, document, aim - (b - a), random)
            label, at = 1, split
        else:
            c, d = b, int(bounds[stop])
            label, at = 0, stop
        rows.append((*cut(a, b, c, d, room, random), label))
    return rows


def _elsewhere(sources: store.Arrays, document: int, aim: int, random: Iterator[int]) -> tuple[int, int]:
    """Return the bounds of about `aim` tokens, at least one sentence, at a random position of another document."""
    documents, bounds = sources["documents"], sources["sentences"]
    other = next(random) % (len(documents) - 2)
    other += other >= document
    begin, end = documents[other : other + 2].tolist()
    at = begin + next(random) % (end - begin)
    stop = min(max(int(np.searchsorted(bounds, bounds[at] + aim)), at + 1), end)
    return int(bounds[at]), int(bounds[stop])


def cut(a: int, b: int, c: int, d: int, room: int, random: Iterator[int]) -> tuple[int, int, int, int]:
    """Shorten two texts to `room` tokens together: always the longer text, at a random end for each token."""
    first, second = b - a, d - c
    while first + second > room:
        surplus = first + second - room
        if first > second:
            first -= min(surplus, first - second)
        elif second > first:
            second -= min(surplus, second - first)
        else:
            second -= (surplus + 1) // 2
            first -= surplus // 2
    front = _heads(b - a - first, random)
    back = _heads(d - c - second, random)
    return a + front, a + front + first, c + back, c + back + second


def _heads(count: int, random: Iterator[int]) -> int:
    """Count the heads of `count` coin tosses."""
    return sum((next(random) >> max(0, 64 - count + i)).bit_count() for i in range(0, count, 64))
