r"""BERT pre-training on raw text: masked words and next sentences (Devlin et al. 2019).

  python main.py --config=configs/bert.py[:PRESET] --workdir=runs/bert --config.data.files='books/*.txt'

The text has one sentence per line and blank lines between documents. The second phase continues on longer texts:

  python main.py --config=configs/bert.py:PRESET_phase2 --workdir=runs/bert2 --config.init_from=runs/bert \
    --config.data.files='books/*.txt' --config.data.tokenizer=runs/bert

| preset | width | layers | heads | optimizer | batch, steps | phase 2 |
|---|---|---|---|---|---|---|
| `tiny` (default) | 128 | 4 | 4 | AdamW | 32, 1,500 | 8, 300 |
| `base` | 768 | 12 | 12 | AdamW, as in the paper | 256, 900,000 | 256, 100,000 |
| `large` | 1024 | 24 | 16 | LAMB (You et al. 2020) | 65,536, 7,038 | 32,768, 1,563 |

Measured: `tiny` unchanged on `bert_wiki.txt` and `bert_gutenberg.txt` (1.7 million pieces, of which 71,044 in 5 % of
the documents are held out), on two otherwise idle CPU cores at 0.27 s per step. In the training pairs 3.5 % of the
tokens is padding, and in 49.5 % the second text follows the first. The table shows the 692 held-out pairs. Chance is
50 % for next sentences, with a standard error of 1.9. The training text's frequencies alone give 6.625 nats per piece
(their entropy is 6.579):

| step | nats of hidden pieces | hidden pieces right | next sentences right |
|---|---|---|---|
| 250 | 6.420 | 9.8 % | 52.2 % |
| 500 | 6.210 | 12.2 % | 48.1 % |
| 750 | 6.128 | 12.7 % | 61.3 % |
| 1000 | 6.078 | 12.9 % | 64.5 % |
| 1250 | 6.007 | 13.4 % | 68.9 % |
| 1500 | 5.985 | 13.6 % | 72.1 % |
"""

import ml_collections

SIZES = {"tiny": (128, 4, 4), "base": (768, 12, 12), "large": (1024, 24, 16)}
# steps, batch size, optimizer, learning rate, warm-up, power of the decay
PRESETS = {
    "tiny": (1500, 32, "adamw", 3e-3, 0.1, 1.0),
    "tiny_phase2": (300, 8, "adamw", 1e-3, 0.1, 1.0),
    "base": (900_000, 256, "adamw", 1e-4, 10_000, 1.0),
    "base_phase2": (100_000, 256, "adamw", 1e-4, 1_000, 1.0),
    "large": (7_038, 65_536, "lamb", 6e-3, 0.2843, 0.5),
    "large_phase2": (1_563, 32_768, "lamb", 4e-3, 0.128, 0.5),
}


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    steps, batch_size, optimizer, lr, warmup, power = PRESETS[preset]
    size, _, second = preset.partition("_")
    width, depth, heads = SIZES[size]
    dropout = 0.0 if size == "tiny" else 0.1
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.bert"
    config.steps, config.batch_size = steps, batch_size
    config.eval_every, config.save_every, config.log_every = 250, 250, 50
    config.data = dict(
        files="bert_wiki.txt,bert_gutenberg.txt",  # names or patterns, with commas between them; or HDF5 shards
        tokenizer="wordpiece:8000" if size == "tiny" else "wordpiece:30522",
        length=512 if second else 128,
        max_predictions=80 if second else 20,  # most of them in an example
    )
    config.model = dict(width=width, depth=depth, heads=heads, max_length=512, remat=depth > 12)
    config.model.update(dropout=dropout, attention_dropout=dropout)
    config.optim = dict(name=optimizer, lr=lr, schedule="polynomial", warmup=warmup, power=power)
    config.optim.update(weight_decay=0.01, decay_mask="kernel$|embedding$", clip=1.0)
    if size == "tiny":
        config.optim.b2 = 0.98
    return config
