"""Text as one long memory-mapped stream of token ids, and the windows of it that a language model reads."""

import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jtasks.config import Config
from jtasks.console import warn
from jtasks.data import files, store, text, tokenizers
from jtasks.data.tokenizers import END, special
from jtasks.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENDS = (END, "[SEP]", "</s>")  # end of a document in the common vocabularies

_CHUNK = 1 << 16  # number of characters tokenized at once
_BATCH = 64  # number of chunks tokenized in parallel


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
    """Return the tokens [n] of one part of the text, and its size in bytes of UTF-8; tokenized once, in parallel.

    The result is None if the fraction `valid` is less than one document. The tokenizer's end of a document stands
    between documents and counts as one byte. For the arguments see `text.documents` and `store.load_or_make`.

    Raises:
      DataError: the part is empty.
    """

    def write(writer: store.Writer) -> None:
        separated = _separate(text.documents(paths, kind, split, seed=seed, valid=valid))
        size, end = 0, -1
        for batch in batches(separated, _BATCH):
            rows: list[int] = []
            encoded = iter(tokenizers.encode(tokenizer, [part for part in batch if part], offsets=False))
            for part in batch:
                if not part and end < 0:
                    end = special(tokenizer, *ENDS)
                rows += next(encoded).ids if part else [end]
                size += len(part.encode()) if part else 1
            writer.append("tokens", np.array(rows, token_dtype(tokenizers.size(tokenizer))))
        writer.facts["bytes"] = size

    parts = [files.identity(paths, kind, split, seed if kind != "file" else 0, valid), tokenizer.to_str()]
    arrays, facts = store.load_or_make("tokens", parts, folder, write)
    if "tokens" not in arrays and split == "valid" and valid:
        warn(f"no document of the text falls into the share valid={valid:g}: there is no valid split")
        return None
    if "tokens" not in arrays:
        raise DataError(f"the {split} part of the text is empty: {', '.join(map(str, paths))}")
    return arrays["tokens"], facts["bytes"]


def corpus(config: Config, special: tuple[str, ...] = ()) -> tokenizers.Corpus:
    """Return the documents of the train split in pieces; a tokenizer trained on them has the `special` tokens."""
    source, kind = text.source("train", config.data, files.data_folder(config.data.dir)), config.data.documents
    assert source is not None  # every task has a train split

    def read() -> Iterator[str]:
        for document in text.documents(source.paths, kind, seed=config.seed, valid=source.valid):
            yield from chunks(document)

    return tokenizers.Corpus(read, files.identity(source.paths, kind, config.seed, source.valid), special)


def of_split(split: str, config: Config, tokenizer: "Tokenizer") -> tuple[np.ndarray, int] | None:
    """Return the `stream` of one split of config.data.files, or None if there is no such split."""
    folder = files.data_folder(config.data.dir)
    source = text.source(split, config.data, folder)
    return source and stream(
        source.paths,
        config.data.documents,
        source.part,
        tokenizer,
        seed=config.seed,
        valid=source.valid,
        folder=folder,
    )


def windows(tokens: np.ndarray, size: int, length: int, stride: int) -> dict[str, np.ndarray]:
    """Return windows to train on: `length` + 1 tokens from every `stride`-th position; views, not copies.

    Args:
      tokens: [n].
      size: number of bytes of text in `tokens`.

    Returns:
      tokens [k, length + 1]; `skip` int32 [k], number of first labels that do not count, here 0; and `bytes` float32
      [k], the average bytes of text of the labels.

    Raises:
      ConfigError: `stride` is below 1.
      DataError: there are fewer than `length` + 1 tokens.
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


def eval_windows(tokens: np.ndarray, size: int, length: int) -> dict[str, np.ndarray]:
    """Return windows to evaluate on, as `windows` does: every token but the first is a label that counts once.

    The last window overlaps the one before it and skips the labels that counted already.
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


def prompts(tokenizer: "Tokenizer", texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
    """Return texts to continue, without labels: the last `length` tokens of each, padded at the end.

    Returns:
      tokens [n, `length` + 1] as in `windows`; and `given` int32 [n], the number of tokens that are no padding.

    Raises:
      DataError: a text has no tokens.
    """
    arrays = np.zeros((len(texts), length + 1), token_dtype(tokenizers.size(tokenizer)))
    given = np.zeros(len(texts), np.int32)
    for i, encoding in enumerate(tokenizers.encode(tokenizer, texts, offsets=False)):
        ids = encoding.ids[-length:]
        if not ids:
            raise DataError(f"{texts[i]!r} has no tokens; expected at least one, to be continued")
        arrays[i, : len(ids)], given[i] = ids, len(ids)
    return {"tokens": arrays, "given": given}


def token_dtype(vocab: int) -> Any:
    """Return the smallest type that holds all ids."""
    return np.uint16 if vocab <= 1 << 16 else np.int32


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _separate(documents: Iterable[str]) -> Iterator[str]:
    """Yield chunks of the documents, with "" between documents."""
    for index, document in enumerate(documents):
        if index:
            yield ""
        yield from chunks(document)


def chunks(document: str, size: int = _CHUNK) -> Iterator[str]:
    """Yield pieces of about `size` characters that end before white space, where tokenizers split words anyway."""
    start = 0
    boundary = re.compile(r"(?<=\S)(?=\s)")
    while start < len(document):
        match = boundary.search(document, start + size, start + 2 * size)
        end = match.start() if match else min(start + 2 * size, len(document))
        yield document[start:end]
        start = end


def _enough(tokens: np.ndarray, length: int) -> None:
    if len(tokens) <= length:
        raise DataError(
            f"a part of the text has only {len(tokens)} tokens, but config.data.length={length} needs at least"
            f" {length + 1}: give more text or shorter windows"
        )
