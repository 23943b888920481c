"""The kit passes a good loss of the whole batch, and catches faults that only some splits would show."""

from types import ModuleType

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from data_tasks import pairs

from jtasks.faults import Fault
from jtasks.metrics import Loss, Mean, total
from jtasks.testing import contract, exactness, splitting

GOOD = {f.__name__: f for f in (pairs.dataset, pairs.init, pairs.embed_fn, pairs.batch_loss_fn)}


def subject(**changes):
    made = ModuleType("planted")
    vars(made).update(GOOD | changes)
    config = ml_collections.ConfigDict({"task": "planted", "seed": 5, "steps": 50, "optim": {"name": "adamw"}})
    config.model = {"width": 8, "dropout": 0.5, "loss": "softmax"}
    return contract.subject(made, config)[0]


def of_nats(nats_of):
    """batch_loss_fn whose loss is (embeddings, batch) -> Loss."""

    def batch_loss_fn(params, embeddings, batch, config):
        metrics = {"nats": nats_of(embeddings["image"] @ embeddings["text"].T * jnp.exp(params["scale"]), batch)}
        return total(metrics), metrics

    return {"batch_loss_fn": batch_loss_fn}


def nats(logits, targets=None):
    targets = jnp.arange(len(logits)) if targets is None else targets
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)[:, 0]


def masked(logits, batch):
    return jnp.where(batch["mask"][None] > 0, logits, -1e9)


def compares_with_padding(logits, batch):
    return Loss.of(nats(logits), batch["mask"])


def counts_padding(logits, batch):
    return Loss.of(jnp.where(batch["mask"] > 0, nats(masked(logits, batch)), 0))


def mean_of_means(logits, batch):
    mean = jnp.sum(nats(masked(logits, batch)) * batch["mask"]) / jnp.maximum(jnp.sum(batch["mask"]), 1)
    return Loss.of(mean[None])


def by_place(logits, batch):
    return Loss.of(nats(masked(logits, batch)) * jnp.arange(len(logits)), batch["mask"])


def by_neighbors(logits, batch):
    return Loss.of(nats(masked(logits, batch), (jnp.arange(len(logits)) + 1) % len(logits)), batch["mask"])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (compares_with_padding, "when masked rows have embeddings of"),
        (counts_padding, "rows of padding beside"),
        (mean_of_means, "a mean of means"),
        (by_place, "with the rows in another order"),
        pytest.param(by_neighbors, "with the rows in another order", marks=pytest.mark.slow),
    ],
)
def test_a_planted_fault_is_caught(fault, words):
    with pytest.raises(Fault, match=words) as caught:
        splitting.batch_loss_agrees(subject(**of_nats(fault)))
    assert "'nats' is " in caught.value.detail and caught.value.hint


def loss_fn(params, batch, rng, config):
    metrics = {"nats": Loss.of(batch["weight"], batch["mask"]), "other": Mean.of(batch["mask"])}
    return total(metrics), metrics


def test_a_loss_fn_that_says_something_else_is_caught():
    with pytest.raises(Fault, match="exist only once by loss_fn") as caught:
        splitting.batch_loss_agrees(subject(loss_fn=loss_fn))
    assert "leave loss_fn out" in caught.value.hint


def centered(params, batch, rng, config):
    found = pairs.embed_fn(params, batch, rng, config)
    return {name: x - x.mean(0)[None] for name, x in found.items()}


@pytest.mark.slow
def test_embeddings_that_depend_on_others_are_caught():
    with pytest.raises(Fault) as caught:
        exactness.accumulation_agrees(subject(embed_fn=centered))
    assert "embed_fn treats each example alone" in caught.value.hint


def integers(params, batch, rng, config):
    return pairs.embed_fn(params, batch, rng, config) | {"seed": batch["seed"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embed_fn": integers}, r"embed_fn's 'seed' is an array uint32\[16\], for 16 examples"),
        ({"embed_fn": lambda params, batch, rng, config: params["scale"]}, r"embed_fn returned an array float32\[\]"),
        ({"batch_loss_fn": lambda params, embeddings, batch, config: 0.0}, "batch_loss_fn returned a float"),
    ],
)
def test_another_form_is_told_before_the_first_step(changes, words):
    with pytest.raises(Fault, match=words):
        subject(**changes)


@pytest.mark.slow
def test_a_good_loss_passes():
    assert "4 microbatches, with config.model.dropout, 8 devices, shares (3, 1)" in splitting.batch_loss_agrees(
        subject()
    )
