"""Tokenizers of text, as objects of the `tokenizers` library: read from files, or trained on the run's own text.

| spec | tokenizer |
|---|---|
| path of a `vocab.txt` | BERT's WordPiece (Devlin et al. 2019), lower-cased according to tokenizer_config.json |
| path of a `tokenizer.json`, or of a folder that holds one | as in the file; a run's workdir is such a folder |
| path of a `vocab.json` beside a `merges.txt` | GPT-2's byte-level BPE, or CLIP's, whose words end in `</w>` |
| path of a `spiece.model` | T5's SentencePiece (Kudo and Richardson 2018), or SigLIP's by tokenizer_config.json |
| path of a `source.spm` or `target.spm` beside a `vocab.json` | one of Marian's two; of a folder, that of the source |
| `hf:NAME[@REVISION]` | that of a model on the Hugging Face hub |
| `bytes` | the 256 bytes of UTF-8 |
| `characters` | the characters of the text |
| `wordpiece:N` | WordPiece (Wu et al. 2016) with N pieces, trained on the text |
| `bpe:N` | byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with N tokens, trained on the text |
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jtasks import storage, variants
from jtasks.config import Config
from jtasks.data import files, hub, tokenizer_files
from jtasks.data.tokenizer_files import BERT, FILE, byte_level, size, wordpiece
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import format_value

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Texts = Callable[[], Iterable[str] | None]

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


def of(config: Config, texts: Callable[[Config], Iterable[str] | None], *, fresh: bool = False) -> "Tokenizer":
    """Return the tokenizer that config.data names; if it is to be trained, it is trained on a task's `texts`.

    The texts are read once for their identity, unless `texts` returns a `Corpus`, which has one, and again if `fresh`.
    """
    if fresh:
        _corpus.cache_clear()
    data, folder = config.data, files.data_folder(config.data.dir)
    own = functools.partial(_corpus, config, texts, folder)
    return load(data.tokenizer, lowercase=data.lowercase, texts=own, folder=folder)


@functools.lru_cache(maxsize=4)
def _corpus(config: Config, texts: Callable[[Config], Iterable[str] | None], folder: pathlib.Path) -> Corpus | None:
    """Return a task's texts with their identity; `folder`, which the texts may depend on, keys the cache.

    For a mixture, these are the texts of all sources.
    """
    owns = [*variants.sources(config).values()] or [config]
    corpora = [corpus for own in owns if (corpus := _corpus_of(own, texts)) is not None]
    if len(corpora) < 2:
        return corpora[0] if corpora else None
    special = tuple(dict.fromkeys(token for corpus in corpora for token in corpus.special))
    return Corpus(
        lambda: itertools.chain.from_iterable(corpora), " ".join(corpus.identity for corpus in corpora), special
    )


def _corpus_of(config: Config, texts: Callable[[Config], Iterable[str] | None]) -> Corpus | None:
    given = texts(config)
    return given if given is None or isinstance(given, Corpus) else Corpus(lambda: texts(config), digest(given))


def load(
    spec: str,
    *,
    lowercase: bool = True,
    texts: Texts | None = None,
    folder: pathlib.Path | None = None,
) -> "Tokenizer":
    """Load the tokenizer `spec` (config.data.tokenizer); the same arguments return the same object.

    A tokenizer is trained once and stored in `folder`/tokenizers, or in the user's cache folder if that is not
    writable, under a name made from everything that it depends on. Training is deterministic.

    Args:
      spec: see the module's table.
      lowercase: whether WordPiece drops case and accents; other kinds keep the text as it is.
      texts: returns the texts to train on, the same each time; only needed by `characters`, `wordpiece:N` and `bpe:N`.
      folder: data folder, which is also searched for files with a relative path.

    Raises:
      ConfigError: `spec` is not in the table, N is too small, or text to train on is missing.
      DataError: the file is absent or not what its name says, or there is no text.
    """
    kind, _, size = spec.partition(":")
    if spec == "bytes":
        return _bytes()
    if spec == "characters" or (kind in ("wordpiece", "bpe") and size):
        path = _trained(spec, lowercase, texts, folder)
    else:
        path = _locate(spec, folder)
    return _read(path, lowercase, _modification_times(path))


def special(tokenizer: "Tokenizer", *names: str) -> int:
    """Return the id of a special token under the first of `names` that the tokenizer has.

    Raises:
      DataError: the tokenizer has none of them.
    """
    for name in names:
        token_id = tokenizer.token_to_id(name)
        if token_id is not None:
            return token_id
    raise DataError(
        f"the tokenizer has no token {' or '.join(names)}, which this task needs: its vocabulary of"
        f" {size(tokenizer)} is made for another use; choose another config.data.tokenizer"
    )


def words(tokenizer: "Tokenizer") -> list[bool]:
    """Return for each id whether it begins a word, unlike continuations such as WordPiece's `##ing`.

    Raises:
      DataError: there are no continuations, so this is not WordPiece.
    """
    continues = {i for token, i in tokenizer.get_vocab().items() if token.startswith("##") and len(token) > 2}
    if not continues:
        raise DataError("the tokenizer has no pieces that continue a word, such as ##ing: whole words need WordPiece")
    return [i not in continues for i in range(size(tokenizer))]


def encode(tokenizer: "Tokenizer", texts: Sequence[Any], *, offsets: bool = True, split: bool = False) -> list[Any]:
    """Encode texts, or lists of words with `split`, without special tokens; faster without `offsets`.

    Raises:
      DataError: the library cannot read a text, such as one with half a surrogate pair.
    """
    run = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
    with tokenizer_files.as_data_error("the tokenizer cannot read a text of the data"):
        return run(list(texts), is_pretokenized=split, add_special_tokens=False)


def digest(texts: Iterable[str]) -> str:
    """Hash texts; the hash depends on every character and on where each text ends.

    Raises:
      ConfigError: the texts are not an iterable of str.
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise ConfigError(f"the texts to train a tokenizer on are {format_value(texts)}: give an iterator of texts")
    hasher = hashlib.blake2b(digest_size=16)
    for text in texts:
        if not isinstance(text, str):
            raise ConfigError(
                f"one of the texts to train a tokenizer on is {format_value(text)}: give texts (str) alone"
            )
        hasher.update(text.encode("utf-8", "surrogatepass") + b"\xff")
    return hasher.hexdigest()


def assets(tokenizer: "Tokenizer") -> dict[str, str]:
    """Return the file that stores a run's tokenizer, for a task's `assets`; makes the workdir a spec."""
    return {FILE: tokenizer.to_str(pretty=True)}


def parse(text: str) -> "Tokenizer":
    """Parse the tokenizer that a run stored by `assets`."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


def _locate(spec: str, folder: pathlib.Path | None) -> pathlib.Path:
    """Find the tokenizer's file: as given, in the data folder, or on the hub."""
    given = hub.model_folder(spec, *hub.TOKENIZER) if spec.startswith(hub.PREFIX) else storage.local(spec)
    places = [given, *([folder / given] if folder else [])]
    names = [place / name for place in places for name in tokenizer_files.NAMES]
    for path in [place for place in places if place.is_file()] + names:
        if path.is_file():
            return path.absolute()  # the hub's cache has links to files without names
    folders = [place for place in places if place.is_dir()]
    if folders or spec.startswith(hub.PREFIX):
        where = spec if spec.startswith(hub.PREFIX) else folders[0]
        raise ConfigError(f"no tokenizer in {where}: looked for {', '.join(tokenizer_files.NAMES)}")
    if not given.suffix and len(given.parts) == 1:
        raise ConfigError(
            f"unknown tokenizer config.data.tokenizer={spec!r}: expected bytes, characters, wordpiece:N, bpe:N,"
            f" hf:NAME, or the path of a vocab.txt, of a {FILE} or of a folder that holds one"
        )
    raise ConfigError(
        f"no tokenizer at config.data.tokenizer={spec!r}: looked for {', '.join(map(str, places))}\n  what to do: put"
        " it there, name the folder of a model or of a run, or train one on the text, as wordpiece:8000 does"
    )


@functools.lru_cache(maxsize=16)
def _read(path: pathlib.Path, lowercase: bool, changed: tuple[int, ...]) -> "Tokenizer":
    return tokenizer_files.read(path, lowercase)


def _modification_times(path: pathlib.Path) -> tuple[int, ...]:
    """Return when the tokenizer's file and the files beside it were last written; 0 for an absent file."""
    files = [path, *(path.with_name(name) for name in tokenizer_files.BESIDE)]
    return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)


@functools.lru_cache(maxsize=1)
def _bytes() -> "Tokenizer":
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


def _trained(spec: str, lowercase: bool, texts: Texts | None, folder: pathlib.Path | None) -> pathlib.Path:
    """Return the file of a trained tokenizer, which is trained if absent."""
    kind, _, size = spec.partition(":")
    least = {"characters": 0, "wordpiece": len(BERT) + 1, "bpe": 257}[kind]
    if kind != "characters" and (not size.isdecimal() or int(size) < least):
        raise ConfigError(f"the tokenizer {spec!r} should be {kind}:N with a whole number N of at least {least}")
    given = texts() if texts else None
    if texts is None or given is None:
        raise ConfigError(
            f"the tokenizer {spec!r} must be trained on text, and there is no text here: give a tokenizer's file"
        )
    corpus = given if isinstance(given, Corpus) else Corpus(texts, digest(given))
    lowercase = lowercase and kind == "wordpiece"
    name = " ".join(["1", spec, str(lowercase), corpus.identity, *corpus.special])  # 1: version of the training
    file = f"{kind}{size}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.json"
    places = files.places(folder, "tokenizers", file)
    stored = next((path for path in places if path.exists()), None)
    return stored or files.store(places, _train(spec, lowercase, corpus).to_str().encode(), "tokenizer")


def _train(spec: str, lowercase: bool, corpus: Corpus) -> "Tokenizer":
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
