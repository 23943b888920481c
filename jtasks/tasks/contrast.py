"""Embeddings of pictures and texts in one space, learned from pairs: CLIP and SigLIP.

CLIP (Radford et al. 2021, arXiv:2103.00020) tells the text of a picture from the other texts of the batch, and the
picture of a text from the other pictures. SigLIP (Zhai et al. 2023, arXiv:2303.15343) decides on each pair by itself.
An example is a picture with all its captions. Training draws one of them, so that no batch has a picture twice. The
loss of an evaluation takes the first caption; the scores take all.

With `config.optim.freeze="^image/"` the image tower stays as it is and costs no backward pass (LiT, Zhai et al. 2022,
arXiv:2111.07991).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import models, optim
from jtasks.config import Config
from jtasks.data import captioned, encoding, picture_rows, stand_ins, tokenizers, unlabeled
from jtasks.data.assets import image_processor
from jtasks.errors import ConfigError
from jtasks.metrics import Loss, Mean, classification, example_weights, probes, retrieval, total
from jtasks.ops import augment, contrastive, grid, pixels
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = "CLIPModel"
CAPTIONS, NEAREST = 8, 5  # captions to show, and pictures beside each
CAPTION = 2  # number that separates the choice of a caption from the random numbers of augmentation


def defaults() -> dict[str, Any]:
    """Return the fields of the towers, of pictures and captions, of augmentation, and of probes."""
    return {
        **models.fields(models.TwoTowers, filled=["vocab", "max_length", "end", "pad"]),
        **pixels.FIELDS,
        **captioned.FIELDS,
        "data.tokenizer": Field(str, None, "bpe:2000"),  # a file, a folder, or the kind to train
        "data.length": Field(int, "[2, 2e9]"),  # tokens of a text; None: config.model.max_length
        **probes.FIELDS,
    }


def texts(config: Config) -> Any:
    """Return the captions of the train split."""
    return captioned.texts(config)


def dataset(split: str, config: Config) -> Any:
    """Return pictures uint8 [h, w, 3] with their captions, as `tokens` int32 [k, t], their `count`, and texts; or None.

    k is the largest number of captions of a picture in the split.
    """
    rows = captioned.read(split, config)
    if rows is None:
        return None
    captions = [entry["captions"] for entry in rows.entries]
    return rows.add(**_encode(captions, config), pictured=np.ones(len(captions), bool))


def collate_fn(examples: list[Any], config: Config) -> dict[str, np.ndarray]:
    """Stack the arrays of examples; texts stay on the host."""
    return picture_rows.collate(examples)


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return pictures, texts, or both (see `unlabeled.picture_or_texts`), as `dataset` returns them.

    An input without a picture has a black one and `pictured` False; one without a text has the `count` 0.
    """
    model, given = config.model, [unlabeled.picture_or_texts(item) for item in inputs]
    pictured = np.array([picture is not None for picture, _ in given], bool)
    images = np.zeros((len(given), *model.shape, 3), np.uint8)
    fitting = {"size": config.data.size, "resize": model.get("resize"), "shape": model.shape}
    if pictured.any():
        pictures = [picture for picture, _ in given if picture is not None]
        images[pictured] = unlabeled.pictures_rgb(pictures, **fitting)
    captions = [captions for _, captions in given]
    slots = max(
        (np.shape(item["tokens"])[0] for item in inputs if isinstance(item, Mapping) and "tokens" in item), default=1
    )
    encoded = _encode(captions, config, slots)
    return {"image": images, **encoded, "pictured": pictured, "captions": np.fromiter(captions, object, len(given))}


def model_args(config: Config) -> dict[str, Any]:
    """Return the number of tokens, the ids of the end and of padding, the images' shape, and the normalization."""
    shape = config.model.shape
    if not shape:
        train = captioned.read("train", config)
        assert train is not None  # captioned.read finds train or raises
        shape = train[0]["image"].shape[:2]
    length = {} if config.data.length is None else {"max_length": config.data.length}
    tokenizer = tokenizers.of(config, texts)
    end = _end(tokenizer)
    pad = next(filter(None, (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))), end)
    return {"shape": shape, "end": end, "pad": pad, **length, **pixels.usual(config)}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    shape, length = stand_ins.shape(config), config.data.length or config.model.max_length
    if length is None:
        raise ConfigError("config.data.length is not set: give the number of tokens of a text")
    example = {"image": np.zeros((*shape, 3), np.uint8), "tokens": np.zeros((1, length), np.int32)}
    values = model_args(Config(config.to_dict() | {"model": config.model.to_dict() | {"shape": shape}}))
    return values, example | {"count": np.array(1, np.int32), "pictured": np.array(True)}


def assets(config: Config) -> dict[str, str]:
    """Return the normalization of pixels."""
    return image_processor(*pixels.normalization(config), config.model.shape, config.model.get("resize"))


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize both towers, the scale of similarities, and for the sigmoid loss their bias."""
    images = pixels.normalize(batch["image"], config)
    return _model(config).init(rng, images, batch["tokens"][:, 0])["params"]


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return embeddings of length 1, `image` and `text` [b, d] of the first caption; 0 for what an example lacks.

    With `rng` the pictures are augmented, and the caption is drawn.
    """
    params = _lock(params, config)
    if rng is not None:
        images = pixels.normalize(pixels.for_training(batch, config.data), config)
        image = models.apply(_model(config), params, images, rng=rng, method="embed_images")
        text = models.apply(_model(config), params, _draw(batch), rng=rng, method="embed_texts")
        return {"image": image, "text": text}
    first = batch | {"tokens": batch["tokens"][:, :1]}
    return {"image": _embed_images(params, batch, config), "text": _embed_texts(params, first, config)[:, 0]}


def batch_loss_fn(
    params: Any, embeddings: dict[str, jax.Array], batch: Batch, config: Config
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the nats of each pair among all pairs of the batch, and how often the nearest is the right one.

    The metrics `image_to_text` and `text_to_image` are among the batch, so they depend on its size, as does the loss.
    """
    weights = example_weights(batch) * batch["pictured"] * (batch["count"] > 0)
    scale, bias = models.scale_and_bias(params)
    pair = embeddings["image"], embeddings["text"]
    if config.model.loss == "sigmoid":
        contrast = contrastive.sigmoid_loss(*pair, scale, bias, weights)
    else:
        contrast = contrastive.softmax_loss(*pair, scale, weights)
    metrics = {
        "loss": Loss.of(contrast.nats, weights),
        "image_to_text": Mean.of(contrast.text_found, weights),
        "text_to_image": Mean.of(contrast.image_found, weights),
        "scale": Mean.of(jnp.broadcast_to(scale, weights.shape), weights),
    }
    return total(metrics), metrics


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Return embeddings of the picture, `image` [b, d], and of all its captions, `texts` [b, k, d]; 0 where absent.

    With config.zero_shot.classes return the likeliest class of the picture instead, `label` [b], and its `probability`
    [b], from the products with the mean embedding of each class's texts (Radford et al. 2021, section 3.1.4).
    """
    image = _embed_images(params, batch, config)
    names, templates = config.zero_shot.classes, config.zero_shot.templates
    if not names:
        return {"image": image, "texts": _embed_texts(params, batch, config)}
    probes.require_classes(names)
    prompts = _tokens(probes.prompts(names, templates), config).reshape(len(names), len(templates), -1)
    classes = probes.class_embeddings(models.apply(_model(config), params, prompts, method="embed_texts"))
    return classification.likeliest(models.scale_and_bias(params)[0] * image @ classes.T)


def answers(examples: Any, outputs: Any, config: Config) -> list[dict[str, Any]]:
    """Return the cosine `similarity` of a picture and its nearest caption; with classes the name of the `class`."""
    pairs = zip(examples, outputs, strict=True)
    if names := config.zero_shot.classes:
        return [{"class": str(names[int(out["label"])])} if row["pictured"] else {} for row, out in pairs]
    return [_similarity(example, output) for example, output in pairs]


def score_fn(examples: Any, outputs: Any, config: Config) -> dict[str, float]:
    """Compute R@1, R@5, R@10 and median ranks both ways over all pictures and captions of the split."""
    if config.zero_shot.classes:
        return {}
    images, captions, owners = _embeddings(examples, outputs)
    return retrieval.scores(*retrieval.ranks(images, captions, owners)) if len(captions) else {}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """Show captions, each beside its own picture and the nearest of the pictures; the right one has a green caption.

    With classes show the pictures with these.
    """
    if config.zero_shot.classes:
        pictures = [np.asarray(example["image"]) for example in examples]
        return grid.show_classes(pictures, [{} for _ in pictures], outputs, config.zero_shot.classes)
    images, captions, owners = _embeddings(examples, outputs)
    if not len(captions):
        return {}
    pictures = [np.asarray(example["image"]) for example in examples]
    names = [example["captions"][0] if len(example["captions"]) else "" for example in examples]
    rows, labels, lines = [], [], []
    described, first = np.unique(owners, return_index=True)
    for i in first[np.linspace(0, len(described) - 1, min(CAPTIONS, len(described))).astype(int)].tolist():
        owner, similarity = int(owners[i]), images @ captions[i]
        order = np.argsort(-similarity, kind="stable")
        nearest = order[:NEAREST].tolist()
        rows.append([pictures[owner], *(pictures[j] for j in nearest)])
        labels.append([(names[owner], "black"), *((names[j], "green" if j == owner else "red") for j in nearest)])
        lines.append(f"{names[owner]}: rank {order.tolist().index(owner) + 1} of {len(images)}")
    titles = [("caption", 1), (f"nearest of {len(images)} pictures", NEAREST)]
    return {"nearest": grid.grid(rows, titles, labels), "ranks": "\n".join(lines)}


def _similarity(example: Any, output: Any) -> dict[str, float]:
    texts = np.asarray(output["texts"])[: int(example["count"])]
    return {"similarity": float(np.max(texts @ output["image"]))} if len(texts) and example["pictured"] else {}


def _embeddings(examples: Any, outputs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the embeddings of all pictures [n, d] and of all captions [m, d], and the picture of each caption [m]."""
    counts = [int(example["count"]) for example in examples]
    rows = [(np.asarray(output["image"]), np.asarray(output["texts"])) for output in outputs]
    images, captions = zip(
        *((image, text[:count]) for (image, text), count in zip(rows, counts, strict=True)), strict=True
    )
    return np.stack(images), np.concatenate(captions), np.repeat(np.arange(len(counts)), counts)


def _model(config: Config) -> Any:
    return models.build(models.TwoTowers, config)


def _lock(params: Any, config: Config) -> Any:
    """Return the parameters without a gradient to the frozen ones, so that a frozen tower has no backward pass."""
    if not config.optim.freeze:
        return params
    trainable = optim.trainable(config.optim, params)
    return jax.tree.map(lambda x, train: x if np.any(train) else jax.lax.stop_gradient(x), params, trainable)


def _draw(batch: Batch) -> jax.Array:
    """Return the tokens [b, t] of a random caption of each picture, the same for the same seed."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, CAPTION))(augment.keys(batch.get("seed")))
    index = jax.vmap(lambda key, count: jax.random.randint(key, (), 0, jnp.maximum(count, 1)))(keys, batch["count"])
    return jnp.take_along_axis(batch["tokens"], index[:, None, None], axis=1)[:, 0]


def _embed_images(params: Any, batch: Batch, config: Config) -> jax.Array:
    """Return embeddings [b, d] of the pictures; 0, and no work if the batch has none, for examples without one."""

    def embed(images: jax.Array) -> jax.Array:
        return models.apply(_model(config), params, pixels.normalize(images, config), method="embed_images")

    return _where(batch["pictured"], embed, batch["image"])


def _embed_texts(params: Any, batch: Batch, config: Config) -> jax.Array:
    """Return embeddings [b, k, d] of the captions; 0, and no work if the batch has none, for absent ones."""

    def embed(tokens: jax.Array) -> jax.Array:
        return models.apply(_model(config), params, tokens, method="embed_texts")

    given = jnp.arange(batch["tokens"].shape[1])[None] < batch["count"][:, None]
    return _where(given, embed, batch["tokens"])


def _where(given: jax.Array, embed: Any, inputs: jax.Array) -> jax.Array:
    shape = jax.eval_shape(embed, inputs)
    embeddings = jax.lax.cond(jnp.any(given), embed, lambda _: jnp.zeros(shape.shape, shape.dtype), inputs)
    return jnp.where(given[..., None], embeddings, 0)


def _encode(captions: Sequence[Sequence[str]], config: Config, slots: int = 1) -> dict[str, np.ndarray]:
    """Return `tokens` int32 [n, k, t] of the captions of n pictures, and their `count` [n]; k is at least `slots`."""
    counts = np.array([len(own) for own in captions], np.int32)
    tokens = _tokens([caption for own in captions for caption in own], config)
    slots = max(slots, *counts, 1) if len(counts) else slots
    padded = np.full((len(counts), slots, tokens.shape[1]), config.model.pad, np.int32)
    padded[np.arange(slots)[None] < counts[:, None]] = tokens
    return {"tokens": padded, "count": counts}


def _tokens(given: Sequence[str], config: Config) -> np.ndarray:
    """Return the ids [n, t] of texts."""
    tokenizer, model = tokenizers.of(config, texts), config.model
    length = config.data.length or model.max_length
    if length is None:
        raise ConfigError(
            "config.data.length is not set: give it or config.model.max_length, the number of tokens of a text"
        )
    if model.text_tower == "bidirectional" and length != model.max_length:
        raise ConfigError(
            f"config.data.length={length}: this text tower reads its padding, so a text has config.model.max_length="
            f"{model.max_length} tokens"
        )
    return encoding.rows(tokenizer, given, length, pad=model.pad, end=_end(tokenizer))


def _end(tokenizer: Any) -> int:
    return tokenizers.special(tokenizer, tokenizers.END, "[SEP]", "</s>")
