"""Names on the Hugging Face hub in a config: pinned to a commit when a run starts, and kept by the run from then on."""

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jtasks import config as configs
from jtasks.config import Config
from jtasks.console import say
from jtasks.data import arrow, files, hub, table_files, tokenizer_files
from jtasks.distributed import processes
from jtasks.run import checkpoint_files

SOURCE, TOKENIZER, TARGET_TOKENIZER = "init_from", "data.tokenizer", "data.target_tokenizer"
# The split that a field of names is for; other fields are for all splits.
SPLITS = {f"data.{name}": name for name in table_files.SPLITS} | {
    f"data.{name}_files": name for name in table_files.SPLITS
}
SPLITS["data.files"] = "train"


def pin_names(config: Config, *, source: bool) -> Config:
    """Return the config with the commit of each name on the hub, which the first process looks up for all.

    Args:
      config: the config.
      source: whether config.init_from matters; a resumed run has its own parameters.

    Raises:
      ConfigError: there is no such repository or revision.
      DataError: the hub cannot be asked.
    """
    names = {field: spec for field, spec in _names(config) if source or field != SOURCE}
    if not names:
        return config

    def pin() -> dict[str, str]:
        kinds: dict[str, hub.Kind] = dict.fromkeys((SOURCE, TOKENIZER, TARGET_TOKENIZER), "model")
        return {field: hub.pin(spec, kinds.get(field, "dataset")) for field, spec in names.items()}

    pinned = processes.broadcast_from_first(pin)
    for field, spec in names.items():
        if pinned[field] != spec:
            say(f"config.{field}: {spec} is {pinned[field]}")
    return _replace(config, pinned)


def as_recorded(config: Config, stored: Mapping[str, Any], workdir: pathlib.Path) -> Config:
    """Return the config of a resumed run with the names that the run recorded: it needs nothing new from the hub.

    A name without revision keeps its commit. A tokenizer from the hub is the run's own file. Fields of config.model
    that a Hugging Face model filled come from the run's config.json.

    Args:
      config: the current config, not filled.
      stored: the run's config.json.
      workdir: the run's folder, DIR.
    """
    old, changes = dict(configs.fields(stored)), dict[str, Any]()
    for field, spec in _names(config):
        recorded = old.get(f"config.{field}")
        if isinstance(recorded, str) and _is_same(spec, recorded):
            changes[field] = recorded
            if field == TOKENIZER and hub.COMMIT.search(recorded) and (workdir / tokenizer_files.FILE).is_file():
                changes[field] = str(workdir)
    if config.adapter.kind and _is_checkpoint_of(old.get(f"config.{SOURCE}"), config.init_from):
        changes[SOURCE] = old[f"config.{SOURCE}"]
    config = _replace(config, changes)
    return fill(config, stored) if str(old.get(f"config.{SOURCE}")).startswith(hub.PREFIX) else config


def fill(config: Config, stored: Mapping[str, Any]) -> Config:
    """Fill the fields of config.model and the size of pictures that are None with the values of the run.

    Args:
      config: the current config.
      stored: the run's config.json.
    """
    model = {f"model.{name}": value for name, value in stored["model"].items() if config.model.get(name) is None}
    size = {"data.size": stored["data"].get("size")} if config.data.get("size", 0) is None else {}
    changes = {field: configs.plain(value, field) for field, value in (model | size).items() if value is not None}
    return _replace(config, changes)


def fetch(config: Config) -> None:
    """Fetch the data and the tokenizer that config.data names on the hub.

    Raises:
      ConfigError: there is no such repository, revision, config or split.
      DataError: a file cannot be fetched.
    """
    for field, spec in _names(config):
        if field in (TOKENIZER, TARGET_TOKENIZER):
            hub.model_folder(spec, *hub.TOKENIZER)
        elif field != SOURCE and not field.startswith("evals."):  # each evaluation fetches its own
            own = f"data.{field.rpartition('.')[2]}"
            for split in [SPLITS[own]] if own in SPLITS else table_files.SPLITS:
                arrow.find(spec, split, f"config.{field}", files.data_folder(config.data.dir))


def _names(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the fields that hold a name on the hub or a local folder, `hf:...`, also those of evals and of sources."""
    groups = {"data": config.data} | {f"data.sources.{name}": own for name, own in config.data.sources.items()}
    groups |= {f"evals.{name}.data": own.data for name, own in config.evals.items()}
    own_fields = ((f"{group}.{name}", x) for group, fields in groups.items() for name, x in fields.items())
    for field, value in (("init_from", config.init_from), *own_fields):
        if isinstance(value, str) and value.startswith(hub.PREFIX):
            yield field, value


def _is_same(spec: str, recorded: str) -> bool:
    """Return whether a name is the recorded one, or lacks only its revision."""
    name, old = hub.parse(spec), hub.parse(recorded)
    return spec == recorded or (name is not None and old is not None and name == old._replace(revision=""))


def _is_checkpoint_of(recorded: Any, source: str) -> bool:
    """Return whether a recorded checkpoint is one of the run that config.init_from names."""
    if not recorded or not source or source.startswith(hub.PREFIX) or recorded.startswith(hub.PREFIX):
        return False
    folder, step = checkpoint_files.locate(source)
    return not step and str(folder) == str(pathlib.Path(recorded).parent)


def _replace(config: Config, changes: Mapping[str, Any]) -> Config:
    if not changes:
        return config
    tree = config.to_dict()
    for field, value in changes.items():
        *groups, name = field.split(".")
        functools.reduce(lambda node, group: node[group], groups, tree)[name] = value
    return Config(tree)
