"""Tiny data and configs of the fine-tuning tasks: texts whose labels follow from a word or two."""

import json
import pathlib

import numpy as np
from front_door import ROOT

from jtasks import config as configs
from jtasks.run import job
from jtasks.run.job import Job

MODEL = ["model.width=16", "model.depth=2", "model.heads=2", "data.tokenizer=wordpiece:150"]
FILLERS = "the film was seen by many people who liked or hated it in some town last year".split()  # noqa: SIM905
NAMES = {"person": ["Ada Lovelace", "Bo", "Cy Dee Ex"], "location": ["Rome", "New York"]}


def sentences(n: int, seed: int, words: int = 9) -> list[str]:
    """Texts of 1 to `words` filler words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(FILLERS, random.integers(1, words + 1))) for _ in range(n)]


def sst2(folder: pathlib.Path) -> list[str]:
    """Phrases that are good or bad; overrides of configs/sst2.py."""
    for split, n in (("train", 64), ("dev", 21)):
        lines = [f"{text} {('bad', 'good')[i % 2]} \t{i % 2}" for i, text in enumerate(sentences(n, len(split)))]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    data = [f"data.dir={folder}", "data.train=train.tsv", "data.valid=dev.tsv", "data.test=dev.tsv"]
    return [*data, *MODEL, "data.length=16", "data.buckets=(8, 16)", "batch_tokens=256"]


def wnut17(folder: pathlib.Path) -> list[str]:
    """Sentences with names in them; overrides of configs/wnut17.py."""
    random = np.random.default_rng(0)
    for split, n in (("train", 48), ("valid", 13)):
        lines = []
        for text in sentences(n, len(split)):
            kind = ("person", "location")[random.integers(2)]
            name = NAMES[kind][random.integers(len(NAMES[kind]))].split()
            lines += [f"{word}\tO" for word in text.split()]
            lines += [f"{word}\t{'I' if i else 'B'}-{kind}" for i, word in enumerate(name)] + [""]
        (folder / f"{split}.conll").write_text("\n".join(lines))
    data = [f"data.dir={folder}", "data.train=train.conll", "data.valid=valid.conll", "data.test=valid.conll"]
    return [*data, *MODEL, "data.length=24", "data.buckets=(12, 24)", "batch_tokens=256"]


def question(name: str, context: str, text: str, *answers: str, **more: object) -> dict:
    """One of SQuAD's entries."""
    found = [{"answer_start": context.index(answer), "text": answer} for answer in answers]
    return {"id": name, "question": text, "answers": found, **more}


def squad(folder: pathlib.Path) -> list[str]:
    """Questions for the place in a text, some without an answer; overrides of configs/squad.py:small."""
    for split, n in (("train", 24), ("dev", 7)):
        paragraphs = []
        for i, text in enumerate(sentences(n, len(split), words=40)):
            context = f"{text} . they met in {NAMES['location'][i % 2]} . {text}"
            answers = () if i % 4 == 3 else (NAMES["location"][i % 2],)
            entry = question(f"{split}{i}", context, "where did they meet ?", *answers, is_impossible=not answers)
            paragraphs.append({"context": context, "qas": [entry]})
        (folder / f"{split}.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    data = [f"data.dir={folder}", "data.train=train.json", "data.valid=dev.json", "data.test=dev.json"]
    windows = [
        "data.length=48",
        "data.max_question_tokens=8",
        "data.stride=16",
        "data.unanswerable=True",
        "data.max_answer_tokens=4",
    ]
    return [*data, *MODEL, *windows, "data.buckets=(32, 48)", "batch_tokens=384"]


def swag(folder: pathlib.Path) -> list[str]:
    """Sentences with four endings of which one says what the context says; overrides of configs/swag.py:small."""
    for split, n in (("train", 32), ("val", 9)):
        rows = []
        for i, text in enumerate(sentences(n, len(split))):
            endings = {f"ending{k}": FILLERS[(i + k) % 16] for k in range(4)}
            rows.append({"sent1": f"{text} {FILLERS[(i + i % 4) % 16]}", "sent2": "so", **endings, "label": i % 4})
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = [f"data.dir={folder}", "data.train=train.jsonl", "data.valid=val.jsonl", "data.test=val.jsonl"]
    return [*data, *MODEL, "data.length=24"]


CONFIGS = {"sst2.py": sst2, "wnut17.py": wnut17, "squad.py:small": squad, "swag.py:small": swag}


def config(name: str, folder: pathlib.Path, *changes: str) -> configs.Config:
    """A shipped config on tiny data in `folder`; `changes` are overrides without `--config.`."""
    overrides = [f"--config.{change}" for change in (*CONFIGS[name](folder), *changes)]
    file, _, preset = name.partition(":")
    return configs.load(f"{ROOT / 'configs' / file}{':' + preset if preset else ''}", overrides)


def prepared(name: str, folder: pathlib.Path, *changes: str) -> Job:
    """The same as a job, its placeholders filled."""
    return job.prepare(config(name, folder, *changes))
