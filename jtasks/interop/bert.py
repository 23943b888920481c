"""BERT (Devlin et al. 2019) of transformers, with its pre-training and fine-tuning heads, as `models.BERT`."""

from collections.abc import Mapping
from typing import Any

from jtasks.interop import settings
from jtasks.interop.layouts import IDENTITY, TRANSPOSED, Entry, fused_linear, linear, norm

PREFIX = "bert."
CLASSIFIERS = ("BertForSequenceClassification", "BertForTokenClassification", "BertForMultipleChoice")
ANSWERS = "BertForQuestionAnswering"
ARCHITECTURES = ("BertForPreTraining", *CLASSIFIERS, ANSWERS)
TIED = (("cls.predictions.decoder.weight", f"{PREFIX}embeddings.word_embeddings.weight"),)
ALIASES = (("cls.predictions.decoder.bias", "cls.predictions.bias"),)  # transformers added the first

DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
}
FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `models.BERT` for config.json."""
    config = {**DEFAULTS, **config}
    settings.refuse(config, FIXED)
    dropout = config["classifier_dropout"]
    return {
        "vocab": config["vocab_size"],
        "max_length": config["max_position_embeddings"],
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_dim": config["intermediate_size"],
        "token_types": config["type_vocab_size"],
        "activation": settings.activation(config["hidden_act"]),
        "epsilon": config["layer_norm_eps"],
        "dropout": config["hidden_dropout_prob"],
        "attention_dropout": config["attention_probs_dropout_prob"],
        "classifier_dropout": config["hidden_dropout_prob"] if dropout is None else dropout,
    }


def entries(config: Mapping[str, Any]) -> list[Entry]:
    """Return the tensors of each parameter; all heads are optional, and each task has one kind of classifier."""
    layer, embeddings = f"{PREFIX}encoder.layer.{{}}", f"{PREFIX}embeddings"
    three = [f"{layer}.attention.self.{x}" for x in ("query", "key", "value")]
    heads = config["num_attention_heads"]
    body = [
        Entry("tokens/embedding", (f"{embeddings}.word_embeddings.weight",), IDENTITY),
        Entry("position/embedding", (f"{embeddings}.position_embeddings.weight",), IDENTITY),
        Entry("type/embedding", (f"{embeddings}.token_type_embeddings.weight",), IDENTITY),
        *norm("norm", f"{embeddings}.LayerNorm"),
        *fused_linear("blocks/attention/query_key_value", three, heads),
        *linear("blocks/attention/output", f"{layer}.attention.output.dense"),
        *norm("blocks/norm1", f"{layer}.attention.output.LayerNorm"),
        *linear("blocks/up", f"{layer}.intermediate.dense"),
        *linear("blocks/down", f"{layer}.output.dense"),
        *norm("blocks/norm2", f"{layer}.output.LayerNorm"),
        *linear("pooler", f"{PREFIX}pooler.dense", head=True),
    ]
    architecture = settings.architecture(config)
    if architecture == ANSWERS:
        return [*body, *linear("classifier", "qa_outputs", head=True)]
    if architecture in CLASSIFIERS:
        return [*body, *linear("classifier", "classifier", head=True)]
    transform = "cls.predictions.transform"
    pretraining = [
        *linear("masked_dense", f"{transform}.dense", head=True),
        *norm("masked_norm", f"{transform}.LayerNorm", head=True),
        Entry("masked_out/bias", ("cls.predictions.bias",), IDENTITY, head=True),
        *linear("next_sentence", "cls.seq_relationship", head=True),
    ]
    # Our model has no untied output matrix: an error if the head is wanted.
    if not config.get("tie_word_embeddings", True):
        pretraining.append(Entry("masked_out/kernel", ("cls.predictions.decoder.weight",), TRANSPOSED, head=True))
    return [*body, *pretraining]


def to_hf(params: dict[str, Any], model: Mapping[str, Any], architecture: str) -> tuple[dict[str, Any], Any]:
    """Return config.json of a BERT's parameters."""
    vocab, width = params["tokens"]["embedding"].shape
    config = {
        "architectures": [architecture],
        "model_type": "bert",
        "vocab_size": vocab,
        "max_position_embeddings": params["position"]["embedding"].shape[0],
        "type_vocab_size": params["type"]["embedding"].shape[0],
        "hidden_size": width,
        **settings.encoder_out(params["blocks"], model),
        "classifier_dropout": model.get("classifier_dropout"),
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    if "classifier" in params and architecture in CLASSIFIERS[:2]:
        config |= settings.labels(settings.default_names(params["classifier"]["bias"].size))
    return config, params
