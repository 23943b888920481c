"""What embeddings of pictures know of classes: zero-shot classification by texts, and linear probes.

Both are described by Radford et al. (2021, arXiv:2103.00020, sections 3.1 and 3.2).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jtasks.errors import ConfigError, DataError
from jtasks.ranges import Field

STRENGTH = 0.316  # C of the logistic regression: CLIP's published one for features that are not normalized
ROUNDS = 1000  # maximum number of steps of L-BFGS

# Fields of a task whose embeddings can be probed, for its `defaults`.
FIELDS = {
    "probe.name": Field(str, None, ""),  # labeled pictures, such as folder:PATH
    "probe.split": Field(str, ("train", "valid", "test"), "test"),
    "probe.shots": Field(tuple, "[0, 2e9]", ()),  # training pictures of a class for each linear probe; 0: all
    "probe.seed": Field(int, "[0, 9e18]", 0),  # draws these pictures
    "probe.strength": Field(float, "(0, inf)", STRENGTH),  # of the regression: small regularizes more
    "zero_shot.classes": Field(tuple, None, ()),  # names of classes for predictions to choose from; (): none
    "zero_shot.templates": Field(tuple, None, ("a photo of a {}.",)),  # texts of a class
}


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return the texts of classes, all templates of the first class, then those of the second, and so on.

    >>> prompts(["cat", "dog"], ["a photo of a {}.", "a {}."])
    ['a photo of a cat.', 'a cat.', 'a photo of a dog.', 'a dog.']

    Raises:
      ConfigError: a template has no {}, or there is none.
    """
    if not templates or not all(isinstance(template, str) and "{}" in template for template in templates):
        raise ConfigError(
            f"config.zero_shot.templates={tuple(templates)!r}: expected texts with {{}} in place of the class, such as"
            " ('a photo of a {}.',)"
        )
    return [template.replace("{}", str(name)) for name in names for template in templates]


def require_classes(names: Sequence[Any]) -> None:
    """Raise ConfigError unless the classes of config.zero_shot.classes are texts, none blank and none twice."""
    if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise ConfigError(f"config.zero_shot.classes has {wrong[0]!r}: expected the name of a class, such as 'cat'")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ConfigError(
            f"config.zero_shot.classes has {twice[0]!r} twice, and a picture is of one class only: leave one out, or"
            " tell them apart, such as 'crane bird' and 'crane machine'"
        )


def class_embeddings(texts: Any) -> Any:
    """Return the normalized mean [c, d] of the embeddings [c, k, d] of the k texts of each class."""
    mean = texts.mean(axis=1)
    return mean / (mean**2).sum(axis=-1, keepdims=True) ** 0.5


def zero_shot(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return how often the class is the nearest (`top1`), and among the nearest five (`top5`), of `classes` [c, d].

    Args:
      images: [n, d] embeddings.
      classes: [c, d] embeddings, as of `class_embeddings`.
      labels: int [n], the class of each picture.
    """
    return _accuracies(images @ classes.T, labels)


def linear(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, strength: float = STRENGTH
) -> dict[str, float]:
    """Fit a logistic regression to features [n, d], and return `top1` and `top5` on other features.

    Args:
      train, train_labels: features [n, d] and classes int [n] to fit.
      test, test_labels: features and classes to score.
      strength: scikit-learn's C; a small one regularizes more.

    Raises:
      DataError: the training features are of one class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(train_labels)) < 2:
        raise DataError("a linear probe needs training pictures of at least two classes")
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=strength, max_iter=ROUNDS).fit(scaler.transform(train), train_labels)
    scores = model.decision_function(scaler.transform(test))
    scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
    places = np.full(max(np.max(train_labels), np.max(test_labels)) + 1, -1)
    places[model.classes_] = np.arange(len(model.classes_))
    return _accuracies(scores, places[test_labels])


def few(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Return the sorted rows of `shots` random examples of each class in `labels`, all of a class that has fewer."""
    order = np.argsort(np.random.Philox(seed).random_raw(len(labels)), kind="stable")
    return np.sort(np.concatenate([order[labels[order] == label][:shots] for label in np.unique(labels)]))


def _accuracies(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the fraction of rows whose class, -1 for one that has no score, is the best, and among the best five.

    A tie counts against the class.
    """
    own = np.where(labels >= 0, scores[np.arange(len(scores)), np.maximum(labels, 0)], np.nan)
    ranks = np.where(np.isnan(own), np.inf, np.sum(scores >= own[:, None], axis=1))  # its own score is one of these
    return {"top1": float(np.mean(ranks <= 1)), "top5": float(np.mean(ranks <= 5))}
