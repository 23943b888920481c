"""Text as one long stream of token ids, mapped into memory, and the windows that a language model reads of it."""

import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jtasks.console import warn
from jtasks.data import store, text, tokenizers
from jtasks.data.tokenizers import END, special
from jtasks.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENDS = (END, "[SEP]", "</s>")  # what ends a document in the common vocabularies

_CHUNK = 1 << 16  # characters that are tokenized at once
_BATCH = 64  # chunks of which are tokenized in parallel


def stream(
    paths: Sequence[pathlib.Path],
    kind: str,
    split: str,
    tokenizer: "Tokenizer",
    *,
    seed: int,
    valid: float,
    folder: pathlib.Path,
) -> tuple[np.ndarray, int] | None:
    """The tokens [n] of one part of the text, and the number of its bytes in UTF-8; tokenized once, in parallel.

    It is None where the share `valid` of few documents is no document. Between documents stands the tokenizer's end of
    a document, counted as one byte. For the arguments see `text.documents`, `store.stored`.
    """

    def write(writer: store.Writer) -> None:
        separated = _separated(text.documents(paths, kind, split, seed=seed, valid=valid))
        size, end = 0, -1
        for batch in batched(separated, _BATCH):
            rows: list[int] = []
            encoded = iter(tokenizers.encode(tokenizer, [part for part in batch if part], offsets=False))
            for part in batch:
                if not part and end < 0:
                    end = special(tokenizer, *ENDS)
                rows += next(encoded).ids if part else [end]
                size += len(part.encode()) if part else 1
            writer.append("tokens", np.array(rows, smallest(tokenizers.size(tokenizer))))
        writer.facts["bytes"] = size

    parts = [text.identity(paths, kind, split, seed if kind != "file" else 0, valid), tokenizer.to_str()]
    arrays, facts = store.stored("tokens", parts, folder, write)
    if "tokens" not in arrays and split == "valid" and valid:
        warn(f"no document of the text falls into the share valid={valid:g}: there is no valid split")
        return None
    if "tokens" not in arrays:
        raise DataError(f"the {split} part of the text is empty: {', '.join(map(str, paths))}")
    return arrays["tokens"], facts["bytes"]


def windows(tokens: np.ndarray, size: int, length: int, stride: int) -> dict[str, np.ndarray]:
    """Windows to train on: `length` + 1 tokens from every `stride`-th place; views, not copies.

    Args:
      tokens: [n].
      size: the bytes of text that they stand for.

    Returns:
      tokens [k, length + 1]; `skip` int32 [k], labels at the front that do not count, here 0; and `bytes` float32
      [k], the text that the labels stand for on average.
    """
    if stride < 1:
        raise ConfigError(f"config.data.stride={stride} must be at least 1: tokens from one window to the next")
    _enough(tokens, length)
    cut = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::stride]
    share = np.float32(length * size / len(tokens))
    return {
        "tokens": cut,
        "skip": np.broadcast_to(np.int32(0), len(cut)),
        "bytes": np.broadcast_to(share, len(cut)),
    }


def cover(tokens: np.ndarray, size: int, length: int) -> dict[str, np.ndarray]:
    """Windows to evaluate on, as above: every token but the first is a label that counts once.

    The last window reaches back over labels that counted before, and skips them.
    """
    _enough(tokens, length)
    labels = len(tokens) - 1
    starts = np.minimum(np.arange(0, labels, length), labels - length)
    skip = np.arange(len(starts)) * length - starts
    return {
        "tokens": np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[starts],
        "skip": skip.astype(np.int32),
        "bytes": ((length - skip) * (size / len(tokens))).astype(np.float32),
    }


def smallest(vocab: int) -> Any:
    """The smallest type that holds all ids."""
    return np.uint16 if vocab <= 1 << 16 else np.int32


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _separated(documents: Iterable[str]) -> Iterator[str]:
    """Chunks of the documents, and "" between one document and the next."""
    for index, document in enumerate(documents):
        if index:
            yield ""
        yield from chunks(document)


def chunks(document: str, size: int = _CHUNK) -> Iterator[str]:
    """Pieces of about `size` characters that end before white space, where tokenizers part words anyway."""
    start = 0
    boundary = re.compile(r"(?<=\S)(?=\s)")
    while start < len(document):
        found = boundary.search(document, start + size, start + 2 * size)
        end = found.start() if found else min(start + 2 * size, len(document))
        yield document[start:end]
        start = end


def _enough(tokens: np.ndarray, length: int) -> None:
    if len(tokens) <= length:
        raise DataError(
            f"a part of the text has only {len(tokens)} tokens, but config.data.length={length} needs at least"
            f" {length + 1}: give more text or shorter windows"
        )
