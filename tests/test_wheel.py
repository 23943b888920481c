"""A new environment that holds the built wheel alone: configs by name, from any folder, without TensorFlow."""

import os
import pathlib
import subprocess
import sys

import pytest
from front_door import ROOT, TINY_GPT

import jtasks

DIGITS = ["--config=igpt_digits", "--workdir=run", "--config.steps=2", "--config.show_count=1", *TINY_GPT]
LAZY = """
import sys
from jtasks import cli
code = cli.run(sys.argv[1:])
assert not {"tensorflow", "tensorflow_datasets", "torch"} & set(sys.modules)
sys.exit(code)
"""


def output(*command: object, folder: pathlib.Path) -> str:
    """Run a command in a folder, with nothing of the clone on Python's path; returns its stdout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def install(folder: pathlib.Path) -> pathlib.Path:
    """Build the wheel from the source distribution and install it alone; returns the environment's bin folder."""
    output(sys.executable, "-m", "build", "-o", folder, ROOT, folder=folder)
    output(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    (wheel,) = folder.glob("jtasks-*.whl")
    output(folder / "venv" / "bin" / "pip", "install", "-q", wheel, folder=folder)
    return folder / "venv" / "bin"


@pytest.mark.slow
def test_the_wheel_alone_lists_and_trains_configs_by_name_without_tensorflow(tmp_path):
    scripts = install(tmp_path)
    version = output(scripts / "jtasks", "--version", folder=tmp_path)
    assert version == f"jtasks {jtasks.__version__}\n"
    assert version == output(scripts / "python", "-m", "jtasks", "--version", folder=tmp_path)
    assert "igpt_digits" in output(scripts / "jtasks", "--list", folder=tmp_path)

    assert '"step": 2' in output(scripts / "python", "-c", LAZY, *DIGITS, folder=tmp_path)
    assert '"step": 2' in output(scripts / "jtasks", *DIGITS, folder=tmp_path)  # the finished run
    plan = ["--config=vit_digits", "--mode=plan", "--devices=1"]  # a config that builds on another one
    assert '"parameters"' in output(scripts / "python", "-m", "jtasks", *plan, folder=tmp_path)
