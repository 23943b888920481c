"""Claims about config.adapter: what is trained, exact on any devices, small on disk, and bound to its base."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jtasks
from jtasks import config as configs
from jtasks import models, task
from jtasks.distributed import sharding
from jtasks.errors import ConfigError
from jtasks.models import lora
from jtasks.run import adapter, checkpoint, gradient
from jtasks.run.job import Job
from jtasks.tree import by_name

LORA = {"adapter__kind": "lora", "adapter__rank": 2, "adapter__alpha": 3.0, "init_from": "somewhere"}


# The functions


def shapes(model, *inputs, **options):
    with lora.recorded_heads() as heads:
        made = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **options)["params"])
    return made, heads


def test_the_layers_of_backbones_are_those_that_people_name():
    made, heads = shapes(
        models.GPT(vocab=5, outputs=5, max_length=4, width=8, depth=2, heads=2, mlp_dim=12), jnp.zeros((1, 4), int)
    )
    layers = {layer.name: layer.size for layer in lora.layers(made, heads)}
    parts = {f"blocks/attention/{part}": (8, 8) for part in ("query", "key", "value", "output")}
    assert layers == parts | {"blocks/up": (8, 12), "blocks/down": (12, 8), "head": (8, 5)}
    small = {"encoder_depth": 1, "decoder_depth": 1, "width": 8, "heads": 2, "decoder_heads": 4, "vocab": 5}
    pair = models.EncoderDecoder(**small, max_length=4, mlp_dim=8)
    ids = jnp.zeros((1, 4), int)
    made, heads = shapes(pair, ids, ids, ids, method="token_loss")
    layers = {layer.name: layer for layer in lora.layers(made, heads)}
    assert layers["encoder/blocks/attention/query"].b == (1, 1, 2, 4)
    assert layers["decoder/blocks/attention/query"].b == (1, 1, 4, 2)
    assert layers["decoder/blocks/cross/value"].b == (1, 1, 4, 2) and layers["decoder/blocks/cross/query"].b == (
        1,
        1,
        8,
    )


def test_a_part_of_a_fused_kernel_changes_its_columns_alone():
    rng = np.random.default_rng(0)
    depth, width, heads, size, rank = 2, 6, 3, 2, 2
    kernel = rng.normal(size=(depth, width, 3 * heads * size)).astype(np.float32)
    base = {"blocks": {"attention": {"query_key_value": {"kernel": kernel}}}}
    a = rng.normal(size=(depth, width, rank)).astype(np.float32)
    b = rng.normal(size=(depth, rank, heads, size)).astype(np.float32)
    name = "blocks/attention/value"
    merged = lora.merge(base, {name + lora.A: a, name + lora.B: b}, 0.5)
    change = np.asarray(merged["blocks"]["attention"]["query_key_value"]["kernel"]) - kernel
    change = change.reshape(depth, width, heads, 3, size)
    expected = 0.5 * np.einsum("lir,lrhd->lihd", a, b)
    np.testing.assert_allclose(change[:, :, :, 2], expected, atol=1e-5)
    assert not change[:, :, :, :2].any()


def test_matching_names_the_nearest_layer_and_refuses_a_rank_without_use():
    made, heads = shapes(
        models.GPT(vocab=5, outputs=5, max_length=4, width=8, depth=1, heads=2), jnp.zeros((1, 4), int)
    )
    known = lora.layers(made, heads)
    names = lambda regex: [layer.name.rpartition("/")[2] for layer in lora.match(regex, known, 2)]  # noqa: E731
    assert names("query|value") == ["query", "value"] and names("^blocks/up$") == ["up"]
    assert names("query_key_value") == names("query_key_value/kernel") == ["query", "key", "value"]
    with pytest.raises(ConfigError, match=r"'valeu' matches no layer, did you mean value\?"):
        lora.match("valeu", known, 2)
    with pytest.raises(ConfigError, match=r"layers that can have an adapter are blocks/attention/output,.*blocks/up"):
        lora.match("embedding", known, 2)
    with pytest.raises(ConfigError, match=r"rank=9 is larger than the kernel of blocks/attention/query, \[8, 8\]"):
        lora.match("query", known, 9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapter": {"kind": "lora"}}, r"give those, config\.init_from=RUN or config\.init_from=hf:NAME"),
        ({"adapter": {"rank": 4}}, r"config\.adapter\.rank=4 has no effect without config\.adapter\.kind=\"lora\""),
        ({"adapter": {"kind": "lore"}}, r"config\.adapter\.kind must be .*, did you mean lora\?"),
        ({"adapter": {"match": "("}}, r"config\.adapter\.match"),
        ({"adapter": {"ranks": 4}}, r"unknown field config\.adapter\.ranks.*did you mean config\.adapter\.rank\?"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(ConfigError, match=message):
        configs.freeze({"task": "jtasks.tasks.mnist", "steps": 1, **fields})


# The gradient


@functools.cache
def adapted(name="igpt"):
    """The base, an adapter with a nonzero product, and the merged parameters of a tiny task."""
    config, module = tiny.config(name, **LORA), task.load(f"jtasks.tasks.{tiny.module(name)}")
    made, heads = adapter.shapes_of(lambda b: module.init(jax.random.key(0), b, config), tiny.batch(16))
    whole = sorted(by_name(made))[-1:]
    own = adapter.make(Job(module, config, tiny.mesh(1)), made, heads, whole)
    params = jax.tree.map(jnp.asarray, tiny.params(name))
    trained = own.trained(params, jax.random.key(1))
    noise = iter(jax.random.split(jax.random.key(2), len(trained)))
    trained = {name: x + 0.1 * jax.random.normal(next(noise), x.shape) for name, x in trained.items()}
    return own.base(params), trained


@pytest.mark.parametrize(
    ("devices", "mesh", "changes"),
    [
        (4, {"data": 4}, {"accumulate": 2}),
        (
            8,
            {"data": 2, "fsdp": 2, "tensor": 2},
            {"accumulate": 2, "sharding": (("up/kernel$", (None, "fsdp", None)),)},
        ),
        (2, {"data": 2}, {"accumulate": 4, "shares": (3, 1)}),
    ],
)
def test_the_gradient_is_that_of_the_merged_parameters_on_any_devices(devices, mesh, changes):
    base, trained = adapted()
    config = tiny.config("igpt", **LORA, **changes)
    module, batch, rng = task.load(config.task), tiny.batch(16), jax.random.key(3)

    def loss(trained):
        return module.loss_fn(lora.merge(base, trained, 1.5), batch, None, config)[0]

    expected = jax.jit(jax.grad(loss))(trained)
    axes = dict.fromkeys(("data", "fsdp", "tensor"), 1) | mesh
    grid = jax.make_mesh(
        tuple(axes.values()), tuple(axes), axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=jax.devices()[:devices]
    )
    job = Job(module, config, grid)
    names = adapter.named(trained, base)
    place = lambda tree: jax.device_put(tree, job.shardings(tree, names))  # noqa: E731
    rows = {k: v.repeat(1, axis=0) for k, v in batch.items()}
    if config.shares:
        from jtasks.distributed.shares import layout

        order = layout(16, (3, 1))
        rows = {k: v[np.maximum(order, 0)] for k, v in batch.items()}
        rows["mask"] = rows["mask"] * (order >= 0)
    rows = jax.device_put(rows, sharding.batch_sharding(grid))
    measure = jax.jit(gradient.gradient_fn(module, config, grid))
    found = measure(place(trained), rows, rng, place(base))[0]
    assert found.keys() == trained.keys()
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6, rtol=2e-5), jax.device_get(found), expected)


# Runs

TASK = """
import jax, jax.numpy as jnp, numpy as np
from jtasks.metrics import Loss, total

def defaults():
    return {"model.outputs": 4, "data.shift": 0}

def dataset(split, config):
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    return {"x": x, "y": np.roll(x, config.data.shift, 1)[:, :config.model.outputs]} if split != "test" else None

def init(rng, batch, config):
    keys = jax.random.split(rng)
    return {"up": {"kernel": jax.random.normal(keys[0], (8, 16)) / 3, "bias": jnp.zeros(16)},
            "head": {"kernel": jax.random.normal(keys[1], (16, config.model.outputs)) / 4}}

def hidden(params, batch): return jax.nn.relu(batch["x"] @ params["up"]["kernel"] + params["up"]["bias"][None])

def predict_fn(params, batch, rng, config): return {"y": hidden(params, batch) @ params["head"]["kernel"]}

def loss_fn(params, batch, rng, config):
    x = hidden(params, batch)
    if rng is not None:
        x = jnp.where(jax.random.bernoulli(rng, 0.8, x.shape), x / 0.8, 0)
    metrics = {"loss": Loss.of(jnp.square(x @ params["head"]["kernel"] - batch["y"]), batch["mask"])}
    return total(metrics), metrics
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a task and a trained base."""
    folder = tmp_path_factory.mktemp("a b[1]")
    (folder / "task.py").write_text(TASK)
    jtasks.train(fields(folder, steps=2), folder / "base")
    return folder


def fields(folder, **changes):
    common = {"task": str(folder / "task.py"), "batch_size": 8, "log_every": 1, "save_every": 1, "show_count": 0}
    return {**common, "optim": {"lr": 0.01, "weight_decay": 0.1, "clip": 1.0}, "ema": 0.5, "steps": 4, **changes}


def adapted_fields(folder, **changes):
    own = {"kind": "lora", "rank": 2, "match": "up"}
    return fields(folder, init_from=str(folder / "base"), adapter=own, data={"shift": 3}, **changes)


@pytest.fixture(scope="module")
def trained(runs):
    """A finished run of an adapter, and its result."""
    return runs / "lora", jtasks.train(adapted_fields(runs), runs / "lora")


def test_checkpoints_hold_the_adapter_alone_and_a_resumed_run_is_the_same(runs, trained):
    folder, result = trained
    kept = checkpoint.arrays(folder / "checkpoints" / "4")
    assert {"/".join(name.split("/")[-3:]) for name in kept if "kernel" in name} == {
        "up/lora_a/kernel",
        "up/lora_b/kernel",
    }
    assert jtasks.train(adapted_fields(runs, steps=2), runs / "halves")["step"] == 2
    assert jtasks.train(adapted_fields(runs), runs / "halves") == result
    resumed = checkpoint.arrays(runs / "halves" / "checkpoints" / "4")
    assert kept.keys() == resumed.keys()
    assert all(np.array_equal(kept[name], resumed[name]) for name in kept)


def test_a_run_is_read_with_its_base_merged(runs, trained):
    folder, result = trained
    run = jtasks.load(folder)
    kept, base = checkpoint.arrays(folder / "checkpoints" / "4"), jtasks.load(runs / "base").params
    a, b = (kept[f"ema_params/up/lora_{x}/kernel"] for x in "ab")
    np.testing.assert_allclose(run.params["up"]["kernel"], base["up"]["kernel"] + a @ b, atol=1e-6)
    np.testing.assert_array_equal(run.params["head"]["kernel"], base["head"]["kernel"])
    x = np.random.default_rng(1).normal(size=8).astype(np.float32)
    inside = np.maximum(x @ base["up"]["kernel"] + x @ a @ b + base["up"]["bias"], 0)  # unmerged
    np.testing.assert_allclose(run.predict({"x": x})["y"], inside @ base["head"]["kernel"], atol=1e-5)
    assert run.evaluate("valid")["valid/loss"] == pytest.approx(result["valid/loss"])


def test_the_first_loss_is_that_of_the_base_bit_for_bit(runs, trained):
    whole = fields(runs, init_from=str(runs / "base"), data={"shift": 3}, steps=1)
    jtasks.train(whole, runs / "whole")
    first = [
        json.loads((folder / "metrics.jsonl").read_text().split("\n")[0]) for folder in (runs / "whole", trained[0])
    ]
    assert first[0]["loss"] == first[1]["loss"]


def test_a_new_head_is_trained_whole(runs):
    config = adapted_fields(runs, model={"outputs": 3}, steps=1)
    jtasks.train(config, runs / "head")
    assert json.loads((runs / "head" / "adapter.json").read_text())["whole"] == ["head/kernel"]
    kept = checkpoint.arrays(runs / "head" / "checkpoints" / "1")
    assert kept["params/head/kernel"].shape == (16, 3) and "params/up/bias" not in kept
    run = jtasks.load(runs / "head")
    np.testing.assert_array_equal(run.params["head"]["kernel"], kept["ema_params/head/kernel"])
    more = adapted_fields(runs, steps=1)
    more["adapter"] = {**more["adapter"], "train": "bias$|head"}
    jtasks.train(more, runs / "more")
    assert json.loads((runs / "more" / "adapter.json").read_text())["whole"] == ["head/kernel", "up/bias"]
    more["adapter"]["train"] = "biass"
    with pytest.raises(ConfigError, match=r"config\.adapter\.train='biass' matches no parameter"):
        jtasks.train(more, runs / "none")


def test_a_run_goes_on_with_its_own_base_alone(runs, trained):
    shutil.copytree(trained[0], runs / "moved")
    (runs / "base").rename(runs / "other place")
    try:
        with pytest.raises(
            ConfigError, match=r"(?s)no checkpoint in config\.init_from=.*The run in .*moved holds an adapter"
        ):
            jtasks.load(runs / "moved").params  # noqa: B018
        elsewhere = adapted_fields(runs, steps=5) | {"init_from": str(runs / "other place")}
        assert jtasks.train(elsewhere, runs / "moved")["step"] == 5
        assert jtasks.load(runs / "moved").step == 5  # config.json says the new place
        jtasks.train(fields(runs, steps=3), runs / "other place")
        with pytest.raises(ConfigError, match=r"is not the base of the run in .*: 3 of 3 parameters differ"):
            jtasks.train(elsewhere | {"init_from": str(runs / "other place/checkpoints/3"), "steps": 6}, runs / "moved")
        with pytest.raises(ConfigError, match="is itself a run of an adapter"):
            jtasks.train(elsewhere | {"init_from": str(runs / "moved")}, runs / "stacked")
    finally:
        (runs / "other place").rename(runs / "base")


def test_other_ranks_are_refused_in_the_same_folder(runs, trained):
    config = adapted_fields(runs, steps=5)
    config["adapter"] = {**config["adapter"], "rank": 3}
    with pytest.raises(ConfigError, match=r"config\.adapter\.rank: 2 -> 3"):
        jtasks.train(config, trained[0])
