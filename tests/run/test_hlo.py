"""Compiled programs are read: their collectives, how often each instruction runs, and what the TPU's compiler says."""

import jax
import jax.numpy as jnp
import pytest
import tiny
from front_door import ROOT
from jax.sharding import NamedSharding, PartitionSpec

from jtasks.distributed import sharding
from jtasks.run import hlo, tpu, tpu_memory
from jtasks.run.hlo import Collective

ALL = PartitionSpec()
TPU = ROOT / "tests/golden/tpu_step.hlo"  # in the form that the compiler of TPUs writes


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


def test_a_collective_uses_as_many_links_as_the_compiler_chose_rings():
    groups = "replica_groups=[1,4]<=[4]"
    rings = [
        f'{groups}, backend_config={{"debug":"\\nStrategyRing{{colors:{colors} phases:2 }}"}}' for colors in (4, 1)
    ]
    lines = [f"%a.{i} = f32[8] all-reduce(%p), {attributes}" for i, attributes in enumerate([*rings, groups])]
    found = collectives("ENTRY %main (p: f32[8]) -> f32[8] {\n  " + "\n  ".join(lines) + "\n}\n")
    assert [(each.links, each.times) for each in found] == [(4, 1), (2, 2)]
    assert [tpu.seconds(each, tpu.Chip(hbm=1, clock=1, link=1)) for each in found] == [12, 2 * 24]


def test_the_work_that_the_tpu_compiler_estimates_counts_as_often_as_its_loop_turns():
    program = hlo.parse(TPU.read_text())
    assert {i.name: n for i, n in program.instructions() if i.cycles} == {"fusion.2": 6, "copy.1": 6, "reduce.1": 1}
    done = tpu.work(program, tpu.Chip(hbm=1, clock=1000, link=1))
    assert done.seconds == {"products": 4.2, "copies and transpositions": 0.3, "sums": 0.03}
    assert (done.kernels, done.kernel_flops) == ({"attend": 6}, None)
    assert done.largest[0] == (4.2, "fusion f32[8] jit(step)/dot_general")
    cost = '{"cost_estimate":{"bytes_accessed":"9","flops":"80"}}'
    said = TPU.read_text().replace('op_name="jit(step)/pallas_call"}', f'x="y"}}, {cost}')
    assert tpu.work(hlo.parse(said), tpu.Chip(hbm=1, clock=1000, link=1)).kernel_flops == 6 * 80


def test_what_the_compiler_does_not_estimate_takes_no_cycles():
    known, unknown = (f'backend_config={{"estimated_cycles":"{cycles}"}}' for cycles in (1826, 2**63 - 1))
    assert hlo.Instruction("gather", "f32[8]", "fusion", "", known).cycles == 1826
    assert hlo.Instruction("gather", "f32[8]", "fusion", "", unknown).cycles == 0


def test_an_asynchronous_collective_of_the_tpu_compiler_counts_once_for_all_of_its_pieces():
    assert hlo.collectives(hlo.parse(TPU.read_text()), 4) == [
        Collective("all-gather", 4, 16 * 8 * 2, 6, overlaps=True),
        Collective("collective-permute", 2, 4 * 8 * 2 + 4, 6, overlaps=True),  # with the halves of its two flags
        Collective("reduce-scatter", 4, 16 * 8 * 2, 6),
    ]


def test_asynchronous_collectives_bound_a_step_from_both_sides():
    chip = tpu.Chip(hbm=1, clock=1, link=5)
    traffic = [Collective("all-gather", 4, 400, 1), Collective("collective-permute", 2, 200, 2, overlaps=True)]
    times = tpu.bounds(10, 5, traffic, chip)
    assert (times["synchronous_seconds"], times["asynchronous_seconds"]) == (30, 40)
    assert times["step_seconds_range"] == [45, 85]
    assert tpu.bounds(1, 0, traffic[1:], chip)["step_seconds_range"] == [40, 41]


def test_times_are_read_in_their_own_unit():
    assert [tpu.duration(x) for x in (0, 2e-8, 0.0213, 121.4)] == ["0 ms", "below 0.001 ms", "21.3 ms", "121 s"]


def test_the_compiler_says_how_much_memory_a_refused_program_needs():
    said = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: the memory for HLO temporaries (30.5G) exceeds available HBM"
    assert tpu_memory.needed(said, 2**30) == 31.5 * 2**30
    used = "XLA:TPU compile permanent error. Used 20.0G of 15.75G hbm. Exceeded"
    assert tpu_memory.needed(used, 2**30) == 20 * 2**30
    assert tpu_memory.needed("something else", 2**30) is None
