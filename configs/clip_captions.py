"""Fine-tune CLIP or SigLIP on pictures with captions of one's own (Radford et al. 2021; Zhai et al. 2023).

  python main.py --config=configs/clip_captions.py[:PRESET] --workdir=runs/clip --config.data.dir=PICTURES

PICTURES holds COCO's or LAVIS's JSON, a table, or pictures with a captions.txt; see docs/how_to/retrieval.md.

| preset | model | trains |
|---|---|---|
| `clip` (default) | hf:openai/clip-vit-base-patch32 | both towers |
| `lit` | the same | the text tower; the image tower is locked (Zhai et al. 2022) |
| `siglip` | hf:google/siglip-base-patch16-224 | both towers, with the sigmoid loss |
| `scratch` | a ViT-S/16 and a text tower of the same size | both towers |

`--config.init_from=hf:FOLDER --config.data.tokenizer=hf:FOLDER` takes another CLIP or SigLIP. `config.accumulate` fits
a large batch into little memory, with the same loss. Not measured yet; configs/clip_emoji.py is.
"""

import ml_collections

# model, frozen parameters, batch size, learning rate
PRESETS = {
    "clip": ("hf:openai/clip-vit-base-patch32", "", 256, 1e-5),
    "lit": ("hf:openai/clip-vit-base-patch32", "^image/", 256, 5e-5),
    "siglip": ("hf:google/siglip-base-patch16-224", "", 256, 1e-5),
    "scratch": ("", "", 512, 1e-3),
}
TOWER = ("width", "depth", "heads", "mlp_dim", "activation", "epsilon")
# Fields that the folder of a model gives.
FROM_FOLDER = (
    *(f"{tower}_{field}" for tower in ("image", "text") for field in TOWER),
    *("patch", "patch_bias", "image_pool", "image_norm_first", "text_tower", "embed_dim", "loss"),
)


def get_config(preset: str = "clip") -> ml_collections.ConfigDict:
    model, freeze, batch_size, lr = PRESETS[preset]
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.contrast"
    config.epochs, config.batch_size = 10.0, batch_size
    config.eval_every, config.save_every, config.log_every = 500, 500, 50
    config.best, config.show_count = "valid/loss", 64
    config.data = dict(augment="imagenet", area=0.5)
    config.optim = dict(name="adamw", lr=lr, schedule="cosine", warmup=0.05, clip=1.0, freeze=freeze)
    config.optim.update(weight_decay=0.1, decay_mask="kernel$", b2=0.98)
    if model:
        config.init_from = config.data.tokenizer = model
        config.model = dict.fromkeys(FROM_FOLDER)
    else:
        config.data.update(tokenizer="bpe:8000", length=32, size=224)
        config.model = dict(patch=16, image_width=384, image_depth=12, image_heads=6)
        config.model.update(image_norm_first=True, patch_bias=False)  # as CLIP, so that transformers has the model
        config.model.update(text_width=384, text_depth=6, text_heads=6, embed_dim=384)
    return config
