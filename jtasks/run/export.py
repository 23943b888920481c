"""Export of a run as a folder that transformers loads: weights, config.json, and the task's other files."""

import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils

from jtasks import task
from jtasks.config import Config
from jtasks.console import warn
from jtasks.data import hub, targets, tokenizer_files
from jtasks.distributed import processes
from jtasks.errors import ConfigError, DataError
from jtasks.interop import beside, files, huggingface, model_config, peft
from jtasks.interop import generation as generations
from jtasks.ops import decode
from jtasks.run import adapter, names, transfer
from jtasks.run.identity import own_names, stored_assets
from jtasks.run.restore import SavedRun, open_alone
from jtasks.run.workdir import read_json
from jtasks.writing import require_writable, write_file


def run(
    config: Config, workdir: pathlib.Path, folder: pathlib.Path | None, which: str = "newest", form: str = "hf"
) -> pathlib.Path:
    """Write a checkpoint in Hugging Face's format of the task's model; the run's folder has all that it needs.

    An adapter is merged with its base, or with the form "peft" written alone, as PEFT loads it.

    Args:
      config: must be the run's own.
      workdir: the run's folder, DIR.
      folder: destination; None for DIR/export/hf, or DIR/export/peft.
      which: checkpoint to export (see `restore.open_run`).
      form: "hf" or "peft".

    Raises:
      ConfigError: the task does not name the architecture of its model, or `folder` holds something else.
      CheckpointError: there is no checkpoint, or the architecture cannot express the model.
    """
    if huggingface.architecture(task.load(config.task), config.model) is None:
        raise ConfigError(
            f"task {config.task} does not say which Hugging Face architecture its model has: a task that can be"
            f' exported has a constant such as HF_ARCHITECTURE = "GPT2LMHeadModel"'
        )
    if form == "peft" and not config.adapter.kind:
        raise ConfigError("--format=peft writes an adapter, and this run has none: use --format=hf")
    folder = (folder or workdir / "export" / form).expanduser()
    mark = peft.CONFIG if form == "peft" else files.CONFIG
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / mark).exists()):
        raise ConfigError(
            f"--output={folder} holds something else: give a new folder, or the folder of an earlier export"
        )
    if recorded := read_json(workdir / "config.json"):
        config = names.fill(own_names(config, workdir), recorded)
    run = open_alone(config, workdir, which)
    job = run.job
    architecture = str(huggingface.architecture(job.task, job.config.model))
    if form == "peft":
        return _write_adapter(run, architecture, folder)
    tensors, theirs = huggingface.to_hf(_fetch(run.params()), job.config.model, architecture)
    assets = stored_assets(workdir)
    first, generation, vocabulary, pieces = _read_pretrained(job.config)
    theirs = beside.config(theirs, first, assets, vocabulary)
    if "problem" in task.fields(job.task):
        theirs["problem_type"] = targets.transformers_name(job.config.problem)
    sampling = decode.options(job.config.sample) if set(decode.SAMPLE) <= set(task.fields(job.task)) else {}
    others = beside.more(theirs, generation, assets, sampling)
    if any(architecture in family.ARCHITECTURES for family in model_config.PAIRS):
        others[beside.GENERATION] = {**generation, **generations.written(job.config.beam, job.config.model)}
    if pieces:
        others["tokenizer_config.json"]["tokenizer_class"] = "MarianTokenizer"

    def write() -> None:
        require_writable(folder)
        files.write(folder, theirs, tensors)
        for name, content in others.items():
            files.write_json(folder / name, content)
        for name, text in assets.items():
            write_file(folder / name, text)
        for path in pieces:
            write_file(folder / path.name, path.read_bytes())

    processes.on_first_process(write)
    return folder


def _write_adapter(run: SavedRun, architecture: str, folder: pathlib.Path) -> pathlib.Path:
    """Write the adapter of a run in PEFT's format, with the task's assets."""
    config = run.job.config
    trained, base = run.trained()
    params = _fetch(adapter.full(config, trained, base))
    place, _, revision = config.init_from.removeprefix(hub.PREFIX).partition("@")
    known = config.init_from.startswith(hub.PREFIX)
    tensors, theirs = peft.to_peft(
        _fetch(trained),
        params,
        config.model,
        architecture,
        alpha=adapter.scale(config) * config.adapter.rank,
        base=place if known else None,
    )
    if known and revision:
        theirs["revision"] = revision
    if not known:
        warn(f"the base, {config.init_from}, is a run: PEFT needs it as a model, by --workdir=BASE --mode=export")

    def write() -> None:
        require_writable(folder)
        files.write_tensors(folder / peft.WEIGHTS, tensors)
        files.write_json(folder / peft.CONFIG, theirs)
        for name, text in stored_assets(run.workdir).items():
            write_file(folder / name, text)

    processes.on_first_process(write)
    return folder


def _read_pretrained(config: Config) -> tuple[dict[str, Any], dict[str, Any], dict[str, int], list[pathlib.Path]]:
    """Read config.json, generation_config.json and vocabulary of config.init_from's model; empty if there is none.

    The last are the files of a Marian's tokenizers, which transformers needs besides tokenizer.json.
    """
    if not config.init_from.startswith(hub.PREFIX):
        return {}, {}, {}, []
    reason = ""
    try:
        folder = hub.model_folder(config.init_from, *hub.SETTINGS, *hub.TOKENIZER)
    except (ConfigError, DataError) as error:
        folder, reason = hub.local(config.init_from), f" ({error})"
    if not folder.is_dir():
        warn(f"{folder} is gone{reason}: the export lacks fields of its config.json that do not describe the weights")
        return {}, {}, {}, []
    generation = folder / beside.GENERATION
    marian = [folder / name for name in tokenizer_files.MARIAN if (folder / name).is_file()]
    tokenizer = transfer.tokenizer(folder, config)
    return (
        files.read_config(folder),
        files.read_json(generation) if generation.exists() else {},
        tokenizer.get_vocab() if tokenizer else {},
        marian if (folder / tokenizer_files.SOURCE).is_file() else [],
    )


def _fetch(params: Any) -> Any:
    """Fetch whole arrays to host memory; other processes may hold parts of them."""
    if processes.alone():
        return jax.device_get(params)
    return multihost_utils.process_allgather(params, tiled=True)
