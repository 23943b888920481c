"""The identity of a run: the config, assets and data that it has recorded, and may not change midway.

With what is recorded, the folder of a run serves new inputs without its training data.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from jtasks import config as configs
from jtasks import storage, task
from jtasks.config import Config
from jtasks.console import say, warn
from jtasks.data import assets as asset_files
from jtasks.data import fingerprint, tokenizer_files
from jtasks.data.fingerprint import Prints
from jtasks.errors import ConfigError
from jtasks.run import names
from jtasks.run.workdir import BATCH, DATA, FILES, OWN, read_json, record_file
from jtasks.writing import check_name

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
KINDS = ("entries", "hashes")  # of a split in data.json


def own_names(config: Config, workdir: pathlib.Path) -> Config:
    """Return the config of the run in the folder, with what the run has stored in place of names on the hub.

    Names on the hub keep their commit (see `names.as_recorded`). The run's own tokenizer stays if other text, which
    would train another one, is allowed.
    """
    if recorded := read_json(workdir / "config.json"):
        config = names.as_recorded(config, recorded, workdir)
    learned = re.fullmatch(r"characters|(wordpiece|bpe):\d+", str(config.data.get("tokenizer", "")))
    if not (learned and config.data.allow_changes and (workdir / "tokenizer.json").is_file()):
        return config
    full = ml_collections.ConfigDict(config)
    full.data.tokenizer = str(workdir)
    return Config(full)


def with_own_assets(config: Config, workdir: pathlib.Path) -> Config:
    """Return the config of the run with the tokenizers and the class names that the run has stored.

    With these, a task needs no training data: `config.data.tokenizer` is the run's folder,
    `config.data.target_tokenizer` a file in it, and `config.data.labels`, if the task has such a field and it is empty,
    holds the names in labels.json.
    """
    full = ml_collections.ConfigDict(config)
    if "tokenizer" in full.data and (workdir / tokenizer_files.FILE).is_file():
        full.data.tokenizer = str(workdir.absolute())
    if full.data.get("target_tokenizer") and (own := workdir.absolute() / tokenizer_files.TARGET_FILE).is_file():
        full.data.target_tokenizer = str(own)
    names = asset_files.read(workdir / asset_files.LABELS)
    if not full.data.get("labels", "absent") and isinstance(names, list):
        with full.unlocked():
            full.data.labels = tuple(map(str, names))
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


def record_batch(batch: Mapping[str, jax.Array], workdir: pathlib.Path) -> None:
    """Write batch.json, the dtype and shape of one row of each entry, from which the parameters' shapes follow."""
    rows = {name: [array.dtype.name, list(array.shape[1:])] for name, array in sorted(batch.items())}
    record_file(workdir, BATCH, json.dumps(rows) + "\n")


def stored_batch(workdir: pathlib.Path, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the entries of a batch of the run with this number of rows.

    Raises:
      ConfigError: the run has no batch.json, or it is damaged.
    """
    if not (workdir / BATCH).is_file():
        raise ConfigError(f"{workdir / BATCH} is missing, which a run writes at its start: restore it from a copy")
    try:
        entries = read_json(workdir / BATCH).items()
        return {name: jax.ShapeDtypeStruct((rows, *shape), jax.numpy.dtype(kind)) for name, (kind, shape) in entries}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{workdir / BATCH} is damaged ({error}): restore it from a copy") from error


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
