"""Answers in dialogues about videos (AVSD) by GPT-2 and beam search (Le and Hoi 2020, arXiv:2006.15319).

  python main.py --config=configs/avsd.py[:PRESET] --workdir=runs/avsd

config.data.dir must hold AVSD's files of dialogues, and for each of config.data.features a folder with VIDEO.npy
[time, width]. The default preset begins with the smallest published GPT-2, `:small` from scratch.

The default is LAVIS's dialogue_avsd_ft.yaml, field by field:

| LAVIS | value | here |
|---|---|---|
| arch, model_type | gpt_dialogue, base | config.task, config.model, config.init_from |
| visual_ft, audio_ft | i3d_flow, i3d_rgb; vggish | config.data.features (4,224 wide in all) |
| max_turns | 3 | config.data.max_turns |
| use_caption | True | config.data.use_caption (caption and summary) |
| task | dialogue | config.task |
| lr_sched | linear_warmup_cosine_lr | config.optim.schedule = "cosine", config.optim.warmup (0, as there) |
| init_lr, min_lr | 1e-5, 0 | config.optim.lr, config.optim.end_lr |
| weight_decay | 0.05 | config.optim.weight_decay, on config.optim.decay_mask |
| max_epoch | 20 | config.epochs |
| batch_size_train, batch_size_eval | 16, 16 | config.batch_size |
| num_workers | 0 | config.data.threads, config.data.workers |
| max_len, min_len, num_beams | 20, 5, 5 | config.beam.max_len, .min_len, .num_beams |
| report_metric | True (after evaluation) | config.report_metric, config.score |
| seed | 42 | config.seed |
| train_splits, valid_splits | train, val | config.data.train, .valid, .test: files; "": those of the challenges |

LAVIS sets num_beams, max_len and min_len but never decodes. Both train on all turns of all dialogues. LAVIS evaluates
the last turn of each dialogue, which here is config.data.turns = "last".

| preset | model | from |
|---|---|---|
| `gpt2` (default) | GPT-2, 12 layers of 768, and 6.5 million for the video | the smallest published GPT-2 |
| `small` | 3 layers of 128, 2,000 BPE tokens, 0.9 million | scratch, on a CPU, on text alone or made features |

Measured, on two busy CPU cores (some 55 examples/s), 2,373 dialogues with 22,281 turns and text alone: `:small` has a
perplexity of 39.0, 29.4 and 25.1 on the answers of 477 other dialogues after 1,000, 2,000 and 3,000 of its 6,963 steps.
After 3,500 steps, its answers to the 886 of those turns that have six references (`--mode=eval
--config.data.turns=asked`) score CIDEr 0.508, BLEU-4 0.228 and ROUGE-L 0.421. Always giving the commonest answer scores
0.249, 0.139 and 0.322. The whole run and the default preset have not been measured.
"""

import ml_collections

PRESETS = ("gpt2", "small")


def get_config(preset: str = "gpt2") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.avsd"
    config.seed, config.epochs, config.batch_size = 42, 20.0, 16
    config.eval_every, config.save_every, config.log_every = 1000, 500, 50
    config.best = "valid/perplexity"
    config.init_from = "hf:openai-community/gpt2"
    config.data = dict(tokenizer=config.init_from, features=("i3d_flow", "i3d_rgb", "vggish"))
    config.model = dict(width=768, depth=12, heads=12, tied=True, epsilon=1e-5, dropout=0.1, attention_dropout=0.1)
    config.optim = dict(name="adamw", lr=1e-5, schedule="cosine", weight_decay=0.05, decay_mask="(kernel|embedding)$")
    config.beam = dict(num_beams=5, max_len=20, min_len=5)
    if preset == "small":
        config.init_from = ""
        config.epochs, config.eval_every = 5.0, 1000
        config.data.update(tokenizer="bpe:2000", features=(), frames=16, max_context_tokens=128, max_answer_tokens=24)
        config.model.update(width=128, depth=3, heads=4, attention_dropout=0.0)
        config.optim.update(lr=1e-3, warmup=0.05, weight_decay=0.01, b2=0.98)
    elif preset != "gpt2":
        raise ValueError(f"preset {preset!r} is none of {', '.join(PRESETS)}")
    return config
