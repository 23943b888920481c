"""Claims about the loss over a vocabulary: it is the plain cross-entropy, without all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtasks.models import layers, vocabulary


@pytest.mark.parametrize("rows", [64, 24, 5])  # all 24 rows at once, exactly one block, blocks with padding
@pytest.mark.parametrize("biased", [True, False])
def test_the_loss_over_a_vocabulary_is_the_plain_cross_entropy_with_its_gradient(rows, biased):
    random = np.random.default_rng(0)
    hidden, table = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((4, 6, 8), (31, 8)))
    bias = jnp.asarray(random.normal(size=31), jnp.float32) if biased else None
    labels = jnp.asarray(random.integers(0, 31, (4, 6)))
    weights = jnp.asarray(random.uniform(size=(4, 6)), jnp.float32)

    def logits(hidden, table, bias):
        return hidden @ table.T + (jnp.zeros((1, 1, 31)) if bias is None else bias[None, None])

    def plain(*args):
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits(*args), labels) * weights)

    def ours(*args):
        return jnp.sum(vocabulary.vocabulary_loss(*args[:2], labels, args[2], rows=rows)[0] * weights)

    which = (0, 1, 2) if biased else (0, 1)
    found = jax.jit(jax.value_and_grad(ours, which))(hidden, table, bias)
    expected = jax.jit(jax.value_and_grad(plain, which))(hidden, table, bias)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), found, expected)
    nats, correct = vocabulary.vocabulary_loss(hidden, table, labels, bias, rows=rows)
    assert nats.shape == correct.shape == (4, 6)
    np.testing.assert_array_equal(correct, logits(hidden, table, bias).argmax(-1) == labels)


@pytest.mark.parametrize("rows", [2, 1024])
def test_of_equally_likely_ids_the_first_is_the_likeliest(rows):
    logits = jnp.array([[1.0, 3, 3], [1, 3, 3], [0, 0, 0], [0, 0, 0], [2, 1, 2], [jnp.nan, 0, 1]])
    labels = jnp.array([1, 2, 0, 2, 0, 2])
    correct = vocabulary.vocabulary_loss(logits, jnp.eye(3), labels, rows=rows)[1]
    np.testing.assert_array_equal(correct, [True, False, True, False, True, False])


def test_the_loss_over_a_vocabulary_never_holds_all_logits():
    hidden, table, labels = jnp.zeros((50, 8)), jnp.zeros((31, 8)), jnp.zeros(50, jnp.int32)
    gradient = jax.grad(lambda h, t: vocabulary.vocabulary_loss(h, t, labels, rows=10)[0].sum(), (0, 1))
    assert "50x31x" not in jax.jit(gradient).lower(hidden, table).as_text()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_form_for_tpus_of_the_loss_over_a_vocabulary_is_the_plain_one(smoothing, dtype, tolerance):
    random = np.random.default_rng(0)
    hidden, table = (jnp.asarray(random.normal(size=shape), dtype) for shape in ((24, 8), (131, 8)))
    labels = jnp.asarray(random.integers(0, 131, 24)).at[:3].set(jnp.array([0, 130, 1]))
    weights = jnp.asarray(random.uniform(size=24), jnp.float32)

    def loss(function, hidden, table):
        nats, correct = function(layers.vocabulary_logits(hidden, table), labels, smoothing)
        return jnp.sum(nats * weights), (nats, correct)

    def both(function):
        return jax.jit(jax.value_and_grad(lambda h, t: loss(function, h, t), (0, 1), has_aux=True))(hidden, table)

    found, expected = both(vocabulary.cross_entropy_on_tpu), both(vocabulary.cross_entropy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)
    forms = vocabulary.cross_entropy_on_tpu, vocabulary.cross_entropy
    ours, plain = (jax.jvp(lambda h, f=f: loss(f, h, table)[0], (hidden,), (jnp.ones_like(hidden),))[1] for f in forms)
    np.testing.assert_allclose(ours, plain, rtol=tolerance)


def test_devices_along_tensor_reduce_their_own_part_of_a_vocabulary():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32)), jnp.float32).at[:, 20].set(3)
    labels = jnp.array([20, 3, 31, 25])
    mesh = jax.make_mesh((1, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "tensor"))
    with jax.set_mesh(mesh):
        reduce = jax.jit(lambda logits: vocabulary.cross_entropy_on_tpu(logits, labels, 0.1))
        found, text = reduce(jax.device_put(logits, where)), reduce.lower(jax.device_put(logits, where)).as_text()
    assert "tensor<4x2x16xf32>" in text
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, vocabulary.cross_entropy(logits, labels, 0.1)
    )


def test_the_form_for_tpus_knows_the_first_of_equal_ids_impossible_ones_and_large_numbers():
    logits = jnp.array([[1.0, 3, 3], [1, 3, 3], [0, 0, 0], [0, 0, 0], [2, 1, 2], [-jnp.inf, 0, 1], [-3e38, 3e38, 0]])
    labels = jnp.array([1, 2, 0, 2, 0, 2, 1])
    nats, correct = jax.jit(vocabulary.cross_entropy_on_tpu)(logits, labels)
    expected, also = vocabulary.cross_entropy(logits, labels)
    np.testing.assert_allclose(nats, expected, rtol=1e-6)
    np.testing.assert_array_equal(correct, also)
