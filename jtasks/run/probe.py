"""What a model's embeddings know of the classes of any labeled pictures: zero-shot, linear and few-shot accuracy."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jtasks import data, task
from jtasks.data import pipeline
from jtasks.data.images import NAMES
from jtasks.errors import ConfigError, DataError
from jtasks.metrics import probes
from jtasks.run import display
from jtasks.run.inference import Run

PICTURE, TEXT = "image", "text"  # embeddings of a picture and of a text


def run(model: Run) -> dict[str, float]:
    """Return the accuracies that config.probe and config.zero_shot ask for, on labeled pictures of any data set.

    Args:
      model: a run whose task embeds pictures as `image` and texts as `text`.

    Returns:
      `zero_shot/top1` and `zero_shot/top5` with config.zero_shot.templates; `linear/...` or `N_shot/...` for each of
      config.probe.shots; `step`.

    Raises:
      ConfigError: the task has no fields of probes, or config.probe does not say what to do.
      DataError: there are no such pictures.
    """
    options = _options(model)
    model.watch = display.watcher()
    test, labels = _features(model, options.split)
    results: dict[str, dict[str, float]] = {}
    if templates := model.config.zero_shot.templates:
        names = data.class_names(options.name, folder=model.config.data.dir)
        texts = model.embed(probes.prompts(names, templates))[TEXT]
        classes = probes.class_embeddings(texts.reshape(len(names), len(templates), -1))
        results["zero_shot"] = probes.zero_shot(test, classes, labels)
    if options.shots:
        train, known = _features(model, "train")
    for shots in options.shots:
        rows = probes.few(known, shots, options.seed) if shots else np.arange(len(known))
        name = f"{shots}_shot" if shots else "linear"
        results[name] = probes.linear(train[rows], known[rows], test, labels, options.strength)
    return {"step": model.step, **{f"{kind}/{k}": x for kind, scores in results.items() for k, x in scores.items()}}


def _options(model: Run) -> Any:
    config = model.config
    if not set(probes.FIELDS) <= set(task.fields(model.task)):
        raise ConfigError(f"--mode=probe needs a task that embeds pictures and texts, as contrast; not {config.task}")
    if not config.probe.name:
        raise ConfigError(f"--mode=probe needs labeled pictures: give --config.probe.name={'|'.join(NAMES)}")
    if not config.probe.shots and not config.zero_shot.templates:
        raise ConfigError("config.probe.shots and config.zero_shot.templates are both empty: set one of them")
    return config.probe


def _features(model: Run, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings [n, d] of the pictures of a split, and their classes [n]."""
    name, config = model.config.probe.name, model.config
    examples = data.images(name, split, folder=config.data.dir, seed=config.seed)
    if examples is None:
        raise DataError(f"config.probe.name={name} has no {split} split; config.probe.split chooses another")
    count, labels = pipeline.size(examples), list[int]()

    def pictures() -> Iterator[dict[str, Any]]:
        for index in range(count):
            row = pipeline.read(examples, index)
            labels.append(int(row["label"]))
            yield {PICTURE: data.for_display([row["image"]], name)[0]}

    features = []
    with model.watch(f"{split} pictures of {name}", count) as update:
        for index, row in model.stream(pictures(), "embed"):
            features.append(row[PICTURE])
            update(index + 1)
    return np.stack(features), np.array(labels)
