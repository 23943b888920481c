"""WNUT-17: tag rare and emerging entities in noisy text (Derczynski et al. 2017).

  python main.py --config=configs/wnut17.py[:PRESET] --workdir=runs/wnut17

The data is wnut17train.conll, emerging.dev.conll and emerging.test.annotated of the shared task, in $JTASKS_DATA or
--config.data.dir. Presets:

- `scratch` (default): a small encoder and a vocabulary, both learned from the training text alone.
- `base`: BERT base from a run of configs/bert.py, --config.init_from=RUN --config.data.tokenizer=RUN.
- `hf`: the published BERT base with capitals. Another one, with its sizes: --config.init_from=hf:NAME
  --config.data.tokenizer=hf:NAME, a name on the hub or a folder.

Measured, `scratch` on two CPU cores: F1 12.4 (precision 18.9, recall 9.2) on the 836 entities of the dev set, after 10
epochs (800 steps). The model does not find entities that it has not read before: this data needs a pre-trained body.
"""

import ml_collections

# width, layers, heads, tokenizer, lower-cased, batch tokens, epochs, learning rate, max_length
PRESETS = {
    "scratch": (128, 2, 4, "wordpiece:8000", True, 2048, 10.0, 1e-3, None),
    "base": (768, 12, 12, "vocab.txt", False, 4096, 4.0, 5e-5, 512),
    "hf": (0, 0, 0, "hf:google-bert/bert-base-cased", False, 4096, 4.0, 5e-5, None),
}

FROM_FOLDER = ("width", "depth", "heads", "mlp_dim", "token_types", "activation", "epsilon")


def get_config(preset: str = "scratch") -> ml_collections.ConfigDict:
    width, depth, heads, tokenizer, lowercase, tokens, epochs, lr, max_length = PRESETS[preset]
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.tag"
    config.epochs, config.batch_tokens = epochs, tokens
    config.eval_every, config.save_every, config.log_every = 100, 200, 20
    config.data = dict(train="wnut17train.conll", valid="emerging.dev.conll", test="emerging.test.annotated")
    config.data.update(tokenizer=tokenizer, lowercase=lowercase, length=128, buckets=(32, 64, 128))
    config.data.source = "https://github.com/leondz/emerging_entities_17"
    config.model = dict(width=width, depth=depth, heads=heads, max_length=max_length)
    if preset == "hf":
        config.init_from = tokenizer
        config.model.update(dict.fromkeys(FROM_FOLDER))  # None: taken from the folder
    config.optim = dict(name="adamw", lr=lr, schedule="linear", warmup=0.1)
    config.optim.update(weight_decay=0.01, decay_mask="kernel$", clip=1.0)
    return config
