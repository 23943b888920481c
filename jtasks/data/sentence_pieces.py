"""SentencePiece models (Kudo and Richardson 2018) as tokenizers of the `tokenizers` library: T5's, SigLIP's, Marian's.

A `.model` or `.spm` file is a protocol buffer. Only the fields that tokenizing needs are read here.
"""

import functools
import json
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jtasks.data import protobuf
from jtasks.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "\u2581"  # stands for a blank in pieces
UNIGRAM, NORMAL, CONTROL, USER, BYTE = 1, 1, 3, 4, 6  # kinds of a model, and of a piece
KINDS = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
EXTRA = "<extra_id_{}>"  # T5's sentinels, in falling order after the pieces
PUNCTUATION = r"[!-/:-@\[-`{-~]"  # in ASCII


class Model(NamedTuple):
    """The content of a SentencePiece file."""

    pieces: list[tuple[str, float, int]]  # text, score and kind
    kind: int  # of the model
    unknown: int  # id of the unknown piece
    byte_fallback: bool  # unknown characters become pieces of bytes
    charsmap: bytes  # normalization of characters, compiled
    prefix: bool  # a blank is put before the text
    trim: bool  # blanks around the text, and repeated blanks, go
    escape: bool  # blanks become SPACE


def read(path: pathlib.Path) -> Model:
    """Read a SentencePiece model.

    Raises:
      DataError: the file is absent, damaged or of a kind that cannot be converted.
    """
    try:
        message = _fields(path.read_bytes())
        pieces = [_piece(_fields(value)) for value in message.get(1, [])]
        trainer, normalizer = (_fields(message[number][-1]) if number in message else {} for number in (2, 3))
        last = lambda fields, number, default: fields.get(number, [default])[-1]  # noqa: E731
        model = Model(
            pieces=pieces,
            kind=last(trainer, 3, UNIGRAM),
            unknown=last(trainer, 40, 0),
            byte_fallback=bool(last(trainer, 35, 0)),
            charsmap=last(normalizer, 2, b""),
            prefix=bool(last(normalizer, 3, 1)),
            trim=bool(last(normalizer, 4, 1)),
            escape=bool(last(normalizer, 5, 1)),
        )
    except (OSError, ValueError, IndexError, TypeError, struct.error) as error:
        raise DataError(f"{path} cannot be read ({error}): expected a model of SentencePiece") from None
    if not pieces or not 0 <= model.unknown < len(pieces):
        raise DataError(f"{path} has no pieces: expected a model of SentencePiece")
    if model.kind != UNIGRAM:
        raise DataError(
            f"{path} is a {KINDS.get(model.kind, model.kind)} model of SentencePiece, and only unigram models can be"
            " converted: save the tokenizer with transformers, which writes a tokenizer.json, and give that file as"
            " config.data.tokenizer"
        )
    return model


def t5(model: Model, settings: Mapping[str, Any]) -> "Tokenizer":
    """Make T5's tokenizer (Raffel et al. 2020) as transformers does: white space separates words, sentinels follow.

    Args:
      model: of the file spiece.model.
      settings: tokenizer_config.json: `extra_ids`, the number of sentinels, and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    extra = [EXTRA.format(i) for i in reversed(range(settings.get("extra_ids", 100)))]
    vocabulary = [(text, score) for text, score, _ in model.pieces] + [(text, 0.0) for text in extra]
    tokenizer = Tokenizer(models.Unigram(vocabulary, model.unknown, byte_fallback=False))
    if model.charsmap:
        tokenizer.normalizer = normalizers.Precompiled(model.charsmap)
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    special = [settings.get(f"{role}_token", token) for role, token in _special()]
    special += [text for text, _, kind in model.pieces if kind in (CONTROL, USER)] + extra
    known = {text for text, _ in vocabulary}
    tokenizer.add_special_tokens([token for token in dict.fromkeys(special) if token in known])
    end = settings.get("eos_token", "</s>")
    if end in known:
        ids = [(end, tokenizer.token_to_id(end))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", end], pair=["$A", end, "$B", end], special_tokens=ids
        )
    return tokenizer


def siglip(model: Model, settings: Mapping[str, Any]) -> "Tokenizer":
    """Make SigLIP's tokenizer (Zhai et al. 2023): T5's without sentinels, for texts without case and punctuation.

    Args:
      model: of the file spiece.model.
      settings: tokenizer_config.json: `do_lower_case`, and the special tokens.
    """
    from tokenizers import Regex, normalizers

    tokenizer = t5(model, {**settings, "extra_ids": 0})
    steps: list[Any] = [normalizers.Lowercase()] if settings.get("do_lower_case", True) else []
    steps.append(normalizers.Replace(Regex(PUNCTUATION), ""))
    own = tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence([*steps, *([own] if own else [])])
    return tokenizer


def marian(model: Model, vocabulary: Mapping[str, int], settings: Mapping[str, Any]) -> "Tokenizer":
    """Make Marian's tokenizer of one side: the pieces of its model under the ids of a vocabulary.

    Pieces that the vocabulary lacks are left out, so their parts stand for them. The other side's pieces never occur in
    a text: a blank before them sees to that, as SPACE replaces all blanks of a text. They serve to decode, and for
    unknown text (see `ids`). A code such as `>>fra<<` that the vocabulary has is one token.

    Args:
      model: of source.spm or target.spm.
      vocabulary: of vocab.json, ids from 0 without gaps.
      settings: tokenizer_config.json, for the special tokens.

    Raises:
      DataError: the ids have gaps, or there is no unknown token.
    """
    from tokenizers import Tokenizer, models, processors

    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise DataError("the vocabulary of a Marian tokenizer must number its pieces from 0 without gaps")
    unknown, end = (settings.get(f"{role}_token", token) for role, token in (("unk", "<unk>"), ("eos", "</s>")))
    if unknown not in vocabulary:
        raise DataError(f"the vocabulary of a Marian tokenizer has no {unknown}")
    scores = {text: score for text, score, kind in model.pieces if kind in (NORMAL, USER, BYTE)}
    codes = [text for text in vocabulary if text.startswith(">>") and text.endswith("<<")]
    special = [
        text for role, name in _special() for text in [settings.get(f"{role}_token", name)] if text in vocabulary
    ]
    lowest = min(scores.values(), default=0.0)
    pieces = [
        (text if text in scores or text in special + codes else f" {text}", scores.get(text, lowest))
        for text in sorted(vocabulary, key=vocabulary.__getitem__)
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, vocabulary[unknown], byte_fallback=model.byte_fallback))
    _as_sentencepiece(tokenizer, model)
    tokenizer.add_special_tokens([*special, *codes])
    if end in vocabulary:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", end], pair=["$A", "$B", end], special_tokens=[(end, vocabulary[end])]
        )
    return tokenizer


def needs_tokens(tokenizer: "Tokenizer") -> bool:
    """Return whether `ids` needs the tokens of encodings, which the fast way to encode leaves out."""
    return bool(_others(tokenizer)[1])


def ids(tokenizer: "Tokenizer", encodings: Sequence[Any]) -> list[list[int]]:
    """Return the ids of encoded texts; with Marian's tokenizer, unknown text may be a piece of the other side.

    As in transformers, which looks up the pieces of one side's model in the vocabulary of both sides.
    """
    unknown, others = _others(tokenizer)
    if not others:
        return [encoding.ids for encoding in encodings]
    return [
        [others.get(text, i) if i == unknown else i for i, text in zip(encoding.ids, encoding.tokens, strict=True)]
        if unknown in encoding.ids
        else encoding.ids
        for encoding in encodings
    ]


@functools.lru_cache(maxsize=8)
def _others(tokenizer: "Tokenizer") -> tuple[int | None, dict[str, int]]:
    """Return the id of unknown text, and the ids of the other side's pieces; {} if the tokenizer is not Marian's."""
    from tokenizers import models

    if not isinstance(tokenizer.model, models.Unigram):
        return None, {}
    others = {text[1:]: i for text, i in tokenizer.get_vocab().items() if text.startswith(" ")}
    return (json.loads(tokenizer.to_str())["model"]["unk_id"] if others else None), others


def _special() -> tuple[tuple[str, str], ...]:
    """Return the roles of special tokens with their usual texts."""
    return (("eos", "</s>"), ("unk", "<unk>"), ("pad", "<pad>"))


def _as_sentencepiece(tokenizer: "Tokenizer", model: Model) -> None:
    """Give a tokenizer the normalization of SentencePiece, which cuts texts into no words, and its decoding."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.trim:  # other white space than blanks stays
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.escape:
        steps.append(normalizers.Replace(" ", SPACE))
    cuts: list[Any] = []
    if model.prefix:  # the library leaves a text that begins with SPACE as it is, SentencePiece does not
        steps.append(normalizers.Replace(Regex(rf"\A{SPACE}"), SPACE * 2))
        cuts.append(pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=False))
    whole = [text for text, _, kind in model.pieces if kind == USER]
    if whole:
        pattern = "|".join(_escape(text) for text in sorted(whole, key=len, reverse=True))
        cuts.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    back: list[Any] = [decoders.Replace(" ", ""), decoders.Replace(SPACE, " ")]
    back += [decoders.ByteFallback()] if model.byte_fallback else []
    tokenizer.decoder = decoders.Sequence([*back, decoders.Fuse(), decoders.Strip(content=" ", left=1)])


def _escape(text: str) -> str:
    return "".join(f"\\{char}" if not char.isalnum() and char.isascii() else char for char in text)


def _piece(fields: Mapping[int, Sequence[Any]]) -> tuple[str, float, int]:
    score = struct.unpack("<f", fields[2][-1])[0] if 2 in fields else 0.0
    return fields[1][-1].decode("utf-8"), float(score), fields[3][-1] if 3 in fields else NORMAL


def _fields(data: bytes) -> dict[int, list[Any]]:
    """Return the values of a message by the numbers of its fields: numbers, or bytes."""
    values: dict[int, list[Any]] = {}
    for number, kind, content in protobuf.fields(memoryview(data)):
        value = protobuf.varint(content, 0)[0] if kind == protobuf.VARINT else bytes(content)
        values.setdefault(number, []).append(value)
    return values
