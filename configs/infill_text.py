"""Pre-training of an encoder-decoder on your own text: it restores documents that lack spans.

  python main.py --config=configs/infill_text.py[:PRESET] --workdir=runs/infill --config.data.files='books/*.txt'

Blank lines separate documents. Presets:

- `spans` (default): T5's span corruption (Raffel et al. 2020), 15 % of the tokens in spans of 3 on average.
- `infilling`: BART's denoising (Lewis et al. 2020), 30 % of the tokens in spans of Poisson's lengths, and sentences in
  random order.

Measured on WikiText-2's validation text (1.1 MB) with width 64, 2 + 2 layers, rows of 128 tokens, 8 in a batch, no
dropout: after 400 steps the held-out loss of `spans` is 5.08 nats per token and of `infilling` 5.83, where guessing at
random has 8.29. These are the first steps, not what the presets can reach: longer runs were not made.

Then a task with pairs of texts goes on from its weights and with its tokenizer: --config=configs/summarize.py
--config.init_from=runs/infill --config.data.tokenizer=runs/infill, and the fields of config.model below.
"""

import ml_collections

PRESETS = ("spans", "infilling")


def get_config(preset: str = "spans") -> ml_collections.ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is none of {', '.join(PRESETS)}")
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.seq2seq"
    config.steps, config.batch_size = 2000, 16
    config.eval_every, config.save_every, config.log_every = 200, 200, 50
    config.show_count = 4
    config.data = dict(
        files="tinyshakespeare.txt",  # names or patterns, separated by commas
        documents="blank",
        tokenizer="bpe:4000",
        noise=preset,
        length=256,
    )
    config.model = dict(width=192, encoder_depth=3, decoder_depth=3, heads=4, init_std=0.06, dropout=0.1)
    config.model.update(positions="relative", norm="rms", bias=False)
    config.optim = dict(name="adamw", lr=2e-3, schedule="cosine", warmup=200, b2=0.98)
    config.optim.update(weight_decay=0.01, decay_mask="(kernel|embedding)$", clip=1.0)
    config.beam = dict(num_beams=2, max_len=64)
    return config
