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

import functools
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jtasks import storage, variants
from jtasks.config import Config
from jtasks.data import files, hub, tokenizer_files, tokenizer_training
from jtasks.data.tokenizer_files import BERT, FILE, size
from jtasks.data.tokenizer_training import Corpus
from jtasks.errors import ConfigError, DataError
from jtasks.ranges import format_value

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Texts = Callable[[], Iterable[str] | None]

END = tokenizer_training.END  # of a document, as in GPT-2


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
        return tokenizer_training.of_bytes()
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
    return stored or files.store(
        places, tokenizer_training.train(spec, lowercase, corpus).to_str().encode(), "tokenizer"
    )
