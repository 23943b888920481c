"""Translation by an encoder-decoder (Vaswani et al. 2017).

  python main.py --config=configs/translate.py[:PRESET] --workdir=runs/translate --config.data.dir=DIR

DIR holds parallel files, here train.en, train.ja, dev.en, dev.ja, test.en and test.ja: line n of one is the translation
of line n of the other. Other names and tables: --config.data.train=FILE and so on (`jtasks/data/parallel.py`). Then

  python main.py --workdir=runs/translate --mode=predict --input=sentences.txt
  python main.py --workdir=runs/translate --mode=predict --split=test

write translations of new sentences, and those of the test split with their BLEU and chrF and its signature. Presets:

- `small` (default): from scratch, on a CPU.
- `t5`: the smallest published T5; it needs the task in words, --config.data.prefix='translate English to German: '.
  Another one, with its sizes: --config.init_from=hf:NAME --config.data.tokenizer=hf:NAME, on the hub or a folder.
- `marian`: OPUS-MT from English to German, or another Marian in the same way, without a prefix.

Measured, `small` on 50,000 English-Japanese pairs of 4 to 16 words, whose texts have a blank between tokens: 71 minutes
of processor time, compiling and the last scores included. The run had some 60 % of two cores of an AMD EPYC, and took
58 minutes by the clock. The table shows the 500 dev pairs after each 1,000 of the 7,000 steps. Minutes are half of the
processor time, perplexity is that of the BPE tokens, BLEU and chrF are sacrebleu's with `tokenize=none`:

| step | minutes | perplexity | BLEU | chrF |
|---|---|---|---|---|
| 1,000 | 6 | 10.66 | 16.7 | 16.5 |
| 2,000 | 11 | 7.10 | 21.6 | 21.3 |
| 3,000 | 16 | 5.74 | 25.3 | 24.5 |
| 4,000 | 21 | 4.98 | 28.7 | 27.4 |
| 5,000 | 26 | 4.56 | 31.8 | 29.9 |
| 6,000 | 30 | 4.36 | 32.9 | 31.0 |
| 7,000 | 35 | 4.33 | 33.2 | 31.1 |

On the 500 test pairs BLEU is 30.5 and chrF 30.0. Neither `t5` nor `marian` has been measured.
"""

import ml_collections

PRESETS = ("small", "t5", "marian")


def get_config(preset: str = "small") -> ml_collections.ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is none of {', '.join(PRESETS)}")
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.seq2seq"
    config.label_smoothing = 0.1
    config.data = dict(train="train.en,train.ja", valid="dev.en,dev.ja", test="test.en,test.ja")
    config.optim = dict(name="adamw", weight_decay=0.01, decay_mask="(kernel|embedding)$", clip=1.0)
    config.beam = dict(num_beams=4, max_len=48)
    config.score = dict(metrics=("bleu", "chrf"), bleu_tokenize="none")  # the texts of `small` are tokenized already
    if preset == "small":
        config.epochs, config.batch_tokens = 10.0, 2048
        config.eval_every, config.save_every, config.log_every = 1000, 500, 50
        config.data.update(tokenizer="bpe:4000", source_length=48, target_length=48)
        config.model = dict(width=192, encoder_depth=3, decoder_depth=3, heads=4, init_std=0.06, dropout=0.1)
        config.optim.update(lr=2e-3, schedule="cosine", warmup=400, b2=0.98)
        return config
    config.epochs, config.batch_tokens = 3.0, 8192
    config.eval_every, config.save_every, config.log_every = 1000, 500, 50
    config.init_from = "hf:google-t5/t5-small" if preset == "t5" else "hf:Helsinki-NLP/opus-mt-en-de"
    config.data.tokenizer = config.init_from
    config.model = dict(dropout=0.1)
    config.optim.update(lr=3e-4 if preset == "t5" else 2e-5, schedule="linear", warmup=500)
    config.beam.max_len, config.score.bleu_tokenize = 127, "13a"
    return config
