"""A character-level GPT on Shakespeare, with the CPU budget of nanoGPT's example.

  python main.py --config=configs/shakespeare_char.py --workdir=runs/shakespeare

Measured, on two CPU cores in 77 seconds: 1.792 nats per character (2.585 bits per byte) on every character of the last
tenth of the text; 2.162, 1.949 and 1.843 after 500, 1,000 and 1,500 steps. Another run, with different rounding, ended
at 1.784. nanoGPT reports 1.88 for the same model and steps; its learning rate, 1e-3 instead of 3e-3, gave 1.879 here.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.lm"
    config.steps, config.batch_size = 2000, 12
    config.eval_every, config.save_every, config.log_every = 500, 500, 100
    config.show_count = 2
    config.data = dict(files="tinyshakespeare.txt", valid_fraction=0.1, tokenizer="characters", length=64)
    config.model = dict(width=128, depth=4, heads=4)
    config.optim = dict(name="adamw", lr=3e-3, schedule="cosine", warmup=100, end_lr=1e-4, b2=0.99)
    config.optim.update(weight_decay=0.1, decay_mask="kernel$|embedding$", clip=1.0)
    config.sample = dict(length=256, temperature=0.8)
    return config
