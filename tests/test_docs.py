"""The walk-throughs tell the truth: their commands and fields are there, and the last command of each runs."""

import json
import re
import shlex

import pytest
from front_door import ROOT, records, run

from jtasks import config as configs

PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("from_*.md"))}
CONFIGS = {  # the config whose fields a page speaks of
    "from_hetseq": "configs/bert.py:base",
    "from_lavis": "configs/avsd.py",
    "from_lightning_transformers": "configs/igpt_cifar.py:xxs",
}
TINY_GPT = ["--config.model.width=16", "--config.model.depth=1", "--config.model.heads=2"]
TINY = {
    "from_hetseq": ["--config.steps=2", "--config.batch_size=8", "--config.show_count=1"],
    "from_lavis": [*TINY_GPT, "--config.steps=2", "--config.batch_size=2", "--config.beam.num_beams=2"],
    "from_lightning_transformers": [*TINY_GPT, "--config.steps=2", "--config.batch_size=8", "--config.sample.count=1"],
}


def commands(page):
    """The arguments of every `python main.py ...` on a page, with the variables before it."""
    found = re.findall(r"^    (.*python main\.py .*)$|`(python main\.py [^`]*)`", PAGES[page], re.MULTILINE)
    for words in (shlex.split(indented or inline) for indented, inline in found):
        start = words.index("python")
        yield words[start + 2 :], dict(word.split("=", 1) for word in words[:start])


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_there_is_a_page_for_each_of_the_three():
    assert list(PAGES) == list(CONFIGS)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_has_a_config_that_loads(page):
    found = list(commands(page))
    assert found
    for arguments, _ in found:
        (path,) = (a.removeprefix("--config=") for a in arguments if a.startswith("--config="))
        configs.load(path, [a for a in arguments if a.startswith("--config.")])


@pytest.mark.parametrize("page", PAGES)
def test_every_field_it_names_is_there(page):
    config = configs.load(CONFIGS[page])
    names = {name for name, _ in configs.fields(config)}
    named = set(re.findall(r"`(config(?:\.\w+)+)`", PAGES[page]))
    assert len(named) > 10
    assert named - names == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_it_names_is_there(page):
    for name in re.findall(r"`((?:jtasks|configs)/[\w/]+\.py)`", PAGES[page]):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    ("page", "fields"),
    [
        ("from_lightning_transformers", {"model.width": 16, "model.depth": 8, "model.heads": 2, "data.colours": 16}),
        ("from_lavis", {"data.max_turns": 3, "data.use_caption": True, "optim.lr": 1e-5, "optim.weight_decay": 0.05}),
        ("from_lavis", {"epochs": 20.0, "batch_size": 16, "seed": 42, "report_metric": True}),
        ("from_lavis", {"beam.max_len": 20, "beam.min_len": 5, "beam.num_beams": 5}),
    ],
)
def test_the_values_are_those_of_the_tutorial(page, fields):
    found = dict(configs.fields(configs.load(CONFIGS[page])))
    assert {name: found[f"config.{name}"] for name in fields} == fields


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_last_command_runs(page, tmp_path):
    *_, (arguments, variables) = commands(page)
    devices = int(variables.pop("JAX_NUM_CPU_DEVICES", "1"))
    assert not variables
    for name in ("train", "valid"):
        turns = [{"question": f"is there a man in room {i} ?", "answer": f"yes , in room {i} ."} for i in range(3)]
        video = {"caption": "a man sits in a room", "summary": "a man sits", "dialog": turns}
        dialogues = [{"image_id": f"V{i}", **video} for i in range(4)]
        path = tmp_path / f"{name}_set4DSTC7-AVSD.json"
        path.write_text(json.dumps({"type": "scene_aware_dialog", "version": "0.1", "dialogs": dialogues}))
    workdir = tmp_path / "run"
    kept = [argument for argument in arguments if not argument.startswith("--workdir=")]
    result, _ = run(*kept, *TINY[page], f"--workdir={workdir}", devices=devices, JTASKS_DATA=str(tmp_path))
    assert result["step"] == 2 and any(name.endswith("/loss") for name in result)
    assert any(record["split"] == "train" for record in records(workdir))
