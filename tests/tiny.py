"""Tiny jobs on the bundled 8x8 digits, shared by the tests: small enough to compile in a second or two."""

import functools
import pathlib

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh

from jtasks import config as configs
from jtasks import task
from jtasks.data import pipeline
from jtasks.data.pipeline import BatchPlan
from jtasks.distributed import sharding as shardings
from jtasks.run.job import Job

ROOT = pathlib.Path(__file__).resolve().parents[1]
GRAYS = tuple((float(level),) for level in range(17))
TASKS = ("mnist", "igpt", "classifier")  # the last: an igpt with a classifier

COMMON = {"steps": 10, "batch_size": 8, "show_count": 2}
GPT = {"width": 16, "depth": 2, "heads": 2, "dropout": 0.0, "remat": False}
SIZES = {"palette": GRAYS, "num_colors": 17, "shape": (8, 8), "max_length": 64}
DIGITS = {"name": "digits", "size": None, "palette": "", "num_colors": 0, "crop": 0, "flip": False, "dir": None}
SAMPLE = {"count": 2, "given": 0.5, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
FIELDS = {
    "mnist": {"data": {"name": "digits"}, "model": {"classes": 10, "dropout": False}},
    "vit": {
        "data": {"name": "digits", "size": None, "white": 16, "augment": "", "crop": 1, "area": 0.2, "flip": True},
        "model": {"classes": 10, "shape": (8, 8), "patch": 4, "pool": "token"} | GPT,
    },
    "igpt": {"data": DIGITS, "model": GPT | SIZES | {"classes": 0}, "sample": SAMPLE},
    "classifier": {
        "data": DIGITS | {"crop": 1, "flip": True},
        "model": GPT | SIZES | {"classes": 10, "layer": -1},
        "sample": SAMPLE,
        "generation": 0.5,
    },
}


def module(name: str) -> str:
    """The task's module that has this tiny config."""
    return "igpt" if name == "classifier" else name


def mesh(devices: int = 8) -> Mesh:
    """The first `devices` devices on one axis."""
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def sharding():
    """How a batch lies on one device."""
    return shardings.batch_sharding(mesh(1))


def config(name: str, **changes) -> configs.Config:
    """The config of a shipped task with a tiny model; `changes` are dotted fields, with __ for the dot."""
    full = configs.defaults(own=task.fields(task.load(f"jtasks.tasks.{module(name)}")))
    with full.unlocked():
        full.update(ml_collections.ConfigDict(COMMON | FIELDS[name] | {"task": f"jtasks.tasks.{module(name)}"}))
        for field, value in changes.items():
            *parents, last = field.split("__")
            functools.reduce(getattr, parents, full)[last] = value
    return configs.Config(full)


def job(name: str, devices: int = 8, **changes) -> Job:
    """A tiny job of a shipped task on the first `devices` devices."""
    return Job(task.load(f"jtasks.tasks.{module(name)}"), config(name, **changes), mesh(devices))


@functools.cache
def digits(n: int, split: str = "test") -> dict[str, np.ndarray]:
    """The first `n` digits of a split, as a task's dataset gives them."""
    from jtasks.data import images

    return {name: array[:n] for name, array in images("digits", split).items()}


def batch(n: int, start: int = 0) -> dict[str, np.ndarray]:
    """A batch of `n` digits with mask and seed."""
    rows = {name: array[start : start + n] for name, array in digits(360).items()}
    return rows | {"mask": np.ones(n, np.float32), "seed": np.arange(start, start + n, dtype=np.uint32)}


@functools.cache
def params(name: str):
    """Parameters of the tiny task, drawn so that every one of them shows in the output."""
    config_, loaded = config(name), task.load(f"jtasks.tasks.{module(name)}")
    return drawn(lambda batch: loaded.init(jax.random.key(0), batch, config_), batch(8), std=0.1)


def drawn(init, *arguments, std=0.3):
    """Parameters of the shapes that `init` returns, drawn so that every one of them shows in the output."""
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: (std * random.normal(size=x.shape)).astype(np.float32), jax.eval_shape(init, *arguments)
    )


def first_batch(job: Job, split: str, count: int) -> dict[str, np.ndarray]:
    """The first `count` examples of a split as a batch."""
    examples = job.require(split)
    return pipeline.batch_at(examples, BatchPlan(pipeline.size(examples), 0, count, False), 0, job.collate)
