"""What a run runs on and with, for its report: devices, versions, the state of the code in Git. Nothing compares it."""

import json
import os
import pathlib
import platform
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

import jtasks
from jtasks import config as configs
from jtasks import task
from jtasks.config import Config
from jtasks.console import warn
from jtasks.writing import write_file

FILE = "environment.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
MAX_PARTS = 100  # a run may be stopped and resumed many times


def record(
    workdir: pathlib.Path,
    module: ModuleType,
    config: Config,
    steps: tuple[int, int],
    facts: Mapping[str, str],
    schedule: Sequence[tuple[int, float]] = (),
) -> None:
    """Add a part to DIR/environment.json: the start of a run, or its resumption. A failure warns.

    The file is `{"defaults": {field: value}, "parts": [{"wall", "step", "steps", "host", "facts", "git", ...}]}`.

    Args:
      workdir: the run's folder, DIR.
      module: the task.
      config: the run's config.
      steps: the step that the part starts from, 0 for a fresh run, and the step that the run ends at.
      facts: names and values of further facts, such as the devices.
      schedule: the learning rate at some steps; of the newest part alone.
    """
    start, end = steps
    part: dict[str, Any] = {"wall": round(time.time(), 3), "step": start, "steps": end, "host": socket.gethostname()}
    try:
        usual = configs.to_json(Config(configs.defaults(config.optim.name, task.fields(module))))
        part |= {"system": f"{platform.system()} {platform.machine()}", "facts": dict(facts)}
        part |= {"versions": versions(), "git": _code(module)}
        parts = _parts(workdir / FILE) if start else []
        for earlier in parts:
            earlier.pop("schedule", None)
        part["schedule"] = [[step, float(f"{rate:.6g}")] for step, rate in schedule]
        content = {"defaults": dict(configs.fields(usual)), "parts": [*parts, part][-MAX_PARTS:]}
        write_file(workdir / FILE, json.dumps(content, indent=1) + "\n")
    except Exception as error:  # nothing here is worth a run
        warn(f"{workdir / FILE} is not written ({error}); training goes on")


def last_step(workdir: pathlib.Path) -> int:
    """Return the step at which the run in a folder is to end; 0 if unknown."""
    parts = _parts(workdir / FILE)
    return parts[-1].get("steps", 0) if parts else 0


def versions() -> dict[str, str]:
    """Return the versions of Python, of jtasks and of the packages that compute."""
    packages = {package: metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), "jtasks": jtasks.__version__, **packages}


def git_state(file: pathlib.Path) -> dict[str, Any] | None:
    """Return the folder and commit of the Git repository that a file is in, and whether its files have changed.

    None if the file is in no repository, its repository ignores it, such as a virtual environment, or Git is absent.
    A file that is not in the repository yet counts as a change.
    """

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(file.parent), *words]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=5)
        return None if done.returncode else done.stdout.decode(errors="backslashreplace").rstrip("\n")

    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # a run that reads the state must not hinder a commit
    try:
        head = git("rev-parse", "--show-toplevel", "HEAD")
        if head is None or git("check-ignore", "--quiet", file.name) is not None:
            return None
        changes = git("status", "--porcelain", "--untracked-files=no") or git("status", "--porcelain", "--", file.name)
    except (OSError, subprocess.SubprocessError):
        return None
    folder, _, commit = head.rpartition("\n")
    return {"folder": folder, "commit": commit, "dirty": bool(changes)}


def _code(module: ModuleType) -> list[dict[str, Any]]:
    """Return the states of the repositories of the task and of jtasks, which may be the same."""
    files = [file for of in (module, jtasks) if (file := getattr(of, "__file__", None))]
    states = [git_state(pathlib.Path(file).resolve()) for file in files]
    return [state for i, state in enumerate(states) if state is not None and state not in states[:i]]


def _parts(path: pathlib.Path) -> list[Any]:
    """Return the parts recorded so far; [] if the file is absent or damaged."""
    try:
        return list(json.loads(path.read_bytes())["parts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
