"""Whatever becomes of stdout and stderr, and whatever the locale, the run trains to its end."""

import json
import os
import subprocess
import sys

import pytest
from front_door import LINEAR, ROOT

from jtasks import cli
from jtasks.console import Lasting
from jtasks.run import checkpoint_files


def test_a_stream_whose_reader_is_gone_goes_nowhere():
    reader, writer = os.pipe()
    os.close(reader)
    with Lasting(open(writer, "wb"), encoding="ascii", errors="backslashreplace", line_buffering=True) as stream:
        print("ä\n" * 100_000, file=stream, flush=True)
        print("again", file=stream, flush=True)


def test_a_result_that_a_full_disk_does_not_take_is_told(tmp_path, monkeypatch, capsys):
    assert cli.run([*LINEAR, "--config.steps=1", f"--workdir={tmp_path}"]) == 0
    with Lasting(open("/dev/full", "wb"), line_buffering=True) as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert cli.run(["--mode=eval", "--split=valid", f"--workdir={tmp_path}"]) == 1
    assert "stdout cannot be written (No space left on device); the result is\n{" in capsys.readouterr().err


@pytest.mark.parametrize("streams", [">&- 2>&-", "| head -c 0", "2>&1 | head -n 1", ">/dev/full 2>/dev/full"])
def test_a_run_does_not_need_its_streams_nor_a_locale(streams, tmp_path):
    workdir = tmp_path / "lr[ü]"
    run = [sys.executable, "main.py", *LINEAR, "--config.steps=2", f"--workdir={workdir}"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    script = f'("$@"; echo $? >"$CODE") {streams}' if "|" in streams else f'"$@" {streams}; echo $? >"$CODE"'
    subprocess.run(
        ["bash", "-c", script, "-", *run],
        cwd=ROOT,
        env={**os.environ, **locale, "CODE": str(tmp_path / "code"), "JAX_PLATFORMS": "cpu"},
        timeout=300,
        check=False,
        capture_output=True,
    )
    assert (tmp_path / "code").read_text() == "0\n"
    assert checkpoint_files.newest(workdir / "checkpoints", pytest.fail) == 2
    assert all(map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()))
