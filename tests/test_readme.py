"""README tells the truth: its code runs as it stands, its files exist."""

import os
import re
import subprocess
import sys

from front_door import ROOT, run

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_bare_script_differentiates_a_loss_with_nothing_else_running():
    before = (
        'from jtasks import config; from jtasks.tasks import igpt; igpt.prepare(config.load("configs/igpt_digits.py"))'
    )
    after = "assert jnp.isfinite(loss) and all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))"
    script = "\n".join([before, BLOCKS[0], after])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env=environment, timeout=300)


def test_the_new_task_on_one_page_trains_and_keeps_the_contract(tmp_path):
    path = tmp_path / "rotation.py"
    path.write_text(BLOCKS[1])
    result, _ = run(f"--config={path}", f"--workdir={tmp_path / 'run'}", "--config.steps=30")
    assert result["test/loss"] < 1.5
    result, errors = run(f"--config={path}", "--mode=check")
    assert "0 failed" in errors
    assert result["passed"] >= 11


def test_every_file_it_names_exists():
    named = re.findall(r"\]\(([\w./-]+)\)|`(configs/[\w.]+\.py|benchmarks/[\w.]+\.py)`", TEXT)
    assert len(named) >= 4
    for link, path in named:
        assert (ROOT / (link or path)).exists(), link or path
