"""Classification of texts, or pairs of texts, with a BERT: all tasks of GLUE (Wang et al. 2018).

`config.problem` says what a text has: one class, any number of classes (multi_label), or a number (regression).

Files are TSV, CSV or JSONL, or prepared by TFDS; the config names their columns. With `config.init_from` the body
comes from another run, such as one of `bert`, and the head is new.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import models
from jtasks.config import Config
from jtasks.data import encoding, stand_ins, tables, targets, tokenizers, unlabeled, values
from jtasks.data.assets import labels
from jtasks.data.lazy import each
from jtasks.errors import DataError
from jtasks.metrics import Mean, classification, example_weights, heads, multilabel, regression, total
from jtasks.ops import problems
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = "BertForSequenceClassification"
SEQUENCE_KEYS = ("tokens", "token_types", "segment_ids")


def defaults() -> dict[str, Any]:
    """Return the fields of the BERT, the loss, the files of the splits, and their columns of texts and classes."""
    return {
        **models.fields(models.BERT, filled=["vocab", "max_length", "labels"]),
        **problems.FIELDS,
        **classification.FIELDS,
        **encoding.FIELDS,
        "data.text": Field(str, None, "sentence"),  # column of the text
        "data.text_pair": Field(str, None, ""),  # column of the second text of a pair; "": none
        "data.label": Field(str, None, "label"),  # column of the class, the classes or the number
        "data.labels": Field(tuple, None, ()),  # names of the classes in order; (): as the data has them, or sorted
    }


def texts(config: Config) -> Iterator[str]:
    """Return the texts of the train split."""
    for row in _rows("train", config) or []:
        yield from (row[field] for field in (config.data.text, config.data.text_pair) if field)


def dataset(split: str, config: Config) -> dict[str, np.ndarray] | None:
    """Return the arrays [n, length] of `encoding.pairs`, `label` (see `targets.arrays`), and the texts.

    The result is None without a file. Valid and test files without labels (no such column, or the class -1 everywhere)
    have no `label` but can be predicted for.

    Raises:
      DataError: a file is absent, or a label is not among the classes.
    """
    rows = _rows(split, config)
    if rows is None:
        return None
    first = [row[config.data.text] for row in rows]
    second = [row[config.data.text_pair] for row in rows] if config.data.text_pair else None
    for number, (a, b) in enumerate(zip(first, second or first, strict=True)):
        if not (a.strip() or b.strip()):
            raise DataError(f"{config.data[split]}: both texts of example {number} are empty")
    problem, classes = problems.of(config), _classes(config)
    labels = [row[config.data.label] for row in rows if config.data.label in row]
    if split != "train" and problem == problems.SINGLE and set(labels) == {"-1"} and "-1" not in classes:
        labels = []
    known = {}
    if labels:
        known["label"] = targets.arrays(labels, classes, problem, split, given=bool(config.data.labels))
    del rows  # whose columns are enough from here on
    return _encode(first, second, config) | known


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return texts, pairs of texts, or dicts with the columns of the files, as `dataset` returns unlabeled rows."""
    data = config.data
    first, second = unlabeled.text_pairs(inputs, data.text, data.text_pair, pairs=bool(data.text_pair))
    return _encode(first, second if data.text_pair else None, config)


def model_args(config: Config) -> dict[str, Any]:
    """Return the number of positions and of classes."""
    return {"max_length": config.data.length, "labels": len(_classes(config))}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    classes = 1 if problems.of(config) == problems.NUMBER else stand_ins.classes(config, "labels")
    names, first = [str(number) for number in range(classes)], () if problems.of(config) == problems.MULTI else "0"
    label = targets.arrays([first], names, problems.of(config), "train", given=True)
    example = stand_ins.text(config.data.length, "token_types", "segment_ids")
    return {"max_length": config.data.length, "labels": classes}, example | {"label": label[0]}


def assets(config: Config) -> dict[str, str]:
    """Return the names of the classes."""
    return labels(_classes(config))


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the BERT and its classifier."""
    return _model(config).init(rng, *_inputs(batch), method="classify")["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the nats per text and the accuracy, or a regression's errors; training has dropout and config.loss."""
    logits, labels = _logits(params, batch, rng, config), encoding.require_labels(batch, "label")
    options = None if rng is None else config.get("loss")
    metrics = heads.losses(problems.of(config), logits, labels, example_weights(batch), options)
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Predict the likeliest class `label` [b] and its `probability` [b].

    With multi_label these are the `probabilities` [b, classes] of all classes, and with regression the `value` [b].
    """
    return heads.predictions(problems.of(config), _logits(params, batch, None, config))


def score_fn(examples: Any, outputs: Any, config: Config) -> dict[str, float]:
    """Compute F1 of the second of two classes, else the mean F1 of all classes; and Matthews's correlation.

    See `multilabel.scores` for several classes and `regression.scores` for numbers.
    """
    if problems.of(config) == problems.MULTI:
        hot = (multilabel.chosen(output["probabilities"]) for output in outputs)
        return multilabel.scores((example["label"] for example in examples), hot, _classes(config))
    kind, entry = (np.float64, "value") if problems.of(config) == problems.NUMBER else (np.int32, "label")
    truth = np.fromiter((example["label"] for example in examples), kind, len(examples))
    predicted = np.fromiter((output[entry] for output in outputs), kind, len(outputs))
    if problems.of(config) == problems.NUMBER:
        return regression.scores(truth, predicted)
    return classification.scores(truth, predicted, config.model.labels)


def answers(examples: Any, outputs: Any, config: Config) -> Sequence[dict[str, Any]]:
    """Return the name of each predicted class, or of all classes that a text has; of a number there is no more."""
    names = () if problems.of(config) == problems.NUMBER else _classes(config)
    return each(lambda output: heads.answer(problems.of(config), output, names), outputs)


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the features [b, width] `cls`, `mean` (over the tokens) and `pooled` of each text."""
    return models.apply(_model(config), params, *_inputs(batch), rng=rng, method="embed")


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, str]:
    """Format the texts, with the predicted classes or numbers."""
    names, problem, lines = _classes(config), problems.of(config), []
    for example, output in zip(examples, outputs, strict=True):
        text = " | ".join(example[name].strip() for name in ("text", "text_pair") if name in example)
        true = heads.describe(problem, example["label"], names) if "label" in example else "(not told)"
        lines.append(f"{heads.describe_output(problem, output, names)}, truly {true}: {text}")
    return {"labels": "\n".join(lines)}


def _encode(first: Sequence[str], second: Sequence[Any] | None, config: Config) -> dict[str, np.ndarray]:
    columns = {"text": first} | ({} if second is None else {"text_pair": second})
    return {
        **encoding.pairs(tokenizers.of(config, texts), first, second, config.data.length),
        **{name: np.array(values, object) for name, values in columns.items()},
    }


def _model(config: Config) -> Any:
    return models.build(models.BERT, config)


def _inputs(batch: Batch) -> tuple[jax.Array, ...]:
    return tuple(batch[name].astype(jnp.int32) for name in SEQUENCE_KEYS)


def _logits(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> jax.Array:
    return models.apply(_model(config), params, *_inputs(batch), rng=rng, method="classify")


def _rows(split: str, config: Config) -> list[tables.Row] | None:
    data = config.data
    if not data[split]:
        return None
    check = values.text if data.text_pair else values.content  # one text of a pair may be empty
    fields = {
        data.text: check,
        **({data.text_pair: check} if data.text_pair else {}),
        data.label: targets.CHECKS[problems.of(config)],
    }
    optional = () if split == "train" else (data.label,)
    return tables.rows(data[split], split, fields, optional=optional, folder=data.dir, source=data.source)


def _classes(config: Config) -> tuple[str, ...]:
    """Return the class names in the order of their numbers: as configured, as the data says, or the sorted names."""
    data, problem = config.data, problems.of(config)
    named = problem != problems.NUMBER and not data.labels and bool(data.train)
    if named and (names := tables.class_names(data.train, "train", data.label, folder=data.dir)):
        return names
    rows = () if data.labels or problem == problems.NUMBER else _rows("train", config) or []
    return targets.class_names(data.labels, [row[data.label] for row in rows], problem, data.label)
