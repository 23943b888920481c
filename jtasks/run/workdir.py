"""The run's folder: the names of its files, one run at a time, and files with recorded checksums.

What config, assets and data belong to the run: see `identity`.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from jtasks import storage
from jtasks.console import warn
from jtasks.distributed import processes
from jtasks.errors import ConfigError
from jtasks.writing import no_link, write_file

DATA = "data.json"  # sizes and samples of the splits that the run has used
STARTED = ", started in "  # in .lock, before the working directory, from which relative paths in the config start
ADAPTER = "adapter.json"  # of a run with config.adapter: its base
BATCH = "batch.json"  # dtype and shape of one row of each entry of a batch
FILES = "files.json"  # SHA-256 of each file of the run that gives the parameters their meaning

# Names of the run's own files, which no asset may have.
OWN = (
    "config.json",
    ADAPTER,
    DATA,
    BATCH,
    FILES,
    "environment.json",
    "metrics.jsonl",
    "report.html",
    "shares.json",
    "checkpoints",
    "export",
    "profile",
    "show",
    "tensorboard",
    "wandb",
    "mlflow",
)


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Lock the folder for this run, and create it if absent; the lock ends with the process.

    A folder in a bucket is locked there, and what changes in its working copy is sent to the bucket until the end.

    Raises:
      ConfigError: the folder is a file, cannot be written to, or is locked by another run.
    """
    if not processes.first():  # the first process holds the lock for all
        if storage.url_of(workdir):  # each process has a working copy of its own
            workdir.mkdir(parents=True, exist_ok=True)
        yield
        return
    if lease := storage.locked(workdir, f"{STARTED}{os.getcwd()}", _interrupt, warn):
        with lease:
            workdir.mkdir(parents=True, exist_ok=True)
            yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / ".lock", "a+", opener=no_link)  # noqa: SIM115
    except FileExistsError:
        raise ConfigError(f"--workdir={workdir} is a file: give a folder, which need not exist yet") from None
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written to ({error.strerror}): give another folder") from None
    _check_kinds(workdir)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"--workdir={workdir} is in use by {file.read().strip() or 'another run'}:"
                " wait for it, stop it, or give another folder"
            ) from None
        except OSError as error:
            warn(f"--workdir={workdir} cannot be locked ({error.strerror}): nothing prevents a second run in it")
        with contextlib.suppress(OSError):  # a full disk is reported when the config is written
            file.truncate(0)
            holder = f"process {os.getpid()} on {socket.gethostname()}{STARTED}{os.getcwd()}\n"
            os.write(file.fileno(), os.fsencode(holder))
        yield


def _check_kinds(workdir: pathlib.Path) -> None:
    """Raise ConfigError if a folder lies where the run writes a file, or a file where it writes checkpoints."""
    wrong = {name: "a folder" for name in OWN if "." in name and (workdir / name).is_dir()}
    if (workdir / "checkpoints").is_file():
        wrong["checkpoints"] = "a file"
    for name, kind in wrong.items():
        raise ConfigError(f"{workdir / name} is {kind}, in the place of the run's: move it, or give another folder")


def _interrupt() -> None:
    """Stop the run as Ctrl-C does."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextlib.contextmanager
def clear_on_error(workdir: pathlib.Path, *, fresh: bool) -> Iterator[None]:
    """Delete the files in a `fresh` folder, and the folder, if the run fails inside, which is before its first step.

    Folders that the task created there, such as data, stay.
    """
    try:
        yield
    except BaseException:
        if fresh and processes.first():
            shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
            with contextlib.suppress(OSError):
                for path in [path for path in workdir.iterdir() if not path.is_dir()]:
                    path.unlink()
                workdir.rmdir()
        raise


def relative_paths_note(workdir: pathlib.Path) -> str:
    """Say where the run was last started, from where relative paths in its config start; "" if that is here."""
    try:
        folder = (workdir / ".lock").read_text(encoding="utf-8").partition(STARTED)[2].removesuffix("\n")
    except (OSError, ValueError):
        return ""
    here = os.getcwd()
    if folder in ("", here):
        return ""
    return f"relative paths in {workdir / 'config.json'} are from {folder}, where the run was started; this is {here}"


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a file of the run that holds a JSON object; {} if there is no file.

    Raises:
      ConfigError: the file holds something else.
    """
    try:
        content = json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it from a copy, or delete it") from error
    if not isinstance(content, dict) or (not content and path.exists()):
        raise ConfigError(f"{path} is damaged (no JSON object with fields): restore it from a copy, or delete it")
    return content


def record_file(workdir: pathlib.Path, name: str, text: str) -> None:
    """Write a file of the run, after its checksum; files.json keeps the old one too, so that a kill does no harm."""
    content = text.encode(errors="backslashreplace")
    known, sums = read_json(workdir / FILES), sorted({*_sums(workdir / name), hashlib.sha256(content).hexdigest()})
    if known.get(name) != sums:
        write_file(workdir / FILES, json.dumps(known | {name: sums}, indent=1) + "\n")
    write_file(workdir / name, content)


def require_files(workdir: pathlib.Path) -> None:
    """Raise ConfigError if a recorded file of the run is missing or has changed."""
    problems = [
        f"{workdir / name} {'is not what the run wrote' if (workdir / name).is_file() else 'is missing'}"
        for name, sums in read_json(workdir / FILES).items()
        if not any(checksum in str(sums) for checksum in _sums(workdir / name))
    ]
    if problems:
        raise ConfigError(
            "\n".join(problems) + "\nrestore it from a copy: without it the meaning of the parameters is unknown; or"
            f" delete {workdir / FILES} too, to accept what the config makes"
        )


def _sums(path: pathlib.Path) -> list[str]:
    """Return a list of the file's SHA-256; empty if the file cannot be read."""
    try:
        return [hashlib.sha256(path.read_bytes()).hexdigest()]
    except OSError:
        return []
