"""Claims about training inside another program: a notebook or a script keeps its process, streams and handlers."""

import importlib
import os
import signal
import sys
import threading
import types

import pytest
from front_door import ROOT

import jtasks
from jtasks.errors import ConfigError
from jtasks.run import checkpoint_files, notebook

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FIELDS = {"optim": {"name": "adamw", "lr": 0.01}, "data": {"threads": 1}, "model": {"width": 3}, "batch_size": 8}


@pytest.fixture
def task(monkeypatch):
    """The linear task as a module."""
    monkeypatch.syspath_prepend(ROOT / "tests")
    return importlib.import_module("data_tasks.linear")


@pytest.fixture(autouse=True)
def unchanged():
    """Every test leaves streams and handlers as they were."""
    before = sys.stdout, sys.stderr, [signal.getsignal(number) for number in SIGNALS]
    yield
    assert before == (sys.stdout, sys.stderr, [signal.getsignal(number) for number in SIGNALS])


def test_a_config_is_a_dict_and_its_task_a_module(task, tmp_path):
    config = FIELDS | {"task": task, "steps": 3}
    result = jtasks.train(config, tmp_path / "one")
    assert result["step"] == 3 and jtasks.train(config, str(tmp_path / "two")) == result
    assert jtasks.load(tmp_path / "one").config.task == "data_tasks.linear"
    with pytest.raises(ConfigError, match="a module without a file"):
        jtasks.train(FIELDS | {"task": types.ModuleType("made"), "steps": 3}, tmp_path / "three")
    assert not (tmp_path / "three").exists()


def test_an_interrupt_saves_and_the_same_call_goes_on(task, tmp_path, monkeypatch):
    config = FIELDS | {"task": task, "steps": 30, "log_every": 5}
    whole = jtasks.train(config, tmp_path / "whole")
    read, reads = task.Rows.__getitem__, []

    def item(self, i):
        reads.append(i)
        if len(reads) == 150:  # while some later batch is read
            os.kill(os.getpid(), signal.SIGINT)
        return read(self, i)

    monkeypatch.setattr(task.Rows, "__getitem__", item)
    with pytest.raises(jtasks.Stopped, match=r"stopped at step \d+ of 30"):
        jtasks.train(config, tmp_path / "run")
    saved = checkpoint_files.saved_steps(tmp_path / "run" / "checkpoints")
    assert len(saved) == 1 and 0 < saved[0] < 30
    assert jtasks.train(config, tmp_path / "run") == whole


def test_an_interrupt_before_the_first_step_leaves_nothing(task, tmp_path, monkeypatch):
    def init(rng, batch, config):
        os.kill(os.getpid(), signal.SIGINT)
        return {"w": batch["x"][0]}

    monkeypatch.setattr(task, "init", init)
    with pytest.raises(KeyboardInterrupt):
        jtasks.train(FIELDS | {"task": task, "steps": 3}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_in_another_thread_has_no_handlers(task, tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(jtasks.train(FIELDS | {"task": task, "steps": 3}, tmp_path / "run"))
    )
    thread.start()
    thread.join(120)
    assert results[0]["step"] == 3
    assert jtasks.load(tmp_path / "run").evaluate("valid")["valid/loss"] == results[0]["valid/loss"]


def test_a_notebook_has_one_output_that_changes(monkeypatch):
    shown = []

    class Handle:
        def update(self, content, raw):
            shown.append(content["text/plain"])

    def display(content, raw, display_id):
        shown.append(content["text/plain"])
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    progress = notebook.Notebook(0, 10)
    progress.start()
    for step in range(1, 11):
        progress.advance(step)
    progress.train(10, {"loss": 1.5}, ["3 examples/s"], "00:00 left")
    progress.stop()
    assert shown[0] == "step 0/10" and len(shown) <= 4
    assert shown[-1] == "step 10/10  loss 1.5  3 examples/s  00:00 left"
    assert not notebook.in_notebook()
