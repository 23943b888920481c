"""SST-2: classify a phrase from a film review as positive or negative (Socher et al. 2013; a task of GLUE).

  python main.py --config=configs/sst2.py[:PRESET] --workdir=runs/sst2

The data is GLUE's SST-2.zip or its contents, in $JTASKS_DATA or --config.data.dir. Presets:

- `scratch` (default): a small encoder and a vocabulary, both learned from the training phrases alone.
- `base`: BERT base from a run of configs/bert.py, --config.init_from=RUN --config.data.tokenizer=RUN.
- `hf`: the published BERT base. Another one, with its sizes: --config.init_from=hf:NAME
  --config.data.tokenizer=hf:NAME, a name on the hub or a folder.

Measured, `scratch` on two CPU cores shared with other work: accuracy 90.05 % (F1 91.07, Matthews 0.798) on 6,735
phrases held out from GLUE's 67,349, after 3 epochs of the other 60,614 (1,707 steps) in 17 minutes. Batches by length
hold 30 % padding; with a single length of 64 it would be 79 %. GLUE's own dev set, 872 whole sentences, is harder.
"""

import ml_collections

# width, layers, heads, tokenizer, batch tokens, epochs, learning rate, max_length
PRESETS = {
    "scratch": (128, 3, 4, "wordpiece:8000", 2048, 3.0, 5e-4, None),
    "base": (768, 12, 12, "vocab.txt", 4096, 3.0, 2e-5, 512),
    "hf": (0, 0, 0, "hf:google-bert/bert-base-uncased", 4096, 3.0, 2e-5, None),
}

FROM_FOLDER = ("width", "depth", "heads", "mlp_dim", "token_types", "activation", "epsilon")


def get_config(preset: str = "scratch") -> ml_collections.ConfigDict:
    width, depth, heads, tokenizer, tokens, epochs, lr, max_length = PRESETS[preset]
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.classify"
    config.epochs, config.batch_tokens = epochs, tokens
    config.eval_every, config.save_every, config.log_every = 500, 500, 50
    config.best, config.best_mode = "valid/accuracy", "max"
    config.data = dict(train="SST-2/train.tsv", valid="SST-2/dev.tsv")
    config.data.labels = ("0", "1")
    config.data.update(tokenizer=tokenizer, length=64, buckets=(8, 16, 32, 64))
    config.data.source = "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"
    config.model = dict(width=width, depth=depth, heads=heads, max_length=max_length)
    if preset == "hf":
        config.init_from = tokenizer
        config.model.update(dict.fromkeys(FROM_FOLDER))  # None: taken from the folder
    config.optim = dict(name="adamw", lr=lr, schedule="linear", warmup=0.1)
    config.optim.update(weight_decay=0.01, decay_mask="kernel$", clip=1.0)
    return config
