"""Pre-training of BERT: masked language modeling and next-sentence prediction (Devlin et al. 2019).

`prepare` tokenizes and pairs raw text, with one sentence per line and blank lines between documents. Masks are drawn on
the device from each example's seed, different ones each epoch. HDF5 shards of prepared examples keep their own masks.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtasks import models
from jtasks.config import Config
from jtasks.console import say
from jtasks.data import encoding, files, pairs, shards, stand_ins, text, tokenizers, unlabeled
from jtasks.data.files import data_folder
from jtasks.data.tokens import token_dtype
from jtasks.errors import ConfigError, DataError
from jtasks.metrics import Loss, Mean, Perplexity, example_weights, total
from jtasks.ops import augment, masking
from jtasks.ranges import Field

HF_ARCHITECTURE = "BertForPreTraining"
IDS = {"mask_token": "[MASK]", "first_token": "[CLS]", "separator": "[SEP]"}  # ids that masking needs, in config.model
INPUTS = ("tokens", "token_types", "segment_ids")

Batch = dict[str, jax.Array]


def defaults() -> dict[str, Any]:
    """Return the fields of the BERT, the text, and the masking."""
    return {
        **models.fields(models.BERT, omit=["labels", "classifier_dropout"], filled=["vocab", "max_length"]),
        **{f"model.{name}": Field(int) for name in IDS},
        **text.FIELDS,
        "data.tokenizer": Field(str, None, "wordpiece:30522"),  # a file, a folder, or the kind to train
        "data.length": Field(int, "[5, 2e9]", 128),  # number of tokens of a pair
        "data.dupe_factor": Field(int, "[1, 2e9]", 5),  # passes over the text, each with different pairs
        "data.mask_rate": Field(float, "(0, 1]", 0.15),  # fraction of the tokens to predict
        "data.max_predictions": Field(int, "[1, 2e9]", 20),  # maximum number of predicted tokens in an example
        "data.whole_words": Field(bool, None, False),  # hide all pieces of a word or none
    }


def texts(config: Config) -> tokenizers.Corpus | None:
    """Return the documents of the train split; None for shards, which have no text."""
    source = _source("train", config)
    if source is None or _is_sharded(source):
        return None
    read = functools.partial(text.documents, source.paths, "blank", seed=config.seed, valid=source.valid)
    return tokenizers.Corpus(read, files.identity(source.paths, config.seed, source.valid))


def prepare(config: Config) -> None:
    """Tokenize the text and make the pairs once, stored beside the data."""
    for split in ("train", "valid", "test"):
        source = _source(split, config)
        if source is None or _is_sharded(source):
            continue
        *_, facts = _pair_documents(split, source, config)
        say(
            f"{split}: {facts['pairs']:,} pairs of {config.data.length} tokens, {facts['padding']:.1%} of them padding;"
            f" in {facts['follows']:.1%} the second text follows the first"
        )


def dataset(split: str, config: Config) -> Any:
    """Return the examples as `pairs.Pairs`, or of shards as arrays of `shards.read`."""
    source, tokenizer = _source(split, config), tokenizers.of(config, texts)
    if source is None:
        return None
    if _is_sharded(source):
        return shards.read(
            source.paths,
            source.part,
            seed=config.seed,
            valid=source.valid,
            vocab=tokenizers.size(tokenizer),
            folder=_folder(config),
        )
    begins = np.array(tokenizers.words(tokenizer), np.uint8) if config.data.whole_words else None
    sources, spans, labels, _ = _pair_documents(split, source, config)
    first, separator = (tokenizers.special(tokenizer, name) for name in ("[CLS]", "[SEP]"))
    return pairs.Pairs(sources["tokens"], spans, labels, config.data.length, first, separator, begins)


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return texts, pairs of texts, or dicts with `text` and perhaps `text_pair`, in which [MASK] hides a token.

    Returns:
      tokens, token_types, segment_ids [n, length]; `places` [n, max_predictions] of the hidden tokens, 0 for none; and
      the `text`, of a pair both texts.

    Raises:
      DataError: an input is none of these, or hides more tokens than config.data.max_predictions.
    """
    first, second = unlabeled.text_pairs(inputs, "text", "text_pair", pairs=None)
    arrays = encoding.pairs(tokenizers.of(config, texts), first, second, config.data.length)
    places = np.zeros((len(first), config.data.max_predictions), np.int32)
    for row, tokens in zip(places, arrays["tokens"], strict=True):
        hidden = np.flatnonzero(tokens == config.model.mask_token)
        if len(hidden) > len(row):
            raise DataError(f"{len(hidden)} [MASK]s in a text; expected at most config.data.max_predictions={len(row)}")
        row[: len(hidden)] = hidden
    whole = [a if b is None else f"{a} {b}" for a, b in zip(first, second, strict=True)]
    return {**arrays, "places": places, "text": np.array(whole, object)}


def model_args(config: Config) -> dict[str, Any]:
    """Return the number of positions, and the ids that masking needs."""
    tokenizer = tokenizers.of(config, texts)
    ids = {field: tokenizers.special(tokenizer, name) for field, name in IDS.items()}
    return {"max_length": config.data.length, **ids}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    tokenizer, length = tokenizers.of(config, texts), config.data.length
    if config.data.files.endswith(shards.SUFFIXES):
        sizes = {"next": (), **dict.fromkeys(("places", "labels"), (config.data.max_predictions,))}
        return model_args(config), {
            ours: np.zeros(sizes.get(ours, length), kind) for ours, kind in shards.FIELDS.values()
        }
    names = ("token_types", "segment_ids", *(("begins",) if config.data.whole_words else ()))
    example = stand_ins.text(length, *names) | {"next": np.array(0, np.int32)}
    return model_args(config), example | {"tokens": np.zeros(length, token_dtype(tokenizers.size(tokenizer)))}


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize BERT with both heads."""
    return _model(config).init(rng, *masked_inputs(batch, config)[:5], method="pretrain")["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the nats per hidden token and next-sentence label, both accuracies, and the perplexity.

    Masks are drawn from the examples' seeds, so every evaluation has the same masks.
    """
    *inputs, masked = masked_inputs(batch, config)
    nats, correct, follows = models.apply(_model(config), params, *inputs, rng=rng, method="pretrain")
    weights = example_weights(batch)
    hidden = masked * weights[:, None]
    next_sentence = optax.softmax_cross_entropy_with_integer_labels(follows, batch["next"])
    loss = Loss.of(nats, hidden)
    metrics = {
        "masked": loss,
        "next_sentence": Loss.of(next_sentence, weights),
        "masked_accuracy": Mean.of(correct, hidden),
        "next_sentence_accuracy": Mean.of(follows.argmax(-1) == batch["next"], weights),
        "perplexity": Perplexity(loss.total, loss.count),
    }
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Predict the hidden tokens: `places` [b, m], 0 for none, their likeliest `ids` and `probability` [b, m]."""
    inputs = masked_inputs(batch, config)[:4]
    probabilities = jax.nn.softmax(models.apply(_model(config), params, *inputs, method="fill"))
    return {"places": inputs[3], "ids": probabilities.argmax(-1), "probability": probabilities.max(-1)}


def answers(examples: Any, outputs: Any, config: Config) -> list[dict[str, Any]]:
    """Return the text with the predicted tokens in the places of the hidden ones."""
    tokenizer = tokenizers.of(config, texts)
    return [{"filled": _fill_text(tokenizer, *pair)} for pair in zip(examples, outputs, strict=True)]


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the features [b, width] `cls`, `mean` (over the tokens) and `pooled` of each text, nothing hidden."""
    inputs = (batch[name].astype(jnp.int32) for name in INPUTS)
    return models.apply(_model(config), params, *inputs, rng=rng, method="embed")


def _fill_text(tokenizer: Any, example: Any, output: Any) -> str:
    hidden = np.asarray(output["places"]) > 0
    places, ids = np.asarray(output["places"])[hidden], np.asarray(output["ids"])[hidden].tolist()
    if "text" not in example:  # an example of `dataset`, without its text
        tokens = np.where(example["segment_ids"] > 0, example["tokens"], 0).astype(int)
        tokens[places] = ids
        return tokenizer.decode(tokens[example["segment_ids"] > 0].tolist())
    head, *rest = example["text"].split("[MASK]")
    for number, piece in enumerate(rest):
        word = (
            tokenizer.id_to_token(ids[number]) if number < len(ids) else "[MASK]"
        )  # the end of a long text is cut off
        head = head.rstrip() + word[2:] if word.startswith("##") else head + word
        head += piece
    return head


def _folder(config: Config) -> pathlib.Path:
    return data_folder(config.data.dir)


def _source(split: str, config: Config) -> text.Source | None:
    return text.source(split, config.data, _folder(config))


def _is_sharded(source: text.Source) -> bool:
    kinds = {path.suffix in shards.SUFFIXES for path in source.paths}
    if len(kinds) > 1:
        raise ConfigError("config.data.files has both text and HDF5 shards: give one kind or the other")
    return kinds == {True}


def _pair_documents(
    split: str, source: text.Source, config: Config
) -> tuple[Any, np.ndarray, np.ndarray, dict[str, Any]]:
    """Return the tokenized documents of a split, and their `pairs.make_pairs`."""
    tokenizer, folder = tokenizers.of(config, texts), _folder(config)
    sources = pairs.tokenize(source.paths, source.part, tokenizer, seed=config.seed, valid=source.valid, folder=folder)
    return sources, *pairs.make_pairs(
        sources,
        [files.identity(source.paths, source.part, source.valid), tokenizer.to_str()],
        length=config.data.length,
        duplicates=config.data.dupe_factor if split == "train" else 1,
        seed=config.seed,
        folder=folder,
    )


def _model(config: Config) -> Any:
    return models.build(models.BERT, config)


def masked_inputs(batch: Batch, config: Config) -> tuple[jax.Array, ...]:
    """Return tokens, token_types, segment_ids [b, t]; places, labels and weights [b, m] of the hidden tokens."""
    tokens, token_types, segment_ids = (batch[name].astype(jnp.int32) for name in INPUTS)
    if "places" in batch:
        places = batch["places"]
        labels = batch["labels"] if "labels" in batch else jnp.zeros_like(places)
        return tokens, token_types, segment_ids, places, labels, (places > 0).astype(jnp.float32)
    model = config.model
    special = (tokens == model.first_token) | (tokens == model.separator)
    masked = masking.mask(
        tokens,
        (segment_ids > 0) & ~special,
        augment.keys(batch.get("seed")),
        rate=config.data.mask_rate,
        places=config.data.max_predictions,
        vocab=model.vocab,
        mask_token=model.mask_token,
        begins=batch["begins"] > 0 if "begins" in batch else None,
    )
    return masked.inputs, token_types, segment_ids, masked.places, masked.labels, masked.weights
