"""Questions about shapes and colors (easy-VQA by Victor Zhou), answered by a small BLIP from scratch on a CPU.

  python main.py --config=configs/vqa_easy.py --workdir=runs/vqa_easy

The data folder must hold easy_vqa.tar.xz, or the folder easy_vqa of the Python package easy-vqa.
`--mode=show --config.attention_layer=-1` draws what the answer rests on in the picture, for each word of the question.

Measured: 98.99 % of the 9,673 test questions are answered right (`test/exact`); without the picture it would be 67.0 %.
The 15,172 steps took 26.6 minutes of processor time on two busy cores. The first 5,100 of them ran with `epochs` at 16,
which lowers the learning rate a little sooner; the run was then resumed with 28. The model learns colors in the first
epochs and shapes last: 80.7 % of 1,500 test questions were right after 5,000 steps.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.vqa"
    config.epochs, config.batch_size = 28.0, 64
    config.eval_every, config.save_every, config.log_every = 2000, 500, 100
    config.data = dict(tokenizer="wordpiece:200", size=32, max_question_tokens=12, max_answer_tokens=1)
    config.data.update(augment="igpt", crop=2, flip=True)
    config.model = dict(patch=8, image_width=96, image_depth=2, image_heads=4)
    config.model.update(text_width=96, text_depth=2, text_heads=4)
    config.model.update(mean=(0.9,) * 3, std=(0.2,) * 3)  # the background is nearly white
    config.inference_method = "rank"
    config.beam = dict(num_beams=1, max_len=3)
    config.optim = dict(name="adamw", lr=1.5e-3, schedule="cosine", warmup=0.05, clip=1.0)
    config.optim.update(weight_decay=0.05, decay_mask="kernel$", b2=0.98)
    return config
