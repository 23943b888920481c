"""Claims about the losses and scores of classifiers and regressions, against scikit-learn, SciPy and optax."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from sklearn import metrics as peer

from jtasks import metrics as jtasks_metrics
from jtasks.errors import ConfigError
from jtasks.metrics import classification, multilabel, regression

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(12, 4)).astype(np.float32)
LABELS = RANDOM.integers(0, 4, 12)
MASK = (np.arange(12) % 5 > 0).astype(np.float32)
P = np.asarray(jax.nn.softmax(LOGITS.astype(np.float64)))
W = (1.0, 0.5, 2.0, 0.0)


def options(smoothing=0.0, focal=0.0, class_weights=()):
    return types.SimpleNamespace(smoothing=smoothing, focal=focal, class_weights=class_weights)


def loss(labels=LABELS, mask=MASK, logits=LOGITS, **fields):
    found = classification.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask), options(**fields))
    return float(found["loss"].value)


def test_class_weights_make_the_weighted_mean_of_scikit_learn():
    weights = np.array(W)[LABELS] * MASK
    assert loss(class_weights=W) == pytest.approx(
        peer.log_loss(LABELS, P, sample_weight=weights, labels=range(4)), rel=1e-5
    )
    assert loss() == pytest.approx(peer.log_loss(LABELS, P, sample_weight=MASK, labels=range(4)), rel=1e-5)


def test_smoothing_is_that_of_optax():
    smooth = optax.smooth_labels(jax.nn.one_hot(LABELS, 4), 0.1)
    expected = optax.softmax_cross_entropy(LOGITS, smooth)
    assert loss(smoothing=0.1) == pytest.approx(float((expected * MASK).sum() / MASK.sum()), rel=1e-5)


def test_the_focal_loss_is_that_of_the_paper():
    right = P[np.arange(12), LABELS]
    expected = -((1 - right) ** 2) * np.log(right)
    assert loss(focal=2.0) == pytest.approx((expected * MASK).sum() / MASK.sum(), rel=1e-5)
    assert loss(focal=1e-9) == pytest.approx(loss(), rel=1e-5)
    two = np.stack([np.zeros(12), LOGITS[:, 0]], 1)  # two classes are optax's focal loss of a sigmoid
    expected = optax.sigmoid_focal_loss(LOGITS[:, 0], (LABELS > 1) * 1.0, gamma=1.5)
    assert loss((LABELS > 1) * 1, np.ones(12), two, focal=1.5) == pytest.approx(float(expected.mean()), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_sure_prediction_has_a_finite_focal_gradient(gamma):
    sure = np.array([[200.0, -200, 0, 0], [-200, 200, 0, 0]], np.float32)
    fields = options(smoothing=0.1, focal=gamma)
    for function, labels in ((classification, [0, 0]), (multilabel, [[1, 0, 0, 0], [1, 0, 1, 0]])):

        def value(x, function=function, labels=labels):
            return function.cross_entropy(x, jnp.asarray(labels), jnp.ones(2), fields)["loss"].value

        assert np.isfinite(jax.grad(value)(jnp.asarray(sure))).all()


def test_shares_of_two_classes_mix_their_losses_and_weights():
    other, share = np.roll(LABELS, 1), np.linspace(0, 1, 12, dtype=np.float32)
    shares = share[:, None] * np.eye(4)[LABELS] + (1 - share[:, None]) * np.eye(4)[other]
    both = np.concatenate([share * MASK, (1 - share) * MASK])
    expected = loss(np.concatenate([LABELS, other]), both, np.concatenate([LOGITS, LOGITS]), class_weights=W)
    assert loss(shares.astype(np.float32), class_weights=W) == pytest.approx(expected, rel=1e-5)


def test_weights_that_do_not_fit_the_classes_are_an_error():
    for wrong in ((1.0, 2.0), (0.0,) * 4):
        with pytest.raises(ConfigError, match=r"config.loss.class_weights=\(.*expected a weight for each of the 4 cla"):
            loss(class_weights=wrong)


HOT = (RANDOM.random((12, 4)) < 0.4) * 1
HOT[:, 3] = 0
NAMES = ("a", "b", "c", "d")


def test_labels_of_any_number_are_scored_as_by_scikit_learn():
    predicted = (LOGITS > 0.3) * np.array([1, 1, 1, 0])
    found = multilabel.scores(HOT, predicted, NAMES)
    for average in ("micro", "macro"):
        assert found[f"f1_{average}"] == pytest.approx(peer.f1_score(HOT, predicted, average=average, zero_division=0))
    each = peer.f1_score(HOT, predicted, average=None, zero_division=0)
    assert [found[f"f1/{name}"] for name in NAMES] == pytest.approx(each.tolist())


def test_the_sums_of_a_multi_label_batch_are_exact_and_padding_counts_nothing():
    found = multilabel.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(HOT), jnp.asarray(MASK))
    keep = MASK > 0
    expected = peer.f1_score(HOT[keep], LOGITS[keep] > 0, average="micro")
    assert float(found["f1"].value) == pytest.approx(expected) and found["f1"].count % 1 == 0
    nats = optax.sigmoid_binary_cross_entropy(LOGITS, HOT)[keep].mean()
    assert float(found["loss"].value) == pytest.approx(float(nats), rel=1e-5)
    focal = multilabel.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(HOT), jnp.asarray(MASK), options(focal=2.0))
    expected = optax.sigmoid_focal_loss(LOGITS, HOT * 1.0, gamma=2.0)[keep].mean()
    assert float(focal["loss"].value) == pytest.approx(float(expected), rel=1e-5)


def test_correlations_are_those_of_scipy():
    truth, found = RANDOM.integers(0, 5, 50) / 2, RANDOM.normal(size=50)
    result = regression.scores(truth, truth + found)
    assert result["pearson"] == pytest.approx(stats.pearsonr(truth, truth + found).statistic)
    assert result["spearman"] == pytest.approx(stats.spearmanr(truth, truth + found).statistic)
    assert regression.scores(truth, np.ones(50)) == {"pearson": 0.0, "spearman": 0.0}


def test_the_f1_of_classes_in_evaluation_is_that_of_the_scores_also_of_a_class_that_never_occurs():
    logits, weights = np.where(np.arange(4) == 3, -1.0, LOGITS).astype(np.float32), jnp.ones(4)
    batches = [slice(i, i + 4) for i in range(0, 12, 4)]
    sums = [multilabel.f1_of_classes(logits[rows], jnp.asarray(HOT[rows]), weights, NAMES) for rows in batches]
    scores = multilabel.scores(HOT, logits > 0, NAMES)
    merged = jtasks_metrics.merge(sums)
    assert {name: jtasks_metrics.number(mean) for name, mean in merged.items()} == pytest.approx(
        {name: score for name, score in scores.items() if name != "f1_micro"}
    )
    assert scores["f1/d"] == 0
