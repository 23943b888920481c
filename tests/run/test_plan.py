"""What a plan says of a step follows from shapes, shardings and the compiled program."""

import functools
import importlib.util
import json
import math
import re
import shutil

import jax
import pytest
import tiny
from front_door import DIGITS, run

from jtasks import config as configs
from jtasks import shipped
from jtasks.errors import CheckpointError, ConfigError
from jtasks.interop import model_config, published
from jtasks.run import job, plan, tpu, tpu_memory
from jtasks.run.hlo import Collective
from jtasks.run.plan import Hardware
from jtasks.tasks import classify


def test_the_time_of_a_step_lies_between_full_overlap_and_none():
    traffic = [Collective("all-reduce", 4, 1000, 2), Collective("collective-permute", 2, 500, 1)]
    assert [c.sent for c in traffic] == [3000, 500]
    assert [c.hops for c in traffic] == [12, 1]
    times = plan.times(0.5, traffic, Hardware(bandwidth_gbs=7e-6, latency_us=1e6 / 26))
    assert times["communication_seconds"] == pytest.approx(0.5 + 0.5)
    assert (times["step_seconds"], times["step_seconds_overlapped"]) == pytest.approx((1.5, 1.0))
    assert (times["efficiency"], times["efficiency_overlapped"]) == pytest.approx((1 / 3, 0.5))


def test_hetseqs_speed_up_on_2_nodes_predicts_those_on_4_and_8_to_5_percent():
    """Ding et al. 2021 train BERT on nodes of 4 GPUs; a ring's sum of the gradient is what limits them."""
    bandwidth = 1 / (2 / 1.72 - 1)  # gigabytes a second at which 2 nodes sum a gradient of one and reach 1.72
    for nodes, reached in {2: 1.72, 4: 3.22, 8: 5.94}.items():
        gradient = Collective("all-reduce", nodes, 10**9, 1)
        times = plan.times(1.0, [gradient], Hardware(bandwidth_gbs=bandwidth, latency_us=0))
        assert nodes * times["efficiency"] == pytest.approx(reached, rel=0.05)


@functools.cache
def planned(**mesh: int) -> dict:
    return plan.run(tiny.config("igpt", batch_size=16, mesh=mesh), Hardware())


def test_memory_falls_with_fsdp_and_the_flops_stay():
    data, both = planned(data=8, fsdp=1), planned(data=2, fsdp=4)
    assert data["parameters"] == both["parameters"]
    assert data["memory"]["parameters"] == 4 * data["parameters"]
    assert data["memory"]["optimizer"] == pytest.approx(8 * data["parameters"], abs=64)
    for kind in ("parameters", "optimizer"):  # a few small parameters cannot be divided
        assert data["memory"][kind] / 4 <= both["memory"][kind] < data["memory"][kind] / 3.5
    assert data["flops"] == pytest.approx(both["flops"], rel=0.01)
    assert set(data["collectives"]) == {"all-reduce"}
    assert data["collectives"]["all-reduce"]["bytes"] == pytest.approx(2 * 7 / 8 * 4 * data["parameters"], rel=0.02)
    assert {"all-gather", "all-reduce"} <= set(both["collectives"])
    text = plan.table(both)
    assert "data 2 x fsdp 4" in text
    assert f"{both['parameters']:,}" in text


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        (Hardware(latency_us=-1), "--latency-us must not be negative"),
        (Hardware(efficiency=1.5), "--efficiency above 0 and at most 1"),
        (Hardware(bandwidth_gbs=0), "--bandwidth-gbs must be above 0"),
    ],
)
def test_impossible_hardware_is_refused(hardware, message):
    with pytest.raises(ConfigError, match=message):
        plan.run(tiny.config("igpt"), hardware)


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:2x2x2x2", "v5e:0x4", ""])
def test_an_impossible_topology_is_refused(topology):
    with pytest.raises(ConfigError, match="expected one of v4, v5e, v5p, v6e, a colon and the chips along each axis"):
        tpu.devices(topology)


def test_a_topology_without_the_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ConfigError, match="pip install 'jtasks\\[tpu-plan\\]'"):
        tpu.devices("v5e:2x2")


def shapes(config):
    """The parameters and the entries of a batch of a plan."""
    planned = plan.abstract(configs.load(config[0], [f"--config.{field}" for field in config[1:]]))
    entries = {name: (x.dtype.name, x.shape) for name, x in planned.batch.items() if name not in ("mask", "seed")}
    return planned.parameters, entries


def test_a_plan_needs_no_data(tmp_path):
    nowhere = f"data.dir={tmp_path}"
    image = {"image": ("uint8", (128, 32, 32, 3)), "label": ("int32", (128,))}
    assert shapes(["igpt_cifar:s", nowhere]) == (76_707_328, image)
    parameters, entries = shapes(["lm_text:bpe", nowhere, "batch_size=8"])
    assert parameters == 13_817_856
    assert entries["tokens"] == ("uint16", (8, 257))
    _, entries = shapes(["lm_text:bpe", nowhere, "batch_size=8", "model.vocab=70000"])
    assert entries["tokens"][0] == "int32"
    _, entries = shapes(["vit_cifar:tiny", nowhere, "batch_size=8", "data.mixup=0.2"])
    assert {"partner_image", "partner_label"} <= set(entries)
    _, entries = shapes(["translate:small", nowhere, "batch_tokens=4096"])
    assert {name: shape[1] for name, (_, shape) in entries.items()} == dict.fromkeys(entries, 48)
    assert 48 * entries["source"][1][0] * 2 <= 4096


@pytest.mark.parametrize(
    ("config", "assumed"),
    [
        ("shakespeare_char", ["vocab=100"]),
        ("wnut17:scratch", ["labels=10"]),
        ("squad:small --config.data.tokenizer=vocab.txt", ["vocab=30522"]),
        ("infill_text", ["documents=8"]),
        ("multimodal_classify", ["pictures=2", "classes=10"]),
        ("avsd:small --config.data.features=i3d,vggish", ["features=4096"]),
    ],
)
def test_a_plan_without_data_assumes_what_only_the_data_has_and_says_so(config, assumed, tmp_path, capsys):
    name, *flags = config.split()
    model = plan.abstract(configs.load(name, [*flags, f"--config.data.dir={tmp_path}"])).job.config.model
    said = capsys.readouterr().err
    for each in assumed:
        field, _, value = each.partition("=")
        assert model[field] == int(value)
        assert f"it assumes config.model.{each}; set the field if you know it" in said
    assert said.count("WARNING") == len(assumed)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("vit_cifar:hf", "not set: config.model.width, config.model.depth, config.model.heads; give them"),
        (
            "blip_retrieval:coco",
            "not set: config.model.image_width, .* config.model.text_heads; give them, or",
        ),
    ],
)
def test_a_plan_of_a_model_in_a_folder_says_which_sizes_it_needs(config, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        plan.abstract(configs.load(config, [f"--config.data.dir={tmp_path}", "--config.init_from="]))


@pytest.mark.parametrize(
    ("config", "parameters"),
    [  # what model.num_parameters() of transformers says of the published models
        ("sst2:hf", 109_482_240 + 2 * 769),  # BertModel, and a head
        ("lm_text:gpt2", 124_439_808),
        ("summarize:t5", 60_506_624),
        ("summarize:bart", 139_420_416),
        ("clip_captions:clip", 151_277_313),
        ("clip_captions:siglip", 203_155_970),
        ("vit_cifar:hf", 85_798_656 + 10 * 769),
    ],
)
def test_a_plan_of_a_published_model_needs_neither_network_nor_folder(
    config, parameters, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    assert plan.abstract(configs.load(config, [f"--config.data.dir={tmp_path}"])).parameters == parameters
    assert "WARNING" not in capsys.readouterr().err


def test_the_sizes_of_each_published_model_that_a_preset_names_are_known():
    texts = [path.read_text() for path in shipped.paths().values()]
    assert {name for text in texts for name in re.findall(r'"hf:([^"]+)"', text)} == set(published.CONFIGS)


def test_a_plan_reads_config_json_alone_but_a_run_needs_the_weights(shared, tmp_path):
    shutil.copy(shared / "golden" / "bert_sequence_classification" / "config.json", tmp_path)
    fields = [f"init_from=hf:{tmp_path}", "data.dir=/nowhere", "data.length=32", "data.buckets=(32,)"]
    config = configs.load("sst2:hf", [f"--config.{field}" for field in fields])
    assert plan.abstract(config).job.config.model.width == model_config.model_fields(tmp_path)["width"]
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        job.fill(config, classify)


@pytest.mark.parametrize(
    ("fields", "devices", "gigabytes", "advice"),
    [  # 5.4 GB of parameters, gradient and LAMB's two moments
        (["batch_size=4096"], 4, 200, "--config.accumulate=32, which takes parts of the batch one after the other; --"),
        (["batch_size=8"], 4, 200, "--config.accumulate=2, which takes"),
        (["batch_size=4", "precision=bfloat16"], 4, 200, "a smaller config.batch_size"),
        (["model.width=2048", "batch_size=64"], 8, 80, "--config.mesh.fsdp=4, which divides parameters and optimizer"),
        (["model.width=2048", "batch_size=64"], 8, 80, "among chips; with it --config.accumulate=8"),
        (["model.width=2048", "batch_size=4", "mesh.fsdp=4", "mesh.data=1"], 4, 200, "--config.precision=bfloat16; a"),
        (["model.remat=False", "batch_size=4"], 4, 20, "bfloat16; --config.model.remat=True; a smaller"),
    ],
)
def test_a_step_that_does_not_fit_gets_advice_by_what_takes_the_memory(fields, devices, gigabytes, advice):
    config = configs.load("bert:large", [f"--config.{field}" for field in ["data.dir=/nowhere", *fields]])
    planned = plan.abstract(config, jax.devices()[:devices])
    assert advice in tpu_memory.advice(planned, gigabytes * 10**9, 16 * 2**30)


@pytest.mark.slow
def test_the_front_door_plans_for_more_devices_than_there_are():
    result, errors = run(*DIGITS, "--mode=plan", "--config.mesh.data=4", "--config.mesh.fsdp=4", "--latency-us=0")
    assert result["devices"] == math.prod(result["mesh"].values()) == 16
    # A device holds a quarter of the float32 gradient, which at least 3 others must send and get.
    assert result["communication_seconds"] > 2 * 3 / 4 * result["parameters"] / 4 * 4 / 25e9
    assert "data 4 x fsdp 4 x tensor 1" in errors
    assert json.dumps(result)
    _, errors = run(*DIGITS, "--mode=plan", code=2)
    assert "give --devices=N" in errors
