"""The kit passes a task whose examples, features and answers are right, and catches faults planted in them."""

from types import ModuleType

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jtasks.errors import DataError
from jtasks.faults import Fault
from jtasks.metrics import Mean
from jtasks.testing import contract, determinism, people
from jtasks.testing.result import Skip

SEQUENCE_KEYS = ("tokens", "segment_ids")


# A good task: a bag of letters, padded to eight.


def encode(texts):
    tokens = np.zeros((len(texts), 8), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = [ord(letter) - 96 for letter in text]
    return {"tokens": tokens, "segment_ids": (tokens > 0).astype(np.uint8), "text": np.array(texts, object)}


def dataset(split, config):
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("abcde"), n)) for n in draw.integers(2, 9, 32)]
    return encode(texts) | {"label": np.array([len(text) % 2 for text in texts], np.int32)} if split != "test" else None


def examples(inputs, config):
    texts = [given["text"] if isinstance(given, dict) else given for given in inputs]
    if bad := [text for text in texts if not isinstance(text, str)]:
        raise DataError(f"{bad[0]!r}; expected a text")
    return encode(texts)


def init(rng, batch, config):
    return {"table": 0.5 * jax.random.normal(rng, (27, 6)), "head": jnp.ones((6, 2)) * jnp.array([[0.5, -0.5]])}


def features(params, batch):
    real = (batch["tokens"] > 0)[:, :, None]
    return jnp.sum(params["table"][batch["tokens"]] * real, 1) / jnp.maximum(real.sum(1), 1)


def loss_fn(params, batch, rng, config):
    log = jax.nn.log_softmax(features(params, batch) @ params["head"])
    metrics = {"loss": Mean.of(-jnp.take_along_axis(log, batch["label"][:, None], 1)[:, 0], batch["mask"])}
    return metrics["loss"].value, metrics


def predict_fn(params, batch, rng, config):
    return {"scores": features(params, batch) @ params["head"]}


def embed_fn(params, batch, rng, config):
    return {"mean": features(params, batch)}


def answers(examples, outputs, config):
    return [{"said": f"{e['text']} {int(o['scores'].argmax())}"} for e, o in zip(examples, outputs, strict=True)]


GOOD = {f.__name__: f for f in (dataset, examples, init, loss_fn, predict_fn, embed_fn, answers)}


def subject(**changes):
    made = ModuleType("planted")
    vars(made).update({name: f for name, f in (GOOD | changes).items() if f is not None})
    made.SEQUENCE_KEYS = SEQUENCE_KEYS
    settings = {"task": "planted", "seed": 5, "steps": 50, "batch_size": 32, "model": {}, "optim": {"name": "adamw"}}
    return contract.subject(made, ml_collections.ConfigDict(settings))[0]


def test_a_good_task_passes():
    good = subject()
    assert people.features(good) == "mean [6]"
    assert people.inputs(good) == "8 rows of the dataset, with the same predictions"
    assert "answers said" in determinism.predictions(good)


def test_a_task_without_these_functions_passes():
    bare = subject(examples=None, embed_fn=None, answers=None)
    assert (people.features(bare), people.inputs(bare)) == ("the task has no embed_fn", "the task has no examples")
    assert "answers" not in determinism.predictions(bare)


def mean_with_padding(params, batch, rng, config):
    return {"mean": params["table"][batch["tokens"]].mean(1)}


def mean_of_the_batch(params, batch, rng, config):
    x = features(params, batch)
    return {"mean": x - x.mean(0)[None]}


FEATURES = {
    "changes with its padding": mean_with_padding,
    "changes beside other examples": mean_of_the_batch,
    "is an array float32": lambda p, batch, rng, config: {"all": p["table"][batch["tokens"]]},
    "float16": lambda p, batch, rng, config: {"mean": features(p, batch).astype(jnp.float16)},
    "not finite": lambda p, batch, rng, config: {"mean": features(p, batch) / 0},
    "the same for all examples": lambda p, batch, rng, config: {"mean": 0 * features(p, batch)},
    "returned": lambda p, batch, rng, config: features(p, batch),
}


@pytest.mark.parametrize("said", FEATURES)
def test_wrong_features_are_caught(said):
    with pytest.raises(Fault, match=said):
        people.features(subject(embed_fn=FEATURES[said]))


def shifted(inputs, config):
    return {name: np.roll(x, 1, axis=0) for name, x in examples(inputs, config).items()}


def upper(inputs, config):
    made = examples(inputs, config)
    return made | {"tokens": np.minimum(made["tokens"] + 1, 26)}


INPUTS = {
    r"raises TypeError for object\(\)": lambda inputs, config: encode([given["text"] for given in inputs]),
    r"accepts object\(\)": lambda inputs, config: encode(["a" for _ in inputs]),
    "when it is the only input": shifted,
    "predict_fn's scores differs": upper,
    "another type or shape": lambda inputs, config: (
        (e := examples(inputs, config)) | {"tokens": e["tokens"].astype(np.float32)}
    ),
    "7 examples of 8 inputs": lambda inputs, config: {
        k: v[: min(7, len(v))] for k, v in examples(inputs, config).items()
    },
}


@pytest.mark.parametrize("said", INPUTS)
def test_wrong_examples_are_caught(said):
    with pytest.raises(Fault, match=said):
        people.inputs(subject(examples=INPUTS[said]))


def test_a_task_may_refuse_rows_of_its_dataset():
    with pytest.raises(Skip, match="does not take rows of the dataset: expected a text"):
        people.inputs(subject(examples=lambda inputs, config: (_ for _ in ()).throw(DataError("expected a text"))))


ANSWERS = {
    "for 16 examples": lambda examples, outputs, config: [{"said": 1}],
    "which predict_fn's outputs have too": lambda examples, outputs, config: [{"scores": 1} for _ in outputs],
    "written as JSON": lambda examples, outputs, config: [{"said": output["scores"]} for output in outputs],
}


@pytest.mark.parametrize("said", ANSWERS)
def test_wrong_answers_are_caught(said):
    with pytest.raises(Fault, match=said):
        determinism.predictions(subject(answers=ANSWERS[said]))
