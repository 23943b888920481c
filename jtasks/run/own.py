"""Tokenizers, class names and shapes that a run stores in its folder, so that new inputs need no training data."""

import json
import pathlib
from collections.abc import Mapping

import jax
import ml_collections

from jtasks.config import Config
from jtasks.data import assets, tokenizer_files
from jtasks.errors import ConfigError
from jtasks.run.workdir import BATCH, read_json, record_file


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
    names = assets.read(workdir / assets.LABELS)
    if not full.data.get("labels", "absent") and isinstance(names, list):
        with full.unlocked():
            full.data.labels = tuple(map(str, names))
    return Config(full)


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
