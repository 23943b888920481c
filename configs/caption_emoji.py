"""Captions of emoji pictures."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.caption"
    config.epochs, config.batch_size = 30.0, 64
    config.eval_every, config.save_every, config.log_every = 250, 250, 50
    config.best = "valid/perplexity"
    config.data = dict(tokenizer="wordpiece:1500", max_caption_tokens=16, size=48, augment="igpt", crop=3, color=0.2)
    config.model = dict(patch=8, image_width=96, image_depth=3, image_heads=4, dropout=0.1)
    config.model.update(text_width=96, text_depth=2, text_heads=4)
    config.optim = dict(name="adamw", lr=2e-3, schedule="cosine", warmup=0.05, clip=1.0)
    config.optim.update(weight_decay=0.05, decay_mask="kernel$")
    config.beam = dict(num_beams=3, max_len=12)
    config.score = dict(metrics=("bleu", "rouge_l", "cider"), exchanged=True)
    return config
