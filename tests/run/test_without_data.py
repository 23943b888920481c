"""A run of every shipped task, moved to a place without its data, answers as it did beside the data."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import finetune
import jax
import made_captions
import made_dialogues
import made_pairs
import made_questions
import pytest
from front_door import ROOT, TINY_GPT

import jtasks
from jtasks import config as configs
from jtasks.run import predict
from jtasks.run.restore import open_run

SHORT = ["--config.steps=1", "--config.epochs=0", "--config.show_count=0", "--config.report_metric=False"]
MODEL = ["--config.model.width=16", "--config.model.depth=2", "--config.model.heads=2"]
TEXT = "the cat sat on the mat\na dog ran over the hill\nbirds sing in the tall green tree\n"
TASKS = (
    "classify",
    "tag",
    "qa",
    "choice",
    "lm",
    "bert",
    "avsd",
    "mnist",
    "igpt",
    "classifier",
    "pictures",
    "caption",
    "vqa",
    "seq2seq",
)

WINDOWS = {"tag": "tag", "qa": "score"}  # an output of tasks that read windows

# Loads a run where there is no data, and prints what it answers and embeds.
ELSEWHERE = """
import json, pathlib, sys
import jax, numpy as np
jax.config.update("jax_disable_most_optimizations", True)
import jtasks
def plain(x):
    return {k: plain(v) for k, v in x.items()} if isinstance(x, dict) else np.asarray(x).tolist()
name, inputs = sys.argv[1], json.loads(pathlib.Path(sys.argv[2]).read_text())
run = jtasks.load(sys.argv[3])
given = [np.array(x, np.uint8) if isinstance(x, list) and isinstance(x[0], list) else x for x in inputs]
given = [x | {"image": np.array(x["image"], np.uint8)} if name == "vqa" else x for x in given]
given = [tuple(x.values()) if name == "qa" else x for x in given]
answers = [plain(x) for x in run.predict(given)]
assert [plain(x) for _, x in run.stream(iter(given))] == answers
print(json.dumps([answers, {k: v.tolist() for k, v in run.embed(given).items()}]))
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
    if name == "caption":
        made_captions.write(data)
        return configs.load(
            f"{ROOT}/configs/caption_emoji.py", [*made_captions.TINY, f"--config.data.dir={data}", *SHORT]
        )
    if name == "seq2seq":
        made_pairs.write(data)
        fields = [*made_pairs.TINY, "--config.data.target_tokenizer=wordpiece:60", f"--config.data.dir={data}", *SHORT]
        return configs.load(f"{ROOT}/configs/translate.py", fields)
    if name == "vqa":
        made_questions.write(data)
        return configs.load(f"{ROOT}/configs/vqa_easy.py", [*made_questions.TINY, f"--config.data.dir={data}", *SHORT])
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
    file = {"mnist": "mnist", "igpt": "igpt_digits", "classifier": "igpt_cifar_classify"}[name]
    fields = {
        "mnist": ["data.name=digits"],
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
    if name == "seq2seq":
        return [row["source_text"] for row in rows]
    if name == "vqa":
        return [{"image": row["image"].tolist(), "question": row["question"]} for row in rows]
    return [row["image"].tolist() for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_task_answers_without_its_data(name, tmp_path):
    data, workdir = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    config = config_of(name, data)
    jtasks.train(config, workdir)
    inputs = inputs_of(name, open_run(config, workdir))
    rows = []
    if name not in ("lm", "bert"):  # whose inputs are no rows of a split
        path = predict.run(config, workdir, "valid")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    shutil.rmtree(data)
    workdir.rename(tmp_path / "moved")
    (tmp_path / "inputs.json").write_text(json.dumps(inputs, default=lambda array: array.tolist()))
    none = str(tmp_path / "none")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ELSEWHERE, name, tmp_path / "inputs.json", tmp_path / "moved"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8", "JTASKS_DATA": none}
        | {"XDG_CACHE_HOME": none, "JAX_PLATFORMS": "cpu"}
        | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    answers, features = json.loads(done.stdout)
    assert features and all(len(array) == len(inputs) for array in features.values())
    if name in WINDOWS:  # the windows of an input are together
        windows = [window for answer in answers for window in answer[WINDOWS[name]]]
        assert windows == [row[WINDOWS[name]] for row in rows[: len(windows)]]
        return
    for ours, theirs in zip(answers, rows, strict=False):
        assert {key: ours[key] for key in theirs if key != "index"} == {k: v for k, v in theirs.items() if k != "index"}
