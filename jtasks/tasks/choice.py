"""Multiple choice between texts with a BERT: SWAG (Zellers et al. 2018) and RACE (Lai et al. 2017).

Each choice is read after its context and gets a score (Devlin et al. 2019, 4.4). With `config.init_from` the body
comes from another run, such as one of `bert`, and the head is new.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import models
from jtasks.config import Config
from jtasks.data import encoding, stand_ins, tables, tokenizers, unlabeled, values
from jtasks.data.lazy import each
from jtasks.errors import ConfigError, DataError
from jtasks.metrics import Mean, classification, example_weights, total
from jtasks.ranges import Field

Batch = dict[str, jax.Array]

HF_ARCHITECTURE = "BertForMultipleChoice"
INPUTS = ("tokens", "token_types", "segment_ids")
CHOICES = {"swag": 4, "race": 4}  # of an example
LABELS = ("label", "answer")  # columns that an unlabeled file lacks
FIELDS: dict[str, dict[str, values.Check]] = {
    "swag": {
        "sent1": values.content,
        "sent2": values.text,
        **{f"ending{i}": values.content for i in range(4)},
        "label": values.label,
    },
    "race": {
        "article": values.content,
        "question": values.content,
        "options": values.contents,
        "answer": values.label,
    },
}


def defaults() -> dict[str, Any]:
    """Return the fields of the BERT, the files of the splits, and their format."""
    return {
        **models.fields(models.BERT, filled=["vocab", "max_length", "labels"]),
        **encoding.FIELDS,
        "data.fields": Field(str, tuple(FIELDS), "swag"),  # the data set whose columns the files have
    }


def texts(config: Config) -> Iterator[str]:
    """Return the contexts and the choices of the train split."""
    for context, choices, _ in _read("train", config) or []:
        yield context
        yield from choices


def dataset(split: str, config: Config) -> dict[str, np.ndarray] | None:
    """Return the arrays of `encoding.pairs` as [n, choices, length], `label` [n], and the texts.

    Valid and test files without labels (no such column, or -1 everywhere) have no `label` but can be predicted for.

    Raises:
      DataError: a file is absent, examples differ in their number of choices, or a label is not a choice.
    """
    rows = _read(split, config)
    if rows is None:
        return None
    contexts, choices, labels = (list(column) for column in zip(*rows, strict=True))
    untold = split != "train" and set(labels) == {None}
    count = len(choices[0])
    for i, (own, label) in enumerate(zip(choices, labels, strict=True)):
        if len(own) != count:
            raise DataError(f"{config.data[split]}: example {i} has {len(own)} choices, the first has {count}")
        if not untold and not 0 <= (-1 if label is None else label) < count:
            raise DataError(f"{config.data[split]}: the answer of example {i} is none of its {count} choices")
    return _encode(contexts, choices, config) | ({} if untold else {"label": np.array(labels, np.int32)})


def examples(inputs: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """Return contexts and their choices as `dataset` returns unlabeled rows.

    An input is a pair (context, [choice, ...]), a dict with `context` and `choices` or `endings`, or a dict with the
    columns of the files.

    Raises:
      DataError: an input is none of these, or inputs differ in their number of choices.
    """
    rows = [_choice(given, config.data.fields) for given in inputs]
    if len(counts := {len(choices) for _, choices in rows}) > 1:
        raise DataError(f"inputs with {' and '.join(map(str, sorted(counts)))} choices; expected equally many")
    return _encode([context for context, _ in rows], [choices for _, choices in rows], config)


def model_args(config: Config) -> dict[str, Any]:
    """Return the number of positions, and of logits per choice."""
    return {"max_length": config.data.length, "labels": 1}


def made_example(config: Config) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the values of `model_args` and the arrays of an example, from the config alone."""
    example = stand_ins.text(config.data.length, "token_types", "segment_ids")
    return model_args(config), {
        **{name: np.stack([array] * CHOICES[config.data.fields]) for name, array in example.items()},
        "label": np.array(0, np.int32),
    }


def init(rng: jax.Array, batch: Batch, config: Config) -> dict[str, Any]:
    """Initialize the BERT and its head."""
    return _model(config).init(rng, *_inputs(batch), method="classify")["params"]


def loss_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the nats per example, and the accuracy; training has dropout."""
    logits, labels = _scores(params, batch, rng, config), encoding.require_labels(batch, "label")
    metrics = classification.cross_entropy(logits, labels, example_weights(batch))
    return total(metrics), metrics


def eval_fn(params: Any, batch: Batch, config: Config) -> dict[str, Mean]:
    """Return the metrics of `loss_fn` without randomness."""
    return loss_fn(params, batch, None, config)[1]


def predict_fn(params: Any, batch: Batch, rng: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Predict the likeliest choice [b], and the probability of each [b, choices]."""
    probabilities = jax.nn.softmax(_scores(params, batch, None, config))
    return {"label": probabilities.argmax(-1), "probabilities": probabilities}


def answers(examples: Any, outputs: Any, config: Config) -> Sequence[dict[str, Any]]:
    """Return the predicted choice."""
    return each(lambda example, output: {"choice": str(example["choices"][int(output["label"])])}, examples, outputs)


def embed_fn(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> dict[str, jax.Array]:
    """Return the features [b, width] `cls`, `mean` (over the tokens) and `pooled`, averaged over the choices."""
    features = models.apply(_model(config), params, *_inputs(batch), rng=rng, method="embed")
    b, count = batch["tokens"].shape[:2]
    return {name: value.reshape(b, count, -1).mean(1) for name, value in features.items()}


def show_fn(examples: Any, outputs: Any, config: Config) -> dict[str, str]:
    """Format the contexts and their choices, with > before the model's choice and * before the right one."""
    lines = []
    for example, output in zip(examples, outputs, strict=True):
        lines.append(example["context"])
        for i, (text, probability) in enumerate(zip(example["choices"], output["probabilities"], strict=True)):
            marks = (">" if i == output["label"] else " ") + ("*" if i == example.get("label") else " ")
            lines.append(f"  {marks} {probability:.3f} {text}")
    return {"choices": "\n".join(lines)}


def _encode(contexts: Sequence[str], choices: Sequence[Sequence[str]], config: Config) -> dict[str, np.ndarray]:
    """Encode contexts with their choices; each context has the same number of choices."""
    count, length = len(choices[0]) if choices else 0, config.data.length
    first = [context for context in contexts for _ in range(count)]
    second = [text for own in choices for text in own]
    arrays = encoding.pairs(tokenizers.of(config, texts), first, second, length)
    return {
        **{name: array.reshape(len(contexts), count, length) for name, array in arrays.items()},
        "context": np.array(contexts, object),
        "choices": np.array(choices, object),
    }


def _choice(given: Any, fields: str) -> tuple[str, list[str]]:
    """Return the context and the choices of an input; raise DataError if it has none."""
    columns = FIELDS[fields]
    needed = [column for column in columns if column not in LABELS]
    expected = (
        "a pair (context, [choice, ...]), a dict with 'context' and 'choices', or a dict with"
        f" {', '.join(map(repr, needed))}"
    )
    if isinstance(given, Mapping) and "context" not in given:
        row = {name: columns[name](unlabeled.entry(given, (name,), expected), repr(name)) for name in needed}
        context, choices, _ = (_race if fields == "race" else _swag)(row)
        return context, choices
    if isinstance(given, Mapping):
        given = given["context"], unlabeled.entry(given, ("choices", "endings"), expected)
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise DataError(f"{unlabeled.describe(given)}; expected {expected}")
    context, choices = given
    choices = choices.tolist() if isinstance(choices, np.ndarray) else choices
    choices = list(choices) if isinstance(choices, tuple) else choices
    if not values.contents(choices, "choices"):
        raise DataError(f"no choices; expected {expected}")
    return values.content(context, "context"), choices


def _model(config: Config) -> Any:
    return models.build(models.BERT, config)


def _inputs(batch: Batch) -> tuple[jax.Array, ...]:
    """Reshape each input from [b, choices, t] to [b * choices, t]."""
    return tuple(batch[name].astype(jnp.int32).reshape(-1, batch[name].shape[-1]) for name in INPUTS)


def _scores(params: Any, batch: Batch, rng: jax.Array | None, config: Config) -> jax.Array:
    head = params["classifier"]
    # The bias is the same for every choice, so it changes nothing and its gradient is only rounding error.
    params = params | {"classifier": head | {"bias": jax.lax.stop_gradient(head["bias"])}}
    logits = models.apply(_model(config), params, *_inputs(batch), rng=rng, method="classify")
    return logits.reshape(batch["tokens"].shape[:2])


def _read(split: str, config: Config) -> list[tuple[str, list[str], int | None]] | None:
    """Read context, choices and the index of the right choice (None without a label) of each example."""
    data = config.data
    if data.fields not in FIELDS:
        raise ConfigError(f"config.data.fields={data.fields!r} must be one of {', '.join(FIELDS)}")
    if not data[split]:
        return None
    optional = () if split == "train" else LABELS
    rows = tables.rows(data[split], split, FIELDS[data.fields], optional=optional, folder=data.dir, source=data.source)
    return [_race(row) if data.fields == "race" else _swag(row) for row in rows]


def _swag(row: tables.Row) -> tuple[str, list[str], int | None]:
    """Convert a row of SWAG: a sentence, the start of the next one, and four endings."""
    endings = [f"{row['sent2']} {row[f'ending{i}']}" for i in range(4)]
    return row["sent1"], endings, _number(row.get("label", "-1"))


def _race(row: tables.Row) -> tuple[str, list[str], int | None]:
    """Convert a row of RACE: an article, and a question that an option answers or whose blank it fills."""
    question = row["question"]
    choices = [
        question.replace("_", option) if "_" in question else f"{question} {option}" for option in row["options"]
    ]
    return row["article"], choices, _number(row.get("answer", "-1"))


def _number(answer: str) -> int | None:
    """Return the index of an answer: 0 for "0" or "A", None for "-1" (no label), -1 if it is malformed."""
    if answer == "-1":
        return None
    return int(answer) if answer.isdecimal() else "ABCDEFGHIJ".find(answer) if len(answer) == 1 else -1
