"""What classifiers do by config.problem: one class of an example, any number of classes, or a number."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jtasks.metrics import Mean, classification, multilabel, regression
from jtasks.ops import grid
from jtasks.ops.problems import MULTI, NUMBER, SINGLE


def losses(
    problem: str, logits: jax.Array, labels: jax.Array, weights: jax.Array, options: Any = None
) -> dict[str, Mean]:
    """Return the metrics of logits [b, classes], the loss among them.

    Args:
      problem: one of `ops.problems.PROBLEMS`.
      logits: with regression, [b, 1], the numbers themselves.
      labels: [b] or [b, classes], as `classification`, `multilabel` and `regression` have them.
      weights: [b] of the examples.
      options: config.loss, for training; None: the plain loss.

    Raises:
      ConfigError: `options` does not fit the problem, or the number of classes.
    """
    if problem == NUMBER:
        classification.require_plain(options, "config.problem=regression has no classes")
        return regression.squared_error(logits[:, 0], labels, weights)
    if problem == MULTI:
        return multilabel.cross_entropy(logits, labels, weights, options)
    return classification.cross_entropy(logits, labels, weights, options)


def predictions(problem: str, logits: jax.Array) -> dict[str, jax.Array]:
    """Return the likeliest class `label` [b] and its `probability` [b].

    With multi_label these are the `probabilities` [b, classes] of all classes, and with regression the `value` [b].
    """
    if problem == NUMBER:
        return {"value": logits[:, 0]}
    return multilabel.probabilities(logits) if problem == MULTI else classification.likeliest(logits)


def answer(problem: str, output: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the name of the predicted class, or of all classes that an example has; a regression adds nothing."""
    if problem == NUMBER:
        return {}
    if problem == SINGLE:
        return {"class": names[int(output["label"])]}
    return {"classes": _names_of(multilabel.chosen(output["probabilities"]), names)}


def predicted(problem: str, output: Mapping[str, Any]) -> Any:
    """Return a prediction in the form of a label: the number of a class, whether each class is there, or a number."""
    if problem == MULTI:
        return multilabel.chosen(output["probabilities"])
    return float(output["value"]) if problem == NUMBER else int(output["label"])


def describe(problem: str, label: Any, names: Sequence[str]) -> str:
    """Describe a label to people, by the names of its classes."""
    if problem == NUMBER:
        return f"{label:g}"
    return names[int(label)] if problem == SINGLE else ", ".join(_names_of(label, names)) or "(none)"


def describe_output(problem: str, output: Mapping[str, Any], names: Sequence[str]) -> str:
    """Describe a prediction to people; the likeliest class has its probability behind it."""
    if problem == NUMBER:
        return f"{output['value']:.3f}"
    text = describe(problem, predicted(problem, output), names)
    return f"{text} ({output['probability']:.3f})" if problem == SINGLE else text


def show(
    problem: str,
    images: Sequence[np.ndarray],
    examples: Iterable[Mapping[str, Any]],
    outputs: Iterable[Mapping[str, Any]],
    names: Sequence[str],
) -> dict[str, np.ndarray | str]:
    """Return what show_fn returns for pictures, uint8 [h, w, 1 or 3], with their predictions and their labels."""
    if problem == SINGLE:
        return grid.show_classes(images, examples, outputs, names)
    answers = []
    for example, output in zip(examples, outputs, strict=True):
        true, answer = example.get("label"), describe_output(problem, output, names)
        right = true is None or bool(np.all(predicted(problem, output) == true))
        answers.append((answer, answer, None if true is None else describe(problem, true, names), right))
    return grid.show_answers(images, answers)


def _names_of(hot: Any, names: Sequence[str]) -> list[str]:
    return [name for name, on in zip(names, hot, strict=True) if on]
