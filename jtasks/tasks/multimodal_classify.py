"""Classification of a text about one or two pictures: NLVR2 (Suhr et al. 2019), SNLI-VE (Xie et al. 2019), own files.

The model is that of BLIP and ALBEF (Li et al. 2022, 2021): a text encoder with cross-attention to the pictures' states,
and a class head on its first token. The states of two pictures stand side by side, each with an embedding of its place.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import models
from jtasks.config import Config
from jtasks.data import encoding, picture_rows, picture_texts, stand_ins, tokenizers, unlabeled, values
from jtasks.data.assets import image_processor, labels
from jtasks.data.lazy import each
from jtasks.errors import ConfigError, DataError
from jtasks.metrics import Mean, classification, example_weights, total
from jtasks.ops import grid, pixels
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

SEQUENCE_KEYS = ("tokens", "segment_ids")


def defaults() -> dict[str, Any]:
    """Return the fields of the model, the pixels and their augmentation, and the files of the splits."""
    return {
        **models.fields(models.BLIP, filled=["vocab", "max_length", "classes", "pictures"], omit=["tied", "embed_dim"]),
        **pixels.FIELDS,
        **picture_texts.FIELDS,
        "data.labels": Field(tuple, None, ()),  # names of the classes in order; (): the sorted names in train
        "data.tokenizer": Field(str, None, "wordpiece:8000"),  # a file, a folder, or the kind to train
        "data.length": Field(int, "[3, 2e9]", 40),  # tokens of a text
    }


def texts(config: Config) -> Iterator[str]:
    """Return the texts of the train split."""
    yield from picture_texts.texts(config)


def dataset(split: str, config: Config) -> picture_rows.Rows | None:
    """Return a sequence of {"image": uint8 [pictures, h, w, 3], "tokens" [t], "segment_ids" [t], "label", "text"}.

    Valid and test files without classes have no `label` but can be predicted for.

    Raises:
      DataError: a file or a picture is absent, or a label is not among the classes.
    """
    rows = picture_texts.read(split, config)
    if rows is None:
        return None
    names = [entries["label"] for entries in rows.entries]
    numbers = {name: i for i, name in enumerate(_classes(config))}
    if unknown := sorted(set(names) - {"", *numbers}):
        raise DataError(f"the {split} split has the labels {unknown[:5]}; the classes are {list(numbers)}")
    columns = _encode([entries["text"] for entries in rows.entries], config)
    bare = [{name: value for name, value in entries.items() if name != "label"} for entries in rows.entries]
    if names[0]:
        columns["label"] = np.array([numbers[name] for name in names], np.int32)
    return dataclasses.replace(rows, entries=bare).add(**columns)


def collate_fn(examples: list[Any], config: Config) -> dict[str, np.ndarray]:
    """Return a batch of the pictures, which must be equal in size, and the arrays."""
    return picture_rows.collate(examples)


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return pictures with a text as `dataset` returns unlabeled rows.

    Args:
      inputs: dicts with `text`, and `image` or two pictures as `images`; tuples of the pictures and the text; or lines
        `FILE<TAB>text` or `FILE<TAB>FILE<TAB>text`. Pictures are as for `unlabeled.image_arrays`.
      config: the run's.

    Raises:
      DataError: an input has no text, or another number of pictures than the model reads.
    """
    model, parsed = config.model, [_parse_input(given, config.model.pictures) for given in inputs]
    fitting = {"size": config.data.size, "resize": model.get("resize"), "shape": model.shape}
    images = unlabeled.pictures_rgb([picture for pictures, _ in parsed for picture in pictures], **fitting)
    images = images.reshape(len(parsed), model.pictures, *images.shape[1:])
    return {"image": images, **_encode([text for _, text in parsed], config)}


def model_args(config: Config) -> dict[str, Any]:
    """Return the numbers of positions, classes and pictures, the pictures' shape (h, w), and their normalization."""
    rows = picture_texts.read("train", config)
    assert rows is not None  # `read` raises without a train split
    count, *shape, channels = rows[0]["image"].shape
    own = {"max_length": config.data.length, "classes": len(_classes(config)), "pictures": count}
    return {**own, "shape": tuple(shape), **pixels.usual(config, channels)}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    shape, length, count = stand_ins.shape(config), config.data.length, config.model.pictures
    count = count or stand_ins.assumed("pictures", 2, "the data has one or two pictures an example")
    sizes = {"max_length": length, "classes": stand_ins.classes(config), "pictures": count, "shape": shape}
    example = {"image": np.zeros((count, *shape, 3), np.uint8), **stand_ins.text(length, "segment_ids")}
    return sizes | pixels.usual(config), example | {"label": np.array(0, np.int32)}


def assets(config: Config) -> dict[str, str]:
    """Return the names of the classes, and the normalization of pixels."""
    processor = image_processor(*pixels.normalization(config), config.model.shape, config.model.get("resize"))
    return labels(_classes(config)) | processor


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the towers and the classifier."""
    return _model(config).init(rng, *_inputs(batch, None, config), method="classify")["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the nats per text, and the accuracy; training has dropout, and may mirror pictures."""
    wanted = encoding.require_labels(batch, "label")
    metrics = classification.cross_entropy(_logits(params, batch, rng, config), wanted, example_weights(batch))
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Predict the likeliest class [b] and its probability [b]."""
    return classification.likeliest(_logits(params, batch, None, config))


def score_fn(examples: Any, outputs: Any, config: Config) -> dict[str, float]:
    """Compute F1 of the second of two classes, else the mean F1 of all classes; and Matthews's correlation."""
    truth = [int(example["label"]) for example in examples]
    return classification.scores(truth, [int(output["label"]) for output in outputs], config.model.classes)


def answers(examples: Any, outputs: Any, config: Config) -> Sequence[dict[str, Any]]:
    """Return the name of each predicted class."""
    names = _classes(config)
    return each(lambda output: {"class": names[int(output["label"])]}, outputs)


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the classifier's input `token` [b, width], the state of the text's first token, after the pictures."""
    features = models.apply(_model(config), params, *_inputs(batch, rng, config), rng=rng, method="fuse")
    return {"token": features[:, 0].astype(jnp.float32)}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """Show the pictures with the predicted classes, and list the texts."""
    images = [np.concatenate(list(example["image"]), axis=1) for example in examples]  # side by side
    shown = grid.show_classes(images, examples, outputs, _classes(config))
    lines = str(shown["labels"]).splitlines()
    said = [f"{line}: {example['text'].strip()}" for line, example in zip(lines, examples, strict=True)]
    return shown | {"labels": "\n".join(said)}


def _parse_input(given: Any, count: int) -> tuple[list[Any], str]:
    """Return the pictures, `count` of them, and the text of an input."""
    kinds = ("'image'", "PICTURE", "FILE") if count == 1 else ("'images'", "PICTURE, PICTURE", "FILE<TAB>FILE")
    expected = f"a dict with {kinds[0]} and 'text', ({kinds[1]}, TEXT), or a line {kinds[2]}<TAB>text"
    if isinstance(given, Mapping):
        text = unlabeled.entry(given, picture_texts.TEXTS, expected)
        stacked = given.get("images", given.get("image"))
        several = isinstance(stacked, list | tuple) or getattr(stacked, "ndim", 0) == 4
        pictures = list(stacked) if several else [given]
        if given.get("image2") is not None:
            pictures.append(given["image2"])
    elif (isinstance(given, list | tuple) and given) or (isinstance(given, str) and "\t" in given):
        parts: list[Any] = list(given.split("\t") if isinstance(given, str) else given)
        pictures, text = parts[:-1], parts[-1]
    else:
        raise DataError(f"{unlabeled.describe(given)}; expected {expected}")
    if len(pictures) != count:
        raise DataError(f"{unlabeled.describe(given)} has {len(pictures)} pictures; expected {expected}")
    return pictures, values.content(text, "the text")


def _encode(first: Sequence[str], config: Config) -> dict[str, np.ndarray]:
    arrays = encoding.pairs(tokenizers.of(config, texts), first, None, config.data.length)
    return {**{name: arrays[name] for name in SEQUENCE_KEYS}, "text": np.array(first, object)}


def _model(config: Config) -> Any:
    return models.build(models.BLIP, config)


def _inputs(batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, ...]:
    """Return normalized pixels [b, pictures, h, w, c], augmented in training; tokens [b, t] and segment ids [b, t]."""
    images, tokens, segment_ids = batch["image"], *(batch[name].astype(jnp.int32) for name in SEQUENCE_KEYS)
    flat = images.reshape(-1, *images.shape[2:])
    if rng is not None:  # all pictures of an example get the same augmentation
        seeds = {"seed": jnp.repeat(batch["seed"], images.shape[1])} if "seed" in batch else {}
        flat = pixels.for_training({"image": flat, **seeds}, config.data)
    return pixels.normalize(flat, config).reshape(images.shape), tokens, segment_ids


def _logits(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> jax.Array:
    return models.apply(_model(config), params, *_inputs(batch, rng, config), rng=rng, method="classify")


def _classes(config: Config) -> tuple[str, ...]:
    """Return the class names in the order of their numbers: as configured, or the sorted names in train."""
    if config.data.labels:
        return tuple(values.label(name, "config.data.labels") for name in config.data.labels)
    names = picture_texts.labels(config)
    if len(names) < 2:
        raise ConfigError(f"the train split has the labels {sorted(names)}; expected at least two")
    return tuple(sorted(names, key=lambda name: (int(name), "") if name.isdecimal() else (0, name)))
