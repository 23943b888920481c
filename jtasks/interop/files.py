"""Folders in the format of transformers' `save_pretrained`: config.json and safetensors, whole or in shards."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jtasks.data.files import is_plain
from jtasks.errors import CheckpointError, ConfigError
from jtasks.writing import write_file

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
LAYOUT = f"expected a folder with {CONFIG} and {WEIGHTS}, as save_pretrained of transformers writes it"


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """Read the folder's config.json.

    Raises:
      ConfigError: the folder is absent.
      CheckpointError: the file is absent, or not a JSON object.
    """
    if not folder.is_dir():
        raise ConfigError(f"config.init_from: there is no folder {folder}; {LAYOUT}")
    return read_json(folder / CONFIG)


def has_weights(folder: pathlib.Path) -> bool:
    """Return whether the folder has files of weights, or names them."""
    return (folder / INDEX).exists() or (folder / WEIGHTS).exists()


def where(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the file of each tensor by name.

    Raises:
      CheckpointError: there are no safetensors, a shard is absent, or a file is damaged.
    """
    if (folder / INDEX).exists():
        names = read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names or not all(is_plain(file) for file in names.values()):
            raise CheckpointError(f"{folder / INDEX} must map tensors to names of files in the folder: {LAYOUT}")
        files = {name: folder / file for name, file in names.items()}
        if missing := sorted({file.name for file in files.values() if not file.exists()}):
            raise CheckpointError(f"{folder / INDEX} names {', '.join(missing)}, which the folder does not have")
        present = {name for file in set(files.values()) for name in _names(file)}
        if absent := sorted(set(files) - present):
            raise CheckpointError(f"{folder / INDEX} names {absent[0]}, which is not in {files[absent[0]].name}")
        return files
    if not (folder / WEIGHTS).exists():
        hint = ""
        if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
            hint = "; what it has is torch's own format: load it with transformers and save_pretrained it again"
        raise CheckpointError(f"{folder} has no {WEIGHTS}: {LAYOUT}{hint}")
    return dict.fromkeys(_names(folder / WEIGHTS), folder / WEIGHTS)


def read(file: pathlib.Path, name: str) -> np.ndarray:
    """Read one tensor as float32."""
    with _open(file) as tensors:
        return np.asarray(tensors.get_tensor(name)).astype(np.float32)


def write(folder: pathlib.Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write config.json and model.safetensors; each appears whole or not at all."""
    write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, config)


def write_tensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a file of safetensors; it appears whole or not at all."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    # safetensors would silently write the memory of a non-contiguous array in its storage order.
    save_file({name: np.asarray(x, order="C") for name, x in tensors.items()}, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors' files are private, but a folder of weights is often shared
    partial.replace(path)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file; it appears whole or not at all."""
    write_file(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError if the file holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {LAYOUT}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object: {LAYOUT}")
    return content


def _names(file: pathlib.Path) -> list[str]:
    with _open(file) as tensors:
        return list(tensors.keys())


def _open(file: pathlib.Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): copy it again") from error
