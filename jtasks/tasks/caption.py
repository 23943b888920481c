"""Captions of pictures, by cross-attention (BLIP, Li et al. 2022) or by a prefix (ClipCap, Mokady et al. 2021).

A vision transformer reads the picture. With config.model.fusion="cross" a decoder attends to the transformer's states,
with "prefix" a GPT reads the states before the text. Each caption of a training picture is an example. In valid and
test each picture is one example with all of its captions: the loss is over all of them, and the caption that beam
search finds is scored against all of them.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import models
from jtasks.config import Config
from jtasks.data import captioned, encoding, picture_rows, stand_ins, tokenizers, unlabeled
from jtasks.data.assets import image_processor
from jtasks.errors import ConfigError
from jtasks.metrics import Loss, Mean, Perplexity, captions, example_weights, submissions, total
from jtasks.ops import decode, grid, heat, pixels
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = "BlipForConditionalGeneration"
FUSIONS = {"cross": models.BLIP, "prefix": models.PrefixCaptioner}
BEGIN, END = ("[DEC]", "[CLS]", "<s>", tokenizers.END), ("[SEP]", "</s>", tokenizers.END)


def defaults() -> dict[str, Any]:
    """Return the fields of the model, the pictures and captions, the beam search and the scores."""
    return {
        **models.fields(models.BLIP, filled=["vocab", "max_length"], omit=["classes", "pictures", "embed_dim"]),
        "model.fusion": Field(str, tuple(FUSIONS), "cross"),  # how the decoder reads the picture
        "model.begin": Field(int),  # id that begins a caption, filled from the tokenizer, as are the next two
        "model.prompt": Field(tuple),  # ids of config.data.prompt
        "model.end": Field(int),  # id that ends a caption
        **pixels.FIELDS,
        **captioned.FIELDS,
        "data.tokenizer": Field(str, None, "wordpiece:8000"),  # a file, a folder, or the kind to train
        "data.prompt": Field(
            str, None, ""
        ),  # begins every caption, such as "a picture of "; no part of loss and output
        "data.max_caption_tokens": Field(int, "[1, 2e9]", 32),  # maximum number of a caption's tokens, with its end
        "label_smoothing": Field(float, "[0, 1)", 0.0),  # in training (Szegedy et al. 2016)
        "attention_layer": Field(int, "[-1, 2e9]"),  # decoder layer of show's Grad-CAM, -1 the last; None: no maps
        **decode.BEAM,
        "score.protocol": Field(str, captions.PROTOCOLS, "plain"),
        "score.metrics": Field(tuple, None, ("bleu", "rouge_l", "cider", "meteor")),
        "score.exchanged": Field(bool, None, False),  # score each caption against another picture's references too
    }


def texts(config: Config) -> Iterator[str]:
    """Yield the captions of the train split."""
    yield from captioned.texts(config)


def dataset(split: str, config: Config) -> picture_rows.Rows | None:
    """Return `image` uint8 [h, w, 3], and `tokens` [k, t] of k captions with `counts` [k], 0 for captions left out.

    In train each caption is a row of its own, and k is 1. Else each picture is a row. The texts, `captions`, and the
    `image_id` stay on the host.
    """
    rows = captioned.read(split, config)
    if rows is None:
        return None
    said = [entries["captions"] for entries in rows.entries]
    if split == "train":
        rows = rows.take(np.repeat(np.arange(len(said)), [len(each) for each in said]))
        said = [(text,) for each in said for text in each]
    tokens, counts = _encode(said, config)
    return rows.add(tokens=tokens, counts=counts)


def _encode(said: Sequence[Sequence[str]], config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return ids [n, k, t] of texts, each followed by the end mark, and their number [n, k]."""
    n, k, t = len(said), max(1, *map(len, said)), config.data.max_caption_tokens
    tokenizer, end = tokenizers.of(config, texts), config.model.end
    tokens, counts = np.full((n, k, t), end, np.int32), np.zeros((n, k), np.int32)
    encoded = iter(tokenizers.encode(tokenizer, [text for each in said for text in each], offsets=False))
    for row, each in enumerate(said):
        for number, _ in enumerate(each):
            ids = [*next(encoded).ids[: t - 1], end]
            tokens[row, number, : len(ids)], counts[row, number] = ids, len(ids)
    return tokens, counts


def collate_fn(examples: list[Any], config: Config) -> dict[str, np.ndarray]:
    """Return the arrays of a batch."""
    return picture_rows.collate(examples)


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return pictures (see `unlabeled.image_arrays`) as images uint8 [n, h, w, 3]."""
    model = config.model
    options = {"size": config.data.size, "resize": model.get("resize"), "shape": model.shape}
    return unlabeled.image_arrays(inputs, "folder:", folder=config.data.dir, **options)


def model_args(config: Config) -> dict[str, Any]:
    """Return the pictures' shape and normalization, the marks and the prompt's ids, and the number of positions.

    A model that has its positions already, as one of Hugging Face without a run, may be too short for the longest
    caption; longer ones are then refused.
    """
    height, width = config.model.get("shape") or _shape(config)
    prompt = tuple(tokenizers.encode(tokenizers.of(config, texts), [config.data.prompt])[0].ids)
    length = 1 + len(prompt) + max(config.data.max_caption_tokens, config.beam.max_len)
    if config.model.fusion == "prefix":
        patch = config.model.patch or 1
        length += 1 + (height // patch) * (width // patch)
    marks = {"begin": _special(config, BEGIN), "prompt": prompt, "end": _special(config, END)}
    positions = {"max_length": length} if config.model.max_length is None else {}
    return {"shape": (height, width), **positions, **pixels.usual(config), **marks}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    shape, length = stand_ins.shape(config), config.data.max_caption_tokens
    values = model_args(Config(config.to_dict() | {"model": config.model.to_dict() | {"shape": shape}}))
    example = {"image": np.zeros((*shape, 3), np.uint8), "tokens": np.zeros((1, length), np.int32)}
    return values, example | {"counts": np.array([length], np.int32)}


def assets(config: Config) -> dict[str, str]:
    """Return the normalization of pixels."""
    return image_processor(*pixels.normalization(config), config.model.shape, config.model.get("resize"))


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the vision transformer and the decoder."""
    images, tokens = pixels.normalize(batch["image"], config), batch["tokens"][:, :1, :2]
    return _model(config).init(rng, images, tokens, method="caption_loss")["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the nats per token of the captions, and the accuracy of the likeliest token.

    Training has augmentation, dropout and smoothed labels. Without smoothing there is the perplexity too.
    """
    images = batch["image"] if rng is None else pixels.for_training(batch, config.data)
    smoothing = 0.0 if rng is None else config.label_smoothing
    tokens, (b, k, t) = batch["tokens"], batch["tokens"].shape
    given = jnp.broadcast_to(_given(b, config)[:, None], (b, k, 1 + len(config.model.prompt)))
    nats, correct = models.apply(
        _model(config),
        params,
        pixels.normalize(images, config),
        jnp.concatenate([given, tokens], axis=-1),
        rng=rng,
        method="caption_loss",
        smoothing=smoothing,
    )
    said = (jnp.arange(t)[None, None] < batch["counts"][..., None]) * example_weights(batch)[:, None, None]
    loss = Loss.of(nats[..., -t:], said)
    metrics: dict[str, Mean] = {"loss": loss, "accuracy": Mean.of(correct[..., -t:], said)}
    if not smoothing:
        metrics["perplexity"] = Perplexity(loss.total, loss.count)
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Search the best caption: `tokens` [b, max_len], followed by the end mark, and its `score` [b].

    With config.attention_layer also the `maps` [b, max_len, rows, columns] of that layer: on which patches each token's
    log probability rests, by `models.grad_cam`; 0 after the end mark.
    """
    images, prompt, end = (
        pixels.normalize(batch["image"], config),
        _given(len(batch["image"]), config),
        config.model.end,
    )
    model = _model(config)
    beams = models.search(model, params, (images, prompt), config.beam, method="read", eos=end, pad=end, prompt=prompt)
    best = {"tokens": beams.tokens[:, 0], "score": beams.scores[:, 0]}
    if config.attention_layer is None:
        return best
    whole = jnp.concatenate([prompt, best["tokens"]], axis=1)
    maps = models.grad_cam(
        model,
        params,
        images,
        whole[:, None],
        score=lambda loss: -loss[0][:, 0],
        tower="text_decoder",
        layer=config.attention_layer,
        shape=pixels.patches(config),
        method="caption_loss",
    )[:, prompt.shape[1] - 1 :]
    return best | {"maps": jnp.where(models.until_end(best["tokens"], end)[..., None, None], maps, 0)}


def score_fn(examples: Any, outputs: Any, config: Config) -> dict[str, float]:
    """Score the captions against all references of their pictures; {} if no picture has any.

    With config.score.exchanged also CIDEr after an exchange of pictures: each caption against the references of another
    picture. Captions that tell nothing of their picture score the same.
    """
    references = [example["captions"] for example in examples]
    pairs = [pair for pair in zip(caption_texts(outputs, config), references, strict=True) if pair[1]]
    if not pairs:
        return {}
    said, wanted = zip(*pairs, strict=True)
    scores = captions.scores(said, wanted, protocol=config.score.protocol, metrics=config.score.metrics)
    if config.score.exchanged and len(pairs) > 1:
        order = np.random.default_rng(0).permutation(len(pairs))
        others = [wanted[i] for i in np.roll(order, 1)]
        exchanged = captions.scores([said[i] for i in order], others, metrics=["cider"])
        scores["cider_exchanged"] = exchanged["cider"]
    return scores


def answers(examples: Any, outputs: Any, config: Config) -> list[dict[str, Any]]:
    """Return the caption of each picture."""
    return [{"caption": text} for text in caption_texts(outputs, config)]


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return features [b, width] of the pictures: the state of the class `token`, and the `mean` over patches."""
    images = batch["image"] if rng is None else pixels.for_training(batch, config.data)
    states = models.apply(_model(config), params, pixels.normalize(images, config), rng=rng, method="encode_image")
    states = states.astype(jnp.float32)
    return {"token": states[:, 0], "mean": jnp.mean(states[:, 1:], axis=1)}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """Show the pictures with captions, and as text the captions with the references.

    With config.attention_layer also `maps`, a row for each picture: the mean map, and the map of each token.
    """
    images, said = [example["image"] for example in examples], caption_texts(outputs, config)
    lines = [
        "\n".join([f"{i}: {text}", *(f"    {reference}" for reference in example.get("captions", ()))])
        for i, (example, text) in enumerate(zip(examples, said, strict=True))
    ]
    shown: dict[str, np.ndarray | str] = {"images": grid.captioned(images, [(text, "black") for text in said])}
    if config.attention_layer is not None:
        tokens = [encoding.before_end(output["tokens"], config.model.end) for output in outputs]
        words = [[tokenizers.of(config, texts).decode([token]) for token in own] for own in tokens]
        maps = [output["maps"][: len(own)] for output, own in zip(outputs, tokens, strict=True)]
        shown["maps"] = heat.show(images, maps, words, said)
    return shown | {"captions": "\n".join(lines)}


def export_fn(examples: Any, outputs: Any, config: Config) -> dict[str, str]:
    """Format the captions as COCO's results, `[{"image_id", "caption"}]`."""
    ids = [example["image_id"] for example in examples]
    return {"coco.json": json.dumps(submissions.coco_results(ids, caption_texts(outputs, config)))}


def caption_texts(outputs: Any, config: Config) -> list[str]:
    """Decode predicted captions to texts."""
    return encoding.decode(tokenizers.of(config, texts), (output["tokens"] for output in outputs), config.model.end)


def _given(b: int, config: Config) -> jax.Array:
    """Return the ids [b, p] before a caption: the one that begins it, and the prompt's."""
    ids = jnp.array([config.model.begin, *config.model.prompt], jnp.int32)
    return jnp.broadcast_to(ids[None], (b, len(ids)))


def _shape(config: Config) -> tuple[int, int]:
    """Return height and width of the first training picture."""
    rows = captioned.read("train", config)
    assert rows is not None  # there is no task without train
    height, width, _ = rows[0]["image"].shape
    return height, width


def _special(config: Config, names: Sequence[str]) -> int:
    return tokenizers.special(tokenizers.of(config, texts), *names)


def _model(config: Config) -> Any:
    if config.attention_layer is not None and config.model.fusion == "prefix":
        raise ConfigError(
            "config.attention_layer needs config.model.fusion='cross', whose tokens attend to the picture by itself"
        )
    heat.check_layer(config.attention_layer or 0, config.model.text_depth)
    return models.build(FUSIONS[config.model.fusion], config)
