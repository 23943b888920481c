"""The run's folder: one run at a time, its config.json, and the task's assets."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections

from jtasks import config as configs
from jtasks import storage, task
from jtasks.config import Config
from jtasks.console import say, warn
from jtasks.data import fingerprint
from jtasks.data.fingerprint import Prints
from jtasks.distributed import processes
from jtasks.errors import ConfigError
from jtasks.run import names
from jtasks.writing import check_name, no_link, write_file

# The fields that identify a run: another value would change its batches or its model midway.
FIXED = (
    "config.task",
    "config.seed",
    "config.batch_size",
    "config.batch_tokens",
    "config.data.",
    "config.model.",
    "config.adapter.",
)
FREE = tuple(f"config.data.{name}" for name in ("dir", "shared", "threads", "workers", "skip_bad", "allow_changes"))
DATA, KINDS = "data.json", ("entries", "hashes")
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


def own_names(config: Config, workdir: pathlib.Path) -> Config:
    """Return the config of a run that the folder holds, with what the run has stored instead of names of it.

    Names on the hub keep their commit (see `names.as_recorded`). The run's tokenizer counts, if other text is allowed
    and would make another one.
    """
    if recorded := read_json(workdir / "config.json"):
        config = names.as_recorded(config, recorded, workdir)
    learned = re.fullmatch(r"characters|(wordpiece|bpe):\d+", str(config.data.get("tokenizer", "")))
    if not (learned and config.data.allow_changes and (workdir / "tokenizer.json").is_file()):
        return config
    full = ml_collections.ConfigDict(config)
    full.data.tokenizer = str(workdir)
    return Config(full)


def stored_assets(workdir: pathlib.Path) -> dict[str, str]:
    """Return {file name: text} of the task's assets that the run has stored."""
    names = [name for name in read_json(workdir / FILES) if name not in OWN]
    return {name: (workdir / name).read_text(encoding="utf-8") for name in names}


def record_config(config: Config, workdir: pathlib.Path) -> None:
    """Write config.json, which lets later commands omit `--config`."""
    new = configs.to_json(config)
    if _is_own(new["data"].get("tokenizer"), workdir):  # the run's own tokenizer: record how it was made
        new["data"]["tokenizer"] = (
            read_json(workdir / "config.json").get("data", {}).get("tokenizer", storage.shown(str(workdir)))
        )
    new["data"] |= {"allow_changes": False}  # for this part of the run only
    if config.task.endswith(".py"):
        new["task"] = str(pathlib.Path(config.task).resolve())
    record_file(workdir, "config.json", json.dumps(new, indent=1) + "\n")


def compare_config(
    config: Config, workdir: pathlib.Path, free: tuple[str, ...] = (), tell: Callable[[str], None] = say
) -> None:
    """Print what differs from DIR/config.json, and refuse a difference in the fields that identify a run.

    Args:
      config: the current config, filled.
      workdir: the run's folder, DIR.
      free: further fields that may differ silently.
      tell: prints the text.

    Raises:
      ConfigError: a field of the task, data or model differs from the run's; all are listed.
    """
    old, new = read_json(workdir / "config.json"), configs.to_json(config)
    if not old:
        return
    before, now = dict(configs.fields(old)), dict(configs.fields(new))
    own = task.fields(task.load(config.task)) if task.exists(config.task) else {}
    usual = dict(
        configs.fields(configs.to_json(configs.defaults(config.optim.name, own)))
    )  # for fields newer than the run
    free = (*free, "config.data.allow_changes")
    if _is_own(now.get("config.data.tokenizer"), workdir):
        free = (*free, "config.data.tokenizer")
    fields = [k for k in {**before, **now} if k not in free and not _alike(k, before.get(k, usual.get(k)), now.get(k))]
    lines = {k: f"{k}: {_format_value(before.get(k))} -> {_format_value(now.get(k))}" for k in fields}
    refused = [
        line for k, line in lines.items() if k.startswith(FIXED) and k not in FREE and not _is_allowed(k, config)
    ]
    if refused:
        raise ConfigError(
            f"{workdir} holds a run with another config:\n  " + "\n  ".join(refused) + "\nuse another workdir,"
            " or config.init_from to start from its parameters"
            + ("; config.data.allow_changes=True accepts other data" if "config.data." in "".join(refused) else "")
        )
    if lines:
        tell(f"the config differs from that of the run in {workdir}:\n  " + "\n  ".join(lines.values()))


def record_assets(assets: Mapping[str, str], workdir: pathlib.Path) -> None:
    """Write a task's assets, {file name: text}; raise ConfigError if a name is not a plain file name."""
    for name, text in assets.items():
        check_name(name, "assets() of the task", OWN)
        record_file(workdir, name, text)


def compare_assets(assets: Mapping[str, str], workdir: pathlib.Path) -> None:
    """Raise ConfigError if an asset differs from the one that the run has stored."""
    for name, text in assets.items():
        check_name(name, "assets() of the task", OWN)
        path = workdir / name
        if path.exists() and path.read_bytes() != text.encode():
            raise ConfigError(
                f"{path} is not what this config makes: the run so far used another {name}. Use another workdir, or"
                " config.init_from to start from its parameters"
                + (f"; config.data.tokenizer={workdir} is the run's own tokenizer" if name == "tokenizer.json" else "")
            )


def compare_data(data: Mapping[str, Prints], workdir: pathlib.Path, *, allow: bool) -> None:
    """Refuse examples other than those that the run has seen, by the sizes and samples of its splits.

    Args:
      data: `fingerprint.of` each split that is open.
      workdir: the run's folder.
      allow: warn of changes instead of refusing them.

    Raises:
      ConfigError: a split has changed; the message lists the changes.
    """
    known = read_json(workdir / DATA)
    if not all(isinstance(old, dict) and all(isinstance(old.get(k), dict) for k in KINDS) for old in known.values()):
        raise ConfigError(f"{workdir / DATA} is damaged (no splits): restore it from a copy, or delete it")
    lines = [f"{split}: {text}" for split, new in data.items() for text in fingerprint.changes(known.get(split), new)]
    if lines and not allow:
        raise ConfigError(
            f"the data differs from that of the run in {workdir}:\n  " + "\n  ".join(lines) + "\nrestore the data, or"
            " use another workdir; config.data.allow_changes=True accepts this data"
        )
    if lines:
        warn(f"the data differs from that of the run in {workdir}:\n  " + "\n  ".join(lines))


def record_data(data: Mapping[str, Prints], workdir: pathlib.Path, *, fresh: bool) -> None:
    """Write data.json: number of examples, entries and hashes of each split that the run has used."""
    known = {} if fresh else read_json(workdir / DATA)
    record_file(workdir, DATA, json.dumps(known | dict(data), indent=1) + "\n")


def recorded_splits(workdir: pathlib.Path) -> frozenset[str]:
    """Return the splits that the run has used."""
    return frozenset(read_json(workdir / DATA))


def _is_own(tokenizer: Any, workdir: pathlib.Path) -> bool:
    if not isinstance(tokenizer, str):
        return False
    if storage.is_url(tokenizer):
        return storage.url_of(workdir) == tokenizer.rstrip("/")
    return pathlib.Path(tokenizer).expanduser().resolve() == workdir.resolve()


def _alike(name: str, old: Any, new: Any) -> bool:
    if name == "config.task" and isinstance(old, str) and old.endswith(".py"):  # the file may have moved
        return pathlib.PurePath(old).name == pathlib.PurePath(new).name
    return old == new or (old != old and new != new)  # nan


def _is_allowed(name: str, config: Config) -> bool:
    return config.data.allow_changes and name.startswith("config.data.")


def _format_value(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
