"""Captions of one's own pictures by BLIP (Li et al. 2022, arXiv:2201.12086), fine-tuned from Hugging Face's weights.

  python main.py --config=configs/blip_caption.py --workdir=runs/blip --config.data.dir=DIR

DIR holds pictures with captions: `captions.txt` beside the pictures, COCO's or LAVIS's JSON, or a table (see
`jtasks/data/captioned.py`). The weights come from the hub, or from a folder with `--config.init_from=hf:FOLDER
--config.data.tokenizer=FOLDER`. Captions of new pictures:

  python main.py --workdir=runs/blip --mode=predict --input=photo.jpg

Maps of what each word of a caption rests on in the picture (Grad-CAM), here by layer 6 of 12:

  python main.py --workdir=runs/blip --mode=show --config.attention_layer=6

The fields of LAVIS's caption_coco_ft.yaml:

| LAVIS | value | here |
|---|---|---|
| arch, model_type | blip_caption, base_coco | config.task, config.model, config.init_from |
| vis_processor, image_size | blip_image_train, 384 | config.data.augment, .area, .flip; the size is the folder's |
| text_processor, prompt | blip_caption, "a picture of " | config.data.prompt |
| vit_grad_ckpt | False | config.model.remat |
| lr_sched | linear_warmup_cosine_lr | config.optim.schedule = "cosine", config.optim.warmup (0, as there) |
| init_lr, min_lr | 1e-5, 0 | config.optim.lr, config.optim.end_lr |
| weight_decay | 0.05 | config.optim.weight_decay, on config.optim.decay_mask |
| max_epoch | 5 | config.epochs |
| batch_size_train, batch_size_eval | 32, 64 | config.batch_size |
| num_workers | 4 | config.data.threads, config.data.workers |
| max_len, min_len, num_beams | 20, 5, 3 | config.beam.max_len, .min_len, .num_beams; without the prompt |
| report_metric | True | config.report_metric, config.score |
| seed | 42 | config.seed |
| train_splits, valid_splits, test_splits | train, val, test | config.data.train, .valid, .test |
| label_smoothing (of its decoder) | 0.1 | config.label_smoothing |

LAVIS draws RandAugment besides. Not measured.
"""

import ml_collections

FROM_FOLDER = (
    *(f"{tower}_{name}" for tower in ("image", "text") for name in ("mlp_dim", "activation", "epsilon")),
    *("image_attention_dropout", "tied"),
)


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.caption"
    config.seed, config.epochs, config.batch_size = 42, 5.0, 32
    config.eval_every, config.save_every, config.log_every = 1000, 500, 50
    config.best = "valid/perplexity"
    config.init_from = "hf:Salesforce/blip-image-captioning-base"
    config.data = dict(tokenizer=config.init_from, prompt="a picture of ", max_caption_tokens=40)
    config.data.update(augment="imagenet", area=0.5, flip=True)
    config.model = dict(dropout=0.1, attention_dropout=0.1, **dict.fromkeys(FROM_FOLDER))
    config.label_smoothing = 0.1
    config.optim = dict(name="adamw", lr=1e-5, schedule="cosine", weight_decay=0.05, decay_mask="kernel$")
    config.beam = dict(num_beams=3, max_len=20, min_len=5)
    return config
