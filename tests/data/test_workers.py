"""Processes that read data: with a task in a file of its own, and gone when the run is."""

import os
import pathlib
import sys
import time

import pytest
from front_door import start, wait_for

TASK = """
import collections.abc
import jax.numpy as jnp, ml_collections, numpy as np
from jtasks.metrics import Mean
from {folder} import neighbor

def get_config():
    config = ml_collections.ConfigDict()
    config.task = __file__
    config.seed, config.steps, config.batch_size, config.log_every, config.eval_every = 0, 10**6, 8, 5, 0
    config.optim = dict(name="sgd", lr=1e-3)
    config.data = dict(workers=1)
    return config

class Rows(collections.abc.Sequence):
    def __init__(self):
        self.row = lambda i: {{"x": neighbor.doubled(np.float32(i % 7))}}
    def __len__(self):
        return 200
    def __getitem__(self, i):
        return self.row(i)

def dataset(split, config):
    return Rows() if split == "train" else None

def init(rng, batch, config):
    return {{"w": jnp.zeros(())}}

def loss_fn(params, batch, rng, config):
    metrics = {{"loss": Mean.of((params["w"] - batch["x"]) ** 2, batch["mask"])}}
    return metrics["loss"].value, metrics

def eval_fn(params, batch, config):
    return loss_fn(params, batch, None, config)[1]
"""


def children(pid: int) -> list[int]:
    return [int(p) for t in pathlib.Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_read_a_sequence_of_the_tasks_own_file_and_end_when_the_run_is_killed(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "neighbor.py").write_text("def doubled(x):\n    return 2 * x\n")
    (folder / "task.py").write_text(TASK.format(folder="mine"))
    run = start(f"--config={folder / 'task.py'}", f"--workdir={tmp_path / 'run'}")
    try:
        wait_for(tmp_path / "run", 5, run)
        started = children(run.pid)
    finally:
        run.kill()
        run.communicate()
    assert len(started) >= 2  # the worker, and Python's resource tracker
    deadline = time.monotonic() + 60
    while left := [pid for pid in started if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
