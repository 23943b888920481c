r"""Fine-tune an iGPT to classify CIFAR-10 with the joint loss, class + pixels (Chen et al. 2020, 3.3).

  python main.py --config=configs/igpt_cifar_classify.py[:PRESET] --workdir=runs/classify \
    --config.init_from=runs/igpt_cifar

Use the preset of the pre-training run. Without --config.init_from the model trains from scratch.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from jtasks.configs import igpt_cifar


def get_config(preset: str = "xs") -> ml_collections.ConfigDict:
    config = igpt_cifar.get_config(preset)
    config.steps = 10_000
    config.best, config.best_mode = "valid/accuracy", "max"
    config.model.classes = placeholder(int)  # the data's number of classes
    config.optim.lr = config.optim.lr / 3
    return config
