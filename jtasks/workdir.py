"""The run's folder: one run at a time, its config.json, and the task's assets."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from jtasks import config as configs
from jtasks import processes
from jtasks.config import Config
from jtasks.errors import ConfigError
from jtasks.log import say
from jtasks.writing import check_name, no_link, write_file

# A run that changes one of these is another run: its batches or its model would not be those of its first half.
FIXED = ("config.task", "config.seed", "config.batch_size", "config.batch_tokens", "config.data.", "config.model.")
FREE = ("config.data.dir", "config.data.threads", "config.data.workers", "config.data.skip_bad")

# Names of the run's own files, which no asset takes.
OWN = ("config.json", "data.json", "metrics.jsonl", "shares.json", "checkpoints", "export", "show", "tensorboard")


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Hold the folder for this run, making it where it is absent; the lock ends with the process.

    Raises:
      ConfigError: it is a file, cannot be written to, or another run holds it.
    """
    if not processes.first():  # the first process holds it for all
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / ".lock", "a+", opener=no_link)  # noqa: SIM115
    except FileExistsError:
        raise ConfigError(f"--workdir={workdir} is a file: give a folder, which need not exist yet") from None
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written to ({error.strerror}): give another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"--workdir={workdir} is in use by {file.read().strip() or 'another run'}:"
                " wait for it, stop it, or give another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def record_config(config: Config, workdir: pathlib.Path, *, resumed: bool) -> None:
    """Write config.json; a resumed run must agree with it where the run's identity lies.

    Raises:
      ConfigError: a field of the task, data or model differs from that of the run so far; all are listed.
    """
    path, new = workdir / "config.json", configs.to_json(config)
    if resumed and path.exists():
        try:
            old = dict(configs.fields(json.loads(path.read_text())))
        except ValueError as error:
            raise ConfigError(f"{path} is damaged ({error}): restore it from a copy, or delete it") from error
        now = dict(configs.fields(new))
        changed = {k: (old.get(k), now.get(k)) for k in {**old, **now} if old.get(k) != now.get(k)}
        lines = {k: f"{k}: {_short(a)} -> {_short(b)}" for k, (a, b) in changed.items()}
        refused = [line for k, line in lines.items() if k.startswith(FIXED) and k not in FREE]
        if refused:
            raise ConfigError(
                f"{workdir} holds a run with another config:\n  " + "\n  ".join(refused) + "\nuse another workdir,"
                " or config.init_from to start from its parameters"
            )
        if lines:
            say("resuming with a changed config:\n  " + "\n  ".join(lines.values()))
    write_file(path, json.dumps(new, indent=1) + "\n")


def record_assets(assets: Mapping[str, str], workdir: pathlib.Path, *, resumed: bool) -> None:
    """Write a task's assets, {file name: text}; those of a resumed run must be what it has.

    Raises:
      ConfigError: one of them differs from that of the run so far, or its name is no plain file name.
    """
    for name, text in assets.items():
        path = workdir / name
        check_name(name, "assets() of the task", OWN)
        if resumed and path.exists():
            if path.read_text(encoding="utf-8") == text:
                continue
            raise ConfigError(
                f"{path} is not what this config makes: the run so far used another {name}. Use another workdir, or"
                " config.init_from to start from its parameters"
            )
        write_file(path, text)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
