"""Retrieval of pictures and captions by BLIP (Li et al. 2022), fine-tuned as LAVIS's retrieval_coco_ft.yaml.

  python main.py --config=configs/blip_retrieval.py[:PRESET] --workdir=runs/retrieval

The data are pictures with captions in any form of `jtasks/data/caption_files.py`: COCO's or Flickr30K's files with
Karpathy's splits, or own ones. Presets:

- `coco` (default): the published BLIP for retrieval. Another one, with its sizes: --config.init_from=hf:NAME
  --config.data.tokenizer=hf:NAME, a name on the hub or a folder.
- `small`: a small model from scratch on 64x64 pictures.

| LAVIS | value | here |
|---|---|---|
| arch, model_type | blip_retrieval, coco | config.task, config.model, config.init_from |
| embed_dim | 256 | config.model.embed_dim |
| image_size | 384 | config.data.size |
| blip_image_train | crop, mirror, random augmentation | config.data.augment, .area, .flip |
| max_txt_len | 35 | config.data.length |
| task | retrieval | config.task |
| lr_sched | linear_warmup_cosine_lr | config.optim.schedule = "cosine" |
| init_lr, min_lr | 2e-5, 0 | config.optim.lr, config.optim.end_lr |
| weight_decay | 0.04 | config.optim.weight_decay |
| max_epoch | 6 | config.epochs, over captions there and over pictures here |
| batch_size_train | 32 a device | config.batch_size, over all devices |
| negative_all_rank | True | always: hard negatives come from the whole batch |
| num_workers | 4 | config.data.threads |
| seed | 42 | config.seed |
| queue_size, alpha | 57600, 0.4 | none: config.accumulate gives a larger batch exactly, and nothing is distilled |
| k_test | 256 | config.k_test; R@k of the embeddings alone is there too |
| block_num of compute_gradcam | 6 | --mode=show --config.attention_layer=6: a map over the picture for each word |

The losses are contrastive and matching; config.matching_loss weighs the second one. A picture counts once per epoch,
with one of its captions. Neither preset has been measured on COCO.
"""

import ml_collections

PRESETS = ("coco", "small")
SIZES = ("width", "depth", "heads", "mlp_dim", "activation", "epsilon")


def get_config(preset: str = "coco") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.match"
    config.seed, config.epochs, config.batch_size, config.log_every = 42, 30.0, 256, 50
    config.eval_every, config.save_every = 1000, 500
    config.best, config.best_mode = "valid/text_found", "max"
    config.data = dict(length=35, size=384, augment="imagenet", area=0.5, flip=True)
    config.optim = dict(name="adamw", lr=2e-5, schedule="cosine", weight_decay=0.04, decay_mask="(kernel|embedding)$")
    if preset == "coco":
        towers = [f"{tower}_{size}" for tower in ("image", "text") for size in SIZES]
        config.model = dict.fromkeys(("patch", "max_length", "embed_dim", *towers))  # None: taken from the folder
        config.init_from = config.data.tokenizer = "hf:Salesforce/blip-itm-base-coco"
        config.accumulate, config.k_test = 8, 256
        return config
    if preset != "small":
        raise ValueError(f"preset {preset!r} is none of {', '.join(PRESETS)}")
    config.data.update(tokenizer="wordpiece:2000", length=16, size=64)
    config.model = dict(patch=8, image_width=128, image_depth=3, image_heads=4, embed_dim=64)
    config.model.update(text_width=128, text_depth=2, text_heads=4)
    config.batch_size, config.eval_every, config.k_test = 64, 100, 16
    config.optim.update(lr=5e-4, warmup=0.05, clip=1.0)
    return config
