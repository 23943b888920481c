"""Answers to questions in a dialogue about a video (AVSD): [video | caption, summary | turns | question | answer].

The model follows Le and Hoi (2020, arXiv:2006.15319): features of the video are projected into a GPT, and each
position has an embedding of its kind: video, caption, questioner or answerer. The loss has two terms: nats per token of
the answer, and the mean squared error of each feature vector, predicted from the earlier ones. Hidden answers
(`__UNDISCLOSED__`) are not trained on and only predicted, by beam search.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import models, storage
from jtasks.config import Config
from jtasks.data import dialogues, encoding, stand_ins, tokenizers, unlabeled
from jtasks.data.features import Features
from jtasks.data.files import data_folder
from jtasks.errors import DataError
from jtasks.metrics import Loss, Mean, Perplexity, captions, example_weights, total
from jtasks.ops import decode
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

SEQUENCE_KEYS = ("context", "kinds")  # what config.batch_tokens may cut
FEATURES = 2048  # width of each of a video's features in a plan without data


def defaults() -> dict[str, Any]:
    """Return the fields of the GPT, the dialogues and videos, the weight of the video's term, and the beam search."""
    return {
        **models.fields(models.VideoGPT, omit=["outputs"], filled=["vocab", "max_length", "features"]),
        "model.end": Field(int),  # id that ends an answer, filled from the tokenizer
        "data.train": Field(str, None, ""),  # a file of dialogues; "": the first existing official name
        "data.valid": Field(str, None, ""),
        "data.test": Field(str, None, ""),
        "data.turns": Field(
            str, ("all", "last", "asked"), "all"
        ),  # outside training; asked: undisclosed or with references
        "data.tokenizer": Field(str, None, "bpe:2000"),  # a file, a folder, or the kind to train
        "data.features": Field(tuple, None, ()),  # folders of a video's features; (): text alone
        "data.features_dir": Field(str),  # None: the data folder, or avsd in it
        "data.frames": Field(int, "[1, 2e9]", 40),  # maximum number of feature vectors of a video
        "data.max_turns": Field(int, "[0, 2e9]", 3),  # before the turn to answer
        "data.use_caption": Field(bool, None, True),
        "data.max_context_tokens": Field(int, "[1, 2e9]", 256),  # maximum number of tokens before the answer
        "data.max_answer_tokens": Field(int, "[1, 2e9]", 48),  # maximum number of tokens of a training answer
        "video_loss": Field(float, "[0, inf)", 1.0),  # weight of the squared error of predicted features
        **decode.BEAM,
        "score.protocol": Field(str, None, "plain"),
        "score.metrics": Field(tuple, None, ("bleu", "rouge_l", "cider", "meteor")),
    }


def texts(config: Config) -> Iterator[str]:
    """Return the texts of the train split: dialogues, and captions and summaries of their videos."""
    yield from dialogues.texts(_train(config))


def dataset(split: str, config: Config) -> dict[str, np.ndarray] | None:
    """Return one example per turn: ids and kinds of its context [n, t], and of its answer [n, a + 1].

    `answered` [n] counts the answer's ids after the first, 0 for one that is undisclosed; those are left out of
    train. The dialogue itself and the number of the turn in it go along for the host.

    Raises:
      DataError: the file is absent or wrong, or features of its videos are missing.
    """
    data = config.data
    path = dialogues.locate(split, data[split], _folder(config))
    if path is None:
        return None
    turns = dialogues.turns(dialogues.read_cached(path), "all" if split == "train" else data.turns)
    if split == "train":
        turns = [turn for turn in turns if dialogues.references(turn)]
    if data.features:
        _features(config).require(dialogue["image_id"] for dialogue, _ in turns)
    return _encode(turns, config)


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return questions in dialogues (see `dialogues.parse_turn`) as `dataset` returns undisclosed turns.

    With config.data.features an input has `features`, an array [time, width] of all kinds side by side, or an
    `image_id`, whose files are read.

    Raises:
      DataError: an input is no question, or has no features.
    """
    turns = [_read_turn(given) for given in inputs]
    for given, (dialogue, _) in zip(inputs, turns, strict=True):
        if config.data.features:
            _check_features(given, dialogue, config)
    return _encode(turns, config)


def _encode(turns: Sequence[dialogues.Turn], config: Config) -> dict[str, np.ndarray]:
    data, tokenizer = config.data, tokenizers.of(config, texts)
    return dialogues.arrays(
        turns,
        lambda text: tokenizers.encode(tokenizer, [text])[0].ids,
        _mark(config),
        context_size=data.max_context_tokens,
        answer_size=data.max_answer_tokens,
        max_turns=data.max_turns,
        use_caption=data.use_caption,
    )


def lengths(examples: dict[str, np.ndarray], config: Config) -> np.ndarray:
    """Return the number of ids of each context, int [n]."""
    return np.sum(examples["kinds"] > 0, axis=1)


def collate_fn(examples: list[Any], config: Config) -> dict[str, np.ndarray]:
    """Return a batch with the features of its videos, `video` [b, frames, width], and their lengths, `frames` [b]."""
    batch = {name: np.stack([row[name] for row in examples]) for name in examples[0] if name != "dialogue"}
    if config.data.features:
        video, frames = _features(config).batch([_video(row["dialogue"]) for row in examples])
    else:
        video, frames = np.zeros((len(examples), 0, 0), np.float32), np.zeros(len(examples), np.int32)
    return batch | {"video": video, "frames": frames}


def model_args(config: Config) -> dict[str, Any]:
    """Return the positions for video, context and answer, the features' width, and the id that ends an answer."""
    data, frames, width = config.data, 0, 0
    if data.features:
        videos = [dialogue["image_id"] for dialogue in _train(config)]
        _features(config).require(videos)
        frames, width = data.frames, _features(config).width(videos[0])
    positions = frames + data.max_context_tokens + max(data.max_answer_tokens, config.beam.max_len)
    return {"max_length": positions, "features": width, "end": _mark(config)}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    data, width = config.data, config.model.features or 0
    if data.features and not width:
        width = stand_ins.assumed("features", FEATURES * len(data.features), "the videos have their features' width")
    frames, context, length = data.frames if data.features else 0, data.max_context_tokens, data.max_answer_tokens
    values = {"max_length": frames + context + max(length, config.beam.max_len), "features": width}
    return values | {"end": _mark(config)}, {
        "context": np.zeros(context, np.int32),
        "kinds": np.ones(context, np.int32),
        "answer": np.zeros(length + 1, np.int32),
        "answered": np.array(length, np.int32),
        "turn": np.array(0, np.int32),
        "video": np.zeros((frames, width), np.float32),
        "frames": np.array(frames, np.int32),
    }


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the GPT, the embeddings of kinds, and with video the projections of its features."""
    answer = batch["answer"][:, :2]
    return _model(config).init(rng, _prompt(batch), answer, method="losses")["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return both loss terms, and the perplexity and accuracy of the answers' tokens."""
    nats, correct, error = models.apply(
        _model(config), params, _prompt(batch), batch["answer"], rng=rng, method="losses"
    )
    weights = example_weights(batch)[:, None]
    said = (jnp.arange(nats.shape[1])[None] < batch["answered"][:, None]) * weights
    seen = (jnp.arange(error.shape[1])[None] + 1 < batch["frames"][:, None]) * weights
    answer = Loss.of(nats, said)
    metrics = {
        "answer": answer,
        "video": Loss.of(error, seen, config.video_loss),
        "perplexity": Perplexity(answer.total, answer.count),
        "accuracy": Mean.of(correct, said),
    }
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Search the best answer: `tokens` [b, max_len], followed by the end mark, and its `score` [b]."""
    inputs, end = (_prompt(batch), batch["answer"][:, 0]), config.model.end
    beams = models.search(_model(config), params, inputs, config.beam, method="read", eos=end, pad=end)
    return {"tokens": beams.tokens[:, 0], "score": beams.scores[:, 0]}


def score_fn(examples: Any, outputs: Any, config: Config) -> dict[str, float]:
    """Score the answers against the references of their turns; {} if no turn has any."""
    references = [dialogues.references(_turn(example)) for example in examples]
    pairs = [pair for pair in zip(answer_texts(outputs, config), references, strict=True) if pair[1]]
    if not pairs:
        return {}
    generated, wanted = zip(*pairs, strict=True)
    return captions.scores(generated, wanted, protocol=config.score.protocol, metrics=config.score.metrics)


def answers(examples: Any, outputs: Any, config: Config) -> list[dict[str, Any]]:
    """Return the answer to each question."""
    return [{"answer": text} for text in answer_texts(outputs, config)]


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the features [b, width] of the `last` id of each context."""
    features = models.apply(_model(config), params, _prompt(batch), rng=rng, method="embed")
    return {"last": features.astype(jnp.float32)}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, np.ndarray | str]:
    """Format a page of dialogues: caption, the turns before, and the answer beside the references."""
    generated = zip(examples, answer_texts(outputs, config), strict=True)
    return {"dialogues": "\n".join(dialogues.page(_turn(example), answer) for example, answer in generated)}


def export_fn(examples: Any, outputs: Any, config: Config) -> dict[str, str]:
    """Format the answers officially: `dstc7.json` (the file of dialogues, filled) and `coco.json` (results).

    In a file with undisclosed answers those alone are filled in. One in which a video comes twice has no `dstc7.json`.
    """
    return dialogues.answer_files([_turn(example) for example in examples], answer_texts(outputs, config))


def answer_texts(outputs: Any, config: Config) -> list[str]:
    """Decode predicted answers to texts."""
    return encoding.decode(tokenizers.of(config, texts), (output["tokens"] for output in outputs), _mark(config))


def _read_turn(given: Any) -> dialogues.Turn:
    if isinstance(given, Mapping) and {"dialogue", "turn", "kinds"} <= set(given):  # a row of `dataset`
        past = given["dialogue"]["dialog"][: int(given["turn"]) + 1]
        given = {**given["dialogue"], "dialog": past}
    return dialogues.parse_turn(given)


def _check_features(given: Any, dialogue: dict[str, Any], config: Config) -> None:
    """Require the features of an input, in it or in files."""
    if "features" not in dialogue:
        if not isinstance(given, Mapping) or not {"image_id", "kinds"} & set(given):
            raise DataError(
                f"{unlabeled.describe(given)}; expected a dict with 'features' [time, width] or 'image_id' beside"
                " 'question', because of config.data.features"
            )
        _features(config).require([dialogue["image_id"]])
        return
    try:
        array = dialogue["features"] = np.asarray(dialogue["features"], np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"'features' is not an array of floats ({error})") from error
    if array.ndim != 2 or not len(array) or array.shape[1] != config.model.features or not np.isfinite(array).all():
        raise DataError(
            f"'features' is an array {list(array.shape)}; expected finite floats [time, {config.model.features}]"
        )


def _video(dialogue: dict[str, Any]) -> Any:
    """Return the features of an input, or the name of the files that hold them."""
    return dialogue.get("features", dialogue["image_id"])


def _turn(example: Any) -> dialogues.Turn:
    return example["dialogue"], int(example["turn"])


def _prompt(batch: Batch) -> models.Prompt:
    return models.Prompt(batch["video"], batch["frames"], batch["context"], batch["kinds"])


def _model(config: Config) -> Any:
    return models.build(models.VideoGPT, config, outputs=config.model.vocab)


def _folder(config: Config) -> pathlib.Path:
    return data_folder(config.data.dir)


def _features(config: Config) -> Features:
    folder, data = _folder(config), config.data
    places = [storage.local(data.features_dir)] if data.features_dir else [folder, folder / "avsd"]
    folder = next((place for place in places if (place / data.features[0]).is_dir()), places[0])
    return Features(folder, tuple(data.features), data.frames, max(data.threads, 1))


def _train(config: Config) -> list[dict[str, Any]]:
    path = dialogues.locate("train", config.data.train, _folder(config))
    assert path is not None  # checked above
    return dialogues.read_cached(path)


def _mark(config: Config) -> int:
    """Return the id that begins each piece of a context, and ends an answer."""
    return tokenizers.special(tokenizers.of(config, texts), tokenizers.END, "[SEP]")
