"""A program is compiled once for each shape of batch, here or ahead in another thread."""

import threading

import jax
import jax.numpy as jnp
import pytest
import tiny

from jtasks.run.compile import Compiled, quick_options

STATE, BATCH = jnp.float32(2), {"x": jnp.arange(3.0)}


class Recorded:
    """A jitted function that records its traces and the threads that compile it."""

    def __init__(self, error: Exception | None = None):
        self.traces, self.threads, self.error = 0, [], error

    def lower(self, state, batch):
        self.traces += 1
        self.lowered = jax.jit(lambda state, batch: state * batch["x"]).lower(state, batch)
        return self

    def compile(self):
        self.threads.append(threading.current_thread().name)
        if self.error is not None:
            raise self.error
        return self.lowered.compile()


def test_a_program_started_from_shapes_is_compiled_once_in_another_thread():
    function = Recorded()
    compiled = Compiled(function)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (STATE, BATCH))
    compiled.start(*shapes)
    compiled.start(*shapes)
    for _ in range(2):
        assert compiled(STATE, BATCH).tolist() == [0, 2, 4]
    assert function.traces == len(function.threads) == 1 and function.threads[0].startswith("compiler")
    assert compiled(STATE, {"x": jnp.ones(2)}).tolist() == [2, 2]
    assert function.threads[1] == "MainThread"


def test_a_batch_of_another_type_has_a_program_of_its_own():
    compiled = Compiled(jax.jit(lambda state, batch: state * batch["x"]))
    assert compiled(STATE, {"x": jnp.arange(3)}).tolist() == [0, 2, 4]
    assert compiled(STATE, {"x": jnp.array([0.5, 1, 2])}).tolist() == [1, 2, 4]


def test_an_error_in_the_thread_is_raised_where_the_program_is_needed():
    compiled = Compiled(Recorded(RuntimeError("RESOURCE_EXHAUSTED")))
    compiled.start(STATE, BATCH)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        compiled(STATE, BATCH)


def test_quick_settings_keep_the_bits_of_drawn_parameters(monkeypatch):
    assert quick_options(tiny.mesh(1)) == {}  # the tests' own settings stay
    for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"):
        monkeypatch.delenv(name)
    draw = jax.jit(lambda key: jax.random.truncated_normal(key, -2, 2, (300,))).lower(jax.random.key(0))
    levels = ({"xla_backend_optimization_level": 3}, quick_options(tiny.mesh(1)))
    usual, quick = (draw.compile(compiler_options=options)(jax.random.key(0)) for options in levels)
    assert usual.tobytes() == quick.tobytes()
