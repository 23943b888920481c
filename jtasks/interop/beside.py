"""Files beside the weights in an exported folder: class names, special ids, generation and tokenizer settings.

Fields of the Hugging Face folder that a run began with are kept if they do not describe the weights.
"""

import json
from collections.abc import Mapping
from typing import Any

from jtasks.data import assets, tokenizer_files, tokenizers
from jtasks.interop import settings

# Special tokens by their names in transformers; the first one in a vocabulary counts.
ROLES = {
    "unk_token": ("[UNK]", "<unk>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
    "bos_token": ("<s>", "<|startoftext|>", tokenizers.END),
    "eos_token": ("</s>", tokenizers.END),
}
GENERATES = ("GPT2LMHeadModel", "ImageGPTForCausalImageModeling")
TEXT = "text_config"  # what a model of texts and pictures says of its texts
GENERATION, NOTHING = "generation_config.json", {"_from_model_config": True}
# Fields of the first folder that the export writes itself, or that describe that folder's files.
DROPPED = ("id2label", "label2id", "dtype", "torch_dtype", "quantization_config", "auto_map", "_name_or_path")


def config(
    written: Mapping[str, Any], first: Mapping[str, Any], files: Mapping[str, str], first_vocabulary: Mapping[str, int]
) -> dict[str, Any]:
    """Return the whole config.json.

    Args:
      written: fields that describe the weights, from `huggingface.to_hf`.
      first: config.json of the folder that the run began with; {} without one.
      files: the task's assets.
      first_vocabulary: vocabulary of that folder's tokenizer; {} without one.
    """
    kept = {name: value for name, value in first.items() if name not in DROPPED}
    whole = kept | {name: value for name, value in written.items() if value is not None or name not in kept}
    for name, part in written.items():
        if isinstance(part, Mapping) and isinstance(kept.get(name), Mapping):  # the config of one of two towers
            whole[name] = {**kept[name], **part}
    if assets.LABELS in files and "id2label" in written:
        whole |= settings.labels(json.loads(files[assets.LABELS]))
    vocabulary = _vocabulary(files)
    given = TEXT in written or "decoder_start_token_id" in written  # the model's own ids
    if vocabulary and not given and not (first and first_vocabulary in ({}, vocabulary)):
        tokens = _special(vocabulary)
        for name in ("bos_token", "eos_token", "pad_token"):
            whole[f"{name}_id"] = vocabulary[tokens[name]] if name in tokens else None
    return whole | {"dtype": "float32"}


def more(
    whole: Mapping[str, Any],
    generation: Mapping[str, Any],
    files: Mapping[str, str],
    sampling: Mapping[str, Any] = {},
) -> dict[str, dict[str, Any]]:
    """Return further files by name, each a JSON object.

    Args:
      whole: result of `config`.
      generation: generation_config.json of the folder that the run began with; {} without one.
      files: the task's assets.
      sampling: the fields of config.sample that `ops.decode.sample` takes.
    """
    architecture, written = whole["architectures"][0], {}
    if architecture in GENERATES:
        ids = {name: whole.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        ids = {name: value for name, value in ids.items() if value is not None}
        own = dict(generation) | _sampling(sampling) | ids
        if sampling:
            own |= {
                "max_length": whole.get("n_positions"),
                "pad_token_id": own.get("pad_token_id", ids.get("eos_token_id")),
            }
        written[GENERATION] = {name: value for name, value in own.items() if value is not None} or dict(NOTHING)
    if vocabulary := _vocabulary(files):
        special = _special(vocabulary)
        if TEXT in whole and "eos_token" in special:  # CLIP and SigLIP fill up with the end
            special.setdefault("pad_token", special["eos_token"])
        inputs = ["input_ids", "attention_mask"]
        if whole["model_type"] == "bert":
            inputs.insert(1, "token_type_ids")  # GPT-2 would add an embedding for them
        if whole["model_type"] == "siglip":
            inputs.remove("attention_mask")  # SigLIP reads its padding
        written["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # transformers rebuilds any other class, with other ids
            "model_input_names": inputs,
            "model_max_length": whole.get(TEXT, whole).get("max_position_embeddings", whole.get("n_positions")),
            "clean_up_tokenization_spaces": False,
            **_case(files),
            **special,
        }
        written["special_tokens_map.json"] = special
    return written


def _sampling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return transformers' names of the fields of config.sample; a temperature of 0 takes the likeliest token."""
    if not fields:
        return {}
    if not fields["temperature"]:
        return {"do_sample": False}
    return {"do_sample": True} | {name: fields[name] for name in ("temperature", "top_k", "top_p", "min_p")}


def _case(files: Mapping[str, str]) -> dict[str, bool]:
    """Return whether a WordPiece tokenizer drops case, as older classes of tokenizers read it."""
    normalizer = json.loads(files[tokenizer_files.FILE]).get("normalizer") or {}
    return {"do_lower_case": normalizer["lowercase"]} if normalizer.get("type") == "BertNormalizer" else {}


def _special(vocabulary: Mapping[str, int]) -> dict[str, str]:
    tokens = {role: next((name for name in names if name in vocabulary), None) for role, names in ROLES.items()}
    return {role: name for role, name in tokens.items() if name is not None}


def _vocabulary(files: Mapping[str, str]) -> dict[str, int]:
    return tokenizers.parse(files[tokenizer_files.FILE]).get_vocab() if tokenizer_files.FILE in files else {}
