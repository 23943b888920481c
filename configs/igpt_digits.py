"""iGPT on scikit-learn's bundled 8x8 digits: 17 grey levels taken as they are, nothing to download.

python main.py --config=configs/igpt_digits.py --workdir=runs/digits
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.igpt"
    config.seed = 0
    config.steps, config.batch_size = 300, 64
    config.eval_every, config.log_every = 100, 25
    config.data = dict(name="digits", size=placeholder(int), palette="", colours=0, crop=0, flip=False)
    config.model = dict(
        width=96,
        depth=4,
        heads=4,
        hidden=0,  # of the feed-forward layers; 0: four times the width
        activation="gelu_tanh",
        norm="layer",
        epsilon=1e-6,
        dropout=0.0,
        remat=False,
        classes=0,  # of a classifier on top; 0: none
        palette=placeholder(tuple),
        colours=placeholder(int),
        shape=placeholder(tuple),
        positions=placeholder(int),
    )
    config.optim = dict(name="adamw", lr=3e-3, schedule="cosine", warmup=0.08, b2=0.95)
    config.optim.update(weight_decay=0.01, decay="kernel$")
    config.sample = dict(count=4, given=0.5, temperature=1.0, top_k=0, top_p=1.0)
    return config
