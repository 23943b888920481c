"""Import and export of Hugging Face weights, GPT-2, ImageGPT, BERT and ViT, as folders of transformers.

| architecture | our model |
|---|---|
| GPT2LMHeadModel | `models.GPT` with layer norms |
| ImageGPTForCausalImageModeling | `models.GPT` with `norm="rms"`, whose outputs lack the start token |
| BertForPreTraining | `models.BERT`, initialized for `pretrain` |
| BertForSequenceClassification, BertForMultipleChoice | `models.BERT`, initialized for `classify` |
| BertForTokenClassification, BertForQuestionAnswering | `models.BERT`, initialized for `tag` |
| ViTForImageClassification | `models.ViT` with `pool="token"` |
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jtasks.data import assets
from jtasks.errors import CheckpointError, ConfigError
from jtasks.interop import bert, files, gpt2, resizing, settings, vit
from jtasks.interop.layouts import Entry
from jtasks.tree import by_name, leaf_name

GPT = "ImageGPTImageProcessor"

# Fields of config.model that depend on the task, not on the weights; all others must agree.
FREE = ("dropout", "attention_dropout", "classifier_dropout")
SIZES = ("vocab", "outputs", "max_length", "width", "depth", "heads", "mlp_dim", "token_types", "patch")
# Hyperparameters that cannot be inferred from parameter shapes.
UNSEEN = ("heads", "activation", "norm", "epsilon")


def model_fields(folder: str | pathlib.Path) -> dict[str, Any]:
    """Return the fields of config.model that describe the folder's model, from its config.json.

    Includes the fields that a task derives from its data: `num_colors` and `palette` of an ImageGPT (if its folder
    holds color clusters), `shape` of a ViT's images.

    Raises:
      CheckpointError: there is no such folder, or its model is none of ours.
    """
    folder = pathlib.Path(folder).expanduser()
    config, fields = _read(folder)
    clusters = folder / "preprocessor_config.json"
    if config["model_type"] == "imagegpt" and clusters.exists():
        processor = files.read_json(clusters)
        levels = np.asarray(processor.get("clusters", ()), np.float64)
        if levels.shape == (fields["num_colors"], 3):
            fields["palette"] = tuple(tuple(float(x) for x in color) for color in (levels + 1) * 127.5)
            if "size" in processor:
                fields["resize"] = tuple(resizing.read({"image_processor_type": GPT} | processor, clusters))
    if config["model_type"] == "vit" and clusters.exists():
        processor = files.read_json(clusters)
        fields |= vit.normalization(processor, config.get("num_channels", 3), clusters)
        height, width = fields["shape"]
        own = {
            "size": {"height": height, "width": width}
        } | processor  # without sizes in the file, config.json has them
        fields["resize"] = tuple(resizing.read(own, clusters))
    return fields


def class_names(folder: pathlib.Path) -> list[str] | None:
    """Return a folder's class names in the order of the classifier's rows; None if config.json has none."""
    return settings.class_names(files.read_config(folder))


def image_size(folder: str) -> int | None:
    """Return the width and height of the images of a folder's ViT; None if they differ, or for another model."""
    config = files.read_config(pathlib.Path(folder).expanduser())
    height, width = vit.fields(config)["shape"] if config.get("model_type") == "vit" else (0, 1)
    return height if height == width else None


def complete(values: Mapping[str, Any], model: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return values for the placeholders (None) of config.model: the folder's, else `values` from the data.

    The folder's model may have more ids and positions than the data needs. The data sets the images' shape, and without
    a palette in the folder the number of colors.

    Raises:
      ConfigError: the data needs more ids or positions than the folder's model has, or pictures have another size.
    """
    asked = {name for name in {*model, *values} if model.get(name) is None}
    if not asked:
        return dict(values)
    theirs = model_fields(folder)
    for name in sorted({"vocab", "max_length"} & asked & set(values) & set(theirs)):
        if values[name] > theirs[name]:
            raise ConfigError(
                f"the data needs config.model.{name}={values[name]}, but the model in {folder} has {theirs[name]}"
            )
    shape = model.get("shape") or values.get("shape")
    if (
        shape
        and "resize" in asked & set(theirs)
        and resizing.Resize(*theirs["resize"]).shape not in ((0, 0), tuple(shape))
    ):
        made = "x".join(map(str, resizing.Resize(*theirs["resize"]).shape))
        raise ConfigError(
            f"{folder}/{assets.PROCESSOR} makes pictures of {made}, config.model.shape is {tuple(shape)}: set"
            " config.data.size, or size and crop_size of that file"
        )
    of_the_data = {"shape"} if "palette" in theirs else {"shape", "num_colors"}
    return {**values, **{name: value for name, value in theirs.items() if name in asked - of_the_data}}


def from_hf(folder: str | pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """Read the folder's parameters, float32 in host memory, in the structure of our model of the same fields.

    Returns:
      The nested params, with all heads in the folder, and the names of unused tensors.

    Raises:
      CheckpointError: there is no such folder, a tensor is absent or damaged, or the model is none of ours.
    """
    folder = pathlib.Path(folder).expanduser()
    config, fields = _read(folder)
    table, where = _family(config).entries(config), files.where(folder)
    names = _canonical(where, table, _family(config), fields["depth"])
    flat: dict[str, np.ndarray] = {}
    used: set[str] = set()
    for entry in table:
        wanted = _tensor_names(entry, fields["depth"])
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
    return _nest(flat), sorted(name for canonical, name in names.items() if canonical not in used)


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
    config, fields = _read(pathlib.Path(folder).expanduser())[0], model_fields(folder)
    _agree(fields, model, folder, warn)
    table = _family(config).entries(config)
    tree, unused = from_hf(folder)
    there, wanted = _flat(tree), _flat(params)
    other = architecture in (*bert.CLASSIFIERS, bert.ANSWERS) and architecture != settings.architecture(config)
    usable = {name: array for name, array in there.items() if not (other and name.startswith("classifier/"))}
    problems, left = _differences(usable, wanted, {entry.path for entry in table if entry.head}, fields)
    if problems:
        raise CheckpointError(f"the weights in {folder} do not fit this model:\n  " + "\n  ".join(problems))
    taken = [name for name in wanted if name not in left]
    unused += [name for entry in table if entry.path in there and entry.path not in taken for name in entry.names]
    report = {"taken": taken, "left": list(left.values()), "unused": _by_layer(unused)}

    def put(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if leaf_name(path) in left:
            return leaf
        array = usable[leaf_name(path)].astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    return jax.tree_util.tree_map_with_path(put, params), report


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
    families = [family for family in (gpt2, bert, vit) if architecture in family.ARCHITECTURES]
    if not families:
        known = ", ".join((*gpt2.ARCHITECTURES, *bert.ARCHITECTURES, *vit.ARCHITECTURES))
        raise ConfigError(f"no export to {architecture!r}: expected one of {known}")
    try:
        config, params = families[0].to_hf(jax.tree.map(np.asarray, params), model, architecture)
    except KeyError as error:
        raise CheckpointError(f"the model has no {error} parameters, which a {architecture} must have") from error
    flat, tensors = _flat(params), {}
    for entry in families[0].entries(config):
        if entry.path not in flat and entry.head:
            continue
        if entry.path not in flat:
            raise CheckpointError(f"the model has no parameter {entry.path}, which a {architecture} must have")
        array = flat.pop(entry.path)
        stacked = "{}" in entry.names[0]
        for layer, ours in enumerate(array if stacked else [array]):
            for name, tensor in zip(entry.names, entry.layout.write(ours), strict=True):
                tensors[name.format(layer)] = np.ascontiguousarray(tensor, np.float32)
    if flat:
        raise CheckpointError(f"Hugging Face's {architecture} has no place for the parameters {', '.join(flat)}")
    return tensors, config


def architecture(task: ModuleType) -> str | None:
    """Return the architecture of a task's model, its constant HF_ARCHITECTURE; None without one."""
    return getattr(task, "HF_ARCHITECTURE", None)


def _family(config: Mapping[str, Any]) -> ModuleType:
    families = {"gpt2": gpt2, "imagegpt": gpt2, "bert": bert, "vit": vit}
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in families:
        raise CheckpointError(f"config.json says model_type={kind!r}; expected one of {', '.join(families)}")
    return families[kind]


def _read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read config.json and the fields of our model.

    As in transformers, weights that config.json ties stay separate if the files hold both and they differ.

    Raises:
      CheckpointError: config.json lacks a field, has an odd one, or describes more weights than the files hold.
    """
    config = files.read_config(folder)
    family = _family(config)
    where = files.where(folder)
    for name, source in family.TIED:
        source = source if source in where else source.removeprefix(family.PREFIX)
        if config.get("tie_word_embeddings", True) and name in where and source in where:
            one, other = (files.read(where[key], key) for key in (name, source))
            config["tie_word_embeddings"] = bool(np.array_equal(one, other))
    try:
        fields = family.fields(config)
    except KeyError as error:
        raise CheckpointError(
            f"{folder / files.CONFIG} has no {error}, which a {config['model_type']} must have"
        ) from None
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{folder / files.CONFIG} has an odd value: {error}") from error
    for name in SIZES:
        value = fields.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{folder / files.CONFIG}: {name} comes out as {value!r}, expected a whole number")
    for name in ("epsilon", "dropout", "attention_dropout", "classifier_dropout"):
        if isinstance(value := fields.get(name, 0), bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{folder / files.CONFIG}: {name} comes out as {value!r}, expected a number")
    size = sum(file.stat().st_size for file in set(where.values()))
    table, layers = (
        fields["width"] * factor for factor in (fields.get("vocab", 0), fields["depth"] * fields["mlp_dim"])
    )
    if table + layers > size or fields["width"] % fields["heads"]:
        raise CheckpointError(
            f"{folder / files.CONFIG} does not go with the weights beside it: width {fields['width']}, heads"
            f" {fields['heads']}, depth {fields['depth']}, and {size:,} bytes of weights"
        )
    return config, fields


def _canonical(names: Mapping[str, Any], table: list[Entry], family: ModuleType, depth: int) -> dict[str, str]:
    """Map the table's names of tensors to names in the files.

    Handles the missing prefix of a bare body and BERT's old norm names. Of two tied tensors one is enough.
    """
    known = {name for entry in table for layer in _tensor_names(entry, depth) for name in layer}
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


def _tensor_names(entry: Entry, depth: int) -> list[list[str]]:
    """Return the names of an entry's tensors, a list per layer."""
    layers = range(depth) if "{}" in entry.names[0] else [0]
    return [[name.format(layer) for name in entry.names] for layer in layers]


def _agree(fields: Mapping[str, Any], model: Mapping[str, Any], folder: str, warn: Callable[[str], None]) -> None:
    """Check config.model against the folder's fields."""
    resolved = {name: model[name] for name in model}
    if resolved.get("mlp_dim") == 0:
        resolved["mlp_dim"] = 4 * resolved["width"]
    hints = {"shape": " (config.data.size scales the images)"}
    different = [
        f"config.model.{name} is {resolved[name]!r}, there {value!r}{hints.get(name, '')}"
        for name, value in fields.items()
        if name in resolved and name not in FREE and not _equal(resolved[name], value)
    ]
    if different:
        raise ConfigError(
            f"config.model is not the model in {folder}:\n  "
            + "\n  ".join(different)
            + "\nset them as there, or to None, which takes the value from there"
        )
    for name in UNSEEN:
        if name in fields and name not in resolved:
            warn(f"config.model has no {name}; the weights in {folder} are for {name}={fields[name]!r}")


def _equal(one: Any, other: Any) -> bool:
    return alike(one, other) if isinstance(one, float | tuple) else bool(one == other)


def alike(one: Any, other: Any) -> bool:
    """Return whether numbers, or nested lists of numbers, are equal except for rounding."""
    try:
        first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    except (ValueError, TypeError):
        return False
    return first.shape == second.shape and bool(np.allclose(first, second, rtol=1e-6, atol=1e-5 * first.ndim))


def _differences(
    theirs: Mapping[str, np.ndarray], wanted: Mapping[str, Any], heads: set[str], fields: Mapping[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Return differences that are errors, and parameters to leave as initialized, by name with the reason."""
    problems, left = [], {}
    for name, leaf in wanted.items():
        ours = f"{name} {list(leaf.shape)}"
        if name not in theirs:
            left[name] = f"{ours}: not there"
            if name == "head/kernel" and fields.get("tied"):
                problems.append(f"{ours}: there the head is the input embedding; set config.model.tied=True")
        elif theirs[name].shape != leaf.shape:
            left[name] = f"{ours}: there it is {list(theirs[name].shape)}"
            if name not in heads:
                problems.append(left[name])
    # A kernel without its bias is half a head.
    halves = {name.rpartition("/")[0] for name in left if name in heads}
    for name in wanted:
        if name not in left and name in heads and name.rpartition("/")[0] in halves:
            left[name] = f"{name} {list(wanted[name].shape)}: its other part does not fit"
    modules = {name.rpartition("/")[0] for name in wanted if name not in left}
    for name in theirs:
        if name not in wanted and (name not in heads or name.rpartition("/")[0] in modules):
            problems.append(f"{name} {list(theirs[name].shape)} is there, and this model has no place for it")
    missing = [text for name, text in left.items() if name not in theirs and name.rpartition("/")[0] in modules]
    return problems + missing, left


def _by_layer(names: list[str]) -> list[str]:
    """Merge names that differ only in the number of the layer."""
    counts: dict[str, int] = {}
    for name in names:
        general = re.sub(r"\.\d+\.", ".*.", name)
        counts[general] = counts.get(general, 0) + 1
    return [name if count == 1 else f"{name} ({count} layers)" for name, count in counts.items()]


def _flat(tree: Any) -> dict[str, Any]:
    return by_name(tree)


def _nest(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, array in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    return tree
