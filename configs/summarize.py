"""Summarization by an encoder-decoder.

  python main.py --config=configs/summarize.py[:PRESET] --workdir=runs/summarize --config.data.dir=DIR

DIR holds tables, here train.jsonl and dev.jsonl of SciTLDR (Cachola et al. 2020): the sentences of an abstract as
`source`, and one or more summaries as `target`. Other files: --config.data.train=FILE, --config.data.source_column=NAME
and so on (`jtasks/data/parallel.py`). Presets:

- `small` (default): from scratch, on a CPU.
- `t5`: the smallest published T5. Another one, with its sizes: --config.init_from=hf:NAME
  --config.data.tokenizer=hf:NAME, a name on the hub or a folder.
- `bart`: BART base, or another one in the same way.

Measured, on SciTLDR's 619 dev papers (F1 of ROUGE with stemming): `small` after its 623 steps on 1,992 papers, in 6
minutes of processor time, has a perplexity of 273.7. It writes nearly the same sentence for every paper ("We propose a
new method for deep neural networks ..."), whose words are common enough to score: so few papers need a pre-trained
model. Neither `t5` nor `bart` has been measured.

| summary | ROUGE-1 | ROUGE-2 | ROUGE-L |
|---|---|---|---|
| `small` | 24.4 | 5.9 | 20.4 |
| the first summary of the train split, for all papers | 16.9 | 2.1 | 14.4 |
| the first sentence of the abstract | 30.1 | 11.5 | 23.7 |
"""

import ml_collections

PRESETS = ("small", "t5", "bart")


def get_config(preset: str = "small") -> ml_collections.ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is none of {', '.join(PRESETS)}")
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.seq2seq"
    config.label_smoothing = 0.1
    config.data = dict(train="train.jsonl", valid="dev.jsonl", source_length=512, target_length=64)
    config.optim = dict(name="adamw", weight_decay=0.01, decay_mask="(kernel|embedding)$", clip=1.0)
    config.beam = dict(num_beams=4, max_len=63, no_repeat_ngram_size=3)
    config.score = dict(metrics=("rouge",), stem=True)
    config.eval_every, config.save_every, config.log_every = 250, 250, 50
    if preset == "small":
        config.epochs, config.batch_size = 5.0, 16
        config.data.update(tokenizer="bpe:4000", source_length=256)
        config.model = dict(width=128, encoder_depth=2, decoder_depth=2, heads=4, init_std=0.08, dropout=0.1)
        config.optim.update(lr=2e-3, schedule="cosine", warmup=0.1, b2=0.98)
        return config
    config.epochs, config.batch_size = 5.0, 32
    config.init_from = config.data.tokenizer = "hf:google-t5/t5-small" if preset == "t5" else "hf:facebook/bart-base"
    config.model = dict(dropout=0.1)
    config.optim.update(lr=3e-5, schedule="linear", warmup=0.1)
    if preset == "t5":
        config.data.prefix, config.optim.lr = "summarize: ", 3e-4
    return config
