"""SWAG: choose how a scene continues (Zellers et al. 2018); RACE: answer exam questions (Lai et al. 2017).

  python main.py --config=configs/swag.py[:PRESET] --workdir=runs/swag

The data is SWAG's train.csv and val.csv, or JSONL with the same fields, in $JTASKS_DATA or --config.data.dir. Presets:

- `base` (default): BERT base from a run of configs/bert.py, --config.init_from=RUN --config.data.tokenizer=RUN.
- `hf`: the published BERT base, for which Devlin et al. 2019 report 81.6 % on SWAG's dev set; not measured here yet.
  Another one, with its sizes: --config.init_from=hf:NAME --config.data.tokenizer=hf:NAME, on the hub or a folder.
- `race`: `base` on RACE as JSONL with the fields article, question, options and answer.
- `small`: a small encoder that can train from scratch.
"""

import ml_collections

# width, layers, heads, tokenizer, length, batch size, epochs, learning rate, max_length
PRESETS = {
    "base": (768, 12, 12, "vocab.txt", 128, 16, 3.0, 2e-5, 512),
    "hf": (0, 0, 0, "hf:google-bert/bert-base-uncased", 128, 16, 3.0, 2e-5, None),
    "race": (768, 12, 12, "vocab.txt", 512, 16, 2.0, 2e-5, 512),
    "small": (128, 2, 4, "wordpiece:8000", 64, 32, 3.0, 5e-4, None),
}

FROM_FOLDER = ("width", "depth", "heads", "mlp_dim", "token_types", "activation", "epsilon")


def get_config(preset: str = "base") -> ml_collections.ConfigDict:
    width, depth, heads, tokenizer, length, batch_size, epochs, lr, max_length = PRESETS[preset]
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.choice"
    config.epochs, config.batch_size = epochs, batch_size
    config.eval_every, config.save_every, config.log_every = 1000, 500, 50
    config.best, config.best_mode = "valid/accuracy", "max"
    if preset == "race":
        config.data = dict(fields="race", train="RACE/train.jsonl", valid="RACE/dev.jsonl", test="RACE/test.jsonl")
        config.data.source = "https://www.cs.cmu.edu/~glai1/data/race/"
    else:
        config.data = dict(fields="swag", train="SWAG/train.csv", valid="SWAG/val.csv", test="")
        config.data.source = "https://github.com/rowanz/swagaf/tree/master/data"
    config.data.update(tokenizer=tokenizer, length=length)
    config.model = dict(width=width, depth=depth, heads=heads, max_length=max_length)
    if preset == "hf":
        config.init_from = tokenizer
        config.model.update(dict.fromkeys(FROM_FOLDER))  # None: taken from the folder
    config.optim = dict(name="adamw", lr=lr, schedule="linear", warmup=0.1)
    config.optim.update(weight_decay=0.01, decay_mask="kernel$", clip=1.0)
    config.optim.freeze = "^classifier/bias$"  # added to each choice alike, which changes nothing
    return config
