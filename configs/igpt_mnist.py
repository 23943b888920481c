"""iGPT on MNIST in 16 gray levels found by k-means.

  python main.py --config=configs/igpt_mnist.py[:PRESET] --workdir=runs/igpt_mnist

Presets: `xs` (default: width 128, 6 layers, 4 heads) and `xxs` (width 16, 8 layers, 2 heads: 40,000 parameters).
"""

import ml_collections

PRESETS = {"xs": (128, 6, 4), "xxs": (16, 8, 2)}


def get_config(preset: str = "xs") -> ml_collections.ConfigDict:
    width, depth, heads = PRESETS[preset]
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.igpt"
    config.steps, config.batch_size = 25_000, 64
    config.eval_every, config.save_every, config.log_every = 2500, 500, 50
    config.data = dict(name="mnist", num_colors=16)
    config.model = dict(width=width, depth=depth, heads=heads)
    config.optim = dict(name="adamw", lr=3e-3, schedule="cosine", warmup=0.02, b2=0.95)
    config.optim.update(weight_decay=0.01, decay_mask="kernel$")
    return config
