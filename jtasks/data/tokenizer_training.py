"""Tokenizers that are made here: of the bytes, or trained on texts."""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jtasks.data.tokenizer_files import BERT, byte_level, wordpiece
from jtasks.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"  # GPT-2's end of a document

_ALPHABET = 1000  # maximum number of characters in a trained WordPiece vocabulary


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts that can be read again and again; `identity` distinguishes them from any others.

    A tokenizer that is trained on the texts also has the `special` tokens, whose ids follow one another.
    """

    read: Callable[[], Any]
    identity: str
    special: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str]:
        return iter(self.read())


def train(spec: str, lowercase: bool, corpus: Corpus) -> "Tokenizer":
    """Train `characters`, `wordpiece:N` or `bpe:N` on texts; the same texts give the same tokenizer.

    Raises:
      ConfigError: N is less than the characters of the texts take.
      DataError: there is no text.
    """
    if not any(text.strip() for text in corpus):
        raise DataError("there is no text to train the tokenizer on: the files are empty")
    kind, _, size = spec.partition(":")
    if kind == "characters":
        return _characters(corpus)
    tokenizer = _train_bpe(int(size), corpus) if kind == "bpe" else _train_wordpiece(int(size), lowercase, corpus)
    if tokenizer.get_vocab_size() > int(size):
        raise ConfigError(
            f"the tokenizer {spec!r} is too small: the characters of this text alone take"
            f" {tokenizer.get_vocab_size()} of its pieces; choose a larger N"
        )
    return tokenizer


def _characters(corpus: Corpus) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {char: i for i, char in enumerate(["[UNK]", *sorted(set().union(*map(set, corpus)))])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="[UNK]"))  # BPE without merges: single characters
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["[UNK]", END, *corpus.special])
    return tokenizer


def _train_bpe(pieces: int, corpus: Corpus) -> "Tokenizer":
    from tokenizers import models, trainers

    tokenizer = byte_level(models.BPE(), split=True)
    special = [END, *corpus.special]
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, special_tokens=special, initial_alphabet=byte_chars(), show_progress=False
    )
    tokenizer.train_from_iterator(iter(corpus), trainer)
    return tokenizer


def _train_wordpiece(pieces: int, lowercase: bool, corpus: Corpus) -> "Tokenizer":
    """Train WordPiece with a fixed alphabet.

    The library breaks ties by the ids of the characters, and assigns the ids in an order that changes from run to run.
    Passing the characters as special tokens fixes their ids.
    """
    from tokenizers import trainers

    tokenizer = wordpiece({"[UNK]": 0}, lowercase)
    alphabet, inside = _alphabet(tokenizer, corpus)
    trainer = trainers.WordPieceTrainer(
        vocab_size=pieces,
        special_tokens=[*BERT, *corpus.special, *alphabet, *(f"##{char}" for char in inside)],
        limit_alphabet=0,
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(corpus), trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]["vocab"]
    whole = wordpiece(model, lowercase)
    whole.add_special_tokens(list(corpus.special))
    return whole


def _alphabet(tokenizer: "Tokenizer", corpus: Corpus) -> tuple[list[str], list[str]]:
    """Return the commonest characters in code order, and those that occur inside words."""
    chunks: collections.Counter[str] = collections.Counter()
    for text in corpus:
        chunks.update(tokenizer.normalizer.normalize_str(text).split())
    counts: collections.Counter[str] = collections.Counter()
    inside: set[str] = set()
    for chunk, count in chunks.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(chunk):
            inside.update(word[1:])
            for char in word:
                counts[char] += count
    alphabet = sorted(sorted(counts, key=lambda char: (-counts[char], char))[:_ALPHABET])
    return alphabet, [char for char in alphabet if char in inside]


@functools.lru_cache(maxsize=1)
def of_bytes() -> "Tokenizer":
    """Make the tokenizer with the bytes as ids 0 to 255, and 256 for the end of a document."""
    from tokenizers import models

    vocabulary = {char: byte for byte, char in enumerate(byte_chars())}
    tokenizer = byte_level(models.BPE(vocabulary, []), split=False)
    tokenizer.add_special_tokens([END])
    return tokenizer


def byte_chars() -> list[str]:
    """Return the character that stands for each byte in a byte-level vocabulary (Radford et al. 2019).

    Printable characters of Latin-1 stand for themselves, characters from U+0100 on for the other bytes.

    >>> byte_chars()[ord("a")], byte_chars()[ord(" ")]
    ('a', 'Ġ')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
