"""A GPT-2 on your own text, with documents packed into windows without attending to each other.

  python main.py --config=configs/lm_text.py[:PRESET] --workdir=runs/lm --config.data.files='books/*.txt'

Blank lines separate documents. Presets:

- `bpe` (default): width 384, 6 layers, a vocabulary of 8,000 learned from the text.
- `bytes`: the `bpe` model on bytes, with windows four times as long.
- `gpt2`: continue training the smallest published GPT-2. Another one, with its sizes: --config.init_from=hf:NAME
  --config.data.tokenizer=hf:NAME, a name on the hub or a folder (which holds tokenizer.json).
"""

import ml_collections

# tokenizer, length, learning rate
PRESETS = {
    "bpe": ("bpe:8000", 256, 1e-3),
    "bytes": ("bytes", 1024, 1e-3),
    "gpt2": ("hf:openai-community/gpt2", 512, 5e-5),
}

FROM_FOLDER = ("width", "depth", "heads", "mlp_dim", "tied", "activation", "norm", "epsilon")


def get_config(preset: str = "bpe") -> ml_collections.ConfigDict:
    tokenizer, length, lr = PRESETS[preset]
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.lm"
    config.steps, config.batch_size = 10_000, 32
    config.eval_every, config.save_every, config.log_every = 500, 500, 50
    config.show_count = 4
    config.data = dict(
        files="tinyshakespeare.txt",  # names or patterns, separated by commas
        documents="blank",
        tokenizer=tokenizer,
        length=length,
        stride=length,  # an epoch reads each token once
        packed=True,
    )
    config.model = dict(width=384, depth=6, heads=6, tied=True, dropout=0.1, attention_dropout=0.1)
    if preset == "gpt2":
        config.init_from = tokenizer
        config.model.update(dict.fromkeys(FROM_FOLDER))  # None: taken from the folder
    config.optim = dict(name="adamw", lr=lr, schedule="cosine", warmup=0.02, end_lr=lr / 10, b2=0.95)
    config.optim.update(weight_decay=0.1, decay_mask="kernel$|embedding$", clip=1.0)
    config.sample = dict(temperature=0.8, top_p=0.95)
    return config
