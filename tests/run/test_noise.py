"""Claims about the gradient noise scale: the estimates are those of the examples' own gradients, on any devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from front_door import ROOT, records

from jtasks import config as configs
from jtasks.distributed import shares
from jtasks.errors import ConfigError
from jtasks.metrics import Mean
from jtasks.run import noise
from jtasks.run.gradient import gradient_fn
from jtasks.run.loop import train

B = 16
RANDOM = np.random.default_rng(0)
BATCH = {
    "x": RANDOM.normal(size=(B, 3)).astype(np.float32),
    "y": RANDOM.normal(size=B).astype(np.float32),
    "mask": np.ones(B, np.float32),
}
PARAMS = {"w": np.array([0.3, -1.0, 0.5], np.float32)}


def loss_fn(params, batch, rng, config):
    metrics = {"loss": Mean.of(jnp.square(batch["x"] @ params["w"] - batch["y"]), batch["mask"])}
    return metrics["loss"].value, metrics


TASK = types.SimpleNamespace(loss_fn=loss_fn)


GRADIENTS = 2 * (BATCH["x"] @ PARAMS["w"] - BATCH["y"])[:, None] * BATCH["x"]  # of each example


def measured(devices=1, batch=BATCH, **changes):
    config = tiny.config("mnist", batch_size=B, **changes)
    measure = jax.jit(gradient_fn(TASK, config, tiny.mesh(devices), noise.square))
    return jax.device_get(measure(PARAMS, batch, jax.random.key(0))[1]["noise_scale"])


def test_with_an_example_in_each_microbatch_the_sums_are_those_of_its_gradients():
    variance = np.trace(np.cov(GRADIENTS.T))
    found = measured(accumulate=B)
    np.testing.assert_allclose(found.total, variance, rtol=1e-5)
    np.testing.assert_allclose(found.count, np.square(GRADIENTS.mean(0)).sum() - variance / B, rtol=1e-4)


def test_devices_and_unequal_shares_estimate_from_their_microbatches():
    rows = shares.layout(B, (3, 1))
    batch = {name: x[np.maximum(rows, 0)] for name, x in BATCH.items()}
    batch["mask"] = batch["mask"] * (rows >= 0)
    for found, parts in (
        (measured(4, accumulate=4), GRADIENTS.reshape(4, 4, 3).transpose(1, 0, 2)),
        (measured(2, batch, shares=(3, 1)), GRADIENTS[rows[rows >= 0]].reshape(4, 4, 3)),
    ):
        variance = 4 * np.trace(np.cov(parts.mean(1).T))  # the mean of 4 examples varies by a quarter
        np.testing.assert_allclose(found.total, variance, rtol=1e-5)


def test_it_needs_microbatches_with_gradients_of_their_own():
    with pytest.raises(ConfigError, match=r"config.noise_scale=True .* only one: set config.accumulate to 2"):
        noise.check(TASK, tiny.config("mnist"))
    mixing = types.SimpleNamespace(MIXES_EXAMPLES=True)
    with pytest.raises(ConfigError, match="is not a sum over examples"):
        noise.check(mixing, tiny.config("mnist", accumulate=2))


def test_a_run_logs_it_when_asked_to(tmp_path):
    fields = ["steps=4", "log_every=2", "accumulate=2", "noise_scale=True"]
    config = configs.load(str(ROOT / "tests/data_tasks/linear.py"), [f"--config.{field}" for field in fields])
    train(config, tmp_path / "run")
    logged = [row for row in records(tmp_path / "run") if row["split"] == "train"]
    assert len(logged) == 2 and all(np.isfinite(row["noise_scale"]) for row in logged)
