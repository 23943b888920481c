"""Generative pre-training on pixels, iGPT (Chen et al. 2020): predict each pixel's color from those before.

Images become sequences of color tokens in raster order. `prepare` fits a palette by k-means and stores it beside the
data, unless the config names a palette file or keeps all gray levels. The nearest color is computed on the device.

With `config.model.classes` the model is also a classifier: fine-tuned with the joint loss, or frozen except for its
head, which reads the features of a chosen layer (a linear probe). The other parameters are the same as in
pre-training, so `config.init_from` can start from a pre-trained run.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtasks import data, models
from jtasks.config import Config
from jtasks.data import palettes, stand_ins, targets, unlabeled
from jtasks.data.assets import labels, palette_files
from jtasks.data.images import form
from jtasks.data.lazy import each
from jtasks.metrics import Loss, Mean, classification, example_weights, scale, total
from jtasks.ops import augment, decode, grid, palette
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = "ImageGPTForCausalImageModeling"


def defaults() -> dict[str, Any]:
    """Return the fields of the GPT, the palette, the images, and the sampling of completions."""
    return {
        **models.fields(models.GPT, omit=["vocab", "outputs"], filled=["max_length"]),
        "model.palette": Field(tuple),  # ((level,), ...) or ((r, g, b), ...), filled from the data, as are these three
        "model.num_colors": Field(int, "[1, 2e9]"),
        "model.shape": Field(tuple, "[1, inf)"),
        "model.resize": Field(tuple, "[0, inf)"),  # fields of an `examples.Resize`, filled from a Hugging Face folder
        "model.layer": Field(int, None, -1),  # layer of the classified features: 0 ... layers - 1; -1: the output
        **classification.FIELDS,  # of a classifier
        "generation": Field(float, "[0, inf)", 1.0),  # weight of a classifier's loss of pixels
        **data.IMAGES,
        "data.palette": Field(str, None, ""),  # a file; "": fit one to the training images
        "data.num_colors": Field(int, "[0, 2e9]", 512),  # of a fitted palette; 0: gray levels as they are
        "data.crop": Field(int, "[0, 2e9]", 0),  # pixels of padding for random crops of training images
        "data.flip": Field(bool, None, False),  # mirror half of the training images
        **decode.SAMPLE,
        "sample.count": Field(int, "[1, 2e9]", 4),  # number of completions per image
        "sample.given": Field(float, "[0, 1]", 0.5),  # fraction of the rows that are given
    }


def dataset(split: str, config: Config) -> Any:
    """Return images uint8 [n, h, w, c] and labels [n]."""
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


def prepare(config: Config) -> None:
    """Fit the palette to the training images once, stored beside the data."""
    palettes.prepare(lambda: dataset("train", config), config.data, config.seed)


def model_args(config: Config) -> dict[str, Any]:
    """Return the palette, and the sizes of the model: colors, image shape, positions, classes."""
    options, classes = config.data, {}
    if config.model.classes != 0:
        names = data.class_names(options.name, folder=options.dir, target=targets.of(config))
        classes = {"classes": len(names)}
    return classes | palettes.model_args(dataset("train", config), config.data, config.seed)


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    image, highest = stand_ins.image(config), form(config.data.name, config.data.dir)[3]
    h, w, channels = image.shape
    count = config.data.num_colors or highest + 1
    known = config.data.palette and palettes.load(palettes.palette_path(config.data, config.seed), channels)
    colors = known or tuple((float(level),) * channels for level in range(count))
    values = {"palette": colors, "num_colors": len(colors), "shape": (h, w), "max_length": h * w, "resize": None}
    classes = {"classes": stand_ins.classes(config)} if config.model.classes != 0 else {}
    return classes | values, {"image": image, "label": np.array(0, np.int32)}


def assets(config: Config) -> dict[str, str]:
    """Return the palette, and for a classifier the names of the classes."""
    return palette_files(config.model) | (labels(_names(config)) if config.model.classes else {})


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the GPT, and the classifier if there is one."""
    method = "classify" if config.model.classes else "__call__"
    return _model(config).init(rng, _inputs(_tokens(batch, config), config), method=method)["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the nats and bits per pixel, or a classifier's joint loss; training images are augmented.

    With `config.model.classes` the terms are the nats of the class per image, and the nats per pixel times
    `config.generation` (Chen et al. 2020, section 3.3).
    """
    if rng is not None:
        augmented = augment.crop_and_flip(
            batch["image"], batch.get("seed"), pad=config.data.crop, mirror=config.data.flip
        )
        batch = batch | {"image": augmented}
    tokens, weights = _tokens(batch, config), example_weights(batch)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    options = None if rng is None else config.get("loss")
    metrics: dict[str, Mean]
    if config.model.classes:
        pixels, classes = _classify(params, tokens, rng, config)
        nats, label = Loss.of(cross_entropy(pixels, tokens), weights, config.generation), batch["label"]
        metrics = {
            **classification.cross_entropy(classes, label, weights, options, "classification"),
            "generation": nats,
        }
    else:
        classification.require_plain(options, "config.model.classes is 0, so there are no classes")
        pixels = models.apply(_model(config), params, _inputs(tokens, config), rng=rng)
        nats = Loss.of(cross_entropy(pixels, tokens), weights)
        metrics = {"loss": nats}
    metrics["bits"] = scale(nats, 1 / np.log(2))
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Complete images from their top half: color tokens [b, samples, h * w].

    A classifier returns the likeliest class [b] and its probability [b] instead.
    """
    tokens = _tokens(batch, config)
    if not config.model.classes:
        return {"tokens": _complete(params, tokens, augment.keys(batch.get("seed")), config)}
    return classification.likeliest(_classify(params, tokens, None, config)[1])


def answers(examples: Any, outputs: Any, config: Config) -> Sequence[dict[str, Any]]:
    """Return the name of each predicted class, if the model is a classifier."""
    names = _names(config) if config.model.classes else []
    return each(lambda output: {"class": names[int(output["label"])]} if names else {}, outputs)


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the `mean` features [b, width] of config.model.layer over the pixels, which a classifier reads."""
    inputs = _inputs(_tokens(batch, config), config)
    features = models.apply(_model(config), params, inputs, config.model.layer, rng=rng, method="pool")
    return {"mean": features.astype(jnp.float32)}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """Draw a grid with a row per image: the given half, samples, and the original; or images and their classes."""
    levels, shape = config.model.palette, config.model.shape
    tokens = [np.asarray(palette.nearest(example["image"][None], levels))[0] for example in examples]
    originals = [palette.pictures(row, levels, shape) for row in tokens]
    if config.model.classes:
        return grid.show_classes(originals, examples, outputs, _names(config))
    rows = []
    for original, output in zip(originals, outputs, strict=True):
        half = original.copy()
        half[round(shape[0] * config.sample.given) :] = 160
        rows.append([half, *palette.pictures(np.asarray(output["tokens"]), levels, shape), original])
    return {"completions": grid.grid(rows, [("given", 1), ("samples", config.sample.count), ("original", 1)])}


def _complete(params: Any, tokens: jax.Array, keys: jax.Array, config: Config) -> jax.Array:
    """Sample completions of the first rows of images [b, h * w]."""
    sampling, (b, length) = config.sample, tokens.shape
    rows, columns = config.model.shape
    given = round(rows * sampling.given) * columns
    prompt = _inputs(tokens, config)[:, : given + 1]  # the start token and the given pixels
    keys = jax.vmap(lambda key: jax.random.split(key, sampling.count))(keys)
    options = {"branches": sampling.count, **decode.options(sampling)}
    drawn = models.generate(_model(config), params, prompt, keys, length - given, **options)
    prefix = jnp.broadcast_to(tokens[:, None, :given], (b, sampling.count, given))
    return jnp.concatenate([prefix, drawn], axis=2)


def _model(config: Config) -> Any:
    colors = config.model.num_colors
    return models.build(models.GPT, config, vocab=colors + 1, outputs=colors)  # vocab has a start token too


def _names(config: Config) -> list[str]:
    return list(config.data.labels or data.class_names(config.data.name, folder=config.data.dir))


def _tokens(batch: Batch, config: Config) -> jax.Array:
    return palette.nearest(batch["image"], config.model.palette)


def _inputs(tokens: jax.Array, config: Config) -> jax.Array:
    return models.shift_right(tokens, config.model.num_colors)


def _classify(params: Any, tokens: jax.Array, rng: jax.Array | None, config: Config) -> tuple[jax.Array, jax.Array]:
    """Return the logits of the pixels and of the classes."""
    inputs = _inputs(tokens, config)
    return models.apply(_model(config), params, inputs, config.model.layer, rng=rng, method="classify")
