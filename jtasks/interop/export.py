"""Runs as folders that transformers loads: weights, config.json, and what the task needs beside them."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jtasks import processes
from jtasks.config import Config
from jtasks.errors import ConfigError, DataError
from jtasks.interop import files, gpt2, huggingface, vit
from jtasks.job import SPLITS
from jtasks.run import open_run
from jtasks.writing import require_writable, write_file


def run(config: Config, workdir: pathlib.Path, folder: pathlib.Path | None, which: str = "newest") -> pathlib.Path:
    """Write a checkpoint as Hugging Face's form of the task's model.

    Args:
      config: must be the run's own.
      workdir: the run's folder, DIR.
      folder: where to; None: DIR/export/hf.
      which: of the checkpoints (see `open_run`).

    Raises:
      ConfigError: the task does not say which architecture its model is, or `folder` holds something else.
      CheckpointError: there is no checkpoint, or that architecture cannot express the model.
    """
    run = open_run(config, workdir, which)
    job = run.job
    architecture = huggingface.architecture(job.task)
    if architecture is None:
        raise ConfigError(
            f"task {config.task} does not say which architecture of Hugging Face its model is: a task that can be"
            f' exported has a constant such as HUGGINGFACE = "GPT2LMHeadModel"'
        )
    folder = (folder or workdir / "export" / "hf").expanduser()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / files.CONFIG).exists()):
        raise ConfigError(f"--out={folder} holds something else: give a new folder, or that of an earlier export")
    examples = next((found for split in SPLITS if (found := run.examples(split)) is not None), None)
    if examples is None:
        raise DataError(f"task {config.task} has no examples to initialise its model with")
    tensors, theirs = huggingface.to_hf(_on_host(run.params(examples)), job.config.model, architecture)
    assets = job.task.assets(job.config) if hasattr(job.task, "assets") else {}

    def write() -> None:
        require_writable(folder)
        files.write(folder, theirs, tensors)
        if processor := image_processor(theirs, job.config):
            files.write_json(folder / "preprocessor_config.json", processor)
        for name, text in assets.items():
            write_file(folder / name, text)

    processes.once(write)
    return folder


def image_processor(theirs: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """preprocessor_config.json of an image model: pixels in [-1, 1], for ImageGPT its colours; {} for other models."""
    architecture = theirs["architectures"][0]
    if architecture in vit.ARCHITECTURES:
        size = theirs["image_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": height, "width": width},
            "do_resize": True,
            "do_rescale": True,
            "rescale_factor": 1 / config.data.get("white", 255),
            "do_normalize": True,
            "image_mean": [0.5] * theirs["num_channels"],
            "image_std": [0.5] * theirs["num_channels"],
        }
    palette, shape = config.model.get("palette"), config.model.get("shape")
    if architecture == gpt2.IMAGE and palette and shape and len(palette[0]) == 3:
        return {
            "image_processor_type": "ImageGPTImageProcessor",
            "size": {"height": shape[0], "width": shape[1]},
            "do_resize": True,
            "do_normalize": True,
            "do_color_quantize": True,
            "clusters": (np.asarray(palette, np.float64) / 127.5 - 1).tolist(),
        }
    return {}


def _on_host(params: Any) -> Any:
    """Whole arrays in host memory, of which other processes may hold parts."""
    if processes.alone():
        return jax.device_get(params)
    return multihost_utils.process_allgather(params, tiled=True)
