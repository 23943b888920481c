"""Files for contributors name what exists: CI calls .ci/run, hooks run what .ci/run checks."""

import yaml
from front_door import ROOT

import jtasks


def test_the_workflow_runs_everything():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert {"run": "bash .ci/run"} in workflow["jobs"]["everything"]["steps"]


def test_the_hooks_run_the_checks_of_ci():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    everything = (ROOT / ".ci/run").read_text()
    assert [hook["entry"].replace(" --force-exclude", "") for hook in hooks] == ["ruff check", "ruff format", "mypy"]
    assert all(hook["entry"].replace(" --force-exclude", "") in everything for hook in hooks)


def test_the_citation_has_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == jtasks.__version__
