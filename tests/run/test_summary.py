"""The summary at the start of a run."""

import io
import re
import sys
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jtasks.run import summary


def tree(layers):
    array = jax.ShapeDtypeStruct
    block = {"attention": {"kernel": array((8, 24), jnp.float32)}, "norm": {"scale": array((8,), jnp.float32)}}
    return {"embed": {"table": array((100, 8), jnp.float32)}} | {f"layer_{i}": block for i in range(layers)}


def flags(params, frozen=()):
    return {name: jax.tree.map(lambda _, name=name: name not in frozen, part) for name, part in params.items()}


class State(NamedTuple):
    params: Any
    opt_state: Any


def show(
    workdir,
    flops=3.2e12,
    sizes=None,
    steps=(0, 1000),
    mesh=None,
    opt_state=(),
    params=None,
    frozen=("embed",),
    **fields,
):
    params = tree(2) if params is None else params
    config = {"task": "jtasks.tasks.mnist", "shares": None, "accumulate": 4, "precision": "bfloat16"} | fields
    job = types.SimpleNamespace(config=types.SimpleNamespace(**config), mesh=types.SimpleNamespace(shape=mesh))
    plan = types.SimpleNamespace(describe=lambda: "256 examples", epoch_steps=50_000 / 256)
    job.mesh.shape = {"data": 4, "model": 2} if mesh is None else mesh
    sizes = {"train": 50_000, "valid": 10_000, "test": None} if sizes is None else sizes
    state = State(params, opt_state)
    summary.show(
        summary.describe(job, plan, sizes, workdir, state, flops, steps),
        params,
        flags(params, ["embed"] if frozen is None else frozen),
    )


def test_a_log_file_gets_every_fact_in_plain_lines(tmp_path, capsys):
    show(tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.isascii()
    assert "\x1b" not in err
    facts, table = err.split("parameters\n")
    assert [tuple(re.split(" {2,}", line)) for line in facts.splitlines()] == [
        ("task", "jtasks.tasks.mnist"),
        ("config", f"{tmp_path}/config.json"),
        ("data", "train 50,000, valid 10,000"),
        ("batch", "256 examples in 4 microbatches, bfloat16"),
        ("steps", "1,000 (5.12 epochs of 195.3 steps)"),
        ("FLOPs a step", "3.2 T"),
        ("devices", "8 x cpu"),
        ("mesh", "data 4 x model 2"),
        ("on a device", "parameters 4.8 kB"),
        ("files", f"{tmp_path}/"),
    ]
    assert table.splitlines()[-1].split() == ["total", "5", "arrays", "1,200", "400", "trained"]
    assert "embed/table               [100, 8]    800  frozen" in table


def test_a_terminal_gets_the_same_facts(tmp_path, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    show(tmp_path)
    for fact in ("jtasks.tasks.mnist", "config.json", "195.3 steps", "embed/table", "1,200", "8 x cpu"):
        assert fact in screen.getvalue()


def test_what_is_unknown_or_absent_is_said_or_left_out(tmp_path, capsys):
    show(tmp_path, sizes={"train": None}, flops=None, steps=(200, 1000), mesh={}, accumulate=1)
    err = capsys.readouterr().err
    for line in ("data          none", "FLOPs a step  unknown", "steps         200 to 1,000\n", "mesh          none"):
        assert line in err
    assert "microbatches" not in err


def test_few_parameters_are_listed_one_by_one():
    params = tree(2)
    assert summary.parameters(params, flags(params))[:2] == [
        ("embed/table", "[100, 8]", "800", "trained"),
        ("layer_0/attention/kernel", "[8, 24]", "192", "trained"),
    ]


def test_many_layers_are_merged_and_half_frozen_groups_say_so():
    params = tree(48)
    rows = summary.parameters(params, flags(params, frozen=[f"layer_{i}" for i in range(12)]))
    assert rows == [
        ("embed/table", "[100, 8]", "800", "trained"),
        ("layer_*/attention/kernel", "48 x [8, 24]", "9,216", "6,912 trained"),
        ("layer_*/norm/scale", "48 x [8]", "384", "288 trained"),
        ("total", "97 arrays", "10,400", "8,000 trained"),
    ]


@pytest.mark.parametrize("width", [1, 24, 25, 100])
def test_any_tree_fits_the_table_and_its_counts_add_up(width):
    names = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(width)]
    params = {name: {"a": {"b": jnp.ones((2, 3))}, "c": jnp.ones(())} for name in names}
    *rows, total = summary.parameters(params, flags(params))
    assert len(rows) <= 24
    assert sum(int(count.replace(",", "")) for _, _, count, _ in rows) == 7 * width
    assert total == ("total", f"{2 * width} arrays", f"{7 * width:,}", "trained")
    assert (rows[-1][0] == f"... {width - 23} more") == (width > 24)


def test_a_model_without_parameters_has_a_total():
    assert summary.parameters({}, {}) == [("total", "0 arrays", "0", "trained")]


def test_devices_of_several_kinds_and_hosts_are_counted():
    kinds = [("NVIDIA A100", 0), ("NVIDIA A100", 0), ("Tesla T4", 1)]
    devices = [types.SimpleNamespace(device_kind=kind, process_index=host) for kind, host in kinds]
    assert summary.count_devices(devices) == "2 x NVIDIA A100, 1 x Tesla T4 on 2 hosts"


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (999, "999"), (1000, "1 k"), (6.02e9, "6.02 G"), (1e18, "1 E"), (1e22, "1e+04 E")]
)
def test_large_numbers_get_a_prefix(value, text):
    assert summary.format_si(value) == text


def test_what_is_divided_says_along_which_axes_and_what_a_device_holds(tmp_path, capsys):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)

    def array(*spec):
        return jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    params = {"a": array("fsdp", "tensor"), "b": {"x": array(None, "fsdp"), "y": array()}}
    rows = summary.parameters(params, jax.tree.map(lambda _: True, params), limit=2)
    assert [row[3] for row in rows[:2]] == ["trained, fsdp x tensor", "trained, fsdp or replicated"]
    show(tmp_path, params=params, frozen=(), opt_state=params, shares=(3, 1), accumulate=1)
    err = capsys.readouterr().err
    assert "parameters 704 B of 1.54 kB, optimizer state 704 B of 1.54 kB" in err
    assert "in 3, 1 microbatches on the devices" in err
