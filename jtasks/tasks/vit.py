"""Classification of images with a vision transformer (Dosovitskiy et al. 2021)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import data, models
from jtasks.config import Config
from jtasks.data import pipeline, stand_ins, targets, unlabeled
from jtasks.data.assets import image_processor, labels
from jtasks.data.lazy import each
from jtasks.metrics import Mean, classification, example_weights, heads, multilabel, total
from jtasks.ops import mixing, pixels, problems

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = "ViTForImageClassification"


def defaults() -> dict[str, Any]:
    """Return the fields of the ViT, the loss, the normalization of pixels, the images, and their augmentation."""
    return {
        **models.fields(models.ViT, filled=["classes"]),
        **targets.FIELDS,
        **classification.FIELDS,
        **pixels.FIELDS,
        **mixing.FIELDS,
        **data.IMAGES,
    }


def dataset(split: str, config: Config) -> Any:
    """Return images uint8 [n, h, w, c], and what config.problem asks for: `label` [n] or [n, classes]."""
    size, resize = config.data.size, config.model.get("resize")
    target, folder = targets.of(config), config.data.dir
    return data.images(
        config.data.name, split, folder=folder, seed=config.seed, size=size, resize=resize, target=target
    )


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return pictures (see `unlabeled.image_arrays`) as images uint8 [n, h, w, c]."""
    options, model = config.data, config.model
    fitting = {"size": options.size, "resize": model.get("resize"), "shape": model.shape}
    return unlabeled.image_arrays(inputs, options.name, folder=options.dir, **fitting)


def needs_partner(config: Config) -> bool:
    """Return whether Mixup or CutMix is on, which mixes each training picture with another one."""
    return mixing.is_on(config.data)


def model_args(config: Config) -> dict[str, Any]:
    """Return the number of classes, the images' shape (h, w), and the normalization of pixels."""
    h, w, channels = pipeline.example(dataset("train", config), 0)["image"].shape
    classes = data.class_names(config.data.name, folder=config.data.dir, target=targets.of(config))
    return {"classes": len(classes), "shape": (h, w), **pixels.usual(config, channels)}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    image = stand_ins.image(config)
    values = {
        "classes": stand_ins.target_classes(config),
        "shape": image.shape[:2],
        **pixels.usual(config, image.shape[2]),
    }
    return values, {"image": image, "label": stand_ins.label(config)}


def assets(config: Config) -> dict[str, str]:
    """Return the names of the classes, and the normalization of pixels."""
    model = config.model
    processor = image_processor(*pixels.normalization(config), model.shape, model.get("resize"))
    return labels(_names(config)) | processor


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the ViT."""
    return _model(config).init(rng, pixels.normalize(batch["image"], config))["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the nats per image, and the accuracy of the likeliest class and of the likeliest five.

    With multi_label the accuracy is that of all answers, beside F1, and in evaluation the F1 of each class, `f1/NAME`.
    A regression has errors. Training has augmentation, dropout and config.loss. Of mixed pictures each class counts by
    its share, as does a number.
    """
    images, labels = (batch["image"], batch["label"]) if rng is None else _for_training(batch, config)
    logits, weights, problem = _logits(params, images, rng, config), example_weights(batch), problems.of(config)
    metrics = heads.losses(problem, logits, labels, weights, None if rng is None else config.get("loss"))
    if problem == problems.SINGLE:
        metrics["top5"] = classification.top(5, logits, labels, weights)
    if problem == problems.MULTI and rng is None:
        metrics |= multilabel.f1_of_classes(logits, labels, weights, _names(config))
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Predict the likeliest class [b] and its probability [b], or as `heads.predictions` says."""
    return heads.predictions(problems.of(config), _logits(params, batch["image"], None, config))


def answers(examples: Any, outputs: Any, config: Config) -> Sequence[dict[str, Any]]:
    """Return the name of each predicted class, or of all classes that a picture has."""
    names, problem = _names(config), problems.of(config)
    return each(lambda output: heads.answer(problem, output, names), outputs)


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the classifier's input [b, width]: `token`, or `mean` over patches, as config.model.pool says."""
    images = batch["image"] if rng is None else pixels.for_training(batch, config.data)
    features = models.apply(_model(config), params, pixels.normalize(images, config), rng=rng, pooled=True)
    return {config.model.pool: features.astype(jnp.float32)}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """Show the pictures and the predicted classes."""
    images = data.for_display((example["image"] for example in examples), config.data.name)
    return heads.show(problems.of(config), images, examples, outputs, _names(config))


def _for_training(batch: Batch, config: Config) -> tuple[jax.Array, jax.Array]:
    def augmented(batch: Batch) -> jax.Array:
        return pixels.for_training(batch, config.data)

    return mixing.training_pairs(batch, config.data, config.model.classes, augmented)


def _names(config: Config) -> Sequence[str]:
    return config.data.labels or data.class_names(config.data.name, folder=config.data.dir, target=targets.of(config))


def _model(config: Config) -> Any:
    return models.build(models.ViT, config)


def _logits(params: Any, images: jax.Array, rng: jax.Array | None, config: Config) -> jax.Array:
    return models.apply(_model(config), params, pixels.normalize(images, config), rng=rng)
