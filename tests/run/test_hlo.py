"""Compiled programs are read: their collectives, how often each instruction runs, and what the TPU's compiler says."""

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from jtasks.distributed import sharding
from jtasks.run import hlo
from jtasks.run.hlo import Collective

ALL = PartitionSpec()


def compiled(function, mesh, specs, *shapes, out) -> str:
    def place(spec):
        return NamedSharding(mesh, spec)

    placed = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=place(p)) for s, p in zip(shapes, specs, strict=True)]
    return jax.jit(function, out_shardings=jax.tree.map(place, out)).lower(*placed).compile().as_text()


def collectives(text):
    return hlo.collectives(hlo.parse(text), 8)


def test_data_parallel_training_reduces_as_many_bytes_as_the_gradient_has():
    text = compiled(
        jax.grad(lambda w, x: jnp.sum((x @ w) ** 2)),
        tiny.mesh(),
        (ALL, PartitionSpec("data")),
        (16, 32),
        (8, 16),
        out=ALL,
    )
    assert collectives(text) == [Collective("all-reduce", 8, 16 * 32 * 4, 1)]
    assert collectives(text)[0].sent == 2 * 7 / 8 * 16 * 32 * 4


def test_collectives_in_loops_count_as_often_as_the_loop_turns_and_groups_have_their_size():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})

    def layers(weights, x):
        def layer(x, w):
            whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, ALL))
            return jnp.tanh(x @ whole), None

        return jax.lax.scan(layer, x, weights)[0]

    spec = PartitionSpec(None, "fsdp")
    text = compiled(layers, mesh, (spec, ALL), (6, 8, 8), (4, 8), out=ALL)
    assert collectives(text) == [Collective("all-gather", 4, 8 * 8 * 4, 6)]


@pytest.mark.parametrize(
    ("groups", "devices"),
    [("{{0,1,2},{3,4,5}}", 3), ("[2,4]<=[8]", 4), ("[2,4]<=[4,2]T(1,0)", 4), ("{}", 8)],
)
@pytest.mark.parametrize(("kind", "size", "part"), [("all-to-all", 40, 1), ("reduce-scatter", 40, None)])
def test_groups_are_read_in_each_of_their_forms(groups, devices, kind, size, part):
    instruction = f"ROOT %a = bf16[4,5]{{1,0}} {kind}(%p), replica_groups={groups}"
    text = f"ENTRY %main (p: bf16[4,5]) -> bf16[4,5] {{\n  {instruction}\n}}\n"
    assert collectives(text) == [Collective(kind, devices, size * (part or devices), 1)]
