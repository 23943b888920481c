"""GPT-2 (Radford et al. 2019) and ImageGPT (Chen et al. 2020) of transformers, as `models.GPT`.

ImageGPT is GPT-2 with root-mean-square norms, another activation, and a head without the start token.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jtasks.errors import CheckpointError
from jtasks.interop import settings
from jtasks.interop.layouts import IDENTITY, TRANSPOSED, Entry, fused_qkv, linear, norm

PREFIX = "transformer."
IMAGE = "ImageGPTForCausalImageModeling"
TEXT = "GPT2LMHeadModel"
ARCHITECTURES = (TEXT, IMAGE)
TIED = (("lm_head.weight", f"{PREFIX}wte.weight"),)  # tied unless config.json says otherwise
ALIASES = ()

DEFAULTS: Mapping[str, Any] = {
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
}
# Fixed properties of our model; a folder that differs holds another model.
FIXED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}

START_LOGIT = -1000.0


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `models.GPT` for config.json, and for an ImageGPT its number of colors."""
    config = {**DEFAULTS, **config}
    settings.refuse(config, FIXED)
    image, vocab = config["model_type"] == "imagegpt", config["vocab_size"]
    arguments = {
        "vocab": vocab,
        "outputs": vocab - 1 if image else vocab,
        "max_length": config["n_positions"],
        "width": config["n_embd"],
        "depth": config["n_layer"],
        "heads": config["n_head"],
        "mlp_dim": config["n_inner"] or 4 * config["n_embd"],
        "tied": _is_tied(config),
        "activation": settings.activation(config["activation_function"]),
        "norm": "rms" if image else "layer",
        "epsilon": config["layer_norm_epsilon"],
        "dropout": config["resid_pdrop"],
        "attention_dropout": config["attn_pdrop"],
    }
    return {**arguments, "num_colors": vocab - 1} if image else arguments


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the tensors of each parameter; the LM head is required only if the named architecture has one."""
    layer, biased = f"{PREFIX}h.{{}}", config["model_type"] != "imagegpt"
    attention, fused = f"{layer}.attn.c_attn", fused_qkv(config["n_head"])
    body = [
        Entry("tokens/embedding", (f"{PREFIX}wte.weight",), IDENTITY),
        Entry("position/embedding", (f"{PREFIX}wpe.weight",), IDENTITY),
        *norm("blocks/norm1", f"{layer}.ln_1", bias=biased),
        Entry("blocks/attention/query_key_value/kernel", (f"{attention}.weight",), fused),
        Entry("blocks/attention/query_key_value/bias", (f"{attention}.bias",), fused),
        *linear("blocks/attention/output", f"{layer}.attn.c_proj", IDENTITY),
        *norm("blocks/norm2", f"{layer}.ln_2", bias=biased),
        *linear("blocks/up", f"{layer}.mlp.c_fc", IDENTITY),
        *linear("blocks/down", f"{layer}.mlp.c_proj", IDENTITY),
        *norm("norm", f"{PREFIX}ln_f", bias=biased),
    ]
    if _is_tied(config):
        return body
    needed = settings.architecture(config) in (*ARCHITECTURES, "GPT2DoubleHeadsModel")
    return [*body, Entry("head/kernel", ("lm_head.weight",), TRANSPOSED, head=not needed)]


def to_hf(params: dict[str, Any], model: Mapping[str, Any], architecture: str) -> tuple[dict[str, Any], Any]:
    """Return config.json of a GPT's parameters, and the parameters in the form of `architecture`.

    ImageGPT has no layer norms: an ImageGPT with layer norms becomes a GPT-2.
    """
    vocab, width = params["tokens"]["embedding"].shape
    rms, outputs = "bias" not in params["norm"], vocab
    if "head" in params:
        outputs = params["head"]["kernel"].shape[1]
    if architecture == IMAGE and not rms:
        architecture = TEXT
    if architecture == TEXT and rms:
        raise CheckpointError(f"{TEXT} of Hugging Face has layer norms, this model root-mean-square norms")
    if architecture == TEXT and outputs == vocab - 1:
        params, outputs = with_start_token(params), vocab
    if outputs != vocab - (architecture == IMAGE):
        raise CheckpointError(f"{architecture} of Hugging Face cannot read {vocab} ids and predict {outputs}")
    config = {
        "architectures": [architecture],
        "model_type": "imagegpt" if architecture == IMAGE else "gpt2",
        "vocab_size": vocab,
        "n_positions": params["position"]["embedding"].shape[0],
        "n_embd": width,
        "n_layer": params["blocks"]["up"]["kernel"].shape[0],
        "n_head": settings.require_field(model, "heads"),
        "n_inner": params["blocks"]["up"]["kernel"].shape[-1],
        "activation_function": settings.activation_out(settings.require_field(model, "activation")),
        "layer_norm_epsilon": settings.require_field(model, "epsilon"),
        "resid_pdrop": model.get("dropout", 0.0),
        "embd_pdrop": model.get("dropout", 0.0),
        "attn_pdrop": model.get("attention_dropout", 0.0),
        "tie_word_embeddings": "head" not in params,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **FIXED,
    }
    return config, params


def with_start_token(params: dict[str, Any]) -> dict[str, Any]:
    """Return an equivalent model with an additional output for the start token, whose logit is always START_LOGIT.

    With a layer norm's scale s and bias b, its output h satisfies sum(h / s) = sum(b / s) = B, so any multiple of 1 / s
    is a row of the head with a constant logit. To keep B far from 0, s (or -s) is first added to b; its effect on the
    other logits is subtracted in the same way.
    """
    scale, bias = (np.asarray(params["norm"][name], np.float64) for name in ("scale", "bias"))
    if not scale.all():
        raise CheckpointError("a scale of the last norm is exactly 0: this model has no form in Hugging Face's GPT-2")
    sign = 1.0 if (bias / scale).sum() >= 0 else -1.0
    shifted = bias + sign * scale
    constant = 1 / scale / (shifted / scale).sum()  # its product with h is always 1
    head = np.asarray(params["head"]["kernel"], np.float64)
    head = head - np.outer(constant, sign * scale @ head)
    head = np.concatenate([head, START_LOGIT * constant[:, None]], axis=1)
    return {
        **params,
        "norm": {"scale": params["norm"]["scale"], "bias": shifted.astype(np.float32)},
        "head": {"kernel": head.astype(np.float32)},
    }


def _is_tied(config: Mapping[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", config["model_type"] == "gpt2"))
