"""Answers to questions as spans of a text, with a BERT (Devlin et al. 2019, 4.2 and 4.3), as in SQuAD 1.1 and 2.0.

With `config.init_from` the body comes from another run, such as one of `bert`, and the head is new.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtasks import models
from jtasks.config import Config
from jtasks.data import encoding, squad, stand_ins, tokenizers, unlabeled, values
from jtasks.errors import DataError
from jtasks.metrics import Loss, Mean, example_weights, spans, total
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = "BertForQuestionAnswering"
SEQUENCE_KEYS = ("tokens", "token_types", "segment_ids")


def defaults() -> dict[str, Any]:
    """Return the fields of the BERT, the files of the splits, their lengths, and the number of spans."""
    return {
        **models.fields(models.BERT, filled=["vocab", "max_length", "labels"]),
        **encoding.FIELDS,
        "data.max_question_tokens": Field(int, "[1, 2e9]", 64),  # maximum number of tokens of a question
        "data.stride": Field(int, "[1, 2e9]", 128),  # tokens from one window of a context to the next
        "data.max_answer_tokens": Field(int, "[1, 2e9]", 30),  # maximum number of tokens of an answer
        "data.num_spans": Field(int, "[1, 2e9]", 20),  # number of spans kept per window and per question
        "data.unanswerable": Field(bool, None, False),  # some questions have no answer, as in SQuAD 2.0
        "data.threshold": Field(float, "(-inf, inf)", 0.0),  # no answer if its score exceeds the best span's by more
    }


def texts(config: Config) -> Iterator[str]:
    """Return the contexts and the questions of the train split."""
    questions = _questions("train", config) or []
    yield from dict.fromkeys(question.context for question in questions)
    yield from (question.text for question in questions)


def dataset(split: str, config: Config) -> dict[str, np.ndarray] | None:
    """Return the windows of `squad.windows`; None without a file.

    Raises:
      DataError: as `squad.questions`, or an unanswerable question without config.data.unanswerable.
    """
    data, questions = config.data, _questions(split, config)
    if questions is None:
        return None
    untold = [question.name for question in questions if question.answers is None]
    if untold and split == "train":
        raise DataError(f"{data[split]}: question {untold[0]!r} has no 'answers', which training needs")
    if not data.unanswerable and any(question.answers == [] for question in questions):
        raise DataError(f"{data[split]} has questions without answers: set config.data.unanswerable=True")
    return _windows(questions, config)


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return (question, context), or dicts with `question` and `context`, as `dataset` returns unanswered questions.

    A long context becomes several windows; `input` tells the index of the input of each.
    """
    questions = [_question(given, str(number)) for number, given in enumerate(inputs)]
    arrays = _windows(questions, config)
    return arrays | {"input": np.array([int(question.name) for question in arrays["question"]], np.int32)}


def model_args(config: Config) -> dict[str, Any]:
    """Return the number of positions and of logits."""
    return {"max_length": config.data.length, "labels": 2}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    example = stand_ins.text(config.data.length, "token_types", "segment_ids")
    return model_args(config), example | {name: np.array(0, np.int32) for name in ("start", "end", "begin")}


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the BERT and its head."""
    return _model(config).init(rng, *_inputs(batch), method="tag")["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return half the nats of an answer's first and last token each, and the fraction of windows with both right.

    Unlabeled answers have no weight. Training has dropout.
    """
    logits = _logits(params, batch, rng, config)
    mask = example_weights(batch) * (batch["start"] >= 0)
    right = jnp.ones(mask.shape, bool)
    metrics: dict[str, Mean] = {}
    for i, name in enumerate(("start", "end")):
        nats = optax.softmax_cross_entropy_with_integer_labels(logits[..., i], jnp.maximum(batch[name], 0))
        metrics[name] = Loss.of(nats, mask, weight=0.5)
        right &= logits[..., i].argmax(-1) == batch[name]
    metrics["accuracy"] = Mean.of(right, mask)
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Predict the best spans of each window.

    Returns:
      `start` and `end` [b, n], the first and the last token of the `config.data.num_spans` best spans of the context
      with at most `config.data.max_answer_tokens` tokens; their `score` [b, n], the sum of the two logits, descending;
      and `none` [b], that of the first token, which stands for no answer. What is no span has a score of -1e30.
    """
    start, end = jnp.moveaxis(_logits(params, batch, None, config), -1, 0)
    b, t = start.shape
    real = batch["segment_ids"] > 0
    follows = jnp.pad(real[:, 1:], ((0, 0), (0, 1)))  # all but the [SEP] after the context
    context = (batch["token_types"] > 0) & real & follows
    width = min(config.data.max_answer_tokens, t)
    padding = ((0, 0), (0, width))
    ends = jnp.pad(jnp.where(context, end, squad.NO_SPAN), padding, constant_values=squad.NO_SPAN)
    scores = jnp.stack([start + ends[:, more : more + t] for more in range(width)], axis=-1)  # [b, t, width]
    scores = jnp.maximum(jnp.where(context[:, :, None], scores, squad.NO_SPAN), squad.NO_SPAN)
    best, places = jax.lax.top_k(scores.reshape(b, -1), min(config.data.num_spans, t * width))
    first = places // width
    return {"start": first, "end": first + places % width, "score": best, "none": start[:, 0] + end[:, 0]}


def score_fn(examples: Any, outputs: Any, config: Config) -> dict[str, float]:
    """Compute exact match and F1 of the official scripts; of version 2.0 with unanswerable questions."""
    predictions = squad.predictions(examples, outputs, config.data.num_spans)
    if untold := [p.question.name for p in predictions if p.question.answers is None]:
        raise DataError(
            f"question {untold[0]!r} has no 'answers' to compare with: leave such a file out of training and give it to"
            " --mode=predict, with --config.data.allow_changes=True"
        )
    answers = {p.question.name: [text for _, text in p.question.answers or ()] for p in predictions}
    best = {p.question.name: p.answer() for p in predictions}
    if not config.data.unanswerable:
        return spans.scores(best, answers)
    return spans.scores_at(config.data.threshold, best, answers, {p.question.name: p.odds for p in predictions})


def answers(examples: Any, outputs: Any, config: Config) -> list[dict[str, Any]]:
    """Return the answer to the question of each window, "" for no answer."""
    threshold = _threshold(config)
    predictions = squad.predictions(examples, outputs, config.data.num_spans)
    best = {p.question.name: p.answer(np.inf if threshold is None else threshold) for p in predictions}
    return [{"answer": best[example["question"].name]} for example in examples]


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the features [b, width] `cls`, `mean` (over the tokens) and `pooled` (if any) of each window."""
    return models.apply(_model(config), params, *_inputs(batch), rng=rng, method="embed")


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, str]:
    """Format questions, predicted answers and true answers."""
    lines = []
    for predicted in squad.predictions(examples, outputs, config.data.num_spans):
        question, threshold = predicted.question, _threshold(config)
        true = " | ".join(dict.fromkeys(text for _, text in question.answers or ()))
        true = "(not told)" if question.answers is None else true or "(no answer)"
        said = predicted.answer(np.inf if threshold is None else threshold) or "(no answer)"
        lines.append(f"{question.text.strip()}\n  found: {said}\n  truly: {true}")
    return {"answers": "\n".join(lines)}


def export_fn(examples: Any, outputs: Any, config: Config) -> dict[str, str]:
    """Format the official predictions, {id: text}, the best spans of each question, and the odds of no answer."""
    return squad.prediction_files(squad.predictions(examples, outputs, config.data.num_spans), _threshold(config))


def _threshold(config: Config) -> float | None:
    return config.data.threshold if config.data.unanswerable else None


def _question(given: Any, name: str) -> squad.Question:
    """Return an input as a question without answers; raise DataError if it is none."""
    expected = "a pair (question, context), or a dict with 'question' and 'context'"
    if isinstance(given, Mapping) and isinstance(given.get("question"), squad.Question):  # a row of `dataset`
        given = given["question"].text, given["question"].context
    elif isinstance(given, Mapping):
        given = tuple(unlabeled.entry(given, (key,), expected) for key in ("question", "context"))
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise DataError(f"{unlabeled.describe(given)}; expected {expected}")
    text, context = (values.content(part, key) for part, key in zip(given, ("question", "context"), strict=True))
    return squad.Question(name, text, context, None)


def _windows(questions: Sequence[squad.Question], config: Config) -> dict[str, np.ndarray]:
    data = config.data
    sizes = {"length": data.length, "question": data.max_question_tokens, "stride": data.stride}
    return squad.windows(tokenizers.of(config, texts), questions, **sizes)


def _model(config: Config) -> Any:
    return models.build(models.BERT, config)


def _inputs(batch: Batch) -> tuple[jax.Array, ...]:
    return tuple(batch[name].astype(jnp.int32) for name in SEQUENCE_KEYS)


def _logits(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> jax.Array:
    """Return logits [b, t, 2] of the first and the last token; padding is never chosen."""
    logits = models.apply(_model(config), params, *_inputs(batch), rng=rng, method="tag")
    return jnp.where(batch["segment_ids"][:, :, None] > 0, logits, squad.NO_SPAN)


def _questions(split: str, config: Config) -> list[squad.Question] | None:
    name = config.data[split]
    return squad.questions(name, split, folder=config.data.dir) if name else None
