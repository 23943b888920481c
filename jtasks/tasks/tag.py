"""Entities in text, found by tagging words with a BERT (Devlin et al. 2019, 5.3), from CoNLL-style files.

With `config.init_from` the body comes from another run, such as one of `bert`, and the head is new.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import models
from jtasks.config import Config
from jtasks.data import conll, encoding, stand_ins, table_files, tables, tokenizers, unlabeled
from jtasks.data.assets import labels
from jtasks.data.files import data_folder
from jtasks.errors import DataError
from jtasks.metrics import Mean, classification, entities, example_weights, total
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = "BertForTokenClassification"
SEQUENCE_KEYS = ("tokens", "segment_ids", "labels", "starts")


def defaults() -> dict[str, Any]:
    """Return the fields of the BERT, the files of the splits, and their columns of words and tags."""
    return {
        **models.fields(models.BERT, filled=["vocab", "max_length", "labels"]),
        **encoding.FIELDS,
        "data.word": Field(int, None, 0),  # column of the word
        "data.tag": Field(int, None, -1),  # column of the tag
        "data.labels": Field(tuple, None, ()),  # types of entities or all tags, in order; (): the sorted types in train
    }


def texts(config: Config) -> Iterator[str]:
    """Return the sentences of the train split."""
    for sentence in _sentences("train", config) or []:
        yield " ".join(sentence.words)


def dataset(split: str, config: Config) -> dict[str, np.ndarray] | None:
    """Return the windows of `conll.windows`; None without a file. Untagged words can be predicted for.

    Raises:
      DataError: a file is absent or damaged, train has no entity, or another split has entities of unknown types.
    """
    sentences, tags = _sentences(split, config), conll.classes(_types(config))
    if sentences is None:
        return None
    if split == "train" and not sentences[0].tags:
        raise DataError(f"{config.data.train} has words without tags, which training needs")
    if split == "train" and len(tags) == 1:
        raise DataError(
            f"{config.data.train} has no entity: all words have the tag O, so there is nothing to learn; the tags come"
            f" from column config.data.tag={config.data.tag}"
        )
    if unknown := sorted({tag for sentence in sentences for tag in sentence.tags} - set(tags)):
        raise DataError(f"the {split} split has the tags {unknown}, which train lacks; name all in config.data.labels")
    return conll.windows(tokenizers.of(config, texts), sentences, tags, config.data.length)


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return texts, split into words at white space, or lists of words, as `dataset` returns untagged sentences.

    An input may be a dict with one of these as `text`, `words` or `tokens`. `text` and `input` tell the text of each
    window, and the index of its input.
    """
    given = [unlabeled.words(entry) for entry in inputs]
    sentences = [conll.Sentence(words, []) for _, words in given]
    arrays = conll.windows(tokenizers.of(config, texts), sentences, conll.classes(_types(config)), config.data.length)
    whole = np.array([given[number][0] for number in arrays["sentence"]], object)
    return arrays | {"text": whole, "input": arrays["sentence"]}


def model_args(config: Config) -> dict[str, Any]:
    """Return the number of positions and of tags."""
    return {"max_length": config.data.length, "labels": 1 + 2 * len(_types(config))}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    types, length = config.data.labels and len(_types(config)), config.data.length
    values = {"max_length": length, "labels": 1 + 2 * types if types else stand_ins.classes(config, "labels")}
    example = stand_ins.text(length, "segment_ids", "starts") | {"labels": np.zeros(length, np.int32)}
    return values, example | {"sentence": np.array(0, np.int32)}


def assets(config: Config) -> dict[str, str]:
    """Return the names of the classes."""
    return labels(conll.classes(_types(config)))


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the BERT and its tagger."""
    return _model(config).init(rng, *_inputs(batch), method="tag")["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the nats per word, and the fraction of words with the right tag; training has dropout."""
    logits, labels = _logits(params, batch, rng, config), encoding.require_labels(batch, "labels")
    mask = example_weights(batch)[:, None] * (labels >= 0)
    metrics = classification.cross_entropy(logits, jnp.maximum(labels, 0), mask)
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Predict the likeliest tag of each token, [b, t]; the tag of a word's first piece is the word's."""
    return {"tag": _logits(params, batch, None, config).argmax(-1)}


def score_fn(examples: Any, outputs: Any, config: Config) -> dict[str, float]:
    """Compute precision, recall and F1 of whole entities."""
    sentences = list(_join_windows(examples, outputs, config))
    return entities.scores([tags for _, tags, _ in sentences], [guess for _, _, guess in sentences])


def answers(examples: Any, outputs: Any, config: Config) -> list[dict[str, Any]]:
    """Return the `entities` of each sentence: type, text, and bounds in characters of the text."""
    sentences = _join_windows(examples, outputs, config)
    answered = []
    for _, windows in itertools.groupby(examples, lambda example: int(example["sentence"])):
        (words, _, guess), whole = next(sentences), list(windows)
        text = whole[0].get("text", " ".join(words))
        answered += [{"entities": _locate(text, words, guess)}] * len(whole)
    return answered


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the features [b, width] `cls`, `mean` (over the tokens) and `pooled` (if any) of each window."""
    return models.apply(_model(config), params, *_inputs(batch), rng=rng, method="embed")


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, str]:
    """Format the sentences with the predicted entities and the true ones."""
    lines = []
    for words, tags, guess in _join_windows(examples, outputs, config):
        said, true = (
            [f"{' '.join(words[first : last + 1])} ({name})" for name, first, last in entities.entities(given)]
            for given in (guess, tags)
        )
        truly = ", ".join(true) or ("none" if tags else "(not told)")
        lines.append(f"{' '.join(words)}\n  found: {', '.join(said) or 'none'}\n  truly: {truly}")
    return {"entities": "\n".join(lines)}


def export_fn(examples: Any, outputs: Any, config: Config) -> dict[str, str]:
    """Export words, true tags if known, and predicted tags in columns for conlleval."""
    return {
        "tags.conll": "\n".join(
            "".join(f"{' '.join(line)}\n" for line in zip(*filter(None, sentence), strict=True))
            for sentence in _join_windows(examples, outputs, config)
        )
    }


def _join_windows(examples: Any, outputs: Any, config: Config) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """Yield words, true tags and predicted tags of each sentence, merged from its windows."""
    names = np.array(conll.classes(_types(config)))
    words, tags, guess = list[str](), list[str](), list[str]()
    number = None
    for example, output in zip(examples, outputs, strict=True):
        if number not in (None, int(example["sentence"])):
            yield words, tags, guess
            words, tags, guess = [], [], []
        number = int(example["sentence"])
        words, tags = words + example["words"], tags + example["tags"]
        guess = guess + names[np.asarray(output["tag"])[np.flatnonzero(example["starts"])]].tolist()
    if words:
        yield words, tags, guess


def _locate(text: str, words: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entities of a text that has these words in this order."""
    bounds, at = [], 0
    for word in words:
        start = text.index(word, at)
        at = start + len(word)
        bounds.append((start, at))
    places = [(name, bounds[first][0], bounds[last][1]) for name, first, last in entities.entities(tags)]
    return [{"type": name, "text": text[start:end], "start": start, "end": end} for name, start, end in places]


def _model(config: Config) -> Any:
    return models.build(models.BERT, config)


def _inputs(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    tokens = batch["tokens"]
    return tokens, jnp.zeros_like(tokens), batch["segment_ids"].astype(jnp.int32)


def _logits(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> jax.Array:
    return models.apply(_model(config), params, *_inputs(batch), rng=rng, method="tag")


def _sentences(split: str, config: Config) -> list[conll.Sentence] | None:
    data = config.data
    if not data[split]:
        return None
    if table_files.is_table(data[split], data_folder(data.dir)):
        return conll.table_sentences(data[split], split, word=data.word, tag=data.tag, folder=data.dir)
    text = tables.read(data[split], f"config.data.{split}", folder=data.dir, source=data.source)
    return conll.sentences(text, data[split], word=data.word, tag=data.tag)


def _types(config: Config) -> tuple[str, ...]:
    """Return the types of entities: as configured, of the configured tags, or the sorted types in train."""
    if "O" in config.data.labels:
        return tuple(tag.removeprefix("B-") for tag in config.data.labels if tag.startswith("B-"))
    if config.data.labels:
        return tuple(config.data.labels)
    sentences = _sentences("train", config) or []
    return tuple(sorted({tag.partition("-")[2] for sentence in sentences for tag in sentence.tags if tag != "O"}))
