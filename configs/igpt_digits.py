"""iGPT on scikit-learn's bundled 8x8 digits in their 17 gray levels, with nothing to download.

python main.py --config=configs/igpt_digits.py --workdir=runs/digits

Measured, in 20 seconds on two CPU cores: 1.398 nats (2.017 bits) per pixel on the 360 test images,
1.384 on the 144 valid images.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.igpt"
    config.seed = 0
    config.steps, config.batch_size = 400, 32
    config.eval_every, config.log_every = 100, 25
    config.data = dict(name="digits", num_colors=0)  # the images' own gray levels
    config.model = dict(width=64, depth=3, heads=4)
    config.optim = dict(name="adamw", lr=3e-3, schedule="cosine", warmup=0.08, b2=0.95)
    config.optim.update(weight_decay=0.01, decay_mask="kernel$")
    return config
