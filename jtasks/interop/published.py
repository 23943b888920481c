"""What config.json says in published models that presets name, so that a plan of these needs no network.

The values are those of the repositories on the Hugging Face hub, except for what transformers assumes anyway.
"""

from typing import Any

_BERT = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_BLIP = {
    "model_type": "blip",
    "image_text_hidden_size": 256,
    "text_config": {**_BASE, "encoder_hidden_size": 768, "vocab_size": 30_524},
    "vision_config": {**_BASE, "image_size": 384, "patch_size": 16},
}
_CLIP_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}

CONFIGS: dict[str, dict[str, Any]] = {
    "Helsinki-NLP/opus-mt-en-de": {
        "model_type": "marian",
        "vocab_size": 58_101,
        "d_model": 512,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "decoder_ffn_dim": 2048,
        "max_position_embeddings": 512,
        "activation_function": "swish",
        "scale_embedding": True,
        "pad_token_id": 58_100,
        "eos_token_id": 0,
        "decoder_start_token_id": 58_100,
    },
    "Salesforce/blip-image-captioning-base": {**_BLIP, "architectures": ["BlipForConditionalGeneration"]},
    "Salesforce/blip-itm-base-coco": {**_BLIP, "architectures": ["BlipForImageTextRetrieval"]},
    "Salesforce/blip-vqa-base": {**_BLIP, "architectures": ["BlipForQuestionAnswering"]},
    "facebook/bart-base": {
        "model_type": "bart",
        "vocab_size": 50_265,
        "d_model": 768,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
        "max_position_embeddings": 1024,
        "activation_function": "gelu",
    },
    "google-bert/bert-base-cased": {**_BERT, "vocab_size": 28_996},
    "google-bert/bert-base-uncased": {**_BERT, "vocab_size": 30_522},
    "google-t5/t5-small": {
        "model_type": "t5",
        "vocab_size": 32_128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
    },
    "google/siglip-base-patch16-224": {
        "model_type": "siglip",
        "text_config": {**_BASE, "vocab_size": 32_000, "max_position_embeddings": 64},
        "vision_config": {**_BASE, "image_size": 224, "patch_size": 16},
    },
    "google/vit-base-patch16-224": {"model_type": "vit", **_BASE, "image_size": 224, "patch_size": 16},
    "openai-community/gpt2": {
        "model_type": "gpt2",
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
    },
    "openai/clip-vit-base-patch32": {
        "model_type": "clip",
        "projection_dim": 512,
        "text_config": {**_CLIP_TEXT, "vocab_size": 49_408, "max_position_embeddings": 77},
        "vision_config": {**_BASE, "image_size": 224, "patch_size": 32},
    },
    "openai/imagegpt-small": {
        "model_type": "imagegpt",
        "vocab_size": 513,
        "n_positions": 1024,
        "n_embd": 512,
        "n_layer": 24,
        "n_head": 8,
        "activation_function": "quick_gelu",
    },
}
