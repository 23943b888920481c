"""iGPT on CIFAR-10: generative pre-training on 32x32 pixels (Chen et al. 2020).

  python main.py --config=configs/igpt_cifar.py[:PRESET] --workdir=runs/igpt_cifar

| preset | width | layers | heads | colors | parameters | from |
|---|---|---|---|---|---|---|
| `xxs` | 16 | 8 | 2 | 16 | 43 thousand | Lightning-Transformers' default |
| `xs` (default) | 256 | 8 | 8 | 512 | 6.8 million | our default |
| `s` | 512 | 24 | 8 | 512 | 77 million | the paper |
| `m` | 1024 | 36 | 8 | 512 | 456 million | the paper |
| `l` | 1536 | 48 | 16 | 512 | 1.4 billion | the paper |

Measured, on two CPU cores and CIFAR-10 rebuilt from JPEG: `:xxs --config.steps=300` takes 12 to 20 minutes
(some 25 images/s) and reaches 1.270 nats per pixel on the test images; 16 equally likely colors have 2.773. The other
presets need an accelerator and have not been measured yet.

The preset `hf` takes the model from `--config.init_from`, by default the smallest published ImageGPT. Its palette comes
from the clusters in the folder's preprocessor_config.json, or else from --config.data.palette.
"""

import ml_collections

# width, layers, heads, colors, steps, batch size, learning rate
PRESETS = {
    "xxs": (16, 8, 2, 16, 20_000, 64, 3e-3),
    "xs": (256, 8, 8, 512, 20_000, 128, 1e-3),
    "s": (512, 24, 8, 512, 100_000, 128, 1e-3),
    "m": (1024, 36, 8, 512, 200_000, 128, 3e-4),
    "l": (1536, 48, 16, 512, 200_000, 128, 1e-4),
}


FROM_FOLDER = ("width", "depth", "heads", "mlp_dim", "activation", "norm", "epsilon")


def get_config(preset: str = "xs") -> ml_collections.ConfigDict:
    width, depth, heads, colors, steps, batch_size, lr = PRESETS["s" if preset == "hf" else preset]
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.igpt"
    config.steps, config.batch_size = steps, batch_size
    config.eval_every, config.save_every, config.log_every = 1000, 250, 25
    config.best = "valid/loss"
    config.data = dict(name="cifar10", num_colors=colors, crop=4, flip=True)
    config.model = dict(width=width, depth=depth, heads=heads, remat=depth > 8)
    if preset == "hf":
        config.init_from = "hf:openai/imagegpt-small"
        config.model.update(dict.fromkeys(FROM_FOLDER))  # None: taken from the folder
    config.optim = dict(name="adamw", lr=lr, schedule="cosine", warmup=0.0125, b2=0.95)
    config.optim.update(weight_decay=0.01, decay_mask="kernel$")
    return config
