"""What stands in for data that a plan does without: shapes of pictures, numbers of classes, a made tokenizer.

Each comes from the config alone. A number that only the data has is assumed, with a warning that names the field to
set; only the size of pictures is not assumed, since most of the cost depends on it.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jtasks.config import Config
from jtasks.console import warn
from jtasks.data import files, tokenizer_files, tokenizers
from jtasks.data.images import FORMS, class_names, form
from jtasks.errors import ConfigError, DataError
from jtasks.ops import problems

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CLASSES, CHARACTERS = 10, 100  # assumed
BERT, GPT2 = 30_522, 50_257  # sizes of published vocabularies, assumed
SENTINELS = 128  # <extra_id_N> of a made tokenizer
SPECIAL = (*tokenizer_files.BERT, tokenizers.END, "<|startoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>", ".")


def assumed(field: str, number: int, why: str) -> int:
    """Return `number` for a field of config.model that only the data tells, and say so."""
    warn(f"a plan without data: {why}, so it assumes config.model.{field}={number}; set the field if you know it")
    return number


def image(config: Config) -> np.ndarray:
    """Return a black image uint8 [h, w, c] of the data set config.data.name."""
    data = config.data
    height, width, channels, _ = form(data.name, data.dir)
    height, width = (data.get("size") or length for length in (height, width))
    if height is None or width is None:
        raise ConfigError(f"the pictures of {data.name} may have any size: set config.data.size")
    return np.zeros((height, width, channels), np.uint8)


def classes(config: Config, field: str = "classes") -> int:
    """Return config.model's number of classes, as many as config.data.labels or a known data set has, or 10."""
    if config.model.get(field) is not None:
        return config.model[field]
    if config.data.labels:
        return len(config.data.labels)
    if config.data.get("name") in FORMS:
        return len(class_names(config.data.name, folder=config.data.dir))
    return assumed(field, CLASSES, "the data has the classes")


def target_classes(config: Config) -> int:
    """Return the number of outputs of a classifier of pictures: one for a regression."""
    return 1 if problems.of(config) == problems.NUMBER else classes(config)


def label(config: Config) -> np.ndarray:
    """Return the label of a picture as config.problem has them: int32 [], uint8 [classes] or float32 []."""
    if problems.of(config) == problems.MULTI:
        return np.zeros(classes(config), np.uint8)
    return np.zeros((), np.float32 if problems.of(config) == problems.NUMBER else np.int32)


def shape(config: Config) -> tuple[int, int]:
    """Return height and width of pictures that come with texts, by config.model.shape or config.data.size."""
    given, size = config.model.get("shape"), config.data.size
    if given or size:
        return tuple(given) if given else (size, size)
    raise ConfigError("the pictures of the data may have any size: set config.data.size")


def text(length: int, *names: str) -> dict[str, np.ndarray]:
    """Return a text of BERT that fills its length, [length]: `tokens`, and `segment_ids` and others by name."""
    return {"tokens": np.zeros(length, np.int32), **{name: np.ones(length, np.uint8) for name in names}}


def tokenizer(config: Config, field: str = "tokenizer", vocab: str = "vocab") -> str:
    """Return the tokenizer that config.data names, or the file of a made one with the number of tokens of a run's.

    That number comes from config.model, or is what the run would train. It is assumed if the file is absent or
    the tokens depend on the text.
    """
    spec, given = config.data[field], config.model.get(vocab)
    kind, _, size = spec.partition(":")
    if spec == "bytes":
        return spec
    if given or (kind in ("wordpiece", "bpe") and size.isdecimal()):
        return _made(given or int(size))
    if spec == "characters":
        return _made(assumed(vocab, CHARACTERS, "the text has the characters"))
    try:
        tokenizers.load(spec, folder=files.data_folder(config.data.dir))
    except (ConfigError, DataError):
        size = BERT if spec.endswith("vocab.txt") else GPT2
        return _made(assumed(vocab, size, f"there is no tokenizer config.data.{field}={spec!r}"))
    return spec


def model_folder(config: Mapping[str, Any]) -> pathlib.Path:
    """Return a Hugging Face folder with this config.json and no weights, stored once in the user's cache folder."""
    text = json.dumps(config, indent=2)
    return _stored("models", f"made-{_digest(text)}/config.json", lambda: text).parent


def _made(size: int) -> str:
    """Return the file of a made tokenizer of a given size, stored once in the user's cache folder."""
    name = f"made-{size}-{_digest(repr((SPECIAL, SENTINELS)))}.json"
    return str(_stored("tokenizers", name, lambda: _tokenizer(size).to_str()))


def _stored(kind: str, name: str, make: Callable[[], str]) -> pathlib.Path:
    """Return the path of a made file, which is stored if absent."""
    places = files.places(None, kind, name)
    stored = next((path for path in places if path.exists()), None)
    return stored or files.store(places, make().encode(), kind.removesuffix("s"))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _tokenizer(size: int) -> "Tokenizer":
    from tokenizers import Tokenizer, models

    sentinels = [f"<extra_id_{number}>" for number in reversed(range(SENTINELS))]  # ids count down, as T5's
    known = [*SPECIAL, *(sentinels if size >= len(SPECIAL) + SENTINELS else [])][:size]
    words = [*known, *(f"##{number}" for number in range(size - len(known)))]
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.add_special_tokens(known)
    return made
