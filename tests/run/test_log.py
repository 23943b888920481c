"""What a person and a script see of a run."""

import functools
import io
import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jtasks.console import number
from jtasks.run.log import Log
from jtasks.run.loggers import find
from jtasks.run.records import read


def count(steps):
    return {"examples": 32 * len(steps)}


def log(workdir, start=0, **options):
    opener = functools.partial(find(["tensorboard"])["tensorboard"], None, workdir, start)
    return Log(workdir, **{"start": start, "steps": 1000, "count": count, "loggers": {"board": opener}, **options})


def line(step, split="train", **metrics):
    timed = ("wall", "mfu", "seconds_per_step", "examples_per_second", "tokens_per_second")
    record = {"step": step, "split": split, "wall": 1.5, **metrics}
    summed = json.dumps({name: value for name, value in record.items() if name not in timed})
    text = json.dumps(record | {"crc32": f"{zlib.crc32(summed.encode()):08x}"})
    return f"{text}\n".encode()


def steps(path):
    return [(record["step"], record["split"]) for record in read(path)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """Makes stderr a terminal of 120 columns and returns it; in a fixture, capturing would undo it."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_a_record_is_one_line_of_json_with_step_split_and_wall(tmp_path):
    with log(tmp_path) as run:
        run.train(10, {"loss": 1.5})
        run.evaluation(10, "valid", {"loss": 2, "accuracy": np.float32(0.5)}, 1.0)
        first, second = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(len(record.pop("crc32")) == 8 for record in (first, second))
    assert first | {"wall": 0} == {"step": 10, "split": "train", "wall": 0, "loss": 1.5}
    assert second | {"wall": 0} == {"step": 10, "split": "valid", "wall": 0, "loss": 2.0, "accuracy": 0.5}
    assert abs(first["wall"] - time.time()) < 60


def test_a_resumed_run_drops_later_torn_foreign_and_repeated_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [line(1, loss=1.0), line(2, loss=5.0), line(2, "valid", loss=3.0)]
    foreign = [
        b"\n",
        b"[1]\n",
        b'{"step": true, "split": "train"}\n',
        b'{"step": 1}\n',
        b"\xff\xfe\n",
        b"\0" * 9 + b"\n",
    ]
    deep = [b"[" * 100_000 + b"\n"]
    path.write_bytes(b"".join([line(2, loss=4.0), *good, *foreign, *deep, line(3, loss=9.0), line(1, loss=1.0)[:-7]]))
    log(tmp_path, start=2)
    assert path.read_bytes() == b"".join(good)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_clean_file_is_left_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2))
    before = path.stat()
    log(tmp_path, start=2)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_fresh_run_forgets_the_steps_of_an_older_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(line(1) + line(2, "valid", loss=1.0))
    run = log(tmp_path)
    assert read(tmp_path / "metrics.jsonl") == []
    assert run.last() == {}


@hypothesis.given(st.integers(0), st.integers(0, 7))
def test_a_flipped_bit_never_makes_another_number(place, bit):
    text = bytearray(line(3, "valid", loss=1.25, bits="nan", accuracy=1e-7))
    text[place % (len(text) - 1)] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "metrics.jsonl"
        path.write_bytes(text)
        told = []
        records = read(path, told.append)
    expected = {"step": 3, "split": "valid", "loss": 1.25, "accuracy": 1e-7}
    assert bool(told) or [{name: record.get(name) for name in expected} for record in records] == [expected]


def test_equal_metrics_have_equal_checksums_whenever_they_were_measured(tmp_path):
    sums = []
    for run, wall in (("one", 1.5), ("two", 99.0)):
        (tmp_path / f"{run}.jsonl").write_bytes(line(3, loss=1.25, wall=wall, examples_per_second=wall))
        assert read(tmp_path / f"{run}.jsonl", pytest.fail)[0]["wall"] == wall
        sums.append(json.loads((tmp_path / f"{run}.jsonl").read_text())["crc32"])
    assert sums[0] == sums[1]


def test_a_line_without_a_checksum_is_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "valid", "loss": 2}\n')
    assert read(tmp_path / "metrics.jsonl", pytest.fail) == [{"step": 1, "split": "valid", "loss": 2}]


@hypothesis.given(st.data())
def test_a_file_cut_anywhere_is_repaired_to_its_whole_lines(data):
    lines = [line(step, split, loss=step / 7, note="né") for step in range(5) for split in ("train", "valid")]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    start = data.draw(st.integers(0, 5))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "metrics.jsonl"
        path.write_bytes(whole[:cut])
        run = log(path.parent, start=start)
        kept = [text for text in lines[: whole[:cut].count(b"\n")] if json.loads(text)["step"] <= start]
        assert path.read_bytes() == b"".join(kept)
        assert all(run.has(*key) for key in steps(path))
        assert not run.has(start + 1, "train")


def test_a_step_and_split_is_never_held_twice(tmp_path):
    with log(tmp_path) as run:
        for loss in (3.0, 2.0):
            run.train(10, {"loss": loss})
            run.evaluation(10, "valid", {"loss": loss}, 1.0)
    records = read(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["split"], r["loss"]) for r in records] == [(10, "train", 2.0), (10, "valid", 2.0)]
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 2
    assert run.values("valid/loss") == {10: 2.0}


def test_has_last_and_values_survive_a_restart(tmp_path):
    def check(run):
        assert run.has(20, "valid")
        assert run.has(20, "train")
        assert not run.has(10, "test")
        assert run.last() == {"step": 20, "valid/loss": 2.0, "test/loss": 2.5, "test/bleu": 0.25}
        assert run.values("valid/loss") == {10: 3.0, 20: 2.0}
        assert run.values("test/bleu") == {20: 0.25}
        assert run.values("valid/absent") == {}

    with log(tmp_path) as run:
        assert run.last() == {}
        run.evaluation(10, "valid", {"loss": 3.0}, 1.0)
        run.evaluation(20, "valid", {"loss": 2.0}, 1.0)
        run.evaluation(20, "test", {"loss": 2.5, "bleu": 0.25}, 1.0)
        run.train(20, {"loss": 1.0})
        check(run)
    check(log(tmp_path, start=20))
    check(log(tmp_path, start=20, writer=False))


def test_non_finite_values_stay_json_and_come_back_as_floats(tmp_path):
    with log(tmp_path) as run:
        run.evaluation(1, "nan", {"loss": math.nan, "gain": math.inf, "score": -math.inf}, 1.0)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] == "nan"
    found = log(tmp_path, start=1).last()
    assert math.isnan(found["nan/loss"])
    assert (found["nan/gain"], found["nan/score"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("damage", ["folder", "file"])
def test_a_failing_disk_warns_once_and_does_not_raise(tmp_path, capsys, damage):
    workdir = tmp_path / "run"
    with log(workdir) as run:
        run.train(1, {"loss": 1.0})
        if damage == "folder":
            shutil.rmtree(workdir)
        else:
            (workdir / "metrics.jsonl").unlink()
            (workdir / "metrics.jsonl").mkdir()
        for step in (2, 3):
            run.train(step, {"loss": 1.0})
            run.evaluation(step, "valid", {"loss": 1.0}, 1.0)
            run.image(step, "valid", "picture", np.zeros((2, 2), np.uint8))
            run.text(step, "valid", "sample", "text")
    assert capsys.readouterr().err.count("WARNING: metrics are being lost") == 1
    assert run.values("valid/loss") == {2: 1.0, 3: 1.0}
    assert workdir.exists() == (damage == "file")


def test_a_directory_in_place_of_the_file_only_warns(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").mkdir()
    with log(tmp_path, start=3) as run:
        run.train(4, {"loss": 1.0})
    assert capsys.readouterr().err.count("WARNING") == 1


def test_a_workdir_that_cannot_be_made_only_warns(tmp_path, capsys):
    (tmp_path / "run").write_text("a file")
    with log(tmp_path / "run") as run:
        run.train(4, {"loss": 1.0})
        run.train(5, {"loss": 1.0})
    errors = capsys.readouterr().err
    assert errors.count("WARNING: metrics are being lost") == errors.count("WARNING: logger board failed") == 1


def test_a_full_disk_leaves_no_half_line(tmp_path):
    script = f"""
import pathlib, resource, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
from jtasks.run.log import Log
run = Log(pathlib.Path({str(tmp_path)!r}), start=0, steps=99, count=lambda steps: {{"examples": len(steps)}})
for step in range(1, 100):
    if step == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, resource.RLIM_INFINITY))
    if step == 50:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run.evaluation(step, "valid", dict(loss=step), 1.0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    text = (tmp_path / "metrics.jsonl").read_bytes()
    assert [json.loads(part)["step"] for part in text.splitlines()] == [1, 2, *range(50, 100)]
    assert done.stderr.count("WARNING") == 1
    assert done.stdout == ""


def test_in_a_log_file_lines_are_plain_and_short_and_stdout_stays_empty(tmp_path, capsys, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
    with log(tmp_path) as run:
        run.message("[red]{not} markup[/red] " + "x" * 300)
        run.warn("careful")
        for step in (1, 2, 3):
            run.advance(step)
        run.train(200, {"loss": 1.48213, "lr": 1e-5})
        run.evaluation(200, "valid", {"loss": 1.5, "accuracy": 0.61234}, 1.23)
    out, err = capsys.readouterr()
    message, warning, train, valid = err.splitlines()
    assert out == ""
    assert "\x1b" not in err
    assert message == "[red]{not} markup[/red] " + "x" * 300
    assert warning == "WARNING: careful"
    assert train.startswith("step 200/1000  loss 1.482  lr 1e-05  ")
    assert train.endswith(" left")
    assert valid == "valid at 200: loss 1.5 accuracy 0.6123 (1.2 s)"


def test_a_terminal_shows_a_bar_with_the_loss_and_messages_above_it(tmp_path, monkeypatch, capsys):
    screen = terminal(monkeypatch)
    with log(tmp_path) as run:
        run.advance(1)
        run.train(200, {"loss": 1.48213})
        run.message("[bold]as it is[/bold]")
        print("from another library", file=sys.stderr)
        run.evaluation(200, "valid", {"loss": 1.5}, 1.23)
        print("result")
    text = screen.getvalue()
    assert sys.stderr is screen
    assert "loss 1.482" in text
    assert "200/1000" in text
    assert "examples/s" in text
    assert "[bold]as it is[/bold]" in text
    assert "from another library" in text
    assert "valid at 200: loss 1.5 (1.2 s)" in text
    assert "result" not in text
    assert capsys.readouterr().out == "result\n"


def test_the_bar_is_drawn_ten_times_a_second(tmp_path, monkeypatch):
    screen, clock = terminal(monkeypatch), [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with log(tmp_path) as run:
        lengths = []
        for step in range(1, 1000):  # a millisecond each
            clock[0] += 1e-3
            run.advance(step)
            lengths.append(len(screen.getvalue()))
    assert len(set(lengths)) in (10, 11)


def test_a_dumb_terminal_gets_plain_lines(tmp_path, monkeypatch):
    screen = terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with log(tmp_path) as run:
        run.train(200, {"loss": 1.5})
    assert screen.getvalue() == "step 200/1000  loss 1.5\n"


def test_the_other_processes_are_silent_and_write_nothing(tmp_path, monkeypatch, capsys):
    screen = terminal(monkeypatch)
    with log(tmp_path / "run", writer=False) as run:
        run.message("hello")
        run.warn("careful")
        run.advance(1)
        run.train(2, {"loss": 1.0})
        run.evaluation(2, "valid", {"loss": 1.0}, 1.0)
        run.image(2, "valid", "picture", np.zeros((2, 2), np.uint8))
        run.text(2, "valid", "sample", "text")
    assert screen.getvalue() == ""
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
    assert run.last() == {"step": 2, "valid/loss": 1.0}


def test_a_closed_stderr_does_not_stop_the_run(tmp_path, monkeypatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with log(tmp_path) as run:
        run.train(1, {"loss": 1.0})
    monkeypatch.setattr(sys, "stderr", None)
    with log(tmp_path, start=1) as run:
        run.train(2, {"loss": 1.0})
    assert steps(tmp_path / "metrics.jsonl") == [(1, "train"), (2, "train")]


def test_the_rate_leaves_out_the_first_step_and_pauses(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    with log(tmp_path) as run:
        run.meter.set_flops(6e9, 1e12)
        wait(60)  # compiling
        run.advance(1)
        assert run.train(1, {"loss": 1.0}) == {"loss": 1.0}
        wait(2)
        with run.pause():
            wait(30)
            with run.pause():
                wait(5)
        wait(3)
        found = run.train(11, {"loss": 1.0})
        wait(1)
        later = run.train(21, {"loss": 1.0})
    assert found == pytest.approx({"loss": 1.0, "seconds_per_step": 0.5, "examples_per_second": 64, "mfu": 0.012})
    assert later["seconds_per_step"] == pytest.approx(0.1)
    recorded = {name: value for name, value in read(tmp_path / "metrics.jsonl")[1].items() if name in found}
    assert recorded == pytest.approx(found)


def test_the_time_left_counts_the_steps_to_come(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with log(tmp_path) as run:
        run.advance(0)
        now[0] = 10.0
        run.train(100, {"loss": 1.0})
        now[0] = 10_000.0
        run.train(200, {"loss": 1.0})
    first, second = capsys.readouterr().err.splitlines()
    assert first == "step 100/1000  loss 1  320 examples/s  01:30 left"
    assert second.endswith("22:12:00 left")


def test_a_metric_cannot_overwrite_the_step(tmp_path):
    with log(tmp_path) as run:
        run.train(3, {"loss": 1.0, "step": 99.0})
    assert steps(tmp_path / "metrics.jsonl") == [(3, "train")]


def test_tensorboard_files_are_written_and_a_restart_adds_one(tmp_path):
    def sizes():
        return [file.stat().st_size for file in sorted((tmp_path / "tensorboard").iterdir())]

    with log(tmp_path) as run:
        run.train(1, {"loss": 1.0})
        run.image(1, "valid", "gray", np.zeros((4, 5), np.uint8))
        run.image(1, "valid", "color", np.zeros((4, 5, 3), np.uint8))
        run.text(1, "valid", "sample", "some words that TensorBoard shows")
    (first,) = sizes()
    assert first > 100
    with log(tmp_path, start=1) as run:
        run.train(2, {"loss": math.nan})
    assert len(sizes()) == 2
    assert first in sizes()
    contents = b"".join(file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())
    assert b"train/loss" in contents
    assert b"some words" in contents
    assert contents.count(b"PNG") == 2


def test_importing_the_module_loads_neither_rich_nor_tensorboard_and_tensorboard_no_clients_of_buckets():
    script = "import sys, jtasks.run.log; print([m for m in ('rich', 'tensorboardX') if m in sys.modules])"
    script += "; from jtasks.run.loggers import find; find(['tensorboard'])"
    script += "; print([m for m in ('boto3', 'google.cloud.storage') if m in sys.modules])"  # tensorboardX tries both
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.stdout == "[]\n[]\n", done.stderr


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.48213, "1.482"),
        (0.61, "0.61"),
        (0.001, "0.001"),
        (0.0009, "9e-04"),
        (3.14159e-5, "3.142e-05"),
        (-2.5e-7, "-2.5e-07"),
        (999.96, "1,000"),
        (5210.4, "5,210"),
        (123456.7, "123,457"),
        (1e10, "1e+10"),
        (0.0, "0"),
        (7, "7"),
        (-1500, "-1,500"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (np.float32(0.1), "0.1"),
    ],
)
def test_numbers_for_people(value, text):
    assert number(value) == text
