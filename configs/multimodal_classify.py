"""Classes of texts about pictures: NLVR2 (Suhr et al. 2019), SNLI-VE (Xie et al. 2019), easy-VQA, or one's own files.

  python main.py --config=configs/multimodal_classify.py[:PRESET] --workdir=runs/multimodal

Own files are .json, .jsonl, .csv or .tsv: `image` (and `image2`, or a list of two as `images`), `text` and `label`; see
`jtasks/data/picture_texts.py`. Presets:

- `easy` (default): easy-VQA's questions with its 13 answers as classes, from scratch on a CPU. Its archive
  easy_vqa.tar.xz is looked for in $JTASKS_DATA or --config.data.dir.
- `nlvr2`: whether a sentence is true of two photographs. The data are LAVIS's nlvr_train.json, nlvr_dev.json and
  nlvr_test.json, or NLVR2's own train.json, dev.json and test1.json, with the photographs in config.data.pictures.
- `snli_ve`: whether a photograph entails a sentence, contradicts it, or neither: LAVIS's ve_train.json, or the official
  snli_ve_train.jsonl, with Flickr30K's photographs.

`nlvr2` and `snli_ve` begin with the published BLIP for retrieval, or another one, --config.init_from=hf:NAME
--config.data.tokenizer=hf:NAME. They have LAVIS's values (nlvr_ft.yaml, snli_ve_ft.yaml):

| LAVIS | nlvr2 | snli_ve | here |
|---|---|---|---|
| arch | blip_nlvr | albef_classification | config.task, config.model |
| image_size | 384 | 384 | config.data.size |
| task | multimodal_classification | | config.task |
| lr_sched | linear_warmup_cosine_lr | | config.optim.schedule = "cosine" |
| init_lr, min_lr | 2.5e-5, 0 | 2e-5, 0 | config.optim.lr, config.optim.end_lr |
| weight_decay | 0.05 | 0.05 | config.optim.weight_decay |
| max_epoch | 15 | 10 | config.epochs |
| batch_size_train | 16 | 32 | config.batch_size |
| num_workers | 4 | 4 | config.data.threads |
| num_classes | 2 | 3 | the labels in the data, or config.data.labels |
| seed | 42 | 42 | config.seed |

LAVIS's BLIP reads two photographs by a second cross-attention in each layer; here one cross-attention reads the states
of both, with an embedding of each picture's place. ALBEF's distillation from a moving average is left out. Neither
preset has been measured. `easy` reaches 75.0 % on the valid and 76.5 % on the 9,673 test questions in its 2,168 steps,
which took 4 CPU minutes; the commonest answer to each question alone, without the picture, reaches 67.0 %.
"""

import ml_collections

PRESETS = ("easy", "nlvr2", "snli_ve")


def get_config(preset: str = "easy") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.multimodal_classify"
    config.seed, config.log_every = 42, 50
    config.best, config.best_mode = "valid/accuracy", "max"
    config.optim = dict(name="adamw", schedule="cosine", weight_decay=0.05, decay_mask="(kernel|embedding)$")
    if preset == "easy":
        config.epochs, config.batch_size, config.eval_every, config.save_every = 4.0, 64, 500, 500
        config.data = dict(tokenizer="wordpiece:200", length=16, size=32)
        config.model = dict(patch=8, image_width=64, image_depth=2, image_heads=4)
        config.model.update(text_width=64, text_depth=2, text_heads=4)
        config.optim.update(lr=2e-3, warmup=0.05, clip=1.0)
        return config
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is none of {', '.join(PRESETS)}")
    config.eval_every = config.save_every = 1000
    config.init_from = "hf:Salesforce/blip-itm-base-coco"
    config.data = dict(tokenizer=config.init_from, length=35, size=384)
    config.data.update(augment="imagenet", area=0.5, flip=preset != "nlvr2")
    config.model = dict.fromkeys(("patch", *(f"{tower}_{size}" for tower in ("image", "text") for size in SIZES)))
    config.model.update(max_length=None, pictures=2 if preset == "nlvr2" else 1)
    if preset == "nlvr2":
        config.epochs, config.batch_size = 15.0, 16
        config.data.labels = ("False", "True")
        config.optim.lr = 2.5e-5
    else:
        config.epochs, config.batch_size = 10.0, 32
        config.data.labels = ("contradiction", "neutral", "entailment")
        config.optim.lr = 2e-5
    return config


SIZES = ("width", "depth", "heads", "mlp_dim", "activation", "epsilon")  # None: taken from the folder
