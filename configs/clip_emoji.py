"""CLIP from scratch on 1,533 emoji with their names: find a picture by a text, in minutes on a CPU.

python main.py --config=configs/clip_emoji.py --workdir=runs/clip_emoji
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.contrast"
    config.steps, config.batch_size = 600, 256
    config.eval_every, config.save_every, config.log_every = 100, 100, 20
    config.best, config.show_count = "valid/loss", 64
    config.data = dict(tokenizer="wordpiece:1000", length=16, augment="imagenet", area=0.5, color=0.4)
    config.model = dict(patch=8, image_width=128, image_depth=4, image_heads=4, image_pool="mean")
    config.model.update(text_width=128, text_depth=2, text_heads=4, text_tower="bert", embed_dim=128, dropout=0.1)
    config.optim = dict(name="adamw", lr=1e-3, schedule="cosine", warmup=0.05, clip=1.0)
    config.optim.update(weight_decay=0.1, decay_mask="kernel$", b2=0.98)
    return config
