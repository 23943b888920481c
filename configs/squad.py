"""SQuAD 1.1 and 2.0: find the answer to a question in a paragraph (Rajpurkar et al. 2016; 2018).

  python main.py --config=configs/squad.py[:PRESET] --workdir=runs/squad

The official files are read from $JTASKS_DATA or --config.data.dir, or downloaded. Presets:

- `base` (default): BERT base from a run of configs/bert.py, --config.init_from=RUN --config.data.tokenizer=RUN.
- `hf`: the published BERT base, which has an F1 of 88.5 on version 1.1 by Devlin et al. 2019; not measured here yet.
  Another one, with its sizes: --config.init_from=hf:NAME --config.data.tokenizer=hf:NAME, on the hub or a folder.
- `v2`, `hf-v2`: `base` and `hf` on version 2.0, which has questions without an answer.
- `small`: a small encoder that can train from scratch.

Measured, `small` from scratch on the 1,190 English questions of XQuAD (Artetxe et al. 2020), two CPU cores: after 6
epochs (240 steps) on 40 of its 48 articles, F1 18.2 (exact 10.7) on these and 7.8 (0.6) on the other eight.
"""

import ml_collections

BERT = "hf:google-bert/bert-base-uncased"

# width, layers, heads, tokenizer, batch tokens, epochs, learning rate, max_length
PRESETS = {
    "base": (768, 12, 12, "vocab.txt", 384 * 32, 2.0, 3e-5, 512),
    "hf": (0, 0, 0, BERT, 384 * 32, 2.0, 3e-5, None),
    "v2": (768, 12, 12, "vocab.txt", 384 * 48, 2.0, 5e-5, 512),
    "hf-v2": (0, 0, 0, BERT, 384 * 48, 2.0, 5e-5, None),
    "small": (128, 2, 4, "wordpiece:8000", 384 * 16, 4.0, 5e-4, None),
}

FROM_FOLDER = ("width", "depth", "heads", "mlp_dim", "token_types", "activation", "epsilon")


def get_config(preset: str = "base") -> ml_collections.ConfigDict:
    width, depth, heads, tokenizer, tokens, epochs, lr, max_length = PRESETS[preset]
    version = "2.0" if preset.endswith("v2") else "1.1"
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.qa"
    config.epochs, config.batch_tokens = epochs, tokens
    config.eval_every, config.save_every, config.log_every = 1000, 500, 50
    config.data = dict(train=f"train-v{version}.json", valid=f"dev-v{version}.json")
    config.data.unanswerable = version == "2.0"
    config.data.update(tokenizer=tokenizer, length=384, buckets=(128, 192, 256, 384))
    config.model = dict(width=width, depth=depth, heads=heads, max_length=max_length)
    config.model.classifier_dropout = 0.0
    if preset.startswith("hf"):
        config.init_from = tokenizer
        config.model.update(dict.fromkeys(FROM_FOLDER))  # None: taken from the folder
    config.optim = dict(name="adamw", lr=lr, schedule="linear", warmup=0.1)
    config.optim.update(weight_decay=0.01, decay_mask="kernel$", clip=1.0)
    return config
