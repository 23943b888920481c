"""Classification of images with a small convolutional network, HetSeq's example task."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import data, models
from jtasks.config import Config
from jtasks.data import stand_ins, targets, unlabeled
from jtasks.data.assets import image_processor, labels
from jtasks.data.lazy import each
from jtasks.metrics import Mean, classification, example_weights, heads, multilabel, total
from jtasks.ops import mixing, problems
from jtasks.ranges import Field

Batch = dict[str, jax.Array]


def defaults() -> dict[str, Any]:
    """Return the fields of the network and the loss, and the name of the images."""
    fields = {"data.name": Field(str, None, "mnist"), "data.labels": data.IMAGES["data.labels"]}
    network = models.fields(models.ConvNet, filled=["classes"])
    return network | targets.FIELDS | classification.FIELDS | mixing.FIELDS | fields


def dataset(split: str, config: Config) -> Any:
    """Return images uint8 [n, h, w, c], and what config.problem asks for: `label` [n] or [n, classes]."""
    target = targets.of(config)
    return data.images(config.data.name, split, folder=config.data.dir, seed=config.seed, target=target)


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return pictures (see `unlabeled.image_arrays`) as images uint8 [n, h, w, c]."""
    return unlabeled.image_arrays(inputs, config.data.name, folder=config.data.dir)


def needs_partner(config: Config) -> bool:
    """Return whether Mixup or CutMix is on, which mixes each training picture with another one."""
    return mixing.is_on(config.data)


def model_args(config: Config) -> dict[str, Any]:
    """Return the number of classes."""
    names = data.class_names(config.data.name, folder=config.data.dir, target=targets.of(config))
    return {"classes": len(names)}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    classes = {"classes": stand_ins.target_classes(config)}
    return classes, {"image": stand_ins.image(config), "label": stand_ins.label(config)}


def assets(config: Config) -> dict[str, str]:
    """Return the names of the classes, and the normalization of pixels."""
    return labels(_names(config)) | image_processor([0.5], [0.5], 1 / 255)


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the network."""
    return _model(config).init(rng, _pixels(batch))["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the cross-entropy in nats per image, and the accuracy; training has dropout and config.loss.

    With multi_label there is F1 too, in evaluation also of each class, `f1/NAME`; a regression has errors.
    """
    labels, options = batch["label"], None if rng is None else config.get("loss")
    if rng is not None:
        images, labels = mixing.training_pairs(batch, config.data, config.model.classes, lambda batch: batch["image"])
        batch = batch | {"image": images}
    logits, weights, problem = _logits(params, batch, rng, config), example_weights(batch), problems.of(config)
    metrics = heads.losses(problem, logits, labels, weights, options)
    if problem == problems.MULTI and rng is None:
        metrics |= multilabel.f1_of_classes(logits, labels, weights, _names(config))
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Predict the likeliest class [b] and its probability [b], or as `heads.predictions` says."""
    return heads.predictions(problems.of(config), _logits(params, batch, None, config))


def answers(examples: Any, outputs: Any, config: Config) -> Sequence[dict[str, Any]]:
    """Return the name of each predicted class, or of all classes that a picture has."""
    names, problem = _names(config), problems.of(config)
    return each(lambda output: heads.answer(problem, output, names), outputs)


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the `features` [b, 128] that the last layer classifies."""
    features = models.apply(_model(config), params, _pixels(batch), rng=rng, pooled=True)
    return {"features": features.astype(jnp.float32)}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """Show the pictures and the predicted classes."""
    images = data.for_display((example["image"] for example in examples), config.data.name)
    return heads.show(problems.of(config), images, examples, outputs, _names(config))


def _names(config: Config) -> Sequence[str]:
    return config.data.labels or data.class_names(config.data.name, folder=config.data.dir, target=targets.of(config))


def _model(config: Config) -> Any:
    return models.build(models.ConvNet, config)


def _logits(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> jax.Array:
    return models.apply(_model(config), params, _pixels(batch), rng=rng)


def _pixels(batch: Batch) -> jax.Array:
    return batch["image"] / 127.5 - 1
