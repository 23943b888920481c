"""The checkpoints in a folder: which steps are saved, and whether they are whole.

A checkpoint is a folder `STEP/` with the sizes and checksums of its files. A folder with a number for a name is whole,
as it gets that name last; one whose files do not match its checksums has been damaged since.

The checksums are XXH3 of 128 bits (https://github.com/Cyan4973/xxHash): they detect damage, not intent, and keep up
with the memory, where SHA-256 takes longer than reading the file. Each process computes those of its own files.
"""

import concurrent.futures
import contextlib
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from jtasks import storage
from jtasks.errors import CheckpointError
from jtasks.faults import some

CHECKSUMS = "checksums.json"
# Orbax writes this mark after its own rename; it says nothing about the content.
UNCHECKED = {CHECKSUMS, "commit_success.txt"}
SMALL = 2**20  # bytes: a smaller file is read at once, as Orbax reads most of these before the arrays
PIECE = 2**22  # bytes read at a time: fewer than a processor's cache holds

Sums = dict[str, list[Any]]  # [bytes, checksum] of each file, by relative path


def saved_steps(folder: pathlib.Path) -> list[int]:
    """Return the steps that have a finished checkpoint, ascending."""
    return sorted(int(p.name) for p in folder.glob("*") if _is_step(p.name)) if folder.is_dir() else []


def newest(
    folder: pathlib.Path,
    warn: Callable[[str], None],
    before: float = math.inf,
    *,
    damaged: Collection[int] = (),
    whole: bool = True,
) -> int | None:
    """Return the step of the newest undamaged checkpoint below `before`; None if there is no checkpoint at all.

    One process decides for all (see `processes.broadcast_from_first`).

    Args:
      folder: the run's checkpoints.
      warn: called with a sentence for each damaged checkpoint.
      before: a step.
      damaged: the steps of checkpoints that were found damaged before.
      whole: whether to read the whole checkpoint; else `restore` verifies the large files.

    Raises:
      CheckpointError: all checkpoints are damaged.
    """
    storage.refresh(folder)
    steps = [step for step in saved_steps(folder) if step < before]
    reports = []
    for step in reversed(steps):
        if step in damaged:
            reports.append(f"checkpoint {folder / str(step)} is damaged")
            continue
        problems = damage(folder / str(step), whole=whole)
        if not problems:
            return step
        if not (folder / str(step)).exists():  # deleted meanwhile by the run that trains
            return newest(folder, warn, before, damaged=damaged, whole=whole)
        reports.append(describe_damage(folder / str(step), problems))
        warn(reports[-1])
    if steps:
        raise CheckpointError(
            "\n".join(reports)
            + f"\nno undamaged checkpoint is left in {storage.shown(str(folder))}: restore one from a copy, or"
            " move the folder away to start over"
        )
    return None


def require(folder: pathlib.Path, step: int) -> int:
    """Return `step` if its checkpoint exists and is undamaged; raise CheckpointError otherwise."""
    storage.refresh(folder)
    if step not in (steps := saved_steps(folder)):
        place = storage.shown(str(folder))
        raise CheckpointError(f"no checkpoint of step {step} in {place}: it has {some(map(str, steps)) or 'none'}")
    if problems := damage(folder / str(step)):
        raise CheckpointError(describe_damage(folder / str(step), problems))
    return step


def describe_damage(folder: pathlib.Path, problems: Iterable[str]) -> str:
    """Return the sentence that names a damaged checkpoint."""
    return f"checkpoint {storage.shown(str(folder))} is damaged: {'; '.join(problems)}"


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
    """Return the path of `source`; for a bucket, the path in the working copy of the run."""
    if not storage.is_url(source):
        return pathlib.Path(source).expanduser()
    run, *step = re.split(r"/checkpoints(?=/[0-9]+/*$|/*$)", source)
    return storage.open_copy(run).joinpath("checkpoints" * bool(step), "".join(step).strip("/"))


def clear_unfinished(folder: pathlib.Path) -> None:
    """Delete what a killed process left half-written."""
    for path in sorted(folder.glob("saving-*"), reverse=True):
        with contextlib.suppress(OSError):  # renamed first: a save that is in progress fails, rather than lack files
            shutil.rmtree(path.rename(f"{path}~"), ignore_errors=True)


def damage(folder: pathlib.Path, *, whole: bool = True) -> list[str]:
    """Return what differs from the checksums written at the save; empty if nothing differs.

    Compares names, sizes and the content of small files, and with `whole` the content of all files.
    """
    storage.fetch(folder)
    try:
        expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return [f"{CHECKSUMS} cannot be read ({error})"]
    if not isinstance(expected, dict) or not expected or not all(_is_sum(entry) for entry in expected.values()):
        return [f"{CHECKSUMS} holds no checksums"]
    try:
        sizes = {name: (folder / name).stat().st_size for name in files(folder)}
        problems = [f"{name} is missing" for name in expected if name not in sizes]
        problems += [f"{name} has no checksum" for name in sizes if name not in expected and "/." not in f"/{name}"]
        problems += [f"{name} has changed" for name in expected if name in sizes and sizes[name] != expected[name][0]]
        return problems or changed(folder, {name: e for name, e in expected.items() if whole or e[0] < SMALL})
    except OSError as error:
        return [str(error)]


def large_files(folder: pathlib.Path, process: int, processes: int) -> Sums:
    """Return the recorded sums of the large files that `process` verifies: its own of the save, if it has any."""
    recorded: Sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    names = sorted(name for name, entry in recorded.items() if entry[0] >= SMALL)
    owners = {name: owner if (owner := writer(name)) < processes else i % processes for i, name in enumerate(names)}
    return {name: recorded[name] for name in names if owners[name] == process}


def changed(folder: pathlib.Path, expected: Sums) -> list[str]:
    """Return the files whose content differs from the expected sums."""
    actual = checksums(folder, expected)
    return [f"{name} has changed" for name in expected if actual[name] != expected[name]]


def checksums(folder: pathlib.Path, names: Iterable[str]) -> Sums:
    """Return bytes and checksum of files below the folder, read by several threads, with a few MiB of memory each."""
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1), "checksums") as pool:
        return dict(zip(names, pool.map(lambda name: _checksum(folder / name), names), strict=True))


def _checksum(path: pathlib.Path) -> list[Any]:
    import xxhash

    hasher, buffer, size = xxhash.xxh3_128(), memoryview(bytearray(PIECE)), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            size += count
    return [size, hasher.hexdigest()]


def _is_sum(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and isinstance(entry[1], str)


def files(folder: pathlib.Path) -> list[str]:
    """Return the relative paths of the files below the folder that have a checksum."""
    paths = (p for p in folder.rglob("*") if p.name not in UNCHECKED and p.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def writer(name: str) -> int:
    """Return the process that wrote a file of a checkpoint: each has its own folder, and the first one the rest."""
    part = name.partition("/")[0].removeprefix("ocdbt.process_")
    return int(part) if part.isascii() and part.isdigit() else 0


def is_chunk(name: str) -> bool:
    """Return whether a file outside OCDBT is a chunk of an array, such as `params.w/0.1`, not a description."""
    return bool(re.fullmatch(r"[0-9]+(\.[0-9]+)*", name.rpartition("/")[2]))


def flush(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Flush files below the folder, and their folders, to disk: the rename that marks it as complete comes later."""
    paths = {folder / name for name in names}
    folders = {parent for path in paths for parent in path.parents if parent.is_relative_to(folder)}
    for path in (*paths, *folders):
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
    """Return whether a folder's name is a step as `save` writes it; "²" and "007" are digits but not steps."""
    return name.isascii() and name.isdigit() and not name.startswith("0")
