"""Weights of Hugging Face in and out, as folders of transformers.

| architecture | our model |
|---|---|
| GPT2LMHeadModel | `models.GPT` with layer norms |
| ImageGPTForCausalImageModeling | `models.GPT` with `norm="rms"`, whose outputs lack the start token |
| BertForPreTraining | `models.BERT`, initialized for `pretrain` |
| BertForSequenceClassification, BertForMultipleChoice | `models.BERT`, initialized for `classify` |
| BertForTokenClassification, BertForQuestionAnswering | `models.BERT`, initialized for `tag` |
| ViTForImageClassification | `models.ViT` with `pool="token"` |
| CLIPModel, SiglipModel | `models.TwoTowers` |
| BlipForImageTextRetrieval | `models.BLIP`, initialized for `retrieve` |
| T5ForConditionalGeneration | `models.EncoderDecoder` with `positions="relative"` |
| BartForConditionalGeneration | `models.EncoderDecoder` with `positions="learned"` |
| MarianMTModel | `models.EncoderDecoder` with `positions="sinusoidal"` |
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jtasks import storage
from jtasks.errors import CheckpointError, ConfigError
from jtasks.interop import bert, blip, files, fitting, gpt2, model_config, settings, two_towers, vit
from jtasks.interop.layouts import Entry
from jtasks.tree import by_name, leaf_name

FAMILIES = (gpt2, bert, vit, two_towers, blip, *model_config.PAIRS)


def from_hf(folder: str | pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """Read the folder's parameters, float32 in host memory, in the structure of our model of the same fields.

    Returns:
      The nested params, with all heads in the folder, and the names of unused tensors.

    Raises:
      CheckpointError: there is no such folder, a tensor is absent or damaged, or the model is none of ours; of an
        encoder-decoder, a tensor is unknown.
    """
    folder = storage.local(folder)
    config, fields = model_config.read(folder)
    family = model_config.family_of(config)
    table, where = family.entries(config), files.where(folder)
    names = _canonical(where, table, family, fields)
    flat: dict[str, np.ndarray] = {}
    used: set[str] = set()
    for entry in table:
        wanted = _tensor_names(entry, fields)
        absent = [name for layer in wanted for name in layer if name not in names]
        if absent and entry.head and len(absent) == sum(map(len, wanted)):
            continue
        if absent and entry.zeros:
            flat[entry.path] = np.zeros((len(wanted), 3 * fields["width"]), np.float32)
            continue
        if absent:
            raise CheckpointError(f"{folder} has no tensor {absent[0]}, which a {config['model_type']} must have")
        theirs = [[files.read(where[names[name]], names[name]) for name in layer] for layer in wanted]
        try:
            layers = [entry.layout.read(tensors) for tensors in theirs]
            flat[entry.path] = np.stack(layers) if "{}" in entry.names[0] else layers[0]
        except ValueError as error:  # config.json disagrees with the shapes
            shapes = [list(tensor.shape) for tensor in theirs[0]]
            raise CheckpointError(f"{folder}: {wanted[0][0]} has the shape {shapes[0]} ({error})") from error
        used |= {name for layer in wanted for name in layer}
    unused = sorted(name for canonical, name in names.items() if canonical not in used)
    if family in model_config.PAIRS:
        known = {name.removeprefix(prefix) for name in family.unread(config) for prefix in ("", family.PREFIX)}
        known |= {family.HEAD} if config["tie_word_embeddings"] else set()
        if unknown := [name for name in unused if name not in known]:
            raise CheckpointError(f"{folder} has a tensor {unknown[0]}, which a {config['model_type']} does not have")
        unused = []
    return _nest(flat), unused


def import_params(
    folder: str, params: Any, model: Mapping[str, Any], architecture: str | None, warn: Callable[[str], None]
) -> tuple[Any, dict[str, list[str]]]:
    """Replace `params` with a folder's weights; structure and sharding stay.

    Args:
      folder: in the format of `save_pretrained`.
      params: initialized parameters; heads that the folder lacks keep their values.
      model: config.model, which must describe the folder's model.
      architecture: of the task's model; classifiers of other architectures are not taken. None: take what fits.
      warn: called with what may be wrong and cannot be checked.

    Returns:
      The parameters, and the names that were `taken`, `left` as initialized, and the tensors `unused`.

    Raises:
      ConfigError: config.model describes another model; lists all differences.
      CheckpointError: the folder is damaged, or a parameter outside the heads is absent or has another shape.
    """
    usable, left, unused = _fit(folder, by_name(params), model, architecture, warn)
    taken = [name for name in by_name(params) if name not in left]
    report = {"taken": taken, "left": list(left.values()), "unused": fitting.merge_layers(unused)}

    def put(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if leaf_name(path) in left:
            return leaf
        array = usable[leaf_name(path)].astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    return jax.tree_util.tree_map_with_path(put, params), report


def absent_params(folder: str, params: Any, model: Mapping[str, Any], architecture: str | None) -> set[str]:
    """Return the names of the parameters, or of their shapes, that `import_params` would leave as initialized."""
    return set(_fit(folder, by_name(params), model, architecture, lambda text: None)[1])


def _fit(
    folder: str,
    wanted: Mapping[str, Any],
    model: Mapping[str, Any],
    architecture: str | None,
    warn: Callable[[str], None],
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Return the folder's arrays, why each parameter without one is left as initialized, and the unused tensors."""
    config, fields = model_config.read(storage.local(folder))[0], model_config.model_fields(folder)
    fitting.require_same_fields(fields, model, folder, warn)
    table = model_config.family_of(config).entries(config)
    tree, unused = from_hf(folder)
    there = by_name(tree)
    other = architecture in (*bert.CLASSIFIERS, bert.ANSWERS) and architecture != settings.architecture(config)
    usable = {name: array for name, array in there.items() if not (other and name.startswith("classifier/"))}
    problems, left = fitting.differences(usable, wanted, {entry.path for entry in table if entry.head}, fields)
    if problems:
        raise CheckpointError(f"the weights in {folder} do not fit this model:\n  " + "\n  ".join(problems))
    taken = wanted.keys() - left.keys()
    unused += [name for entry in table if entry.path in there and entry.path not in taken for name in entry.names]
    return usable, left, unused


def to_hf(params: Any, model: Mapping[str, Any], architecture: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Convert a model's parameters to tensors by name and config.json for an architecture of transformers.

    Args:
      params: nested, in host memory.
      model: config.model, for what the parameters do not reveal: `heads`, `activation`, `epsilon`, ...
      architecture: one of the module's table.

    Raises:
      ConfigError: the architecture is unknown, or config.model lacks a field.
      CheckpointError: the architecture cannot express the model.
    """
    tensors, config, _ = with_table(params, model, architecture)
    return tensors, config


def with_table(
    params: Any, model: Mapping[str, Any], architecture: str
) -> tuple[dict[str, np.ndarray], dict[str, Any], list[Entry]]:
    """Return what `to_hf` does, and the table of our parameters and their tensors."""
    families = [family for family in FAMILIES if architecture in family.ARCHITECTURES]
    if not families:
        known = ", ".join(name for family in FAMILIES for name in family.ARCHITECTURES)
        raise ConfigError(f"no export to {architecture!r}: expected one of {known}")
    try:
        config, params = families[0].to_hf(jax.tree.map(np.asarray, params), model, architecture)
    except KeyError as error:
        raise CheckpointError(f"the model has no {error} parameters, which a {architecture} must have") from error
    flat, tensors, table = by_name(params), {}, families[0].entries(config)
    for entry in table:
        if entry.path not in flat and entry.head:
            continue
        if entry.path not in flat:
            raise CheckpointError(f"the model has no parameter {entry.path}, which a {architecture} must have")
        array = flat.pop(entry.path)
        stacked = "{}" in entry.names[0]
        for layer, ours in enumerate(array if stacked else [array]):
            for name, tensor in zip(entry.names, entry.layout.write(ours), strict=True):
                tensors[name.format(layer)] = np.asarray(tensor, np.float32, order="C")
    for name, source in families[0].ALIASES:
        if source in tensors and not config.get("tie_word_embeddings", True):  # else transformers ties them
            tensors[name] = tensors[source]
    for name, source in families[0].copies(config).items() if hasattr(families[0], "copies") else ():
        tensors.setdefault(name, tensors[source])
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    if flat:
        raise CheckpointError(f"Hugging Face's {architecture} has no place for the parameters {', '.join(flat)}")
    return tensors, config, table


def architecture(task: ModuleType, model: Mapping[str, Any]) -> str | None:
    """Return the architecture of a task's model from its constant HF_ARCHITECTURE; None without one.

    Of several encoder-decoders the kind of positions in config.model decides.
    """
    names = getattr(task, "HF_ARCHITECTURE", None)
    if names is None or isinstance(names, str):
        return names
    kinds = {name: family.POSITIONS for family in model_config.PAIRS for name in family.ARCHITECTURES}
    return next((name for name in names if kinds.get(name) == model.get("positions")), names[0])


def _canonical(
    names: Mapping[str, Any], table: list[Entry], family: ModuleType, fields: Mapping[str, Any]
) -> dict[str, str]:
    """Map the table's names of tensors to names in the files.

    Handles the missing prefix of a bare body and BERT's old norm names. Of two tied tensors one is enough.
    """
    known = {name for entry in table for layer in _tensor_names(entry, fields) for name in layer}
    canonical = {}
    for name in names:
        renamed = re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))
        prefixed = family.PREFIX + renamed
        canonical[prefixed if renamed not in known and prefixed in known else renamed] = name
    for name, source in family.TIED:
        if name in canonical and name not in known and source not in canonical:
            canonical[source] = canonical.pop(name)
    for name, source in family.ALIASES:
        if name in canonical:
            canonical[source] = canonical.pop(name)
    return canonical


def _tensor_names(entry: Entry, fields: Mapping[str, Any]) -> list[list[str]]:
    """Return the names of an entry's tensors, a list per layer."""
    layers = range(fields[entry.depth]) if "{}" in entry.names[0] else [0]
    return [[name.format(layer) for name in entry.names] for layer in layers]


def _nest(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, array in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    return tree
