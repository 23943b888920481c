"""Transfer of parameters from another run, or from a Hugging Face model.

Parameters match by name and shape, which do not say what a row means. So the files beside the parameters are compared:
tokenizers, palettes and image processors must agree, and a classifier's rows are reordered by class name.
"""

import functools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import ranges
from jtasks.config import Config
from jtasks.console import warn
from jtasks.data import assets, hub, tokenizer_files, tokenizers
from jtasks.distributed import processes
from jtasks.errors import ConfigError, DataError
from jtasks.interop import fitting, huggingface, image_processors, model_config
from jtasks.run import checkpoint, checkpoint_files, identity, workdir
from jtasks.run.job import Job
from jtasks.tree import by_name, leaf_name


def transfer_params(job: Job, params: Any, stored: pathlib.Path | None = None) -> tuple[Any, dict[str, list[str]]]:
    """Return the parameters, with those of `config.init_from` that fit, and the names of taken and other parameters.

    Args:
      job: the run's job.
      params: the parameters as initialized.
      stored: folder of a run that has stored the task's assets; None: the task makes them.

    Raises:
      ConfigError: the other model has another tokenizer, palette or image processor.
      CheckpointError: there is no checkpoint, or no parameter fits.
    """
    source, config = job.config.init_from, job.config
    own = job.assets() if stored is None else identity.stored_assets(stored)
    if source.startswith(hub.PREFIX):
        folder = hub.model_folder(source, *hub.MODEL)
        classes, architecture = model_config.class_names(folder), huggingface.architecture(job.task, config.model)
        compare_tokens(source, folder, own, config)
        taken, report = huggingface.import_params(str(folder), params, config.model, architecture, warn)
    else:
        folder = checkpoint_files.locate(source)[0].parent
        classes = assets.read(folder / assets.LABELS)
        compare_tokens(source, folder, own, config)
        compare_pictures(source, folder, config.model)
        taken, report = checkpoint.import_params(source, params, warn)
    if assets.LABELS in own and isinstance(classes, list):
        return reorder_classes(taken, params, report, class_order(classes, json.loads(own[assets.LABELS])))
    return taken, report


def absent_params(job: Job, shapes: Any) -> set[str]:
    """Return the names of the parameters that config.init_from does not give: of a new head, or of new classes.

    Args:
      job: the run's job.
      shapes: those of all parameters.

    Raises:
      ConfigError, CheckpointError: see `transfer_params`.
    """
    source, config, own = job.config.init_from, job.config, job.assets()
    if source.startswith(hub.PREFIX):
        folder = hub.model_folder(source, *hub.MODEL)
        classes, architecture = model_config.class_names(folder), huggingface.architecture(job.task, config.model)
        absent = huggingface.absent_params(str(folder), shapes, config.model, architecture)
    else:
        classes = assets.read(checkpoint_files.locate(source)[0].parent / assets.LABELS)
        absent = checkpoint.absent_params(source, shapes, warn)
    if assets.LABELS in own and isinstance(classes, list):
        order = class_order(classes, json.loads(own[assets.LABELS]))
        if order is not None and (order < 0).any():
            absent |= set(_classifier(name for name in by_name(shapes) if name not in absent))
    return absent


def pin_source(config: Config) -> Config:
    """Return the config of an adapter with the checkpoint that config.init_from means now: no other one fits it."""
    if not config.adapter.kind or config.init_from.startswith(hub.PREFIX):
        return config
    folder, named = checkpoint_files.locate(config.init_from)
    if workdir.read_json(folder.parent / workdir.ADAPTER):
        raise ConfigError(
            f"config.init_from={config.init_from} is itself a run of an adapter, whose base is elsewhere: write the two"
            " as one model, by --mode=export, and give config.init_from=hf:FOLDER"
        )
    step = processes.broadcast_from_first(lambda: named or str(checkpoint_files.saved_steps(folder)[-1]))
    return Config(config.to_dict() | {"init_from": str(folder / step)})


def require_source(source: str) -> None:
    """Check that config.init_from names a Hugging Face model or a run with a checkpoint; fetch a model from the hub.

    Raises:
      ConfigError: it names neither.
      DataError: the model cannot be fetched, or has no safetensors.
    """
    if source.startswith(hub.PREFIX):
        processes.on_first_process(lambda: _require_model(source))
        return
    folder, step = checkpoint_files.locate(source)
    workdir.require_files(folder.parent)
    saved = map(str, checkpoint_files.saved_steps(folder))
    if source and (step not in saved if step else not any(saved)):
        raise ConfigError(
            f"no checkpoint in config.init_from={source}: give a workdir of a run, its checkpoints/STEP, or hf:FOLDER"
        )


def _require_model(source: str) -> None:
    folder = hub.model_folder(source, *hub.MODEL)
    if source == hub.PREFIX or not (folder / "config.json").is_file():
        raise ConfigError(
            f"config.init_from={source}: there is no config.json of a model in {folder}; expected a folder with"
            " config.json and model.safetensors, as save_pretrained of transformers writes it"
        )
    if not hub.local(source).is_dir() and not any(folder.glob("*.safetensors")):
        raise DataError(
            f"config.init_from={source} has no model.safetensors, and other formats, such as pytorch_model.bin, can run"
            " code when they are read: convert it once where you trust it, with transformers' from_pretrained and"
            " save_pretrained, and give config.init_from=hf:FOLDER; or give a @REVISION with safetensors"
        )


def compare_tokens(source: str, folder: pathlib.Path, own: dict[str, str], config: Config) -> None:
    """Refuse a model whose ids stand for other tokens: the rows of its embedding would belong to other tokens here."""
    there = tokenizer(folder, config)
    if there is None or tokenizers.FILE not in own:
        return
    theirs = _tokens(there)
    ours = _tokens(tokenizers.parse(own[tokenizers.FILE]))
    other = [i for i in sorted(ours) if theirs.get(i, ours[i]) != ours[i]]
    if other:
        raise ConfigError(
            f"config.init_from={source} was trained with another tokenizer: {len(other)} of {len(ours)} ids stand for"
            f" other tokens there, {other[0]} for {theirs[other[0]]!r} and here for {ours[other[0]]!r}; set"
            f" --config.data.tokenizer={source if source.startswith(hub.PREFIX) else folder}, or train without"
            " config.init_from"
        )
    if new := sorted(set(ours) - set(theirs)):
        warn(f"{len(new)} tokens, such as {ours[new[0]]!r}, are not in the tokenizer of config.init_from={source}")


def tokenizer(folder: pathlib.Path, config: Config) -> Any:
    """Load the tokenizer in a folder; None if there is none."""
    paths = [folder / name for name in tokenizer_files.NAMES if (folder / name).is_file()]
    return tokenizers.load(str(paths[0]), lowercase=config.data.get("lowercase", True)) if paths else None


def _tokens(tokenizer: Any) -> dict[int, str]:
    return {i: token for token, i in tokenizer.get_vocab().items()}


def compare_pictures(source: str, folder: pathlib.Path, model: Any) -> None:
    """Refuse a run with another palette, or with another mean or standard deviation of pixels."""
    _, processor = image_processors.find(folder) or (folder, {})
    theirs = {"palette": assets.read(folder / assets.PALETTE)}
    theirs |= {"mean": processor.get("image_mean"), "std": processor.get("image_std")}
    for name, there in theirs.items():
        here = model.get(name)
        if there is not None and here is not None and not fitting.alike(here, there):
            raise ConfigError(
                f"config.model.{name}={ranges.format_value(here)}, but config.init_from={source} has"
                f" {ranges.format_value(there)}: "
                + (f"set --config.data.palette={folder / assets.PALETTE}" if name == "palette" else "set it to that")
            )


def class_order(there: Sequence[str], here: Sequence[str]) -> np.ndarray | None:
    """Return the row there of each class here, -1 for a class not there; None if no row moves or rows have no names."""
    there, here = _fold_case(there, here)
    unnamed = [tuple(f"{prefix}{i}" for i in range(len(here))) for prefix in ("", "label_", "LABEL_")]
    if len(there) != len(here) or there == here or len(here) == 1:  # a regression has one row, of any name
        return None
    if set(there) != set(here) and (tuple(there) in unnamed or tuple(here) in unnamed):
        return None
    return np.array([there.index(name) if name in there else -1 for name in here])


def _fold_case(there: Sequence[str], here: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names without case, unless two names of one model differ only by case."""
    folded = [str(name).strip().casefold() for name in there], [str(name).strip().casefold() for name in here]
    if all(len(set(names)) == len(names) for names in folded):
        return folded
    return [str(name) for name in there], [str(name) for name in here]


def reorder_classes(
    params: Any, fresh: Any, report: dict[str, list[str]], order: np.ndarray | None
) -> tuple[Any, dict[str, list[str]]]:
    """Reorder the classifier's rows to this task's classes; rows of new classes stay as initialized."""
    if order is None:
        return params, report
    names = _classifier(report["taken"])
    if not names:
        return params, report
    if (order < 0).any():
        warn(
            f"config.init_from: {(order < 0).sum()} of {len(order)} classes are not among the classes there:"
            f" their rows of {names[0].rpartition('/')[0]} start from initialization"
        )

    def put(path: tuple[Any, ...], taken: jax.Array, initial: jax.Array) -> jax.Array:
        if leaf_name(path) not in names:
            return taken
        return jax.jit(functools.partial(_reorder_rows, order), out_shardings=taken.sharding)(taken, initial)

    return jax.tree_util.tree_map_with_path(put, params, fresh), report


def _classifier(taken: Iterable[str]) -> list[str]:
    """Return the names of a classifier's parameters among those that are taken."""
    names = list(taken)
    heads = {name.rpartition("/")[0] for name in names} & {"classifier", "head", "dense2"}
    head = "classifier" if "classifier" in heads else next(iter(heads), None)
    return [name for name in names if name.rpartition("/")[0] == head]


def _reorder_rows(order: np.ndarray, taken: jax.Array, initial: jax.Array) -> jax.Array:
    known = np.broadcast_to(order >= 0, taken.shape)
    return jnp.where(known, taken[..., np.maximum(order, 0)], initial)
