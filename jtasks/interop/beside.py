"""What an exported folder holds beside the weights: class names, special ids, how to generate and to tokenize.

The fields of a Hugging Face folder that a run began with, and that say nothing of the weights, are kept.
"""

import json
from collections.abc import Mapping
from typing import Any

from jtasks.data import assets, tokenizer_files, tokenizers
from jtasks.interop import settings

# The special tokens by their names in transformers, and what tokenizers call them; the first of a vocabulary counts.
ROLES = {
    "unk_token": ("[UNK]", "<unk>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
    "bos_token": ("<s>", tokenizers.END),
    "eos_token": ("</s>", tokenizers.END),
}
GENERATES = ("GPT2LMHeadModel", "ImageGPTForCausalImageModeling")
# Of the folder that a run began with: what the export says anew, or what is of that folder's files alone.
DROPPED = ("id2label", "label2id", "dtype", "torch_dtype", "quantization_config", "auto_map", "_name_or_path")


def config(
    written: Mapping[str, Any], first: Mapping[str, Any], files: Mapping[str, str], first_vocabulary: Mapping[str, int]
) -> dict[str, Any]:
    """The whole config.json.

    Args:
      written: the fields that describe the weights, as `huggingface.to_hf` gives them.
      first: config.json of the folder that the run began with; {} for none.
      files: the task's assets.
      first_vocabulary: of that folder's tokenizer; {} where it has none.
    """
    kept = {name: value for name, value in first.items() if name not in DROPPED}
    whole = kept | {name: value for name, value in written.items() if value is not None or name not in kept}
    if assets.LABELS in files and "id2label" in written:
        whole |= settings.labels(json.loads(files[assets.LABELS]))
    vocabulary = _vocabulary(files)
    if vocabulary and not (first and first_vocabulary in ({}, vocabulary)):
        tokens = _special(vocabulary)
        for name in ("bos_token", "eos_token", "pad_token"):
            whole[f"{name}_id"] = vocabulary[tokens[name]] if name in tokens else None
    return whole | {"dtype": "float32"}


def more(
    whole: Mapping[str, Any], generation: Mapping[str, Any], files: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Further files by name, each a JSON object.

    Args:
      whole: what `config` gives.
      generation: generation_config.json of the folder that the run began with; {} for none.
      files: the task's assets.
    """
    architecture, written = whole["architectures"][0], {}
    if architecture in GENERATES:
        ids = {name: whole.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        ids = {name: value for name, value in ids.items() if value is not None}
        written["generation_config.json"] = dict(generation) | ids or {"_from_model_config": True}
    if vocabulary := _vocabulary(files):
        inputs = ["input_ids", "attention_mask"]
        if whole["model_type"] == "bert":
            inputs.insert(1, "token_type_ids")  # GPT-2 would add an embedding of them
        written["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # any other one is built anew, with other ids
            "model_input_names": inputs,
            "model_max_length": whole.get("max_position_embeddings", whole.get("n_positions")),
            "clean_up_tokenization_spaces": False,
            **_special(vocabulary),
        }
    return written


def _special(vocabulary: Mapping[str, int]) -> dict[str, str]:
    tokens = {role: next((name for name in names if name in vocabulary), None) for role, names in ROLES.items()}
    return {role: name for role, name in tokens.items() if name is not None}


def _vocabulary(files: Mapping[str, str]) -> dict[str, int]:
    return tokenizers.parsed(files[tokenizer_files.FILE]).get_vocab() if tokenizer_files.FILE in files else {}
