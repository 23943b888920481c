"""A Hugging Face model as it is, without a run: `jtasks.load("hf:FOLDER")`."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

from jtasks import config as configs
from jtasks import task
from jtasks.console import warn
from jtasks.data import examples, hub, targets, tokenizer_files
from jtasks.distributed import sharding
from jtasks.errors import ConfigError
from jtasks.interop import files, generation, huggingface, model_config, settings
from jtasks.run.job import Job, fill

# Tasks of models with another head or none, by model_type.
BODIES = {
    "bart": "seq2seq",
    "bert": "bert",
    "clip": "contrast",
    "gpt2": "lm",
    "imagegpt": "igpt",
    "marian": "seq2seq",
    "siglip": "contrast",
    "t5": "seq2seq",
    "vit": "vit",
}
TRAINED = ("wordpiece:", "bpe:", "characters")  # tokenizers that a run makes of its own texts
ROWS = 8  # default batch size: there is no run whose batches these would be


class Pretrained(NamedTuple):
    """A Hugging Face model with a task that its parameters serve; see `restore.SavedRun`."""

    job: Job
    workdir: pathlib.Path  # the model's folder
    step: int = 0

    def params(self) -> Any:
        """Read the parameters, with all heads that the folder has."""
        params, _ = huggingface.from_hf(self.workdir)
        return jax.device_put(params, self.job.shardings(params, params))

    def entries(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return {}: there are no batches that examples could be compared with."""
        return {}


def open_pretrained(spec: str, config: Any = None, overrides: Sequence[str] = ()) -> Pretrained:
    """Open a Hugging Face model without a run.

    Args:
      spec: `hf:FOLDER` or a name on the hub.
      config: fields of a config, a dict; the task is by default the one of the model's architecture, the tokenizer and
        the class names are the model's.
      overrides: `--config.a.b=value`.

    Raises:
      ConfigError: the config is wrong, or there is no such model.
      CheckpointError: the model is none of ours, or its files are damaged.
    """
    folder = hub.model_folder(spec, *hub.MODEL)
    theirs = files.read_config(folder)
    tree = ml_collections.ConfigDict({"task": _task_of(theirs), "batch_size": ROWS, "steps": 1})
    tree.update(config or {})
    tree.init_from = spec
    module = task.load(tree.task)
    fields, names = task.fields(module), settings.class_names(theirs)
    known: dict[str, Any] = {}
    if "data.tokenizer" in fields and any((folder / name).is_file() for name in tokenizer_files.NAMES):
        known["data.tokenizer"] = str(folder)
    target_files = [folder / name for name in (tokenizer_files.TARGET_FILE, tokenizer_files.TARGET)]
    if "data.target_tokenizer" in fields and (own := [path for path in target_files if path.is_file()]):
        known["data.target_tokenizer"] = str(own[0])
    if "model.encoder_depth" in fields:
        beam = generation.fields(folder, warn)
        known |= {f"beam.{name}": value for name, value in beam.items() if f"beam.{name}" in fields}
    if "data.labels" in fields and names:
        known["data.labels"] = tuple(names)
    if "data.name" in fields:
        known["data.name"] = "folder:"  # pictures of any kind
    known |= {f"model.{name}": value for name, value in model_config.model_fields(folder).items()}
    if names:
        known |= {"model.classes": len(names)}
    if "model.resize" in known:
        known.setdefault("model.shape", examples.Resize(*known["model.resize"]).shape)
    with tree.unlocked():
        if "problem" in fields and "problem" not in tree:
            tree.problem = targets.from_transformers(theirs, names)
        for name, value in known.items():
            group, _, field = name.partition(".")
            tree[group] = tree.get(group, {})
            if name in fields and tree[group].get(field) is None:
                tree[group][field] = value
    chosen = configs.freeze(tree, overrides)
    if "data.tokenizer" in fields and "data.tokenizer" not in known and chosen.data.tokenizer.startswith(TRAINED):
        raise ConfigError(
            f"{folder} has no tokenizer, which {chosen.task} needs: expected one of {', '.join(tokenizer_files.NAMES)};"
            " copy the model's tokenizer there, or name its folder as config.data.tokenizer, such as jtasks.load(...,"
            ' overrides={"data.tokenizer": FOLDER})'
        )
    frozen = fill(chosen, module, model_args=None if hasattr(module, "texts") else lambda config: {})
    return Pretrained(Job(module, frozen, sharding.make_mesh(frozen.mesh)), folder)


def _task_of(config: Mapping[str, Any]) -> str:
    """Return the shipped task of a model by its config.json."""
    architecture = settings.architecture(config)
    names = [path.stem for path in (pathlib.Path(task.__file__).parent / "tasks").glob("[a-z]*.py")]
    for name in sorted(names):
        own = getattr(task.load(f"jtasks.tasks.{name}"), "HF_ARCHITECTURE", "")
        if architecture and architecture in (own if isinstance(own, tuple) else (own,)):
            return f"jtasks.tasks.{name}"
    kind = config.get("model_type")
    if kind not in BODIES:
        raise ConfigError(
            f"config.json says model_type={kind!r}, for which there is no task; expected one of {', '.join(BODIES)}"
        )
    return f"jtasks.tasks.{BODIES[kind]}"
