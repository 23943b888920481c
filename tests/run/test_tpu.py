"""Steps compiled ahead of time for TPUs that this machine lacks; skipped without `pip install libtpu`."""

import importlib.util

import jax
import numpy as np
import pytest
from front_door import run
from jax.sharding import AxisType, Mesh

from jtasks import config as configs
from jtasks.data import pipeline
from jtasks.distributed import sharding
from jtasks.run import hlo, programs, tpu
from jtasks.run.job import prepare

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]


@pytest.fixture
def devices(monkeypatch):
    """The four chips of a slice of v5e."""
    for name, value in tpu.ALONE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # at a flag for other devices, libtpu ends the process
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot load programs of chips that are not here
    yield np.array(tpu.devices("v5e:2x2"))
    jax.config.update("jax_enable_compilation_cache", True)


def lowered(config, devices, **sizes):
    """The step of a config, lowered for a mesh of devices that this machine lacks."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
    mesh = Mesh(devices.reshape(*sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3)
    job = prepare(config)._replace(mesh=mesh)
    examples = job.require("train")
    host = pipeline.batch_at(examples, job.plan(examples, shuffle=True), 0, job.collate)
    batched = sharding.batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batched) for name, x in host.items()}
    program = programs.build(job, batch, 10)
    return program.step.lower(sharding.with_shardings(program.shapes, program.shardings), batch)


def test_a_step_gets_the_kernels_of_the_mesh_and_not_of_the_machine(devices, tmp_path):
    (tmp_path / "text.txt").write_text("one text\n\nand another\n" * 400)
    fields = [
        "model.width=32",
        "model.attention_dropout=0",
        "model.depth=1",
        "model.heads=2",
        "data.length=256",
        "data.stride=256",
        "batch_size=4",
    ]
    options = [f"--config.{field}" for field in [*fields, f"data.files={tmp_path}/text.txt", "precision=bfloat16"]]
    config = configs.load("lm_text:bytes", options)
    text = lowered(config, devices, data=2, fsdp=2).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2  # forward, once, and backward
    assert "all-reduce" in text
    assert lowered(config, devices[:1]).as_text().count("tpu_custom_call") >= 2


def test_the_front_door_plans_with_the_compiler_of_a_tpu(tmp_path):
    flags = ["--config=igpt_cifar:xxs", f"--config.data.dir={tmp_path}", "--config.batch_size=8", "--mode=plan"]
    flags += ["--config.model.depth=2", "--topology=v5e:2x2", "--config.mesh.fsdp=4", "--config.precision=bfloat16"]
    result, errors = run(*flags, f"--output={tmp_path}/step.hlo")
    assert result["fits"] and result["devices"] == 4
    assert 0 < result["mfu"] == result["mfu_range"][1] < 1
    assert result["step_seconds"] == result["step_seconds_range"][0]
    work = sum(result["compiler_seconds"].values()) + result["kernel_seconds"] + result["synchronous_seconds"]
    assert result["step_seconds"] == pytest.approx(work)
    assert sum(result["kernels"].values()) >= 4 and result["kernel_flops"]  # forward and backward, of two layers
    assert "all-gather" in {collective["kind"] for collective in result["collectives"]}
    assert result["hbm_bytes"] == sum(result["memory"].values()) < result["hbm_bytes_of_chip"] == 16 * 2**30
    program = hlo.parse((tmp_path / "step.hlo").read_text())
    cycles = sum(instruction.cycles * times for instruction, times in program.instructions())
    assert cycles / 1.5e9 == pytest.approx(sum(result["compiler_seconds"].values()))
    assert "kernels, assumed" in errors and "at 40% of the peak" in errors


def test_a_step_that_looks_up_embeddings_on_sparse_cores_can_be_read(tmp_path):
    flags = ["--config=squad:small", f"--config.data.dir={tmp_path}", "--config.model.depth=1", "--mode=plan"]
    result, errors = run(*flags, "--topology=v5p:2x2x1", f"--output={tmp_path}/step.hlo")
    assert 'async_execution_thread="sparsecore"' in (tmp_path / "step.hlo").read_text()
    assert 0 < result["mfu"] < 1 and "error" not in errors


def test_a_step_convolves_as_the_mesh_s_platform_does(devices):
    config = configs.load("mnist", ["--config.data.name=digits", "--config.batch_size=8"])
    found = [lowered(config, chips, data=len(chips)).as_text() for chips in (devices, devices[:1])]
    here = lowered(config, np.array(jax.devices("cpu")[:1])).as_text()
    forward = [text.count("stablehlo.convolution") for text in (*found, here)]
    assert forward[0] == forward[1] > forward[2]
