"""A run of every shipped task, moved to a place without its data, answers as it did beside the data."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import finetune
import made_dialogues
import pytest
from front_door import ROOT, TINY_GPT

import jtasks
from jtasks import config as configs
from jtasks.run import predict
from jtasks.run.restore import open_run

SHORT = ["--config.steps=1", "--config.epochs=0", "--config.show_count=0", "--config.report_metric=False"]
MODEL = ["--config.model.width=16", "--config.model.depth=2", "--config.model.heads=2"]
TEXT = "the cat sat on the mat\na dog ran over the hill\nbirds sing in the tall green tree\n"
TASKS = ("classify", "tag", "qa", "choice", "lm", "bert", "avsd", "mnist", "vit", "igpt", "classifier", "pictures")

# Loads the runs below a folder where there is no data, and prints what they answer and embed.
ELSEWHERE = """
import json, pathlib, sys
import jax, numpy as np
jax.config.update("jax_disable_most_optimizations", True)
import jtasks
def plain(x):
    return {k: plain(v) for k, v in x.items()} if isinstance(x, dict) else np.asarray(x).tolist()
for name, inputs in json.loads(pathlib.Path(sys.argv[1]).read_text()).items():
    run = jtasks.load(pathlib.Path(sys.argv[2]) / name)
    given = [np.array(x, np.uint8) if isinstance(x, list) and isinstance(x[0], list) else x for x in inputs]
    given = [tuple(x.values()) if name == "qa" else x for x in given]
    answers = [plain(x) for x in run.predict(given)]
    assert [plain(x) for _, x in run.stream(iter(given))] == answers
    features = {k: v.tolist() for k, v in run.embed(given).items()}
    print(json.dumps([name, answers, features]), flush=True)
"""


def config_of(name: str, data: pathlib.Path) -> configs.Config:
    """The config of a tiny run, whose data is below the folder."""
    texts = {"classify": "sst2.py", "tag": "wnut17.py", "qa": "squad.py:small", "choice": "swag.py:small"}
    if name in texts:
        return finetune.config(texts[name], data, *(text.removeprefix("--config.") for text in SHORT))
    if name in ("lm", "bert"):
        (data / "text.txt").write_text(f"{TEXT}\n{TEXT.upper()}\n" * 8)
        lengths = {
            "lm": ["data.length=16", "sample.length=6"],
            "bert": ["data.length=24", "data.tokenizer=wordpiece:60", "data.valid_fraction=0.0"],
        }
        fields = ["data.files=text.txt", f"data.dir={data}", *lengths[name]]
        file = {"lm": "shakespeare_char.py", "bert": "bert.py:tiny"}[name]
        return configs.load(f"{ROOT}/configs/{file}", [*MODEL, *(f"--config.{field}" for field in fields), *SHORT])
    if name == "avsd":
        made_dialogues.write(data, {"train": 8, "valid": 4, "test": 3}, features=False)
        return configs.load(
            f"{ROOT}/configs/avsd.py:small", [*made_dialogues.TINY, f"--config.data.dir={data}", *SHORT]
        )
    if name == "pictures":
        from PIL import Image

        for i, kind in enumerate(("cats", "dogs") * 4):
            place = data / "pictures" / ("train" if i < 6 else "test") / kind
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (30 * i, 9, 200)).save(place / f"{i}.png")
        fields = [f"data.name=folder:{data}/pictures", "data.size=8", "batch_size=4", "data.white=255.0"]
        return configs.load(
            f"{ROOT}/configs/vit_digits.py", [*MODEL, *(f"--config.{field}" for field in fields), *SHORT]
        )
    file = {"mnist": "mnist", "vit": "vit_digits", "igpt": "igpt_digits", "classifier": "igpt_cifar_classify"}[name]
    fields = {
        "mnist": ["data.name=digits"],
        "vit": [text.removeprefix("--config.") for text in MODEL],
        "igpt": [text.removeprefix("--config.") for text in TINY_GPT],
        "classifier": [
            "data.name=digits",
            "data.num_colors=0",
            "init_from=",
            *(text.removeprefix("--config.") for text in TINY_GPT),
        ],
    }[name]
    return configs.load(f"{ROOT}/configs/{file}.py", [*(f"--config.{field}" for field in fields), *SHORT])


def inputs_of(name: str, run) -> list:
    """What people hold of the valid split: the same rows without their labels."""
    if name in ("lm", "bert"):
        return {"lm": ["the cat", "a dog ran"], "bert": ["the cat [MASK] on", "birds"]}[name]
    rows = [dict(row) for row in predict.rows(run.require("valid"))][:9]
    if name == "classify":
        return [row["text"] for row in rows]
    if name == "tag":
        return list({row["sentence"]: {"words": row["words"]} for row in rows}.values())
    if name == "qa":
        return list({r["question"].name: {"q": r["question"].text, "c": r["question"].context} for r in rows}.values())
    if name == "choice":
        return [{"context": row["context"], "choices": row["choices"]} for row in rows]
    if name == "avsd":
        return [row["dialogue"] | {"dialog": row["dialogue"]["dialog"][: int(row["turn"]) + 1]} for row in rows]
    return [row["image"].tolist() for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiles")
def test_every_task_answers_without_its_data(tmp_path):
    inputs, wanted = {}, {}
    for name in TASKS:
        data = tmp_path / "data" / name
        data.mkdir(parents=True)
        config, workdir = config_of(name, data), tmp_path / "runs" / name
        jtasks.train(config, workdir)
        run = open_run(config, workdir)
        inputs[name] = inputs_of(name, run)
        if name not in ("lm", "bert"):
            path = predict.run(config, workdir, "valid")
            wanted[name] = [json.loads(line) for line in path.read_text().splitlines()]
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "runs").rename(tmp_path / "moved")
    (tmp_path / "inputs.json").write_text(json.dumps(inputs, default=lambda array: array.tolist()))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ELSEWHERE, tmp_path / "inputs.json", tmp_path / "moved"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_NUM_CPU_DEVICES": "8",
            "JTASKS_DATA": str(tmp_path / "none"),
            "XDG_CACHE_HOME": str(tmp_path / "none"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    answers = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    assert list(answers) == list(TASKS)
    for name, rows in wanted.items():
        found, features = answers[name]
        assert all(len(array) == len(inputs[name]) for array in features.values()), name
        for i, (ours, theirs) in enumerate(zip(found, rows, strict=False)):
            for key, value in theirs.items():
                if key != "index" and name not in ("tag", "qa"):
                    assert ours[key] == value, (name, i, key)
        if name in ("tag", "qa"):  # the windows of an input are together
            key = {"tag": "tag", "qa": "score"}[name]
            windows = [window for answer in found for window in answer[key]]
            assert windows == [row[key] for row in rows[: len(windows)]], name
