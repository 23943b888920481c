"""A new environment that holds the built wheel alone: configs by name, from any folder, without TensorFlow."""

import os
import pathlib
import subprocess
import sys

import pytest
from front_door import ROOT, TINY_GPT

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> pathlib.Path:
    """The bin folder of an environment in which only the wheel and its requirements are installed."""
    folder = tmp_path_factory.mktemp("wheel")
    output(sys.executable, "-m", "build", "-o", folder, ROOT, folder=folder)  # the wheel from the source distribution
    output(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    (wheel,) = folder.glob("jtasks-*.whl")
    output(folder / "venv" / "bin" / "pip", "install", "-q", wheel, folder=folder)
    return folder / "venv" / "bin"


def test_it_says_its_version_and_lists_its_configs(scripts, tmp_path):
    version = output(scripts / "jtasks", "--version", folder=tmp_path)
    assert version == output(scripts / "python", "-m", "jtasks", "--version", folder=tmp_path)
    assert version == "jtasks " + output(
        scripts / "python", "-c", "import jtasks; print(jtasks.__version__)", folder=tmp_path
    )
    assert "igpt_digits" in output(scripts / "jtasks", "--list", folder=tmp_path)


def test_a_config_trains_by_name_and_imports_no_tensorflow(scripts, tmp_path):
    assert '"step": 2' in output(scripts / "python", "-c", LAZY, *DIGITS, folder=tmp_path)
    assert '"step": 2' in output(scripts / "jtasks", *DIGITS, folder=tmp_path)  # the finished run
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def test_a_config_that_builds_on_another_is_found_by_name(scripts, tmp_path):
    plan = ["--config=vit_digits", "--mode=plan", "--devices=1"]
    assert '"parameters"' in output(scripts / "python", "-m", "jtasks", *plan, folder=tmp_path)
