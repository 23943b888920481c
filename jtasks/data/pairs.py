"""Pairs of texts for BERT's pre-training, from tokenized documents of sentences (Devlin et al. 2019, appendix A.2)."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jtasks.data import store, text, tokenizers, values
from jtasks.data.shuffle import draws
from jtasks.data.tokens import batched, smallest
from jtasks.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHORT = 0.1  # share of the pairs that aim at a shorter length, so that fine-tuning on short texts is no surprise
_BATCH = 8192  # sentences that are tokenized in parallel


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs(Sequence[dict[str, Any]]):
    """[CLS] first [SEP] second [SEP], cut from the stream of tokens when asked for.

    An example is `tokens` [t]; `types` uint8 [t], 1 from the second text on; `segments` uint8 [t], 0 for padding;
    `next` int32, 0 where the second text follows the first, 1 where it is from elsewhere; and with `begins` (of each
    id) the same of each token, uint8 [t].
    """

    stream: np.ndarray  # [n] ids
    spans: np.ndarray  # [pairs, 4]: bounds of the two texts in the stream
    labels: np.ndarray  # [pairs]
    length: int
    first: int  # [CLS]
    separator: int
    begins: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: Any) -> Any:
        a, b, c, d = self.spans[index]
        left, right = b - a + 2, b - a + d - c + 3  # ends of the first text and of the second
        tokens = np.zeros(self.length, self.stream.dtype)
        tokens[0], tokens[left - 1], tokens[right - 1] = self.first, self.separator, self.separator
        tokens[1 : left - 1], tokens[left : right - 1] = self.stream[a:b], self.stream[c:d]
        places = np.arange(self.length)
        example = {
            "tokens": tokens,
            "types": ((places >= left) & (places < right)).astype(np.uint8),
            "segments": (places < right).astype(np.uint8),
            "next": np.int32(self.labels[index]),
        }
        return example if self.begins is None else example | {"begins": self.begins[tokens]}


def tokenized(
    paths: Sequence[pathlib.Path], split: str, tokenizer: "Tokenizer", *, seed: int, valid: float, folder: pathlib.Path
) -> store.Arrays:
    """The documents of one part of the text as arrays, tokenized once, in parallel.

    Returns:
      `tokens` [n] of all sentences; `sentences` int64 [s + 1], where each begins in `tokens`, and the end; and
      `documents` int64 [d + 1], where each begins in `sentences`, and the end.
    """

    def write(writer: store.Writer) -> None:
        kind = smallest(tokenizers.size(tokenizer))
        tokens = sentences = written = 0
        writer.append("sentences", np.zeros(1, np.int64))
        writer.append("documents", np.zeros(1, np.int64))
        for batch in batched(_lines(text.documents(paths, "blank", split, seed=seed, valid=valid)), _BATCH):
            ids: list[int] = []
            ends: dict[str, list[int]] = {"sentences": [], "documents": []}
            encoded = iter(tokenizers.encode(tokenizer, [line for line in batch if line], offsets=False))
            for line in batch:
                if line and (found := next(encoded).ids):
                    ids += found
                    tokens, sentences = tokens + len(found), sentences + 1
                    ends["sentences"].append(tokens)
                elif not line and sentences > written:
                    ends["documents"].append(sentences)
                    written = sentences
            writer.append("tokens", np.array(ids, kind))
            for name, places in ends.items():
                writer.append(name, np.array(places, np.int64))

    parts = [text.identity(paths, "sentences", split, seed, valid), tokenizer.to_str()]
    arrays, _ = store.stored("sentences", parts, folder, write)
    if len(arrays["documents"]) < 3:
        raise DataError(
            f"the {split} part of the text has {len(arrays['documents']) - 1} documents; at least 2 are needed, to pair"
            " sentences of different ones: give more text, with one sentence a line and blank lines between documents"
        )
    return arrays


def paired(
    sources: store.Arrays, parts: Sequence[object], *, length: int, duplicates: int, seed: int, folder: pathlib.Path
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The pairs of `duplicates` passes over the documents, made once; each pass cuts and draws anew.

    So an epoch holds every text `duplicates` times in different company, as in the paper's own data, while masks
    are new each time anyway.

    Args:
      sources: of `tokenized`.
      parts: all that `sources` depend on.
      length: of an example, with its three special tokens.

    Returns:
      Spans int64 [n, 4] and labels uint8 [n] for `Pairs`; and facts: `padding` (share of all positions),
      `follows` (share of pairs whose second text follows the first), `pairs`.

    Raises:
      ConfigError: `length` has no room for two texts.
    """
    if length < 5:
        raise ConfigError(f"config.data.length={length} must be at least 5, for two texts and three special tokens")

    def write(writer: store.Writer) -> None:
        used = follows = pairs = 0
        for turn in range(duplicates):
            for document in range(len(sources["documents"]) - 1):
                rows = _pairs(sources, document, length - 3, draws(seed, turn, document))
                spans = np.array([row[:4] for row in rows], np.int64).reshape(-1, 4)
                labels = np.array([row[4] for row in rows], np.uint8)
                writer.append("spans", spans)
                writer.append("labels", labels)
                used += int((spans[:, 1] - spans[:, 0] + spans[:, 3] - spans[:, 2] + 3).sum())
                follows, pairs = follows + int((labels == 0).sum()), pairs + len(labels)
        writer.facts |= {"padding": 1 - used / (pairs * length), "follows": follows / pairs, "pairs": pairs}

    arrays, facts = store.stored("sentence-pairs", [*parts, length, duplicates, seed], folder, write)
    return arrays["spans"], arrays["labels"], facts


def _lines(documents: Iterator[str]) -> Iterator[str]:
    """The sentences of the documents, and "" behind each document."""
    for document in documents:
        yield from (line for line in document.split("\n") if line.strip(values.BLANKS))
        yield ""


def _pairs(
    sources: store.Arrays, document: int, room: int, random: Iterator[int]
) -> list[tuple[int, int, int, int, int]]:
    """One pass over a document: bounds of the two texts of each pair, and its label.

    Sentences are gathered until they reach the length aimed at, two at least; the first few of them, a random
    number, are the first text. The second is the others, or in half of the cases sentences from a random place of
    another document, and then the others are gathered again.
    """
    starts, ends = sources["documents"][document : document + 2].tolist()
    bounds = sources["sentences"]
    rows = []
    at = starts
    while at < ends:
        aim = 2 + next(random) % (room - 1) if next(random) < SHORT * 2**64 else room
        reached = int(np.searchsorted(bounds, bounds[at] + aim))  # the sentence that brings the tokens to `aim`
        stop = min(max(reached, at + 2), ends)
        split = at + 1 if stop - at < 3 else at + 1 + next(random) % (stop - at - 1)
        a, b = int(bounds[at]), int(bounds[split])
        if stop - at == 1 or next(random) < 2**63:
            c, d = _elsewhere(sources, document, aim - (b - a), random)
            label, at = 1, split
        else:
            c, d = b, int(bounds[stop])
            label, at = 0, stop
        rows.append((*_cut(a, b, c, d, room, random), label))
    return rows


def _elsewhere(sources: store.Arrays, document: int, aim: int, random: Iterator[int]) -> tuple[int, int]:
    """About `aim` tokens, one sentence at least, from a random sentence on of a random other document."""
    documents, bounds = sources["documents"], sources["sentences"]
    other = next(random) % (len(documents) - 2)
    other += other >= document
    begin, end = documents[other : other + 2].tolist()
    at = begin + next(random) % (end - begin)
    stop = min(max(int(np.searchsorted(bounds, bounds[at] + aim)), at + 1), end)
    return int(bounds[at]), int(bounds[stop])


def _cut(a: int, b: int, c: int, d: int, room: int, random: Iterator[int]) -> tuple[int, int, int, int]:
    """The bounds of two texts shortened to `room` tokens together: always the longer one, at either end by chance."""
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
    """How many of `count` coins show heads."""
    return sum((next(random) >> max(0, 64 - count + i)).bit_count() for i in range(0, count, 64))
