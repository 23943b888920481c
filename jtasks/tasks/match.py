"""Retrieval of pictures by texts, and of texts by pictures, with BLIP (Li et al. 2022) as in ALBEF (Li et al. 2021).

Two losses train one model. The contrastive one compares embeddings of pictures and of texts, as in task `contrast`. The
matching one tells the pairs of the batch from hard negatives, by a text encoder that also reads the picture. A hard
negative is drawn from the batch by the softmax of the similarities, with the seeds of the examples.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtasks import models
from jtasks.config import Config
from jtasks.data import captioned, encoding, picture_rows, stand_ins, tokenizers, unlabeled, values
from jtasks.data.assets import image_processor
from jtasks.data.lazy import Lazy
from jtasks.errors import ConfigError, DataError
from jtasks.metrics import Loss, Mean, example_weights, retrieval, total
from jtasks.ops import contrastive, grid, heat, negatives, pixels
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = "BlipForImageTextRetrieval"
MATCHES = 1  # the matching head's number for a pair that belongs together
SLOTS = 16  # captions that are matched with a picture whenever it is read again


def defaults() -> dict[str, Any]:
    """Return the fields of the model, the pixels and their augmentation, the captions, and the matching loss."""
    return {
        **models.fields(models.BLIP, filled=["vocab", "max_length"], omit=["tied", "classes", "pictures"]),
        **pixels.FIELDS,
        **captioned.FIELDS,
        "data.tokenizer": Field(str, None, "wordpiece:8000"),  # a file, a folder, or the kind to train
        "data.length": Field(int, "[3, 2e9]", 40),  # tokens of a caption
        "k_test": Field(int, "[0, 2e9]", 0),  # nearest of each picture and caption that matching ranks again; 0: none
        "matching_loss": Field(float, "[0, inf)", 1.0),  # weight of the matching term
        "attention_layer": Field(int, "[-1, 2e9]"),  # encoder layer of show's Grad-CAM, not the last; None: no maps
    }


def texts(config: Config) -> Iterator[str]:
    """Return the captions of the train split."""
    yield from captioned.texts(config)


def dataset(split: str, config: Config) -> picture_rows.Rows | None:
    """Return pictures with all of their captions: `image`, `tokens` and `segment_ids` [k, t], and `count`, up to k.

    Raises:
      DataError: a file or a picture is absent, or a picture has no caption.
    """
    rows = captioned.read(split, config)
    if rows is None:
        return None
    captions = [entries["captions"] for entries in rows.entries]
    if bare := [entries["file"] for entries in rows.entries if not entries["captions"]]:
        raise DataError(f"the {split} split has no caption of {bare[0]!r}: retrieval needs one of each picture")
    return rows.add(**_encode(captions, config))


def collate_fn(examples: list[Any], config: Config) -> dict[str, np.ndarray]:
    """Return a batch of the pictures, which must be equal in size, and the arrays."""
    return picture_rows.collate(examples)


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return pairs of a picture and a text, or a list of texts, as rows of `dataset`.

    Args:
      inputs: see `unlabeled.picture_and_text`; a dict may have a list of texts as `captions`.
      config: the run's.

    Raises:
      DataError: an input has no picture or no text.
    """
    pairs = [unlabeled.picture_and_text(_first(given), ("text", "caption"), needed=True) for given in inputs]
    captions = [_captions(given, text) for given, (_, text) in zip(inputs, pairs, strict=True)]
    fitting = {"size": config.data.size, "resize": config.model.get("resize"), "shape": config.model.shape}
    images = {"image": unlabeled.pictures_rgb([picture for picture, _ in pairs], **fitting)}
    columns = np.empty(len(captions), object)
    columns[:] = captions
    slots = [np.shape(given["tokens"])[0] for given in inputs if isinstance(given, Mapping) and "tokens" in given]
    return {**images, **_encode(captions, config, max(slots, default=0)), "captions": columns}


def model_args(config: Config) -> dict[str, Any]:
    """Return the number of positions, the pictures' shape (h, w), and the normalization of pixels."""
    shape = config.model.shape
    if not shape:  # a Hugging Face folder has it, and may be used without data
        rows = captioned.read("train", config)
        assert rows is not None  # `read` raises without a train split
        shape = rows[0]["image"].shape[:2]
    return {"max_length": config.data.length, "shape": shape, **pixels.usual(config)}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    shape, length = stand_ins.shape(config), config.data.length
    texts = {name: array[None] for name, array in stand_ins.text(length, "segment_ids").items()}
    values = {"max_length": length, "shape": shape, **pixels.usual(config)}
    return values, {"image": np.zeros((*shape, 3), np.uint8), **texts, "count": np.array(1, np.int32)}


def assets(config: Config) -> dict[str, str]:
    """Return the normalization of pixels."""
    return image_processor(*pixels.normalization(config), config.model.shape, config.model.get("resize"))


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the towers, the projections into one space, the matching head and the temperature."""
    images, (tokens, segment_ids) = pixels.normalize(batch["image"], config), _one_caption(batch)
    return _model(config).init(rng, images, tokens, segment_ids, method="retrieve")["params"]


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return `image` [b, d] and `text` [b, d], of one of the captions, and `states` [b, s, width] of the picture."""
    images = batch["image"] if rng is None else pixels.for_training(batch, config.data)
    first, second = (None, None) if rng is None else jax.random.split(rng)
    images = pixels.normalize(images, config)
    image, states = models.apply(_model(config), params, images, rng=first, method="embed_images")
    text = models.apply(_model(config), params, *_one_caption(batch), rng=second, method="embed_texts")
    return {"image": image, "text": text, "states": states.astype(jnp.float32)}


def batch_loss_fn(
    params: Any, embeddings: dict[str, jax.Array], batch: Batch, config: Config
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the contrastive and the matching loss of the whole batch.

    The metrics are both terms, the accuracy of matching, and how often the batch's most similar text and picture are
    the right ones. Matching has no dropout.
    """
    weights, scale = example_weights(batch), models.scale_and_bias(params["contrast"])[0]
    compared = contrastive.softmax_loss(embeddings["image"], embeddings["text"], scale, weights)
    logits, valid = _match_batch(params, embeddings, scale, batch, config)
    truth = jnp.broadcast_to(jnp.array([MATCHES, 0, 0])[None], valid.shape)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, truth)
    metrics = {
        "contrastive": Loss.of(compared.nats, weights),
        "matching": Loss.of(nats, valid, config.matching_loss),
        "accuracy": Mean.of(logits.argmax(-1) == truth, valid),
        "text_found": Mean.of(compared.text_found, weights),
        "image_found": Mean.of(compared.image_found, weights),
    }
    return total(metrics), metrics


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Return the embeddings `image` [b, d] and `texts` [b, k, d], and `match` [b, k], of each caption with its picture.

    `match` is the log of the odds that they belong together. With config.attention_layer also the `maps`
    [b, t, rows, columns] of the first caption in that layer: on which patches the matching head's logit rests, by way
    of each token (`models.grad_cam`).
    """
    b, k, t = batch["tokens"].shape
    captions = [batch[name].astype(jnp.int32).reshape(b * k, t) for name in ("tokens", "segment_ids")]
    images = pixels.normalize(batch["image"], config)
    image, states = models.apply(_model(config), params, images, method="embed_images")
    embedded = models.apply(_model(config), params, *captions, method="embed_texts")
    logits = models.apply(_model(config), params, jnp.repeat(states, k, axis=0), *captions, method="match")
    outputs = {"image": image, "texts": embedded.reshape(b, k, -1), "match": _odds(logits).reshape(b, k)}
    if config.attention_layer is None:
        return outputs
    _check_layer(config)
    maps = models.grad_cam(
        _model(config),
        params,
        states,
        *(batch[name][:, 0].astype(jnp.int32) for name in ("tokens", "segment_ids")),
        score=lambda logits: logits[:, MATCHES],
        tower="text_encoder",
        layer=config.attention_layer,
        shape=pixels.patches(config),
        method="match",
    )
    return outputs | {"maps": maps}


def score_fn(examples: Any, outputs: Any, config: Config) -> dict[str, float]:
    """Compute R@1, R@5, R@10 and the median rank both ways, by the similarity of the embeddings."""
    return retrieval.scores(*retrieval.ranks(*_embeddings(examples, outputs)))


def pair_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Return `match` [b, s]: the matching head's logit of each of the captions `tokens` [b, s, t] with its picture."""
    images = pixels.normalize(batch["image"], config)
    states = models.apply(_model(config), params, images, method="embed_images")[1]

    def match(captions: list[jax.Array]) -> jax.Array:
        return models.apply(_model(config), params, states, *captions, method="match")[:, MATCHES]

    captions = [jnp.swapaxes(batch[name], 0, 1).astype(jnp.int32) for name in ("tokens", "segment_ids")]
    return {"match": jnp.swapaxes(jax.lax.map(match, captions), 0, 1)}  # one caption at a time bounds the memory


def rescore_fn(
    examples: Any, outputs: Any, predict: Callable[[Sequence[Any]], Sequence[Any]], config: Config
) -> dict[str, float]:
    """Compute the scores of `score_fn`, as `reranked_...`, after config.k_test nearest are ranked again; {} if it is 0.

    Candidates are sorted by similarity plus the logit of a match (Li et al. 2022); the rest stays behind them.
    """
    if not config.k_test:
        return {}
    images, captions, owners = _embeddings(examples, outputs)
    k = config.k_test
    texts, pictures = retrieval.nearest(images, captions, k), retrieval.nearest(captions, images, k)
    pairs = retrieval.pairs(texts, pictures, min(SLOTS, k))
    read = functools.partial(_pair_example, examples, owners, pairs)
    matches = np.stack([output["match"] for output in predict(Lazy(range(len(pairs.images)), read))])
    ranks = retrieval.rerank(retrieval.ranks(images, captions, owners), owners, texts, pictures, pairs, matches)
    return {f"reranked_{name}": score for name, score in retrieval.scores(*ranks).items()}


def answers(examples: Any, outputs: Any, config: Config) -> list[dict[str, Any]]:
    """Return the probability that each caption belongs to the picture, and the similarity of their embeddings."""
    said = []
    for example, output in zip(examples, outputs, strict=True):
        count = len(example["captions"])
        similar = np.asarray(output["texts"])[:count] @ np.asarray(output["image"])
        odds = np.asarray(output["match"], np.float64)[:count]
        said.append({"belongs": (1 / (1 + np.exp(-odds))).tolist(), "similarity": similar.tolist()})
    return said


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """Show each picture's first caption with the probability that they belong together, and retrieve shown pictures.

    The caption is green if its own picture is the most similar one that is shown. `retrieved` has the order of all.
    With config.attention_layer also `maps`, a row for each caption: the mean map, and the map of each of its tokens.
    """
    images = np.stack([np.asarray(output["image"]) for output in outputs])
    captions, lines = [], []
    for index, (example, answer, output) in enumerate(
        zip(examples, answers(examples, outputs, config), outputs, strict=True)
    ):
        order = np.argsort(-(images @ np.asarray(output["texts"])[0]), kind="stable").tolist()
        text, color = str(example["captions"][0]), "green" if order[0] == index else "red"
        captions.append((f"{answer['belongs'][0]:.2f} {text}", color))
        lines.append(f"{index} {text}: belongs {answer['belongs'][0]:.3f}; pictures from the nearest: {order}")
    pictures = [example["image"] for example in examples]
    shown: dict[str, np.ndarray | str] = {"pictures": grid.captioned(pictures, captions), "retrieved": "\n".join(lines)}
    if config.attention_layer is not None:
        tokenizer = tokenizers.of(config, texts)
        words = [encoding.words(tokenizer, example["tokens"][0], example["segment_ids"][0]) for example in examples]
        maps = [output["maps"][1 : 1 + len(own)] for output, own in zip(outputs, words, strict=True)]
        shown["maps"] = heat.show(pictures, maps, words, [text for text, _ in captions])
    return shown


def _embeddings(examples: Any, outputs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the embeddings of pictures [n, d] and of all captions [m, d], and the picture of each caption [m]."""
    counts = [len(example["captions"]) for example in examples]
    rows = [(np.asarray(output["image"]), np.asarray(output["texts"])) for output in outputs]
    captions = [texts[:count] for (_, texts), count in zip(rows, counts, strict=True)]
    return np.stack([image for image, _ in rows]), np.concatenate(captions), np.repeat(np.arange(len(counts)), counts)


def _pair_example(examples: Any, owners: np.ndarray, pairs: retrieval.Pairs, index: int) -> dict[str, np.ndarray]:
    """Return the picture of a row of `pairs` with the row's captions, filled up with a caption of any picture."""
    captions = np.maximum(pairs.texts[index], 0)
    own = owners[captions]
    place = captions - np.searchsorted(owners, own)  # captions of a picture follow each other
    rows = [examples[int(picture)] for picture in own]
    texts = {
        name: np.stack([row[name][slot] for row, slot in zip(rows, place, strict=True)])
        for name in ("tokens", "segment_ids")
    }
    return {"image": examples[int(pairs.images[index])]["image"], **texts}


def _first(given: Any) -> Any:
    """Return an input with one text, the first of its `captions` if it has a list of them."""
    several = isinstance(given, Mapping) and given.get("captions")
    return {**given, "text": several[0]} if isinstance(several, list | tuple) else given


def _captions(given: Any, text: str | None) -> tuple[str, ...]:
    several = given.get("captions") if isinstance(given, Mapping) else None
    if not isinstance(several, list | tuple):
        return (values.content(text, "the text"),)
    return tuple(values.content(text, "a caption") for text in several)


def _encode(captions: Sequence[Sequence[str]], config: Config, slots: int = 0) -> dict[str, np.ndarray]:
    """Encode the captions of pictures as arrays [n, k, t], and `count` [n].

    k is the largest number of captions, at least `slots`, the number in the rows of a data set.
    """
    counts, length = np.array([len(own) for own in captions], np.int32), config.data.length
    flat = encoding.pairs(tokenizers.of(config, texts), [text for own in captions for text in own], None, length)
    there = np.arange(max([slots, *counts]))[None] < counts[:, None]
    arrays = {}
    for name in ("tokens", "segment_ids"):
        arrays[name] = np.zeros((*there.shape, length), flat[name].dtype)
        arrays[name][there] = flat[name]
    return {**arrays, "count": counts}


def _one_caption(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return `tokens` and `segment_ids` [b, t] of one caption of each picture, chosen by the example's seed."""
    seeds = batch["seed"] if "seed" in batch else jnp.zeros(len(batch["tokens"]), jnp.uint32)
    index = (seeds % jnp.maximum(batch["count"], 1).astype(jnp.uint32)).astype(jnp.int32)[:, None, None]
    tokens, segment_ids = (batch[name].astype(jnp.int32) for name in ("tokens", "segment_ids"))
    return jnp.take_along_axis(tokens, index, axis=1)[:, 0], jnp.take_along_axis(segment_ids, index, axis=1)[:, 0]


def _match_batch(
    params: Any, embeddings: dict[str, jax.Array], scale: jax.Array, batch: Batch, config: Config
) -> tuple[jax.Array, jax.Array]:
    """Return logits [b, 3, 2] of each pair, its text with a hard picture, and its picture with a hard text.

    And their weights [b, 3]: 0 for padding, and where the batch has no other example. The pairs are matched in as many
    parts as the batch has microbatches, and again for the gradient, so that one part's activations are in memory.
    """
    weights, (tokens, segment_ids) = example_weights(batch), _one_caption(batch)
    real = weights > 0
    image, text = (jnp.where(real[:, None], embeddings[name], 0) for name in ("image", "text"))
    states = jnp.where(real[:, None, None], embeddings["states"], 0)  # padding may hold NaN
    similarities = scale * image @ text.T
    seeds = batch["seed"] if "seed" in batch else jnp.arange(len(weights), dtype=jnp.uint32)
    hard_text, drawn = negatives.draw(similarities, seeds, weights)
    hard_image, _ = negatives.draw(similarities.T, seeds, weights)
    own = jnp.arange(len(weights))
    picture, caption = jnp.stack([own, hard_image, own], axis=1), jnp.stack([own, own, hard_text], axis=1)
    valid = jnp.stack([weights, weights * drawn, weights * drawn], axis=1)

    def match(pairs: tuple[jax.Array, jax.Array]) -> jax.Array:
        picture, caption = (numbers.reshape(-1) for numbers in pairs)
        rows = states[picture], tokens[caption], segment_ids[caption]
        return models.apply(_model(config), params, *rows, method="match").reshape(-1, 3, 2)

    parts = math.gcd(len(weights), max(config.shares) if isinstance(config.shares, tuple) else config.accumulate)
    if parts == 1:
        return match((picture, caption)), valid
    # Each part has rows of all devices, as microbatches have.
    picture, caption = (jnp.swapaxes(x.reshape(-1, parts, 3), 0, 1) for x in (picture, caption))
    logits = jax.lax.map(jax.checkpoint(match), (picture, caption))
    return jnp.swapaxes(logits, 0, 1).reshape(-1, 3, 2), valid


def _check_layer(config: Config) -> None:
    """Raise ConfigError if the text encoder lacks the layer config.attention_layer, or if it is the last one."""
    layer, depth = config.attention_layer, config.model.text_depth
    heat.check_layer(layer, depth)
    if layer in (-1, depth - 1):
        raise ConfigError(
            f"config.attention_layer={layer} is the last of config.model.text_depth={depth} layers. Only its first"
            " token reaches the matching head, so words have no maps there: take an earlier layer, from 0"
        )


def _odds(logits: jax.Array) -> jax.Array:
    return logits[..., MATCHES] - logits[..., 1 - MATCHES]


def _model(config: Config) -> Any:
    return models.build(models.BLIP, config)
