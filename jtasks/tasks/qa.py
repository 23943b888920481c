"""Answer questions by a span of a text, with a BERT (Devlin et al. 2019, 4.2 and 4.3), as in SQuAD 1.1 and 2.0.

With `config.init_from` the body is that of another run, such as one of `bert`, and the head is fresh.
"""

import collections
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtasks import models
from jtasks.config import Config
from jtasks.data import encoding, squad, tokenizers
from jtasks.errors import DataError
from jtasks.metrics import Loss, Mean, example_weights, spans, total
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = "BertForQuestionAnswering"
SEQUENCE_KEYS = ("tokens", "types", "segments")
NEVER = -1e30  # the score of what is no span; JSON has no infinity


class Found(NamedTuple):
    """What the windows of a question say: texts with their scores, the best first, and what speaks for no answer."""

    question: squad.Question
    best: list[tuple[str, float]]
    odds: float  # the score of no answer less that of the best

    def answer(self, threshold: float) -> str:
        """The best text, or "" where the odds against one are above the threshold."""
        return self.best[0][0] if self.best and self.odds <= threshold else ""


def defaults() -> dict[str, Any]:
    """The BERT's fields, the files of the splits, and their lengths and the number of spans."""
    return {
        **models.fields(models.BERT, filled=["vocab", "positions", "labels"]),
        **encoding.FIELDS,
        "data.question": Field(int, "[1, 2e9]", 64),  # most tokens of a question
        "data.stride": Field(int, "[1, 2e9]", 128),  # tokens from one window of a context to the next
        "data.answer": Field(int, "[1, 2e9]", 30),  # most tokens of an answer
        "data.best": Field(int, "[1, 2e9]", 20),  # spans that are kept of a window, and of a question
        "data.unanswerable": Field(bool, None, False),  # some questions have no answer, as in SQuAD 2.0
        "data.threshold": Field(float, "(-inf, inf)", 0.0),  # no answer where none is likelier by more than that
    }


def texts(config: Config) -> Iterator[str]:
    """The contexts and the questions of the train split."""
    questions = _questions("train", config) or []
    yield from dict.fromkeys(question.context for question in questions)
    yield from (question.text for question in questions)


def dataset(split: str, config: Config) -> dict[str, np.ndarray] | None:
    """Windows as `squad.windows` makes them; None without a file.

    Raises:
      DataError: as `squad.questions`, or a question without an answer that the config says nothing of.
    """
    data, questions = config.data, _questions(split, config)
    if questions is None:
        return None
    untold = [question.name for question in questions if question.answers is None]
    if untold and split == "train":
        raise DataError(f"{data[split]}: question {untold[0]!r} has no 'answers', which training needs")
    if not data.unanswerable and any(question.answers == [] for question in questions):
        raise DataError(f"{data[split]} has questions without answers: set config.data.unanswerable=True")
    sizes = {"length": data.length, "question": data.question, "stride": data.stride}
    return squad.windows(tokenizers.of(config, texts), questions, **sizes)


def model_args(config: Config) -> dict[str, Any]:
    """Number of positions and of logits."""
    return {"positions": config.data.length, "labels": 2}


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Parameters of the BERT and its head."""
    return _model(config).init(rng, *_inputs(batch), method="tag")["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return half the nats of an answer's first token and of its last, and the share of windows with both right.

    Answers that no file tells count for nothing. There is dropout in training.
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
    """Return the same metrics without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """The best spans of each window.

    Returns:
      `start` and `end` [b, n], the first and the last token of the `config.data.best` best spans of the context with at
      most `config.data.answer` tokens; their `score` [b, n], the sum of the two logits, descending; and `none` [b],
      that of the first token, which stands for no answer. What is no span has a score of -1e30.
    """
    start, end = jnp.moveaxis(_logits(params, batch, None, config), -1, 0)
    b, t = start.shape
    real = batch["segments"] > 0
    follows = jnp.pad(real[:, 1:], ((0, 0), (0, 1)))  # all but the [SEP] behind the context
    context = (batch["types"] > 0) & real & follows
    width = min(config.data.answer, t)
    padding = ((0, 0), (0, width))
    ends = jnp.pad(jnp.where(context, end, NEVER), padding, constant_values=NEVER)
    scores = jnp.stack([start + ends[:, more : more + t] for more in range(width)], axis=-1)  # [b, t, width]
    scores = jnp.maximum(jnp.where(context[:, :, None], scores, NEVER), NEVER)
    best, places = jax.lax.top_k(scores.reshape(b, -1), min(config.data.best, t * width))
    first = places // width
    return {"start": first, "end": first + places % width, "score": best, "none": start[:, 0] + end[:, 0]}


def score_fn(examples: Any, outputs: Any, config: Config) -> dict[str, float]:
    """Exact match and F1 of the official scripts; with unanswerable questions, those of version 2.0."""
    found = list(_found(examples, outputs, config))
    if untold := [f.question.name for f in found if f.question.answers is None]:
        raise DataError(
            f"question {untold[0]!r} has no 'answers' to compare with: leave such a file out of training and give it to"
            " --mode=predict, with --config.data.allow_changes=True"
        )
    answers = {f.question.name: [text for _, text in f.question.answers or ()] for f in found}
    if not config.data.unanswerable:
        return spans.scores({f.question.name: f.answer(np.inf) for f in found}, answers)
    said = {f.question.name: f.answer(config.data.threshold) for f in found}
    best = {f.question.name: f.answer(np.inf) for f in found}
    odds = {f.question.name: f.odds for f in found}
    sought = spans.scores_with_unanswerable(best, answers, odds)
    kept = {name: value for name, value in sought.items() if name.startswith("best")}
    return spans.scores_with_unanswerable(said, answers) | kept


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, str]:
    """Questions, the answers that the model finds, and the true ones."""
    lines = []
    for found in _found(examples, outputs, config):
        true = " | ".join(dict.fromkeys(text for _, text in found.question.answers or ()))
        true = "(not told)" if found.question.answers is None else true or "(no answer)"
        said = found.answer(_threshold(config)) or "(no answer)"
        lines.append(f"{found.question.text.strip()}\n  found: {said}\n  truly: {true}")
    return {"answers": "\n".join(lines)}


def export_fn(examples: Any, outputs: Any, config: Config) -> dict[str, str]:
    """The official file of predictions, {id: text}; the best spans of each question; the odds against an answer."""
    found = list(_found(examples, outputs, config))
    best = {f.question.name: [{"text": text, "score": score} for text, score in f.best] for f in found}
    odds = {"odds.json": {f.question.name: f.odds for f in found}} if config.data.unanswerable else {}
    answers = {f.question.name: f.answer(_threshold(config)) for f in found}
    files = {"answers.json": answers, "best.json": best, **odds}
    return {name: json.dumps(content, ensure_ascii=False, indent=1) + "\n" for name, content in files.items()}


def _found(examples: Any, outputs: Any, config: Config) -> Iterator[Found]:
    """What each question's windows say together: every text at its best score, no answer at its worst."""
    questions: dict[str, squad.Question] = {}
    texts: dict[str, dict[str, float]] = collections.defaultdict(dict)
    none: dict[str, float] = {}
    for example, output in zip(examples, outputs, strict=True):
        question, offsets, begin = example["question"], example["offsets"], int(example["begin"])
        name = question.name
        questions[name] = question
        none[name] = min(none.get(name, np.inf), float(output["none"]))
        for start, end, score in zip(output["start"], output["end"], output["score"], strict=True):
            if score > NEVER:
                text = question.context[offsets[start - begin][0] : offsets[end - begin][1]]
                texts[name][text] = max(texts[name].get(text, -np.inf), float(score))
    for name, question in questions.items():
        best = sorted(texts[name].items(), key=lambda item: -item[1])[: config.data.best]
        yield Found(question, best, none[name] - (best[0][1] if best else NEVER))


def _threshold(config: Config) -> float:
    return config.data.threshold if config.data.unanswerable else np.inf


def _model(config: Config) -> Any:
    return models.build(models.BERT, config)


def _inputs(batch: Batch) -> tuple[jax.Array, ...]:
    return tuple(batch[name].astype(jnp.int32) for name in SEQUENCE_KEYS)


def _logits(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> jax.Array:
    """Logits [b, t, 2] of the first and the last token; padding has none to speak of."""
    logits = models.apply(_model(config), params, *_inputs(batch), rng=rng, method="tag")
    return jnp.where(batch["segments"][:, :, None] > 0, logits, NEVER)


def _questions(split: str, config: Config) -> list[squad.Question] | None:
    name = config.data[split]
    return squad.questions(name, split, folder=config.data.dir) if name else None
