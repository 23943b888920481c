"""Rows of plain text for pre-training by text infilling: what `jtasks.ops.infilling` corrupts on the device."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jtasks.config import Config
from jtasks.data import stand_ins, text, tokenizers, tokens
from jtasks.errors import DataError
from jtasks.ops import infilling
from jtasks.ranges import Field

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Fields of a task that pre-trains on text, for its `defaults`.
FIELDS = {
    **text.FIELDS,
    "data.documents": Field(str, text.DOCUMENTS, "blank"),  # file, blank (separated by blank lines) or line
    "data.length": Field(int, "[2, 2e9]", 568),  # number of tokens of a row before the noise
    "data.packed": Field(bool, None, True),  # each document is corrupted, and attends to itself, alone
    **infilling.FIELDS,
}

SPLITS = ("train", "valid", "test")
SENTINEL, SENTINELS = "<extra_id_{}>", 100  # T5's names, and how many it has
MASKS = ("<mask>", "[MASK]")
DOCUMENTS = 8  # in a row, of a plan without data


def texts(config: Config) -> tokenizers.Corpus:
    """Return the documents of the train split; a tokenizer trained on them has T5's sentinels or BART's mask."""
    count = max(SENTINELS, infilling.sentinels(config))
    sentinels = tuple(SENTINEL.format(number) for number in reversed(range(count)))
    return tokens.corpus(config, sentinels if config.data.noise == "spans" else MASKS[:1])


def read(split: str, config: Config, tokenizer: "Tokenizer") -> dict[str, np.ndarray] | None:
    """Return the rows of a split, or None if there is no such split; together they have each token once.

    Returns:
      tokens [n, length], and `skip` int32 [n], the number of first tokens that the row before has already. In train the
      end of the text that fills no row is left out; else the last row overlaps the one before.

    Raises:
      DataError: the split has fewer tokens than a row.
    """
    stream, length = tokens.of_split(split, config, tokenizer), config.data.length
    if stream is None:
        return None
    ids, _ = stream
    if len(ids) < length:
        raise DataError(
            f"the {split} part of the text has only {len(ids)} tokens, fewer than config.data.length={length} of a row:"
            " give more text or shorter rows"
        )
    rows = np.lib.stride_tricks.sliding_window_view(ids, length)
    if split == "train":
        return {"tokens": rows[::length], "skip": np.broadcast_to(np.int32(0), len(rows[::length]))}
    starts = np.minimum(np.arange(0, len(ids), length), len(ids) - length)
    return {"tokens": rows[starts], "skip": (np.arange(len(starts)) * length - starts).astype(np.int32)}


def model_args(config: Config, tokenizer: "Tokenizer") -> dict[str, Any]:
    """Return the ids and numbers in config.model that the noise needs, and `max_length`, the longest side's positions.

    Raises:
      DataError: the tokenizer lacks the mask, or enough sentinels.
    """
    end = tokenizers.special(tokenizer, *tokens.ENDS)
    documents = max(_documents(split, config, tokenizer, end) for split in SPLITS) if config.data.packed else 1
    positions = max(infilling.lengths(config, documents))
    if config.data.noise == "infilling":
        stops = tuple(sorted(i for piece, i in tokenizer.get_vocab().items() if piece in (".", "▁.", "Ġ.", "##.")))
        return {
            "hide": tokenizers.special(tokenizer, *MASKS),
            "stops": stops if config.data.permute else (),
            "documents": documents,
            "max_length": positions,
        }
    first, count = tokenizers.special(tokenizer, SENTINEL.format(0)), infilling.sentinels(config)
    if any(tokenizer.token_to_id(SENTINEL.format(k)) != first - k for k in range(count)):
        raise DataError(
            f"config.data.length={config.data.length} may need {count} sentinels <extra_id_0> ... with ids that count"
            " down, which the tokenizer lacks: give shorter rows, or another config.data.tokenizer"
        )
    return {"hide": first, "documents": documents, "max_length": positions}


def made_example(config: Config, tokenizer: "Tokenizer") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return `model_args` and a row of `read`, from the config alone: a row has config.model.documents."""
    values = model_args(Config(config.to_dict() | {"data": config.data.to_dict() | {"packed": False}}), tokenizer)
    documents = config.model.documents or 1
    if config.model.documents is None and config.data.packed:
        documents = stand_ins.assumed("documents", DOCUMENTS, "the text has the number of documents in a row")
    values |= {"documents": documents, "max_length": max(infilling.lengths(config, documents))}
    kind = tokens.token_dtype(tokenizers.size(tokenizer))
    return values, {"tokens": np.zeros(config.data.length, kind), "skip": np.array(0, np.int32)}


def _documents(split: str, config: Config, tokenizer: "Tokenizer", end: int) -> int:
    """Return the largest number of documents in a row of a split."""
    rows = read(split, config, tokenizer)
    if rows is None:
        return 1
    chunks = np.array_split(rows["tokens"], -(-rows["tokens"].size // (1 << 24)))  # the text may exceed memory
    return 1 + max(int(np.max(np.sum(chunk == end, axis=1))) for chunk in chunks)
