"""STS-B: say how similar two sentences are, from 0 to 5 (Cer et al. 2017; a task of GLUE), by a regression.

  python main.py --config=configs/stsb.py[:PRESET] --workdir=runs/stsb

The data is GLUE's STS-B.zip or its contents, in $JTASKS_DATA or --config.data.dir. The columns of a table without a
header go by their numbers: --config.data.text=0 --config.data.text_pair=1 --config.data.label=2. Presets:

- `scratch` (default): a small encoder and a vocabulary, both learned from the training pairs alone.
- `hf`: the published BERT base, or another one, as in configs/sst2.py.

Evaluation has Pearson's and Spearman's correlation of a whole split. No preset has been measured yet.
"""

import ml_collections

from jtasks.configs import sst2

# epochs, learning rate, maximum tokens of a pair
PRESETS = {"scratch": (5.0, 5e-4, 64), "hf": (5.0, 2e-5, 128)}


def get_config(preset: str = "scratch") -> ml_collections.ConfigDict:
    epochs, lr, length = PRESETS[preset]
    config = sst2.get_config(preset)
    config.problem, config.epochs, config.optim.lr = "regression", epochs, lr
    config.best, config.best_mode = "valid/loss", "min"
    config.data.update(train="STS-B/train.tsv", valid="STS-B/dev.tsv")
    config.data.source = "https://dl.fbaipublicfiles.com/glue/data/STS-B.zip"
    config.data.update(text="sentence1", text_pair="sentence2", label="score", labels=())
    config.data.update(length=length, buckets=(16, 32, 64, 128)[: 3 if length == 64 else 4])
    return config
