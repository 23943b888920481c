r"""A vision transformer on CIFAR-10, or on any images with --config.data.name=folder:PATH (Dosovitskiy et al. 2021).

  python main.py --config=configs/vit_cifar.py[:PRESET] --workdir=runs/vit

| preset | images | patch | width | layers | heads | parameters |
|---|---|---|---|---|---|---|
| `tiny` (default) | 32 | 4 | 192 | 6 | 3 | 2.7 million |
| `base` | 224 | 16 | 768 | 12 | 12 | 86 million |
| `hf` | as in --config.init_from, a ViT of transformers, by default the published ViT-B/16 of 224 pixels |

`--config.data.augment=igpt` pads, crops by `data.crop` pixels and mirrors. `imagenet` mirrors and scales up a random
part, at least the fraction `data.area` of the image. Stronger augmentation, for long training, is a matter of fields:

  --config.data.randaugment=2 --config.data.magnitude=9 (or --config.data.autoaugment=cifar10)
  --config.data.mixup=0.2 --config.data.cutmix=1.0 --config.loss.smoothing=0.1

No preset has been measured yet; configs/vit_digits.py has.
"""

import ml_collections

# images, patch, width, layers, heads, steps, batch size, learning rate
PRESETS = {
    "tiny": (None, 4, 192, 6, 3, 20_000, 128, 1e-3),
    "base": (224, 16, 768, 12, 12, 20_000, 512, 3e-4),
    "hf": (None, None, None, None, None, 5_000, 128, 5e-5),
}
FROM_FOLDER = ("mlp_dim", "activation", "epsilon")


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    size, patch, width, depth, heads, steps, batch_size, lr = PRESETS[preset]
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.vit"
    config.steps, config.batch_size = steps, batch_size
    config.eval_every, config.save_every, config.log_every = 1000, 500, 50
    config.best, config.best_mode = "valid/accuracy", "max"
    config.data = dict(name="cifar10", size=size, crop=4, flip=True)
    config.data.augment = "igpt" if preset == "tiny" else "imagenet"
    config.model = dict(patch=patch, width=width, depth=depth, heads=heads, pool="token")
    config.model.update(
        activation="gelu", epsilon=1e-12, dropout=0.0 if preset == "hf" else 0.1, remat=preset == "base"
    )
    if preset == "hf":
        config.init_from = "hf:google/vit-base-patch16-224"
        config.model.update(dict.fromkeys(FROM_FOLDER))
    config.optim = dict(name="adamw", lr=lr, schedule="cosine", warmup=0.05, clip=1.0)
    config.optim.update(weight_decay=0.05, decay_mask="kernel$")
    return config
