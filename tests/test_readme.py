"""README tells the truth: its code runs as pasted, with nothing before or after it, and its figures are measured."""

import re
import subprocess
import sys

import pytest
from front_door import ROOT, readers_environment, run

from jtasks import shipped

TEXT = (ROOT / "README.md").read_text()
TASK, ANSWERS, SCRIPT = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def run_script(script, folder):
    environment = {**readers_environment(), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=folder, env=environment, timeout=300, stdout=subprocess.PIPE
    ).stdout.decode()


@pytest.mark.slow
def test_the_loss_runs_in_research_code(tmp_path):
    run_script(SCRIPT, tmp_path)


@pytest.mark.slow
def test_a_run_that_python_trains_answers(tmp_path):
    answer, shape = run_script(ANSWERS, tmp_path).splitlines()[-2:]
    assert "'label': 0" in answer and "'class': '0'" in answer
    assert shape == "(1, 64)"


def test_the_task_on_one_page_trains(tmp_path):
    (tmp_path / "digits.py").write_text(TASK)
    result, _ = run(f"--config={tmp_path / 'digits.py'}", f"--workdir={tmp_path / 'run'}", "--config.steps=60")
    assert result["test/accuracy"] > 0.3  # chance: 0.1


@pytest.mark.slow
def test_the_task_on_one_page_keeps_the_contract(tmp_path):
    (tmp_path / "digits.py").write_text(TASK)
    result, errors = run(f"--config={tmp_path / 'digits.py'}", "--mode=check")
    assert "0 failed" in errors
    assert result["passed"] >= 11


@pytest.mark.parametrize(
    "figure",
    [
        "1.792 nats per character",
        "90.05 %",
        "CIDEr 0.508",
        "0.249",
        "1.08 s",
        "3.69 s",
        "1.41 s",
        "1.97 s",
        "0.207 s",
        "1.416 s",
    ],
)
def test_its_figures_are_measured(figure):
    sources = [path.read_text() for path in shipped.paths().values()] + [(ROOT / "benchmarks/README.md").read_text()]
    assert any(figure in source for source in sources)
