"""The checkpoints in a folder: which steps are saved, and whether they are whole.

A checkpoint is a folder `STEP/` with the checksums of its files. A folder with a number for a name is whole, as it
gets that name last; one whose files do not match its checksums has been damaged since.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping

from jtasks import storage
from jtasks.errors import CheckpointError
from jtasks.faults import some

CHECKSUMS = "checksums.json"
# Orbax writes this mark after its own rename; it says nothing about the content.
UNCHECKED = {CHECKSUMS, "commit_success.txt"}


def saved_steps(folder: pathlib.Path) -> list[int]:
    """Return the steps that have a finished checkpoint, ascending."""
    return sorted(int(p.name) for p in folder.glob("*") if _is_step(p.name)) if folder.is_dir() else []


def newest(folder: pathlib.Path, warn: Callable[[str], None], before: float = math.inf) -> int | None:
    """Return the step of the newest undamaged checkpoint below `before`; None if there is no checkpoint at all.

    Reads the whole checkpoint. One process decides for all (see `processes.broadcast_from_first`).

    Raises:
      CheckpointError: all checkpoints are damaged.
    """
    steps = [step for step in saved_steps(folder) if step < before]
    reports = []
    for step in reversed(steps):
        problems = damage(folder / str(step))
        if not problems:
            return step
        reports.append(f"checkpoint {folder / str(step)} is damaged: {'; '.join(problems)}")
        warn(reports[-1])
    if steps:
        raise CheckpointError(
            "\n".join(reports) + f"\nno undamaged checkpoint is left in {folder}: restore one from a copy, or"
            " move the folder away to start over"
        )
    return None


def require(folder: pathlib.Path, step: int) -> int:
    """Return `step` if its checkpoint exists and is undamaged; raise CheckpointError otherwise."""
    if step not in (steps := saved_steps(folder)):
        raise CheckpointError(f"no checkpoint of step {step} in {folder}: it has {some(map(str, steps)) or 'none'}")
    if problems := damage(folder / str(step)):
        raise CheckpointError(f"checkpoint {folder / str(step)} is damaged: {'; '.join(problems)}")
    return step


def best(values: Mapping[int, float], mode: str) -> int | None:
    """Return the step with the best finite value: the lowest if `mode` is "min", the highest if it is "max"."""
    finite = {step: value for step, value in values.items() if math.isfinite(value)}
    choose = max if mode == "max" else min
    return choose(finite, key=lambda step: finite[step], default=None)


def locate(source: str) -> tuple[pathlib.Path, str]:
    """Return the `checkpoints` folder that config.init_from means, and the step that it names ("" for the newest).

    Args:
      source: a workdir of any name, its `checkpoints` folder, or one `checkpoints/STEP`.
    """
    path = _local(source).absolute()
    if (path / "checkpoints").is_dir():
        return path / "checkpoints", ""
    named = _is_step(path.name) and (path.parent.name == "checkpoints" or (path / CHECKSUMS).exists())
    return (path.parent, path.name) if named else (path, "")


def _local(source: str) -> pathlib.Path:
    """Return the path of `source`; of one in a bucket, the path in the working copy of its run."""
    if not storage.is_url(source):
        return pathlib.Path(source).expanduser()
    run, *step = re.split(r"/checkpoints(?=/[0-9]+/*$|/*$)", source)
    return storage.open_copy(run).joinpath("checkpoints" * bool(step), "".join(step).strip("/"))


def clear_unfinished(folder: pathlib.Path) -> None:
    """Delete what a killed process left half-written."""
    for path in sorted(folder.glob("saving-*"), reverse=True):
        with contextlib.suppress(OSError):  # renamed first: a save that is in progress fails, rather than lack files
            shutil.rmtree(path.rename(f"{path}~"), ignore_errors=True)


def damage(folder: pathlib.Path) -> list[str]:
    """Return what differs from the checksums written at the save; empty if nothing differs."""
    storage.fetch(folder)
    try:
        expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return [f"{CHECKSUMS} cannot be read ({error})"]
    if not isinstance(expected, dict) or not expected:
        return [f"{CHECKSUMS} holds no checksums"]
    try:
        actual = checksums(folder)
    except OSError as error:
        return [str(error)]
    missing = [f"{name} is missing" for name in expected if name not in actual]
    missing += [f"{name} has no checksum" for name in actual if name not in expected and "/." not in f"/{name}"]
    return missing + [f"{name} has changed" for name in expected if name in actual and actual[name] != expected[name]]


def checksums(folder: pathlib.Path) -> dict[str, str]:
    """Return the SHA-256 of each file below the folder, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in UNCHECKED)
    result = {}
    for path in files:
        with path.open("rb") as file:
            result[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return result


def flush(folder: pathlib.Path) -> None:
    """Flush all files below the folder to disk: the rename that marks it as complete must not get there first."""
    for path in (*folder.rglob("*"), folder):
        flush_one(path)


def flush_one(path: pathlib.Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:  # some file systems cannot flush a folder
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_step(name: str) -> bool:
    """Return whether a folder's name is a step as `save` writes it; "²" and "007" are digits but no steps."""
    return name.isascii() and name.isdigit() and not name.startswith("0")
