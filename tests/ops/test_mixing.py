"""Claims about Mixup and CutMix: the ops, the second examples of a batch, and that no split changes a step."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

from jtasks.data import pipeline, shuffle
from jtasks.errors import ConfigError
from jtasks.ops import mixing
from jtasks.run import plan
from jtasks.run.gradient import gradient_fn
from jtasks.tasks import vit

N, H, W = 2000, 6, 8
ONES, ZEROS = np.ones((N, H, W, 1), np.uint8), np.zeros((N, H, W, 1), np.uint8)
SEEDS = np.arange(N, dtype=np.uint32)

mix = jax.jit(mixing.mix, static_argnames=("mixup", "cutmix"))


def test_mixup_weighs_by_a_beta_distribution_and_keeps_the_mean():
    images, share = mix(ONES, ZEROS, SEEDS, mixup=0.4, cutmix=0.0)
    np.testing.assert_allclose(images, np.broadcast_to(np.asarray(share)[:, None, None, None], images.shape))
    assert stats.kstest(np.asarray(share), stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_cutmix_fills_a_rectangle_and_the_share_is_what_is_left():
    images, share = (np.asarray(x) for x in mix(ONES, ZEROS, SEEDS, mixup=0.0, cutmix=1.0))
    np.testing.assert_allclose(images.mean((1, 2, 3)), share, atol=1e-6)
    assert set(np.unique(images)) == {0.0, 1.0}
    rows, columns = (images == 0).any(2)[..., 0], (images == 0).any(1)[..., 0]
    np.testing.assert_array_equal(images[..., 0] == 0, rows[:, :, None] & columns[:, None])
    assert all(np.ptp(np.flatnonzero(line)) + 1 == line.sum() for line in rows if line.any())
    sizes = collections.Counter(rows.sum(1).tolist())
    assert len(sizes) >= H and 0.5 < share.mean() < 0.8  # 0.5 if nothing were cut off at the borders


def test_with_both_each_picture_has_one_by_a_fair_coin():
    images, _ = mix(ONES, ZEROS, SEEDS, mixup=1.0, cutmix=1.0)
    cut = np.isin(np.asarray(images), (0, 1)).all((1, 2, 3))
    assert 0.45 < cut.mean() < 0.55


def test_partners_come_from_the_whole_split_whatever_the_batch():
    seeds = shuffle.example_seeds(3, np.repeat(np.arange(50), 40), np.tile(np.arange(40), 50))
    drawn = np.bincount(shuffle.partners(seeds, 40), minlength=40)
    assert stats.chisquare(drawn).pvalue > 0.01
    assert shuffle.partners(seeds[:5], 10**9).tolist() == shuffle.partners(seeds, 10**9)[:5].tolist()
    job = tiny.job("mnist", 1, data__mixup=0.2, batch_size=8)
    arrays = job.require("train")
    plan = job.plan(arrays, shuffle=True)
    rows = [pipeline.example(arrays, i) for i in range(pipeline.size(arrays))]
    for examples, collate in ((arrays, None), (rows, None), (rows, lambda rows: pipeline.stack(rows, None))):
        batch = pipeline.batch_at(examples, plan, 2, collate)
        partners = shuffle.partners(batch["seed"], plan.n)
        np.testing.assert_array_equal(batch["partner_image"], arrays["image"][partners])
        np.testing.assert_array_equal(batch["partner_label"], arrays["label"][partners])
        streamed = next(pipeline.batches(examples, plan, range(2, 3), tiny.sharding(), collate=collate, threads=2))
        assert streamed.keys() == batch.keys()
        assert all(np.array_equal(streamed[name], batch[name]) for name in batch)
    assert not job.plan(arrays, shuffle=False).partner


CHANGES = {"data__mixup": 0.4, "data__cutmix": 1.0, "loss__smoothing": 0.1, "loss__focal": 1.0, "data__augment": "igpt"}


def test_no_split_of_a_batch_changes_a_mixed_step():
    found = {}
    for devices, accumulate in ((1, 1), (4, 2), (8, 1)):
        job = tiny.job("vit", devices, batch_size=16, accumulate=accumulate, **CHANGES)
        examples = job.require("train")
        batch = job.batch_at(examples, job.plan(examples, shuffle=True), 1)
        measure = jax.jit(gradient_fn(job.task, job.config, job.mesh))
        found[devices, accumulate] = jax.device_get(measure(tiny.params("vit"), batch, jax.random.key(0)))
    (gradient, metrics), *others = found.values()
    for other, sums in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), gradient, other)
        for name, mean in metrics.items():
            np.testing.assert_allclose((mean.total, mean.count), (sums[name].total, sums[name].count), rtol=1e-5)
    assert metrics["accuracy"].total % 1 > 0  # shares of pictures count


def test_mixing_needs_a_partner_and_batches_by_examples(tmp_path):
    config = tiny.config("vit", data__mixup=0.2)
    with pytest.raises(ConfigError, match=r"config.data.mixup.*entries partner_image, partner_label and seed"):
        vit.loss_fn(tiny.params("vit"), tiny.batch(4), jax.random.key(0), config)
    assert vit.loss_fn(tiny.params("vit"), tiny.batch(4), None, config)  # evaluation mixes nothing
    job = tiny.job("vit", data__mixup=0.2, batch_tokens=100)
    job.task.lengths = lambda examples, config: np.ones(8)
    try:
        with pytest.raises(ConfigError, match=r"config.batch_tokens=100: task .* mixes each example"):
            job.plan(job.require("train"), shuffle=True)
    finally:
        del job.task.lengths


def test_a_plan_without_data_has_partners_too():
    planned = plan.abstract(tiny.config("vit", data__mixup=0.2), jax.devices()[:1])
    assert planned.batch["partner_image"].shape == planned.batch["image"].shape


def test_shares_sum_to_one_and_name_both_classes():
    batch = {name: jnp.asarray(x) for name, x in tiny.batch(8).items()}
    batch |= {f"partner_{name}": batch[name][::-1] for name in ("image", "label")}
    options = tiny.config("vit", data__cutmix=1.0).data
    _, shares = mixing.training_pairs(batch, options, 10, lambda batch: batch["image"])
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    for row, pair in zip(np.asarray(shares), zip(batch["label"], batch["partner_label"], strict=True), strict=True):
        assert set(np.flatnonzero(row)) <= set(map(int, pair))
