"""Generative pre-training on pixels, iGPT (Chen et al. 2020): predict each pixel's colour from those before.

Images become sequences of colour tokens in raster order: `prepare` fits a palette by k-means beside
the data (or the config names a palette file, or grey levels are taken as they are), and the nearest
colour is found on the device.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtasks import augment, colours, data, decode, models, picture, precision
from jtasks.assets import palette
from jtasks.config import Config, given
from jtasks.metrics import Mean, example_weights, scaled

Batch = dict[str, jax.Array]

HUGGINGFACE = "ImageGPTForCausalImageModeling"


def dataset(split: str, config: Config) -> Any:
    """Images uint8 [n, h, w, c] and labels [n]."""
    return data.images(config.data.name, split, folder=config.data.dir, seed=config.seed, size=config.data.size)


def prepare(config: Config) -> None:
    """Fit the palette on the training images, once; it is stored beside the data."""
    colours.prepare(lambda: dataset("train", config), config.data, config.seed)


def data_args(config: Config) -> dict[str, Any]:
    """The palette, and what the model's sizes follow from: colours, image shape, positions."""
    return colours.data_args(dataset("train", config), config.data, config.seed)


def assets(config: Config) -> dict[str, str]:
    """The palette."""
    return palette(config.model)


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Parameters of the GPT."""
    return _model(config).init(rng, _inputs(_tokens(batch, config), config))["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Nats a pixel on augmented images."""
    pixels = augment.crop_and_flip(batch["image"], batch.get("seed"), pad=config.data.crop, mirror=config.data.flip)
    metrics = _metrics(params, batch | {"image": pixels}, config, deterministic=False, rngs={"dropout": rng})
    return metrics["loss"].value, metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """`loss` in nats and `bits` in bits, both a pixel token."""
    return _metrics(params, batch, config)


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Complete images from their top half: colour tokens [b, samples, h * w]."""
    model, variables, sampling = _model(config), {"params": params}, config.sample
    tokens = _tokens(batch, config)
    b, length = tokens.shape
    rows, columns = config.model.shape
    given = round(rows * sampling.given) * columns
    prompt = _inputs(tokens, config)[:, : given + 1]  # the start token and the given pixels

    logits, cache = model.apply(variables, prompt, length=length - given, branches=sampling.count, method="prefill")
    drawn = decode.sample(
        lambda cache, tokens: model.apply(variables, tokens, cache, method="extend"),
        cache,
        jnp.broadcast_to(logits[:, None], (b, sampling.count, logits.shape[-1])),
        jax.vmap(lambda key: jax.random.split(key, sampling.count))(augment.keys(batch.get("seed"))),
        length - given,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )
    prefix = jnp.broadcast_to(tokens[:, None, :given], (b, sampling.count, given))
    return {"tokens": jnp.concatenate([prefix, drawn], axis=2)}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray]:
    """A grid with a row an image: the given half, samples, and the original."""
    levels, shape = config.model.palette, config.model.shape
    given = round(shape[0] * config.sample.given)
    rows = []
    for example, output in zip(examples, outputs, strict=True):
        original = np.asarray(colours.nearest(example["image"][None], levels))[0]
        original = colours.pictures(original, levels, shape)
        half = original.copy()
        half[given:] = 160
        rows.append([half, *colours.pictures(np.asarray(output["tokens"]), levels, shape), original])
    return {"completions": picture.grid(rows, [("given", 1), ("samples", config.sample.count), ("original", 1)])}


def _model(config: Config) -> Any:
    model = config.model
    return models.GPT(
        vocab=model.colours + 1,  # and the start token
        outputs=model.colours,
        positions=model.positions,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        dropout=model.dropout,
        remat=model.remat,
        dtype=precision.computation(config.precision),
        **given(model, "hidden", "activation", "norm", "epsilon", "plain"),
    )


def _tokens(batch: Batch, config: Config) -> jax.Array:
    return colours.nearest(batch["image"], config.model.palette)


def _inputs(tokens: jax.Array, config: Config) -> jax.Array:
    return models.shifted(tokens, config.model.colours)


def _metrics(params: Any, batch: Batch, config: Config, **options: Any) -> dict[str, Mean]:
    tokens = _tokens(batch, config)
    logits = _model(config).apply({"params": params}, _inputs(tokens, config), **options)
    nats = Mean.of(optax.softmax_cross_entropy_with_integer_labels(logits, tokens), example_weights(batch))
    return {"loss": nats, "bits": scaled(nats, 1 / np.log(2))}
