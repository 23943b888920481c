"""Tokenizers of text, as objects of the `tokenizers` library: read from files, or trained on the run's own text.

| spec | tokenizer |
|---|---|
| path of a `vocab.txt` | BERT's WordPiece (Devlin et al. 2019), lower-cased or not: tokenizer_config.json decides |
| path of a `tokenizer.json`, or of a folder that holds one | what the file says; a run's workdir is such a folder |
| path of a `vocab.json` beside a `merges.txt` | GPT-2's byte-level BPE |
| `bytes` | the 256 bytes of UTF-8 |
| `characters` | the characters of the text |
| `wordpiece:N` | WordPiece (Wu et al. 2016) with N pieces, trained on the text |
| `bpe:N` | byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with N tokens, trained on the text |
"""

import collections
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jtasks.data import files, tokenizer_files
from jtasks.data.tokenizer_files import BERT, FILE, byte_level, size, wordpiece
from jtasks.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Texts = Callable[[], Iterator[str]]

END = "<|endoftext|>"  # GPT-2's end of a document

_ALPHABET = 1000  # most characters that a trained WordPiece vocabulary holds


def load(
    spec: str,
    *,
    lowercase: bool = True,
    texts: Texts | None = None,
    identity: str = "",
    folder: pathlib.Path | None = None,
) -> "Tokenizer":
    """The tokenizer that `spec` (config.data.tokenizer) names; the same object again for the same arguments.

    Trained ones are trained once and stored in `folder`/tokenizers, or in the user's cache folder where that cannot
    be written, under a name made from everything they depend on. Training gives the same file every time.

    Args:
      spec: see the module's table.
      lowercase: whether WordPiece drops case and accents; other kinds keep what the text has.
      texts: makes an iterator over the text to train on; needed by `characters`, `wordpiece:N` and `bpe:N` alone.
      identity: tells this text from any other; "" takes a digest of it, which reads it once.
      folder: the folder of data, where files with a relative path are looked for too.

    Raises:
      ConfigError: `spec` is none of the above, N is too small, or text to train on is not given.
      DataError: the file is absent or not what its name says, or there is no text.
    """
    kind, _, size = spec.partition(":")
    if spec == "bytes":
        return _bytes()
    if spec == "characters" or (kind in ("wordpiece", "bpe") and size):
        path = _trained(spec, lowercase, texts, identity, folder)
    else:
        path = _locate(spec, folder)
    return _read(path, lowercase, _changed(path))


def special(tokenizer: "Tokenizer", *names: str) -> int:
    """The id of a special token under the first of `names` that the tokenizer has.

    Raises:
      DataError: it has none of them.
    """
    for name in names:
        found = tokenizer.token_to_id(name)
        if found is not None:
            return found
    raise DataError(
        f"the tokenizer has no token {' or '.join(names)}, which this task needs: its vocabulary of"
        f" {size(tokenizer)} is made for another use; choose another config.data.tokenizer"
    )


def words(tokenizer: "Tokenizer") -> list[bool]:
    """Of each id, whether it begins a word: it is no continuation such as WordPiece's `##ing`.

    Raises:
      DataError: no id is one, so this is not WordPiece.
    """
    continues = {i for token, i in tokenizer.get_vocab().items() if token.startswith("##") and len(token) > 2}
    if not continues:
        raise DataError("the tokenizer has no pieces that go on a word, such as ##ing: whole words need WordPiece")
    return [i not in continues for i in range(size(tokenizer))]


def encode(tokenizer: "Tokenizer", texts: Sequence[Any], *, offsets: bool = True, split: bool = False) -> list[Any]:
    """The encodings of texts, or with `split` of lists of words, without special tokens; faster without `offsets`.

    Raises:
      DataError: the library cannot read a text, as one with half a surrogate pair.
    """
    run = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
    with tokenizer_files.told("the tokenizer cannot read a text of the data"):
        return run(list(texts), is_pretokenized=split, add_special_tokens=False)


def digest(texts: Iterator[str]) -> str:
    """A hash of texts that changes with any character of them, and with where one ends."""
    found = hashlib.blake2b(digest_size=16)
    for text in texts:
        found.update(text.encode("utf-8", "surrogatepass") + b"\xff")
    return found.hexdigest()


def assets(tokenizer: "Tokenizer") -> dict[str, str]:
    """What a run stores of its tokenizer, for a task's `assets`: the workdir is then a spec itself."""
    return {FILE: tokenizer.to_str(pretty=True)}


def parsed(text: str) -> "Tokenizer":
    """The tokenizer that a run has stored as `assets`."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


def _locate(spec: str, folder: pathlib.Path | None) -> pathlib.Path:
    """The tokenizer's file, as given or in the folder of data."""
    given = pathlib.Path(spec).expanduser()
    places = [given, *([folder / given] if folder else [])]
    names = [place / name for place in places for name in tokenizer_files.NAMES]
    for path in [place for place in places if place.is_file()] + names:
        if path.is_file():
            return path.resolve()
    folders = [place for place in places if place.is_dir()]
    if folders:
        raise ConfigError(f"no tokenizer in {folders[0]}: looked for {', '.join(tokenizer_files.NAMES)}")
    if not given.suffix and len(given.parts) == 1:
        raise ConfigError(
            f"unknown tokenizer config.data.tokenizer={spec!r}: expected bytes, characters, wordpiece:N, bpe:N,"
            f" or the path of a vocab.txt, of a {FILE} or of a folder that holds one"
        )
    raise ConfigError(
        f"no tokenizer at config.data.tokenizer={spec!r}: looked for {', '.join(map(str, places))}\n  what to do: put"
        " it there, name the folder of a model or of a run, or train one on the text, as wordpiece:8000 does"
    )


@functools.lru_cache(maxsize=16)
def _read(path: pathlib.Path, lowercase: bool, changed: tuple[int, ...]) -> "Tokenizer":
    return tokenizer_files.read(path, lowercase)


def _changed(path: pathlib.Path) -> tuple[int, ...]:
    """When the tokenizer's file and those beside it were last written; 0 for one that is absent."""
    files = [path, *(path.with_name(name) for name in tokenizer_files.BESIDE)]
    return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)


@functools.lru_cache(maxsize=1)
def _bytes() -> "Tokenizer":
    """Ids 0 to 255 are the bytes themselves, 256 is the end of a document."""
    from tokenizers import models

    vocabulary = {sign: byte for byte, sign in enumerate(byte_signs())}
    tokenizer = byte_level(models.BPE(vocabulary, []), split=False)
    tokenizer.add_special_tokens([END])
    return tokenizer


def byte_signs() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (Radford et al. 2019).

    Printable ones of Latin-1 stand for themselves, the others for those from U+0100 on.

    >>> byte_signs()[ord("a")], byte_signs()[ord(" ")]
    ('a', 'Ġ')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _trained(
    spec: str, lowercase: bool, texts: Texts | None, identity: str, folder: pathlib.Path | None
) -> pathlib.Path:
    """The file of a trained tokenizer, made if absent."""
    kind, _, size = spec.partition(":")
    least = {"characters": 0, "wordpiece": len(BERT) + 1, "bpe": 257}[kind]
    if kind != "characters" and (not size.isdecimal() or int(size) < least):
        raise ConfigError(f"the tokenizer {spec!r} should be {kind}:N with a whole number N of at least {least}")
    if texts is None:
        raise ConfigError(f"the tokenizer {spec!r} is trained on text, and there is none here: give a tokenizer's file")
    lowercase = lowercase and kind == "wordpiece"
    name = f"1 {spec} {lowercase} {identity or digest(texts())}"  # 1: the way of training; another one, another number
    file = f"{kind}{size}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.json"
    places = files.places(folder, "tokenizers", file)
    found = next((path for path in places if path.exists()), None)
    return found or files.store(places, _train(spec, lowercase, texts).to_str().encode(), "tokenizer")


def _train(spec: str, lowercase: bool, texts: Texts) -> "Tokenizer":
    if not any(text.strip() for text in texts()):
        raise DataError("there is no text to train the tokenizer on: the files are empty")
    kind, _, size = spec.partition(":")
    if kind == "characters":
        return _characters(texts)
    tokenizer = _train_bpe(int(size), texts) if kind == "bpe" else _train_wordpiece(int(size), lowercase, texts)
    if tokenizer.get_vocab_size() > int(size):
        raise ConfigError(
            f"the tokenizer {spec!r} is too small: the characters of this text alone take"
            f" {tokenizer.get_vocab_size()} of its pieces; choose a larger N"
        )
    return tokenizer


def _characters(texts: Texts) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {sign: i for i, sign in enumerate(["[UNK]", *sorted(set().union(*map(set, texts())))])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="[UNK]"))  # BPE without merges: single characters
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["[UNK]", END])
    return tokenizer


def _train_bpe(pieces: int, texts: Texts) -> "Tokenizer":
    from tokenizers import models, trainers

    tokenizer = byte_level(models.BPE(), split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, special_tokens=[END], initial_alphabet=byte_signs(), show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def _train_wordpiece(pieces: int, lowercase: bool, texts: Texts) -> "Tokenizer":
    """The library breaks ties by the ids of the characters, which it gives out in an order that changes from
    run to run; so all of them get their ids beforehand, as its special tokens.
    """
    from tokenizers import trainers

    tokenizer = wordpiece({"[UNK]": 0}, lowercase)
    alphabet, inside = _alphabet(tokenizer, texts)
    trainer = trainers.WordPieceTrainer(
        vocab_size=pieces,
        special_tokens=[*BERT, *alphabet, *(f"##{sign}" for sign in inside)],
        limit_alphabet=0,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]["vocab"]
    return wordpiece(model, lowercase)


def _alphabet(tokenizer: "Tokenizer", texts: Texts) -> tuple[list[str], list[str]]:
    """The commonest characters in code order, and those of them that occur inside words."""
    chunks: collections.Counter[str] = collections.Counter()
    for text in texts():
        chunks.update(tokenizer.normalizer.normalize_str(text).split())
    signs: collections.Counter[str] = collections.Counter()
    inside: set[str] = set()
    for chunk, count in chunks.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(chunk):
            inside.update(word[1:])
            for sign in word:
                signs[sign] += count
    alphabet = sorted(sorted(signs, key=lambda sign: (-signs[sign], sign))[:_ALPHABET])
    return alphabet, [sign for sign in alphabet if sign in inside]
