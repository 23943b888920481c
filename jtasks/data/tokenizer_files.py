"""Tokenizers in their usual files.

tokenizer.json, BERT's vocab.txt, GPT-2's and CLIP's vocab.json and merges.txt, T5's spiece.model, and Marian's
source.spm and target.spm with a vocab.json.

Like transformers, reads the files beside them too: tokenizer_config.json says whether to lower-case and names the
special tokens (as does special_tokens_map.json), added_tokens.json lists later tokens.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jtasks.console import warn
from jtasks.data import sentence_pieces
from jtasks.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILE = "tokenizer.json"
TARGET_FILE = "target_tokenizer.json"  # in a run's folder, of a task whose targets have a tokenizer of their own
PIECES, SOURCE, TARGET = "spiece.model", "source.spm", "target.spm"  # of SentencePiece: T5's, and Marian's two
NAMES = (FILE, SOURCE, "vocab.txt", "vocab.json", PIECES)  # in a folder, the first one is read
VOCABULARY, TARGET_VOCABULARY = "vocab.json", "target_vocab.json"
MARIAN = (SOURCE, TARGET, VOCABULARY, TARGET_VOCABULARY)
BESIDE = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *(VOCABULARY, TARGET_VOCABULARY),
)
CONFIG, MAP, ADDED, MERGES = BESIDE[:4]

LARGEST_FILE = 2**28  # bytes; the largest in use have about 2**25
MOST_IDS = 2**24  # more ids than any vocabulary has; an embedding of them would not fit into memory
WORD_END = "</w>"  # at the end of words in CLIP's vocabulary
CLIP_START, END = "<|startoftext|>", "<|endoftext|>"
UNSEEN = "a \U0001f9ff"  # text with a character that few vocabularies have


def read(path: pathlib.Path, lowercase: bool) -> "Tokenizer":
    """Read a tokenizer and the files beside it, without its truncation and padding.

    Args:
      path: a file of NAMES, or of another name with the same content.
      lowercase: whether a WordPiece vocabulary drops case and accents, if tokenizer_config.json does not say.

    Raises:
      DataError: a file is absent, too large or damaged, or the tokenizer cannot be used.
    """
    settings = _settings(path.parent)
    if path.suffix in (".model", ".spm"):
        tokenizer = _sentence_pieces(path, settings)
    elif path.name.endswith("vocab.json"):
        tokenizer = _byte_pairs(path, settings)
    elif path.suffix == ".json":
        tokenizer = _parse(path, _text(path))
        _normalize(tokenizer, settings, lowercase)
    else:
        tokenizer = _vocabulary(path, settings, lowercase)
    tokenizer = _add_tokens(tokenizer, _added_tokens(path.parent, settings), path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with as_data_error(f"{path} cannot be used"):
        tokenizer.encode(UNSEEN, add_special_tokens=False)
    if not 0 < size(tokenizer) <= MOST_IDS:
        raise DataError(f"{path} has ids up to {size(tokenizer) - 1}: expected 0 to at most {MOST_IDS - 1}")
    return tokenizer


def size(tokenizer: "Tokenizer") -> int:
    """Return the number of rows of an embedding of the ids: the largest id + 1, as ids may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


@contextlib.contextmanager
def as_data_error(what: str) -> Iterator[None]:
    """Convert any exception of the library to a DataError, including panics in Rust, which are not an Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{what} ({' '.join(str(error).split())[:200]}): give another config.data.tokenizer") from None


def wordpiece(vocabulary: dict[str, int], lowercase: bool, settings: Mapping[str, Any] = {}) -> "Tokenizer":
    """Make BERT's tokenizer; `settings` may set special tokens and normalization, as in tokenizer_config.json."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    names = {token: settings.get(f"{token[1:-1].lower()}_token", token) for token in BERT}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=names["[UNK]"], max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    end, start = names["[SEP]"], names["[CLS]"]
    if start in vocabulary and end in vocabulary:
        tokenizer.post_processor = processors.BertProcessing((end, vocabulary[end]), (start, vocabulary[start]))
    tokenizer.add_special_tokens([token for token in names.values() if token in vocabulary])
    return tokenizer


def byte_level(model: Any, *, split: bool, prefix: bool = False) -> "Tokenizer":
    """Make a tokenizer of bytes; `split` first cuts the text into words, as GPT-2 does; `prefix` prepends a blank."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _clip(vocabulary: dict[str, int], merges: Any, settings: Mapping[str, Any]) -> "Tokenizer":
    """Make CLIP's tokenizer (Radford et al. 2021) as transformers does: lower case, and a mark at the end of words."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    start, end = (settings.get(f"{role}_token", token) for role, token in (("bos", CLIP_START), ("eos", END)))
    unknown = settings.get("unk_token", end)
    model = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=WORD_END, unk_token=unknown)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    marks = "|".join(re.escape(mark) for mark in (CLIP_START, END))
    words = Regex(rf"{marks}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]), (start, vocabulary[start]), trim_offsets=False, add_prefix_space=False
    )
    names = {start, end, unknown, settings.get("pad_token", end)}
    tokenizer.add_special_tokens(sorted(name for name in names if name in vocabulary))
    return tokenizer


def _text(path: pathlib.Path) -> str:
    """Read a file's text without a byte order mark, with newlines as line ends."""
    try:
        if (bytes_ := path.stat().st_size) > LARGEST_FILE:
            raise DataError(f"tokenizer {path} has {bytes_:,} bytes: expected at most {LARGEST_FILE:,}")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"tokenizer {path} cannot be read ({error}): expected a text file in UTF-8") from None


def _json(path: pathlib.Path) -> dict[str, Any]:
    """Read the JSON object in a file; empty if there is no file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}): expected a JSON object") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}: expected a JSON object")
    return content


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    """Merge tokenizer_config.json and special_tokens_map.json; special tokens become text, and null means absent."""
    merged = {**_json(folder / MAP), **_json(folder / CONFIG)}
    settings = {}
    for name, value in merged.items():
        if name.endswith("_token") and isinstance(value, dict):
            value = value.get("content")
        kind = _KINDS.get(name, str if name.removesuffix("_token") in _ROLES else None)
        if kind and value is not None and not isinstance(value, kind):
            raise DataError(f"{folder / CONFIG}: {name} is {value!r}, expected {kind.__name__}")
        if value is not None:
            settings[name] = value
    return settings


_ROLES = ("unk", "cls", "sep", "pad", "mask", "bos", "eos")
_KINDS = {
    **dict.fromkeys(("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"), bool),
    "separate_vocabs": bool,
    "extra_ids": int,
    "added_tokens_decoder": dict,
}


def _added_tokens(folder: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the added tokens with their ids and properties, in the form of tokenizer.json."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False) | {"normalized": True}
    tokens = {content: plain | {"id": i} for content, i in _json(folder / ADDED).items()}
    for i, properties in settings.get("added_tokens_decoder", {}).items():
        if not isinstance(properties, dict) or not isinstance(properties.get("content"), str) or not i.isdecimal():
            raise DataError(f"{folder / CONFIG}: added_tokens_decoder has {i!r}: {properties!r}; expected a token")
        known = {name: value for name, value in properties.items() if name in plain}
        tokens[properties["content"]] = plain | known | {"id": int(i)}
    for content, token in tokens.items():
        if isinstance(token["id"], bool) or not isinstance(token["id"], int) or not 0 <= token["id"] < MOST_IDS:
            raise DataError(
                f"{folder}: the added token {content!r} has the id {token['id']!r}, expected a small number"
            )
    return tokens


def _add_tokens(tokenizer: "Tokenizer", added: Mapping[str, dict[str, Any]], path: pathlib.Path) -> "Tokenizer":
    """Return the tokenizer with the added tokens under their own ids."""
    from tokenizers import Tokenizer

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = {content: token for content, token in added.items() if content and content not in known}
    if missing:
        state = json.loads(tokenizer.to_str())
        entries = [*state["added_tokens"], *({"content": text} | token for text, token in missing.items())]
        vocabulary = state["model"].get("vocab")
        if isinstance(vocabulary, dict):  # the library would number tokens that are absent here
            vocabulary.update({text: token["id"] for text, token in missing.items() if text not in vocabulary})
        state["added_tokens"] = sorted(entries, key=lambda entry: entry["id"])
        with as_data_error(f"the tokens added to {path} cannot be used"):
            tokenizer = Tokenizer.from_str(json.dumps(state))
    for content, token in added.items():
        if content and tokenizer.token_to_id(content) != token["id"]:
            raise DataError(
                f"{path} gives {content!r} the id {tokenizer.token_to_id(content)}, while {ADDED} or {CONFIG} beside it"
                f" says {token['id']}: save the tokenizer again, or give another config.data.tokenizer"
            )
    return tokenizer


def _parse(path: pathlib.Path, text: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    with as_data_error(f"{path} is not a tokenizer in JSON of the tokenizers library"):
        return Tokenizer.from_str(text)


def _normalize(tokenizer: "Tokenizer", settings: Mapping[str, Any], lowercase: bool) -> None:
    """Apply tokenizer_config.json to the normalizer in a BERT's tokenizer.json, as transformers does."""
    from tokenizers.normalizers import BertNormalizer

    normalizer = tokenizer.normalizer
    if not isinstance(normalizer, BertNormalizer):
        return
    own = {} if settings.get("tokenizer_class") == "PreTrainedTokenizerFast" else settings
    chosen = _lowercase(own.get("do_lower_case", normalizer.lowercase), lowercase)
    tokenizer.normalizer = BertNormalizer(
        clean_text=normalizer.clean_text,
        lowercase=chosen,
        strip_accents=own.get("strip_accents", normalizer.strip_accents),
        handle_chinese_chars=own.get("tokenize_chinese_chars", normalizer.handle_chinese_chars),
    )


def _lowercase(theirs: bool, ours: bool) -> bool:
    """Choose whether to lower-case: the tokenizer's files override config.data.lowercase, with a warning."""
    if theirs != ours:
        warn(f"the tokenizer's files say do_lower_case={theirs}: config.data.lowercase={ours} is not used")
    return theirs


def _vocabulary(path: pathlib.Path, settings: Mapping[str, Any], lowercase: bool) -> "Tokenizer":
    """Read a WordPiece tokenizer from BERT's file of one piece per line; an empty line takes an id but is no piece."""
    vocabulary: dict[str, int] = {}
    for i, piece in enumerate(_text(path).split("\n")):
        if piece in vocabulary:
            raise DataError(f"{path} has {piece!r} twice, in line {i + 1} again: expected one piece a line")
        if piece:
            vocabulary[piece] = i
    unknown = settings.get("unk_token", "[UNK]")
    if unknown not in vocabulary:
        raise DataError(f"{path} has no line {unknown}: expected a BERT vocabulary, one piece a line")
    return wordpiece(vocabulary, _lowercase(settings.get("do_lower_case", lowercase), lowercase), settings)


def _sentence_pieces(path: pathlib.Path, settings: Mapping[str, Any]) -> "Tokenizer":
    """Convert a model of SentencePiece: T5's, SigLIP's, or one of Marian's two, whose ids a file beside it has."""
    made_for = settings.get("tokenizer_class", "T5").removesuffix("Fast").removesuffix("Tokenizer")
    if path.suffix == ".model":
        if made_for not in ("T5", "Siglip", "PreTrained"):
            raise DataError(
                f"{path} is the model of a {made_for}Tokenizer, and only models of T5, SigLIP and Marian can be"
                f" converted: save the tokenizer with transformers, which writes a {FILE}, and give that file as"
                " config.data.tokenizer"
            )
        model = sentence_pieces.read(path)
        with as_data_error(f"{path} cannot be converted"):
            convert = sentence_pieces.siglip if made_for == "Siglip" else sentence_pieces.t5
            return convert(model, settings)
    own = settings.get("separate_vocabs", False) and path.name == TARGET
    beside = path.with_name(TARGET_VOCABULARY if own else VOCABULARY)
    if not beside.exists():
        raise DataError(f"{path} needs {beside.name} beside it, which gives the ids of the pieces: copy it there")
    vocabulary = _json(beside)
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in vocabulary.values()):
        raise DataError(f"{beside} has pieces without a number: expected an id for each piece")
    model = sentence_pieces.read(path)
    with as_data_error(f"{path} cannot be converted"):
        return sentence_pieces.marian(model, vocabulary, settings)


def _byte_pairs(path: pathlib.Path, settings: Mapping[str, Any]) -> "Tokenizer":
    """Read GPT-2's tokenizer, or CLIP's, from its vocabulary and the merges beside it."""
    from tokenizers import models

    merges = path.with_name(path.name.replace("vocab.json", MERGES))
    pairs = []
    for number, line in enumerate(_text(merges).split("\n"), 1):
        if line.strip() and not line.startswith("#version"):
            pair = line.split(" ")
            if len(pair) != 2:
                raise DataError(f"{merges}, line {number}: {line[:80]!r}; expected two pieces with a blank between")
            pairs.append((pair[0], pair[1]))
    vocabulary = _json(path)
    with as_data_error(f"{path} and {merges.name} are not byte-level BPE"):
        if any(piece.endswith(WORD_END) for piece in vocabulary):
            return _clip(vocabulary, pairs, settings)
        tokenizer = byte_level(
            models.BPE(vocabulary, pairs), split=True, prefix=settings.get("add_prefix_space", False)
        )
    names = [settings[f"{role}_token"] for role in _ROLES if f"{role}_token" in settings] or ["<|endoftext|>"]
    tokenizer.add_special_tokens([name for name in names if tokenizer.token_to_id(name) is not None])
    return tokenizer
