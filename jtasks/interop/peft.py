"""Adapters in the format of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

PEFT adapts the modules of transformers by their names. Where query, key and value are one module there, as in GPT-2,
the matrices of our separate layers become one pair of matrices of a larger rank, with zeros in between.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jtasks.errors import CheckpointError
from jtasks.interop import huggingface
from jtasks.interop.layouts import Entry
from jtasks.models import lora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every tensor
# Parts of the names of a ViT's modules, and what newer versions of transformers call them.
RENAMED = {
    "vit.encoder.layer.": "vit.layers.",
    ".attention.attention.query": ".attention.q_proj",
    ".attention.attention.key": ".attention.k_proj",
    ".attention.attention.value": ".attention.v_proj",
    ".attention.output.dense": ".attention.o_proj",
    ".intermediate.dense": ".mlp.fc1",
    ".output.dense": ".mlp.fc2",
}
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "MarianMTModel": "SEQ_2_SEQ_LM",
}


def to_peft(
    adapter: Mapping[str, np.ndarray],
    params: Any,
    model: Mapping[str, Any],
    architecture: str,
    *,
    alpha: float,
    base: str | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Convert an adapter to tensors by name and adapter_config.json.

    Args:
      adapter: the trained arrays by name, in host memory.
      params: the whole parameters with the adapter merged.
      model: config.model.
      architecture: that of transformers.
      alpha: the product of the two matrices is multiplied by alpha / rank.
      base: name or folder of the model in Hugging Face's format that the adapter belongs to; None: it has none yet.

    Raises:
      CheckpointError: PEFT cannot express the adapter.

    Modules that versions of transformers call differently have both names: PEFT takes those that the model has.
    """
    merged, _, table = huggingface.with_table(params, model, architecture)
    by_kernel = {entry.path: entry for entry in table}
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    transposed = False
    for kernel, layers in _by_kernel(adapter, by_kernel).items():
        entry = by_kernel[kernel]
        fan_in_fan_out, pairs = _pairs(entry, layers, adapter)
        transposed = transposed or fan_in_fan_out
        for name, (a, b) in pairs.items():
            for module in {name, _renamed(name)}:
                tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = a, b
                ranks[module] = len(a)
    rank = min(ranks.values())
    whole = _whole_modules([name for name in adapter if not name.endswith((lora.A, lora.B))], by_kernel, set(ranks))
    for name in merged:
        if name.rpartition(".")[0] in whole:
            tensors[PREFIX + name] = merged[name]
    scale = alpha / next(array.shape[-1] for name, array in adapter.items() if name.endswith(lora.A))
    larger = {name: size for name, size in ranks.items() if size != rank}
    return tensors, {
        "peft_type": "LORA",
        "task_type": next((kind for suffix, kind in TASKS.items() if architecture.endswith(suffix)), None),
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "rank_pattern": larger,
        "alpha_pattern": {name: scale * size for name, size in larger.items()},
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(whole) or None,
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _renamed(module: str) -> str:
    """Return the name of a module in newer versions of transformers; that of an adapted layer of a ViT differs."""
    if module.startswith("vit."):
        for old, new in RENAMED.items():
            module = module.replace(old, new)
    return module


def _by_kernel(adapter: Mapping[str, Any], known: Mapping[str, Entry]) -> dict[str, list[str]]:
    """Return the layers of the adapter by the kernel that holds them, each in its place: "" for a part without one."""
    result: dict[str, list[str]] = {}
    for kernel in known:
        module = kernel.removesuffix("/kernel")
        own = [name if name + lora.A in adapter else "" for name in lora.parts(module)]
        if module + lora.A in adapter:
            result[kernel] = [module]
        elif (
            any(own) and adapter[next(filter(None, own)) + lora.B].ndim > adapter[next(filter(None, own)) + lora.A].ndim
        ):
            result[kernel] = own
    named = {layer for layers in result.values() for layer in layers}
    for name in adapter:
        if name.endswith(lora.A) and name.removesuffix(lora.A) not in named:
            raise CheckpointError(f"the architecture has no module for the adapter of {name.removesuffix(lora.A)}")
    return result


def _pairs(
    entry: Entry, layers: list[str], adapter: Mapping[str, np.ndarray]
) -> tuple[bool, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return whether the modules' weights are [in, out], and lora_A [r, in] and lora_B [out, r] of each module."""
    stacked = "{}" in entry.names[0]
    count = len(adapter[next(filter(None, layers)) + lora.A]) if stacked else 1
    result: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    fan_in_fan_out = False
    for number in range(count):
        own = {
            layer: [_layer(adapter[layer + x], number, stacked) for x in (lora.A, lora.B)] for layer in layers if layer
        }
        if len(layers) == 1:
            ((a, b),) = own.values()
            columns = {entry.names[0]: (a, b)}
        elif len(entry.names) == len(layers):
            columns = {
                name: (own[layer][0], _in_place(own[layer][1], place, len(layers)))
                for place, (name, layer) in enumerate(zip(entry.names, layers, strict=True))
                if layer
            }
        else:  # one module there: blocks of a larger rank
            rows = [_in_place(own[layer][1], place, len(layers)) for place, layer in enumerate(layers) if layer]
            a = np.concatenate([own[layer][0] for layer in layers if layer], axis=-1)
            columns = {entry.names[0]: (a, np.concatenate(rows))}
        for name, (a, b) in columns.items():
            try:
                theirs = entry.layout.write(b)[entry.names.index(name)]
                probe = entry.layout.write(np.zeros((1, b.shape[1]), np.float32))[entry.names.index(name)]
            except ValueError as error:
                raise CheckpointError(f"{name} is no linear layer there, so PEFT has no adapter for it") from error
            fan_in_fan_out = probe.shape[0] == 1 and probe.shape[1] > 1
            module = name.removesuffix(".weight").format(number)
            result[module] = _plain(a.T), _plain(theirs.T if fan_in_fan_out else theirs)
    return fan_in_fan_out, result


def _layer(array: np.ndarray, number: int, stacked: bool) -> np.ndarray:
    return np.asarray(array)[number] if stacked else np.asarray(array)


def _in_place(b: np.ndarray, place: int, parts: int) -> np.ndarray:
    """Return B [rank, heads, size] of one part as [rank, heads * parts * size] of the fused kernel."""
    rank, heads, size = b.shape
    fused = np.zeros((rank, heads, parts, size), b.dtype)
    fused[:, :, place] = b
    return fused.reshape(rank, -1)


def _plain(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32, order="C")


def _whole_modules(names: list[str], known: Mapping[str, Entry], adapted: set[str]) -> set[str]:
    """Return the modules of the parameters that are trained whole."""
    modules: set[str] = set()
    for name in names:
        if name not in known:
            raise CheckpointError(f"the architecture has no module for {name}, which is trained whole")
        for tensor in known[name].names:
            module, _, kind = tensor.rpartition(".")
            if kind not in ("weight", "bias") or "{}" in module:
                raise CheckpointError(
                    f"PEFT saves whole modules besides its matrices, but {name} is one parameter of several modules:"
                    " export the merged model with --format=hf"
                )
            modules.add(module)
    if both := sorted(modules & adapted):
        raise CheckpointError(f"{both[0]} has an adapter and a parameter that is trained whole: use --format=hf")
    return modules
