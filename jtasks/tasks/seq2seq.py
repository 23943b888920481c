"""Texts from texts, such as translations and summaries, by an encoder-decoder (Vaswani et al. 2017).

Each reference of a training source is an example. In valid and test each source is one example: the loss is that of its
first reference, and the text that beam search finds is scored against all references. With config.data.noise the model
is pre-trained on plain text instead: it restores documents from which spans are missing (see `ops.infilling`).
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import models
from jtasks.config import Config
from jtasks.console import say_once
from jtasks.data import encoding, noised, parallel, parallel_tokens, tokenizer_files, tokenizers
from jtasks.errors import ConfigError
from jtasks.metrics import Loss, Mean, Perplexity, example_weights, total, translation
from jtasks.ops import alignment, decode, infilling, pooling
from jtasks.ranges import Field

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = ("T5ForConditionalGeneration", "BartForConditionalGeneration", "MarianMTModel")
SIDES = ("source", "target")
SEQUENCE_KEYS = (("source", "source_segment_ids"), ("target", "target_segment_ids"))
FILLED = ("vocab", "target_vocab", "max_length", "begin", "end", "pad")
END = ("</s>", "[SEP]", tokenizers.END)
PAD = ("<pad>", "[PAD]", *END)


def defaults() -> dict[str, Any]:
    """Return the fields of the model, the pairs of texts, the beam search and the scores."""
    return {
        **models.fields(models.EncoderDecoder, filled=FILLED),
        **parallel.FIELDS,
        **noised.FIELDS,
        "data.tokenizer": Field(str, None, "bpe:8000"),  # of both sides: a file, a folder, or the kind to train
        "data.target_tokenizer": Field(str, None, ""),  # of the targets alone; "": the same as the sources'
        "label_smoothing": Field(float, "[0, 1)", 0.0),  # in training (Szegedy et al. 2016)
        "attention_layer": Field(int, "[-1, 2e9]"),  # decoder layer of the maps in show, -1 the last; None: no maps
        **decode.BEAM,
        "beam.max_len": decode.BEAM["beam.max_len"]._replace(default=128),
        "score.metrics": Field(tuple, None, ("bleu", "chrf")),  # some of bleu, chrf, rouge, exact_match
        "score.bleu_tokenize": Field(str, translation.TOKENIZERS, "13a"),  # "none": texts are tokenized already
        "score.lowercase": Field(bool, None, False),  # whether BLEU, chrF and exact match ignore case
        "score.stem": Field(bool, None, False),  # whether ROUGE compares the stems of English words
    }


def texts(config: Config) -> tokenizers.Corpus:
    """Return the sources of the train split, and the targets if they have no tokenizer of their own."""
    if config.data.noise:
        return noised.texts(config)
    return _corpus(config, SIDES[:1] if config.data.target_tokenizer else SIDES)


def target_texts(config: Config) -> tokenizers.Corpus:
    """Return the targets of the train split."""
    return _corpus(config, SIDES[1:])


def prepare(config: Config) -> None:
    """Train the tokenizer of the targets, if they have one of their own, and make the pairs' tokens, stored."""
    for split in ("train", "valid", "test"):
        dataset(split, config)


def dataset(split: str, config: Config) -> parallel_tokens.Encoded | dict[str, np.ndarray] | None:
    """Return the ids `source` [s] and `target` [t], each with `..._segment_ids` uint8, 0 for padding and else 1.

    Targets end with the end mark and do not begin with the begin mark. The texts, `source_text` and `references` (a
    tuple, which may be empty outside train), stay on the host. With config.data.noise see `noised.read`.
    """
    if config.data.noise:
        return noised.read(split, config, _tokenizer("source", config))
    return parallel_tokens.encode(split, config, *(_side(name, config) for name in SIDES))


def collate_fn(examples: list[Any], config: Config) -> dict[str, np.ndarray]:
    """Return the arrays of a batch."""
    if "tokens" in examples[0]:  # text that gets noise
        return {name: np.stack([row[name] for row in examples]) for name in ("tokens", "skip")}
    return parallel_tokens.collate(examples)


def examples(inputs: Sequence[Any], config: Config) -> parallel_tokens.Encoded:
    """Return texts, or dicts with the column of the sources, as `dataset` returns rows without targets."""
    given = parallel.sources([_text(one) for one in inputs], config)
    return parallel_tokens.encode_inputs(given, *(_side(name, config) for name in SIDES))


def lengths(examples: Any, config: Config) -> np.ndarray | None:
    """Return the number of ids of each source and target, int [n, 2]; None with config.data.noise: all are equal."""
    return None if config.data.noise else parallel_tokens.lengths(examples)


def model_args(config: Config) -> dict[str, Any]:
    """Return the marks that begin and end a target, the id of padding, the targets' ids, and the number of positions.

    A model that has its positions already, as one of Hugging Face without a run, cuts longer texts.
    """
    return _values(config, noised.model_args(config, _tokenizer("source", config)) if config.data.noise else {})


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    if config.data.noise:
        noise, example = noised.made_example(config, _tokenizer("source", config))
        return _values(config, noise), example
    sides = ((name, _side(name, config).length) for name in SIDES)
    example = {name: np.zeros(length, np.int32) for name, length in sides}
    return model_args(config), example | {
        f"{name}_segment_ids": np.ones(len(x), np.uint8) for name, x in example.items()
    }


def _values(config: Config, noise: dict[str, Any]) -> dict[str, Any]:
    source, target = (_side(name, config) for name in SIDES)
    positions = max(config.data.source_length, config.data.target_length, 1 + config.beam.max_len)
    positions = max(positions, noise.pop("max_length", 0))
    length = {"max_length": positions} if config.model.max_length is None else {}
    same = source.tokenizer.get_vocab() == target.tokenizer.get_vocab()
    vocab = {"target_vocab": 0 if same else tokenizers.size(target.tokenizer)}
    return {"begin": target.pad, "end": target.end, "pad": target.pad, **vocab, **length, **noise}


def assets(config: Config) -> dict[str, str]:
    """Return the tokenizer of the targets, if they have one of their own."""
    if not config.data.target_tokenizer:
        return {}
    return {tokenizer_files.TARGET_FILE: _tokenizer("target", config).to_str(pretty=True)}


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize encoder and decoder."""
    ids = _source(infilling.corrupt(batch, config))[0][:, :2]
    return _model(config).init(rng, ids, ids, ids, method="token_loss")["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the nats per token of the targets with their end, and the accuracy of the likeliest token.

    Training has dropout and smoothed labels. Without smoothing there is the perplexity too.
    """
    batch = infilling.corrupt(batch, config)
    smoothing = 0.0 if rng is None else config.label_smoothing
    source, source_ids = _source(batch)
    target, target_ids = (encoding.require_labels(batch, name).astype(jnp.int32) for name in SEQUENCE_KEYS[1])
    inputs, options = _shifted(target, target_ids, config), {"method": "token_loss", "smoothing": smoothing}
    nats, correct = models.apply(
        _model(config), params, source, inputs, target, source_ids, target_ids, rng=rng, **options
    )
    counted = (target_ids > 0) * example_weights(batch)[:, None]
    loss = Loss.of(nats, counted)
    metrics: dict[str, Mean] = {"loss": loss, "accuracy": Mean.of(correct, counted)}
    if not smoothing:
        metrics["perplexity"] = Perplexity(loss.total, loss.count)
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Search the best target: `tokens` [b, max_len], followed by the end mark, and its `score` [b].

    With config.attention_layer also the `attention` [b, max_len, s] of that layer: how much each token attended to each
    id of the source when it was chosen, averaged over heads.

    With config.data.noise it restores the first document of each row; `source` [b, s] is what the encoder reads, and
    `target` [b, t] has what is missing there.
    """
    batch = infilling.corrupt(batch, config)
    noise = {name: batch[name] for name in SIDES} if "tokens" in batch else {}
    source, segment_ids = _source(batch)
    segment_ids = segment_ids * (segment_ids == 1)
    prompt, end = jnp.full((len(source), 1), config.model.begin, jnp.int32), config.model.end
    inputs, model = (source, segment_ids, prompt), _model(config)
    beams = models.search(model, params, inputs, config.beam, method="read", eos=end, pad=end, prompt=prompt)
    best = {"tokens": beams.tokens[:, 0], "score": beams.scores[:, 0], **noise}
    if config.attention_layer is None:
        return best
    inputs = source, _shifted(best["tokens"], jnp.ones_like(best["tokens"]), config), segment_ids
    weights = models.cross_attention_weights(model, params, *inputs, tower="decoder", method="logits")
    return best | {"attention": jnp.mean(weights[config.attention_layer], axis=1)}


def score_fn(examples: Any, outputs: Any, config: Config) -> dict[str, float]:
    """Score the outputs against all references of their sources; {} if no source has any.

    Prints the signatures of BLEU and chrF, without which such scores cannot be compared.
    """
    scores, signatures = _scores(examples, outputs, config)
    for name, signature in signatures.items():
        say_once(f"{name} of sacrebleu: {signature}")
    return scores


def answers(examples: Any, outputs: Any, config: Config) -> list[dict[str, Any]]:
    """Return the text for each source."""
    return [{"text": text} for text in output_texts(outputs, config)]


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the `mean` [b, width] of the encoder's states over the tokens of each source."""
    source, segment_ids = _source(infilling.corrupt(batch, config))
    states = models.apply(_model(config), params, source, segment_ids, rng=rng, method="encode")
    return {"mean": pooling.mean(states.astype(jnp.float32), segment_ids > 0)}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """Format each source with the output and the references.

    With config.attention_layer also the picture `attention`, a map for each example, and `attention_tokens`, the tokens
    with the numbers by which the picture names those that it cannot draw.
    """
    blocks = []
    for example, output, text in zip(examples, outputs, output_texts(outputs, config), strict=True):
        if "source" in output:  # text with noise
            source, *references = (_decode([output[name]], name, config)[0] for name in SIDES)
        else:
            source, references = example["source_text"], example.get("references", ())
        lines = [f"source:    {source}", f"output:    {text}"]
        blocks.append("\n".join([*lines, *(f"reference: {one}" for one in references)]))
    shown: dict[str, np.ndarray | str] = {"texts": "\n\n".join(blocks)}
    if config.attention_layer is not None:
        maps = [_map(*pair, config) for pair in zip(examples, outputs, strict=True)]
        shown |= {"attention": alignment.picture(maps), "attention_tokens": alignment.listing(maps)}
    return shown


def export_fn(examples: Any, outputs: Any, config: Config) -> dict[str, str]:
    """Format the outputs as `outputs.txt`, one a line, as sacrebleu and other tools read them, and their `scores.json`.

    The scores are there if the sources have references, and have the signatures of BLEU and chrF.
    """
    files = {"outputs.txt": "".join(f"{' '.join(text.split())}\n" for text in output_texts(outputs, config))}
    scores, signatures = _scores(examples, outputs, config)
    return files | ({"scores.json": json.dumps(scores | {"signatures": signatures}, indent=1) + "\n"} if scores else {})


def output_texts(outputs: Any, config: Config) -> list[str]:
    """Decode predicted targets to texts."""
    return _decode([output["tokens"] for output in outputs], "target", config)


def _decode(rows: Sequence[Any], side: str, config: Config) -> list[str]:
    """Decode ids [n, t] up to their end; with config.data.noise also sentinels and masks."""
    tokenizer, skip = _tokenizer(side, config), not config.data.noise
    return encoding.decode(tokenizer, rows, config.model.end, skip_special_tokens=skip)


def _text(given: Any) -> Any:
    """Return the text of a row of `dataset`, whose `source` has ids; other inputs as they are."""
    return given["source_text"] if isinstance(given, Mapping) and "source_segment_ids" in given else given


def _scores(examples: Any, outputs: Any, config: Config) -> tuple[dict[str, float], dict[str, str]]:
    """Return the scores and the signatures of sacrebleu."""
    references, score = [example.get("references", ()) for example in examples], config.score
    pairs = [pair for pair in zip(output_texts(outputs, config), references, strict=True) if pair[1]]
    if not pairs:
        return {}, {}
    said, wanted = zip(*pairs, strict=True)
    options = {"tokenize": score.bleu_tokenize, "lowercase": score.lowercase, "stem": score.stem}
    return translation.scores(said, wanted, metrics=score.metrics, **options)


def _map(example: Any, output: Any, config: Config) -> alignment.Map:
    """Return what the output's tokens, with their end, attended to."""
    end = config.model.end
    if "source" in output:  # text with noise
        source = [*encoding.before_end(output["source"], end), end]
    else:
        source = example["source"][np.asarray(example["source_segment_ids"]) > 0].tolist()
    tokens = np.asarray(output["tokens"]).tolist()
    target = tokens[: len(encoding.before_end(tokens, end)) + 1]
    weights = np.asarray(output["attention"], np.float32)[: len(target), : len(source)]
    across, down = (
        [_tokenizer(side, config).decode([token], skip_special_tokens=False) for token in ids]
        for side, ids in zip(SIDES, (source, target), strict=True)
    )
    return alignment.Map(weights, across, down)


def _shifted(target: jax.Array, segment_ids: jax.Array, config: Config) -> jax.Array:
    """Return what the decoder reads [b, t]: the begin mark of each text, and the text without its last id."""
    before, inside = target[:, :-1], segment_ids[:, 1:] == segment_ids[:, :-1]
    return jnp.pad(jnp.where(inside, before, config.model.begin), ((0, 0), (1, 0)), constant_values=config.model.begin)


def _corpus(config: Config, sides: Sequence[str]) -> tokenizers.Corpus:
    def read() -> Iterator[str]:
        for pair in parallel.read("train", config) or ():
            yield from (pair.source,) if "source" in sides else ()
            yield from pair.references if "target" in sides else ()

    return tokenizers.Corpus(read, f"{' '.join(sides)} {parallel.identity('train', config)}")


def _source(batch: Batch) -> tuple[jax.Array, jax.Array]:
    return batch["source"].astype(jnp.int32), batch["source_segment_ids"].astype(jnp.int32)


def _side(name: str, config: Config) -> parallel_tokens.Side:
    """Return how the texts of one side become tokens."""
    data, tokenizer = config.data, _tokenizer(name, config)
    length = min(data[f"{name}_length"], config.model.max_length or math.inf)
    end, pad = (tokenizers.special(tokenizer, *names) for names in (END, PAD))
    prefix = data.prefix if name == "source" else ""
    return parallel_tokens.Side(tokenizer, int(length), end, pad, prefix)


def _tokenizer(side: str, config: Config) -> "Tokenizer":
    if side == "source" or not config.data.target_tokenizer:
        return tokenizers.of(config, texts)
    data = config.data.to_dict() | {"tokenizer": config.data.target_tokenizer}
    return tokenizers.of(Config(config.to_dict() | {"data": data}), target_texts)


def _model(config: Config) -> Any:
    if (config.attention_layer or 0) >= config.model.decoder_depth:
        layers = config.model.decoder_depth
        raise ConfigError(f"config.attention_layer={config.attention_layer}: the decoder has {layers} layers, from 0")
    return models.build(models.EncoderDecoder, config)
