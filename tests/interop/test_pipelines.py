"""Claims about exported folders in transformers' pipelines: the same answers as --mode=predict.

Needs torch and transformers, which are no requirement of jtasks: the tests are skipped without them.
"""

import json
import logging

import finetune
import numpy as np
import pytest
from finetune import ROOT

import jtasks
from jtasks import config as configs
from jtasks.run import export, predict
from jtasks.run.loop import train

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of the other libraries
]

SHORT = ["steps=12", "epochs=0.0", "show_count=0", "report_metric=False", "optim.lr=0.02"]


def trained(tmp_path, file, overrides, split="valid"):
    """Train a run; returns its exported folder, the predictions of a split, and its config."""
    workdir = tmp_path / "run"
    given = [f"--config.{change}" for change in (*overrides, *SHORT)]
    name, _, preset = file.partition(":")
    config = configs.load(f"{ROOT / 'configs' / name}{':' + preset if preset else ''}", given)
    train(config, workdir)
    rows = predict.run(config, workdir, split).read_text().splitlines() if split else []
    return str(export.run(config, workdir, None)), [json.loads(row) for row in rows], config


def pipeline(task, folder, **options):
    """A pipeline on this folder alone."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return transformers.pipeline(task, model=folder, device="cpu", **options)


def table(path):
    """The columns of a TSV file."""
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_classes_of_texts_and_their_probabilities(tmp_path):
    overrides = [*finetune.sst2(tmp_path), "data.labels=('bad', 'good')"]
    for split in ("train", "dev"):
        lines = [f"{line[0]}\t{('bad', 'good')[int(line[1])]}" for line in table(tmp_path / f"{split}.tsv")[1:]]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    folder, outputs, _ = trained(tmp_path, "sst2.py", overrides)
    texts = [row[0] for row in table(tmp_path / "dev.tsv")[1:]]
    theirs = pipeline("text-classification", folder)(texts)
    for said, ours in zip(theirs, outputs, strict=True):
        assert said["label"] == ("bad", "good")[int(ours["label"])] or said["label"] == ours["label"]
        assert said["score"] == pytest.approx(ours["probability"], abs=1e-5)
    assert len({round(said["score"], 5) for said in theirs}) > 2


def test_tags_of_words(tmp_path):
    folder, outputs, _ = trained(tmp_path, "wnut17.py", finetune.wnut17(tmp_path))
    blocks = (tmp_path / "valid.conll").read_text().strip("\n").split("\n\n")
    sentences = [" ".join(line.split("\t")[0] for line in block.split("\n")) for block in blocks]
    names = json.loads((tmp_path / "run" / "labels.json").read_text())
    theirs = pipeline("token-classification", folder, ignore_labels=[])(sentences)
    assert len(outputs) == len(sentences)  # no sentence is cut into windows
    for said, ours in zip(theirs, outputs, strict=True):
        tags = [names[int(i)] for i in ours["tag"][1 : 1 + len(said)]]
        assert [piece["entity"] for piece in said] == tags


def test_answers_in_a_text(tmp_path):
    overrides = finetune.squad(tmp_path)
    places = ["they met in Rome .", "some people who liked Rome met there", "the town was New York"]
    questions = [finetune.question(str(i), text, "where did they meet ?", "o") for i, text in enumerate(places)]
    paragraphs = [{"context": text, "qas": [entry]} for text, entry in zip(places, questions, strict=True)]
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    folder, outputs, _ = trained(tmp_path, "squad.py:small", overrides)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for entry, context, ours in zip(questions, places, outputs, strict=True):
        inputs = tokenizer(entry["question"], context, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs)
        score = logits.start_logits[0, ours["start"][0]] + logits.end_logits[0, ours["end"][0]]
        assert float(score) == pytest.approx(ours["score"][0], abs=1e-5)


def test_hidden_words(tmp_path):
    lines = finetune.sentences(200, 3)
    (tmp_path / "x.txt").write_text("".join(f"{line}\n" + "\n" * (i % 9 == 0) for i, line in enumerate(lines)))
    model = ["model.width=16", "model.depth=2", "model.heads=2", "data.tokenizer=wordpiece:150", "batch_size=8"]
    folder, _, _ = trained(
        tmp_path, "bert.py", [*model, f"data.files={tmp_path / 'x.txt'}", "data.valid_fraction=0.3"], ""
    )
    text = "the film was [MASK] by many people"
    ours = jtasks.load(tmp_path / "run").predict(text)
    (said,) = pipeline("fill-mask", folder, top_k=1)(text)
    assert said["token"] == ours["ids"][0] and said["sequence"] == ours["filled"]
    assert said["score"] == pytest.approx(ours["probability"][0], abs=1e-5)


def test_generated_text(tmp_path):
    (tmp_path / "x.txt").write_text("".join(f"{line}\n" for line in finetune.sentences(300, 3)))
    model = ["model.width=16", "model.depth=2", "model.heads=2", "data.tokenizer=bpe:300", "batch_size=8"]
    data = [f"data.files={tmp_path / 'x.txt'}", "data.length=16", "sample.temperature=0.0", "sample.length=8"]
    folder, outputs, _ = trained(tmp_path, "lm_text.py:gpt2", [*model, *data], "train")
    write = pipeline("text-generation", folder)
    assert write.model.generation_config.do_sample is False and write.model.generation_config.pad_token_id is not None
    for output in outputs[:8]:
        tokens = output["tokens"]
        prompt = write.tokenizer.decode(tokens[:8])
        (said,) = write(prompt, max_new_tokens=8, return_tensors=True)
        if said["generated_token_ids"][:8] == tokens[:8]:  # the text has these tokens again
            assert said["generated_token_ids"] == tokens[: len(said["generated_token_ids"])]


def test_classes_of_pictures(tmp_path):
    from PIL import Image

    model = ["model.width=16", "model.depth=2", "model.heads=2", "model.pool=token", "batch_size=32"]
    random = np.random.default_rng(0)
    for split, n in (("train", 40), ("test", 12)):
        for i in range(n):
            place = tmp_path / "photos" / split / ("dark", "light")[i % 2] / f"{i:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            noise = random.integers(0, 128, (11, 14, 3), np.uint8)
            Image.fromarray(noise + np.uint8(127 * (i % 2))).save(place)
    data = [f"data.name=folder:{tmp_path / 'photos'}", "data.size=8", "data.white=255.0"]
    folder, outputs, _ = trained(tmp_path, "vit_digits.py", [*model, *data], "test")
    paths = sorted(map(str, (tmp_path / "photos" / "test").rglob("*.png")))
    theirs = pipeline("image-classification", folder, top_k=1)([Image.open(path) for path in paths])
    for (said,), ours in zip(theirs, outputs, strict=True):
        assert said["label"] in (("dark", "light")[ours["label"]] if isinstance(ours["label"], int) else ours["label"])
        assert said["score"] == pytest.approx(ours["probability"], abs=1e-5)
