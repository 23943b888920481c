"""MNIST with the classic two-convolution network and Adadelta, HetSeq's example.

python main.py --config=configs/mnist.py --workdir=runs/mnist
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.mnist"
    config.epochs, config.batch_size = 6.0, 128
    config.eval_every, config.save_every, config.log_every = 500, 500, 100
    config.data = dict(name="mnist")
    config.model = dict(dropout=True)
    config.optim = dict(name="adadelta", lr=1.0, schedule="cosine")
    return config
