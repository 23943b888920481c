"""Next-token language models over text: bytes, characters, BPE or any tokenizer's tokens (Radford et al. 2019).

`prepare` tokenizes the text into one memory-mapped stream. Training reads windows that begin at every
`config.data.stride`-th token; evaluation reads every token once. With `config.data.packed` attention stays inside
documents, and positions count from the start of each document.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import models
from jtasks.config import Config
from jtasks.data import encoding, text, tokenizers, tokens, unlabeled, values
from jtasks.errors import DataError
from jtasks.metrics import Loss, Mean, Perplexity, example_weights, total
from jtasks.ops import augment, decode, pooling
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = "GPT2LMHeadModel"


def defaults() -> dict[str, Any]:
    """Return the fields of the GPT, the text, and the sampling."""
    return {
        **models.fields(models.GPT, omit=["outputs"], filled=["vocab", "max_length"]),
        "model.end": Field(int),  # id that ends a packed document, filled from the tokenizer
        **text.FIELDS,
        "data.documents": Field(str, text.DOCUMENTS, "file"),  # file, blank (separated by blank lines) or line
        "data.tokenizer": Field(str, None, "bytes"),  # bytes, characters, a file, a folder, or the kind to train
        "data.lowercase": Field(bool, None, False),  # if the tokenizer is trained
        "data.length": Field(int, "[1, 2e9]", 256),  # number of tokens that a window predicts
        "data.stride": Field(int, "[1, 2e9]", 1),  # tokens from one training window to the next
        "data.packed": Field(bool, None, False),  # attention stays inside documents
        **decode.SAMPLE,
        "sample.length": Field(int, "[0, 2e9]", 128),  # number of new tokens
    }


def texts(config: Config) -> tokenizers.Corpus:
    """Return the documents of the train split, in pieces."""
    return tokens.corpus(config)


def prepare(config: Config) -> None:
    """Tokenize the text once, stored beside the data."""
    for split in ("train", "valid", "test"):
        _stream(split, config)


def dataset(split: str, config: Config) -> Any:
    """Return windows `tokens` [n, length + 1], `skip` [n] first labels that do not count, and `bytes` [n] of text."""
    source = _stream(split, config)
    if source is None:
        return None
    stream, size = source
    if split == "train":
        return tokens.windows(stream, size, config.data.length, config.data.stride)
    return tokens.eval_windows(stream, size, config.data.length)


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return texts, or dicts with a `text` or `prompt`, as `tokens.prompts`."""
    expected = "a text, or a dict with 'text' or 'prompt'"
    read = [unlabeled.entry(x, ("text", "prompt"), expected) if isinstance(x, Mapping) else x for x in inputs]
    for given in read:
        if not isinstance(given, str):
            raise DataError(f"{unlabeled.describe(given)}; expected {expected}")
    return tokens.prompts(tokenizers.of(config, texts), [values.text(x, "the text") for x in read], config.data.length)


def model_args(config: Config) -> dict[str, Any]:
    """Return the number of positions, and for packed documents the id that ends a document."""
    end = tokenizers.special(tokenizers.of(config, texts), *tokens.ENDS) if config.data.packed else -1
    return {"max_length": config.data.length, "end": end}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    kind = tokens.token_dtype(tokenizers.size(tokenizers.of(config, texts)))
    example = {"tokens": np.zeros(config.data.length + 1, kind), "skip": np.array(0, np.int32)}
    return model_args(config), example | {"bytes": np.array(0, np.float32)}


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the GPT."""
    return _model(config).init(rng, batch["tokens"][:, :-1].astype(jnp.int32))["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the nats per token, perplexity, bits per byte of text, and accuracy of the likeliest token."""
    window, weights = batch["tokens"].astype(jnp.int32), example_weights(batch)
    inputs, labels = window[:, :-1], window[:, 1:]
    nats, correct = models.apply(
        _model(config), params, inputs, labels, rng=rng, method="token_loss", **_packing(inputs, config)
    )
    counted = (jnp.arange(labels.shape[1])[None] >= batch["skip"][:, None]) * weights[:, None]
    loss = Loss.of(nats, counted)
    metrics = {
        "loss": loss,
        "accuracy": Mean.of(correct, counted),
        "perplexity": Perplexity(loss.total, loss.count),
        "bits_per_byte": Mean(loss.total / np.log(2), jnp.sum(batch["bytes"] * weights)),
    }
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Continue the first half of each window, or the end of each prompt: tokens [b, read + config.sample.length].

    The model reads at most `config.data.length` tokens. When they are full, it continues from their last half; with
    packed documents, from their part of the last document. A prompt is padded at its start, and loses its beginning if
    it leaves no room for config.sample.length tokens.
    """
    prompt, real = _prompt(batch, config)
    read = prompt.shape[1]
    fresh = max(config.data.length - read, 1)
    keys = augment.keys(batch.get("seed"))

    def go_on(carry: tuple[Any, Any], turn: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        prompt, real = carry
        segment_ids = _packing(prompt, config)["segment_ids"]
        valid = real if segment_ids is None else (segment_ids == segment_ids[:, -1:]) & (True if real is None else real)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, turn)[:, None]
        options = {"valid": valid, **decode.options(config.sample)}
        drawn = models.generate(_model(config), params, prompt, own, fresh, **options)[:, 0]
        if real is not None:
            real = jnp.concatenate([real, jnp.ones(drawn.shape, bool)], axis=1)[:, -read:]
        return (jnp.concatenate([prompt, drawn], axis=1)[:, -read:], real), drawn

    _, drawn = jax.lax.scan(go_on, (prompt, real), jnp.arange(-(-config.sample.length // fresh)))
    drawn = jnp.moveaxis(drawn, 0, 1).reshape(len(prompt), -1)[:, : config.sample.length]
    return {"tokens": jnp.concatenate([prompt, drawn], axis=1)}


def answers(examples: Any, outputs: Any, config: Config) -> list[dict[str, Any]]:
    """Return the `text` that continues each example; with packed documents, up to the end of the document."""
    tokenizer, end = tokenizers.of(config, texts), config.model.end
    drawn = (output["tokens"][len(output["tokens"]) - config.sample.length :] for output in outputs)
    rows = [encoding.before_end(tokens, end) for tokens in drawn]
    return [{"text": text} for text in tokenizer.decode_batch(rows, skip_special_tokens=False)]


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the features [b, width] of the `last` token, and their `mean` over the tokens."""
    inputs = batch["tokens"][:, :-1].astype(jnp.int32)
    count = batch["given"][:, None] if "given" in batch else inputs.shape[1]
    real = jnp.broadcast_to(jnp.arange(inputs.shape[1])[None] < count, inputs.shape)
    x = models.apply(_model(config), params, inputs, rng=rng, method="encode", **_packing(inputs, config))
    features = {"last": pooling.last(x, real), "mean": pooling.mean(x, real)}
    return {name: value.astype(jnp.float32) for name, value in features.items()}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """Format the given text of each example, and the model's continuation."""
    tokenizer = tokenizers.of(config, texts)
    parts = []
    for output in outputs:
        ids = np.asarray(output["tokens"]).tolist()
        given = len(ids) - config.sample.length
        before, after = (tokenizer.decode(part, skip_special_tokens=False) for part in (ids[:given], ids[given:]))
        parts.append(f"--- given\n{before}\n--- sampled\n{after}\n")
    return {"samples": "\n".join(parts)}


def _stream(split: str, config: Config) -> tuple[np.ndarray, int] | None:
    """Return a split's tokens and number of bytes, or None if there is no such split."""
    return tokens.of_split(split, config, tokenizers.of(config, texts))


def _model(config: Config) -> Any:
    return models.build(models.GPT, config, outputs=config.model.vocab)


def _prompt(batch: Batch, config: Config) -> tuple[jax.Array, jax.Array | None]:
    """Return ids to continue [b, t], and which of them are real, None for all."""
    window, half = batch["tokens"].astype(jnp.int32), max(config.data.length // 2, 1)
    if "given" not in batch:
        return window[:, :half], None
    room = max(half, config.data.length - config.sample.length)
    places = jnp.arange(room)[None] + batch["given"][:, None] - room
    prompt = jnp.take_along_axis(window, jnp.maximum(places, 0), axis=1)
    return prompt, places >= 0


def _packing(inputs: jax.Array, config: Config) -> dict[str, jax.Array | None]:
    """Return the document number and position of each input [b, t]; the end of a document opens the next."""
    if not config.data.packed:
        return {"segment_ids": None, "positions": None}
    opens = inputs == config.model.end
    places = jnp.broadcast_to(jnp.arange(inputs.shape[1])[None], inputs.shape)
    start = jax.lax.cummax(jnp.where(opens, places, 0), axis=1)
    return {"segment_ids": jnp.cumsum(opens, axis=1) + 1, "positions": places - start}
