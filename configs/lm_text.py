"""A GPT-2 on text of one's own, documents packed into windows without seeing each other.

  python main.py --config=configs/lm_text.py[:PRESET] --workdir=runs/lm --config.data.files='books/*.txt'

Blank lines stand between documents. Presets:

- `bpe` (the default): width 384, 6 layers, a vocabulary of 8,000 learnt from the text.
- `bytes`: the same on bytes, with windows four times as long.
- `gpt2`: a pre-trained GPT-2 goes on, of any size:
  --config.init_from=hf:FOLDER --config.data.tokenizer=FOLDER (which holds tokenizer.json).
"""

import ml_collections
from ml_collections.config_dict import placeholder

# tokenizer, length, learning rate
PRESETS = {"bpe": ("bpe:8000", 256, 1e-3), "bytes": ("bytes", 1024, 1e-3), "gpt2": ("tokenizer.json", 512, 5e-5)}


def get_config(preset: str = "bpe") -> ml_collections.ConfigDict:
    tokenizer, length, lr = PRESETS[preset]
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.lm"
    config.steps, config.batch_size = 10_000, 32
    config.eval_every, config.save_every, config.log_every = 500, 500, 50
    config.show_count = 4
    config.data = dict(
        files="tinyshakespeare.txt",  # names or patterns, with commas between them
        valid_files="",  # "": the share `valid` of the documents is kept aside
        test_files="",
        valid=0.05,
        documents="blank",
        tokenizer=tokenizer,
        lowercase=False,
        length=length,
        stride=length,  # so that an epoch reads each token once
        packed=True,
    )
    sizes = dict(width=384, depth=6, heads=6, hidden=0, tied=True, activation="gelu_tanh", norm="layer", epsilon=1e-6)
    if preset == "gpt2":  # those of the folder
        sizes = dict(
            width=placeholder(int),
            depth=placeholder(int),
            heads=placeholder(int),
            hidden=placeholder(int),
            tied=placeholder(bool),
            activation=placeholder(str),
            norm=placeholder(str),
            epsilon=placeholder(float),
        )
    config.model = dict(
        **sizes,
        dropout=0.1,
        attention_dropout=0.1,
        remat=False,
        vocab=placeholder(int),
        positions=placeholder(int),
        end=placeholder(int),
    )
    config.optim = dict(name="adamw", lr=lr, schedule="cosine", warmup=0.02, end_lr=lr / 10, b2=0.95)
    config.optim.update(weight_decay=0.1, decay="kernel$|embedding$", clip=1.0)
    config.sample = dict(length=128, temperature=0.8, top_k=0, top_p=0.95)
    return config
