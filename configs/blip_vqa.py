"""Answers to questions about pictures by BLIP (Li et al. 2022, arXiv:2201.12086), fine-tuned on VQA v2's files.

  python main.py --config=configs/blip_vqa.py --workdir=runs/blip_vqa --config.data.dir=DIR

DIR holds VQA v2's questions, annotations and pictures, or questions in another form (see
`jtasks/data/question_files.py`). The weights come from the hub, or from a folder with `--config.init_from=hf:FOLDER
--config.data.tokenizer=FOLDER`. Answers to new questions, one a line as FILE<TAB>question:

  python main.py --workdir=runs/blip_vqa --mode=predict --input=questions.txt

Maps of what the answer rests on in the picture, for each word of the question (Grad-CAM), here by layer 6 of 12:

  python main.py --workdir=runs/blip_vqa --mode=show --config.attention_layer=6

The fields of LAVIS's vqav2_ft.yaml:

| LAVIS | value | here |
|---|---|---|
| arch, model_type | blip_vqa, vqav2 | config.task, config.model, config.init_from |
| image_size | 480 | the folder's, 384 |
| vis_processor | blip_image_train | config.data.augment, .area |
| max_txt_len | 35 | config.data.max_question_tokens |
| lr_sched | linear_warmup_cosine_lr | config.optim.schedule = "cosine", config.optim.warmup (0, as there) |
| init_lr, min_lr | 2e-5, 0 | config.optim.lr, config.optim.end_lr |
| weight_decay | 0.05 | config.optim.weight_decay, on config.optim.decay_mask |
| max_epoch | 10 | config.epochs |
| batch_size_train, batch_size_eval | 16, 64 | config.batch_size |
| num_workers | 4 | config.data.threads, config.data.workers |
| max_len, min_len, num_beams | 10, 1, 3 | config.beam.max_len, .min_len, .num_beams |
| num_ans_candidates | 128 | config.num_ans_candidates |
| inference_method | rank | config.inference_method |
| answer_list | answer_list.json | config.data.answers; "": the commonest 3,128 of train |
| label_smoothing (of its decoder) | 0.1 | config.label_smoothing |
| seed | 42 | config.seed |
| train_splits, test_splits | train, test | config.data.train, .valid, .test |

LAVIS trains on Visual Genome's questions besides, and draws RandAugment. Not measured.
"""

import ml_collections

FROM_FOLDER = (
    *(f"{tower}_{name}" for tower in ("image", "text") for name in ("mlp_dim", "activation", "epsilon")),
    *("image_attention_dropout", "tied"),
)


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "jtasks.tasks.vqa"
    config.seed, config.epochs, config.batch_size = 42, 10.0, 16
    config.eval_every, config.save_every, config.log_every = 5000, 1000, 50
    config.init_from = "hf:Salesforce/blip-vqa-base"
    config.data = dict(tokenizer=config.init_from, max_question_tokens=35, augment="imagenet", area=0.5)
    config.model = dict(dropout=0.1, attention_dropout=0.1, **dict.fromkeys(FROM_FOLDER))
    config.inference_method, config.num_ans_candidates, config.label_smoothing = "rank", 128, 0.1
    config.optim = dict(name="adamw", lr=2e-5, schedule="cosine", weight_decay=0.05, decay_mask="kernel$")
    config.beam = dict(num_beams=3, max_len=10, min_len=1)
    return config
