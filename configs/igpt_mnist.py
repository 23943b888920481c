"""iGPT on MNIST in 16 grey levels found by k-means.

  python main.py --config=configs/igpt_mnist.py[:PRESET] --workdir=runs/igpt_mnist

Presets: `xs` (the default: width 128, 6 layers, 4 heads) and `xxs` (width 16, 8 layers, 2 heads: 40,000 parameters).
"""

import ml_collections
from ml_collections.config_dict import placeholder

PRESETS = {"xs": (128, 6, 4), "xxs": (16, 8, 2)}


def get_config(preset: str = "xs") -> ml_collections.ConfigDict:
    width, depth, heads = PRESETS[preset]
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.igpt"
    config.steps, config.batch_size = 25_000, 64
    config.eval_every, config.save_every, config.log_every = 2500, 500, 50
    config.data = dict(name="mnist", size=placeholder(int), palette="", colours=16, crop=0, flip=False)
    config.model = dict(
        width=width,
        depth=depth,
        heads=heads,
        hidden=0,  # of the feed-forward layers; 0: four times the width
        activation="gelu_tanh",
        norm="layer",
        epsilon=1e-6,
        dropout=0.0,
        remat=False,
        palette=placeholder(tuple),
        colours=placeholder(int),
        shape=placeholder(tuple),
        positions=placeholder(int),
    )
    config.optim = dict(name="adamw", lr=3e-3, schedule="cosine", warmup=0.02, b2=0.95)
    config.optim.update(weight_decay=0.01, decay="kernel$")
    config.sample = dict(count=4, given=0.5, temperature=1.0, top_k=0, top_p=1.0)
    return config
