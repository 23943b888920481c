"""Linear probe of a pre-trained iGPT: features of one frozen layer classify CIFAR-10.

  python main.py --config=configs/igpt_cifar_probe.py[:PRESET] --workdir=runs/probe --config.init_from=runs/igpt_cifar

Features from the middle of the network are best (Chen et al. 2020, figure 2): try --config.model.layer=N.
"""

import ml_collections

from jtasks.configs import igpt_cifar_classify


def get_config(preset: str = "xs") -> ml_collections.ConfigDict:
    config = igpt_cifar_classify.get_config(preset)
    config.steps, config.batch_size = 5_000, 128
    config.generation = 0.0
    config.model.layer = (config.model.depth or 24) // 2  # an ImageGPT of transformers has at least 24 layers
    config.optim = dict(name="adamw", lr=1e-2, schedule="cosine", warmup=0.02, freeze="^(?!classifier)")
    return config
