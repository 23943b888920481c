"""A run shows that it is alive, and a limited evaluation says so in every number."""

import io
import json
import os
import pathlib
import pty
import re
import subprocess
import sys
import threading
import types

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from jtasks import cli
from jtasks import config as configs
from jtasks.console import wrap
from jtasks.run import activity, evaluate
from jtasks.run.activity import Activity, watch
from jtasks.run.bar import Bar, fitting
from jtasks.run.hooks import Hooks
from jtasks.run.lines import Lines
from jtasks.run.meter import peak_memory
from jtasks.run.records import Records, read

# A linear model on the numbers 0 to 63: the loss of an example is its number.
TASK = """
import jax.numpy as jnp, ml_collections, numpy as np
from jtasks.metrics import Mean

def get_config():
    config = ml_collections.ConfigDict()
    config.task, config.batch_size, config.log_every = __file__, 8, 50
    config.optim = dict(name="sgd", lr=0.01)
    return config

def dataset(split, config):
    numbers = np.arange(64, dtype=np.float32)
    return {"x": numbers} if split != "test" else [{"x": number} for number in numbers[:20]]

def init(rng, batch, config):
    return {"w": jnp.zeros(())}

def loss_fn(params, batch, rng, config):
    metrics = {"loss": Mean.of(batch["x"] + 0 * params["w"], batch["mask"])}
    return metrics["loss"].value, metrics

def predict_fn(params, batch, rng, config):
    return {"x": batch["x"]}

def score_fn(examples, outputs, config):
    assert [float(e["x"]) for e in examples] == [float(o["x"]) for o in outputs]
    return {"scored": len(outputs)}
"""


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(TASK)
    return [f"--config={path}", f"--workdir={tmp_path / 'run'}"]


def run(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[dict, str]:
    assert cli.run(arguments) == 0
    output, errors = capfd.readouterr()
    return json.loads(output.splitlines()[-1]), errors


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Watcher:
    """Collects the names of the activities that it shows, and signals when it has one more."""

    def __init__(self):
        self.activities, self.shown, self.ended = [], [], []
        self.more = threading.Event()

    def tick(self, activity):
        self.shown.append(activity.text().split()[0])
        self.more.set()

    def end(self, activity):
        self.ended.append(activity.name)

    def wait(self):
        self.more.clear()
        assert self.more.wait(60)


def test_the_innermost_activity_is_shown(monkeypatch):
    monkeypatch.setattr(activity, "TICK", 0.001)
    watcher = Watcher()
    with watch(watcher, "outer"):
        watcher.wait()
        outer = len(watcher.shown)
        with watch(watcher, "inner", 3):
            watcher.wait()
            watcher.wait()
        assert "inner" in watcher.shown[outer:] and watcher.ended == ["inner"]
        watcher.wait()
        watcher.wait()
        assert watcher.shown[-1] == "outer"
    assert watcher.activities == [] and watcher.ended == ["inner", "outer"]


def test_without_a_terminal_an_activity_is_a_line_every_ten_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(activity.time, "monotonic", lambda: now[0])
    lines, valid, compiling = Lines(9), Activity("valid", 750), Activity("compiling")
    seen = {}
    for second in range(1, 31):
        now[0] = float(second)
        valid.update(second)
        for one in (valid, compiling):
            lines.tick(one)
        for text in capsys.readouterr().err.splitlines():
            seen.setdefault(text.split()[0], []).append(text)
    assert seen["valid"] == ["valid 10/750  10 s", "valid 20/750  20 s", "valid 30/750  30 s"]
    assert seen["compiling"] == [f"compiling ...  {seconds} s" for seconds in (1, 10, 20, 30)]


@hypothesis.settings(max_examples=50)
@hypothesis.given(st.lists(st.text("ab1 ", min_size=1, max_size=30), min_size=1), st.integers(20, 200))
def test_a_line_breaks_between_fields_and_loses_none(fields, width):
    lines = wrap(fields, width).split("\n")
    assert all(len(line) <= max(width, 2 + max(map(len, fields))) for line in lines)
    assert "".join(fields).replace(" ", "") == "".join(lines).replace(" ", "")
    for field in fields:
        assert any(field in line for line in lines)


@hypothesis.settings(max_examples=50)
@hypothesis.given(st.lists(st.tuples(st.integers(0, 5), st.text("ab", max_size=30))), st.integers(1, 200))
def test_the_texts_of_the_bar_fit_the_terminal(texts, width):
    chosen = fitting(texts, width)
    assert len(chosen) <= 1 or len("  ".join(chosen)) <= width
    assert bool(chosen) == any(text for _, text in texts)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_line_on_a_terminal_is_wider_than_it_and_numbers_stay_whole(monkeypatch, columns):
    screen = Terminal()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    bar = Bar(0, 1_000_000)
    bar.start()
    bar.train(123_456, {"loss": 1.23456}, ["123,456 examples/s", "mfu 31.2%"], "1:02:03 left")
    numbers = [f"metric_{i} {1.2345 + i}" for i in range(12)]
    bar.fields(["valid at 123456:", *numbers, "(12.3 s)"])
    bar.message("a warning of many words " * 9 + "1234567890")
    bar.stop()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    lines = [line for line in re.split(r"[\r\n]", text) if line]
    assert max(map(len, lines)) <= columns
    assert all(any(number in line for line in lines) for number in [*numbers, "1234567890"])
    assert any("loss 1.235" in line and "123456/1000000" in line for line in lines)
    assert "1:02:03 left" in text and ("examples/s" in text) == (columns > 40)


def test_an_activity_before_the_bar_takes_its_line_back(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    bar, compiling = Bar(0, 9), Activity("compiling")
    bar.activities.append(compiling)
    bar.tick(compiling)
    bar.activities.remove(compiling)
    assert "compiling ...  0 s" in screen.getvalue()
    bar.end(compiling)
    assert screen.getvalue().endswith("\x1b[2K")  # the line is erased
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")  # the cursor is there
    assert sys.stderr is screen


def test_the_first_numbers_come_before_the_first_record(task, tmp_path, capfd):
    _, errors = run([*task, "--config.steps=60"], capfd)
    steps = [int(step) for step in re.findall(r"^step (\d+)/60  loss .* left$", errors, re.MULTILINE)]
    assert len(steps) == 3 and 1 <= steps[0] < 50 and steps[1:] == [50, 60]
    records = read(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if record["split"] == "train"] == [50, 60]


class Unfinished:
    """An array of a step that runs."""

    def is_ready(self):
        return False

    def __array__(self, *_, **__):
        raise AssertionError("waited")


def test_a_preview_waits_for_no_step():
    shown = []
    log = types.SimpleNamespace(preview=lambda step, metrics: shown.append(step))
    hooks = types.SimpleNamespace(preview_due=0.0, log=log)
    Hooks.preview(hooks, 7, [types.SimpleNamespace(nonfinite_steps=Unfinished())] * 3)
    assert shown == [] and hooks.preview_due == 0.0


def test_a_limited_evaluation_says_so_in_its_line_its_record_and_the_result(task, tmp_path, capfd):
    result, errors = run([*task, "--config.steps=4", "--config.eval_batches=2"], capfd)
    assert result == {
        "step": 4,
        "valid/loss": 7.5,
        "valid/scored": 16.0,
        "valid/evaluated_examples": 16,
        "valid/split_examples": 64.0,
        "test/loss": 7.5,
        "test/scored": 16.0,
        "test/evaluated_examples": 16.0,
        "test/split_examples": 20.0,
    }
    assert "valid at 4 (first 16 of 64 examples): loss 7.5 scored 16 (" in errors
    (record,) = [r for r in read(tmp_path / "run" / "metrics.jsonl") if r["split"] == "valid"]
    assert (record["evaluated_examples"], record["split_examples"]) == (16, 64)
    evaluated, _ = run([*task, "--config.steps=4", "--config.eval_batches=1", "--mode=eval", "--split=test"], capfd)
    assert evaluated["test/loss"] == 3.5 and evaluated["test/evaluated_examples"] == 8
    assert evaluated["test/split_examples"] == 20


def test_a_limit_that_holds_all_says_nothing(task, capfd):
    result, errors = run([*task, "--config.steps=4", "--config.eval_batches=8"], capfd)
    assert result == {"step": 4, "valid/loss": 31.5, "valid/scored": 64.0, "test/loss": 9.5, "test/scored": 20.0}
    assert "first" not in errors


def test_a_run_is_finished_only_if_it_is_evaluated_as_far(task, capfd):
    limited = [*task, "--config.steps=4", "--config.eval_batches=2"]
    first, _ = run(limited, capfd)
    again, errors = run(limited, capfd)
    assert again == first and "finished" in errors and "compiled" not in errors
    whole, errors = run([*task, "--config.steps=4"], capfd)
    assert whole["valid/loss"] == 31.5 and "valid/evaluated_examples" not in whole
    again, errors = run([*task, "--config.steps=4"], capfd)
    assert again == whole and "finished" in errors


def test_only_equally_limited_evaluations_are_compared(tmp_path):
    records = Records(tmp_path / "metrics.jsonl")
    few = {"evaluated_examples": 8.0, "split_examples": 64.0}
    for step, metrics in ((1, {"loss": 1.0} | few), (2, {"loss": 2.0} | few), (3, {"loss": 3.0}), (4, {"loss": 4.0})):
        records.add(step, "valid", metrics, write=True)
    assert records.values("valid/loss") == {3: 3.0, 4: 4.0}
    records.add(5, "valid", {"loss": 5.0} | few, write=True)
    assert records.values("valid/loss") == {1: 1.0, 2: 2.0, 5: 5.0}
    again = Records(tmp_path / "metrics.jsonl")
    again.load()
    assert again.values("valid/loss") == {1: 1.0, 2: 2.0, 5: 5.0}
    assert again.has(3, "valid") and not again.has(3, "valid", 8) and again.has(5, "valid", 8)


@pytest.mark.parametrize("kind", ["arrays", "sequence"])
def test_the_first_batches_are_the_first_examples(task, kind):
    from jtasks.run.job import prepare

    job = prepare(configs.load(task[0].removeprefix("--config="), ["--config.steps=1", "--config.eval_batches=2"]))
    examples = job.require("valid" if kind == "arrays" else "test")
    some, marks = evaluate.limit_examples(job, examples)
    values = some["x"] if kind == "arrays" else np.array([example["x"] for example in some])
    np.testing.assert_array_equal(values, np.arange(16))
    assert marks["evaluated_examples"] == 16


def test_the_peak_memory_is_that_of_the_fullest_device_and_none_on_a_cpu(monkeypatch):
    assert peak_memory() == {}
    devices = [types.SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n}) for n in (5, 9, 7)]
    monkeypatch.setattr(jax, "local_devices", lambda: [*devices, types.SimpleNamespace(memory_stats=dict)])
    assert peak_memory() == {"peak_memory_bytes": 9.0}


def test_runs_with_unequal_peaks_have_equal_checksums(tmp_path):
    sums = []
    for peak in (1e9, 2e9):
        records = Records(tmp_path / f"{peak}.jsonl")
        records.add(1, "train", {"loss": 1.0, "peak_memory_bytes": peak}, write=True)
        sums.append(json.loads(records.path.read_text())["crc32"])
    assert sums[0] == sums[1]


@pytest.mark.slow
def test_a_whole_run_in_a_terminal_of_80_columns_breaks_no_number(task, tmp_path):
    root = pathlib.Path(__file__).parents[2]
    main, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, str(root / "main.py"), *task, "--config.steps=60", "--config.eval_batches=2"]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, cwd=root)
    os.close(terminal)
    output = b""
    try:
        while part := os.read(main, 1 << 16):
            output += part
    except OSError:  # the end of a terminal
        pass
    assert process.wait(600) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    lines = [line for line in re.split(r"[\r\n]+", text) if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80
    assert '"valid/evaluated_examples": 16,' in text
