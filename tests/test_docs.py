"""The documentation tells the truth: commands run as pasted, and what a page names is there."""

import functools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from front_door import ROOT, readers_environment, records, run

from jtasks import config as configs
from jtasks import shipped

DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
PAGES |= {f"../{name}": (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
# Pages whose commands and scripts run as pasted.
PASTED = [
    "tutorial.md",
    "how_to/write_task.md",
    "how_to/resume.md",
    "how_to/report.md",
    "how_to/predict.md",
    "how_to/sweep.md",
    "how_to/many_devices.md",
    "how_to/research.md",
    "configs.md",
]
# Pages whose programs are compiled as for their readers; the others have the quick settings of the tests.
OPTIMIZED = ("tutorial.md", "how_to/write_task.md")
CONFIGS = {  # the config whose fields a page speaks of
    "from_hetseq.md": "bert:base",
    "from_lavis.md": "avsd",
    "from_lightning_transformers.md": "igpt_cifar:xxs",
}
PLACEHOLDERS = ("CONFIG[:PRESET]", "...", "configs/NAME.py")
OTHER_FIELDS = {"config.json", "config.a.b", "config.NAME", "config.model.widht", "config.model.plain"}
OTHER_FIELDS |= {
    "config.evals",
    "config.evals.news.best",
    "config.evals.news.every",
}  # groups that are empty by default
OTHER_FIELDS |= {"config.data.mix", "config.data.sources"}
TINY_GPT = ["--config.model.width=16", "--config.model.depth=1", "--config.model.heads=2"]
TINY = {
    "from_hetseq.md": ["--config.steps=2", "--config.batch_size=8", "--config.show_count=1"],
    "from_lavis.md": [*TINY_GPT, "--config.steps=2", "--config.batch_size=2", "--config.beam.num_beams=2"],
    "from_lightning_transformers.md": [
        *TINY_GPT,
        "--config.steps=2",
        "--config.batch_size=8",
        "--config.sample.count=1",
    ],
}
COMMAND = re.compile(
    r"^(?:    |\$ )?((?:\w+=\S+ )*(?:python main\.py|jtasks) --.*)$|`(python main\.py [^`]*)`", re.MULTILINE
)


def commands(page):
    """The arguments of each command on a page, with the variables before it."""
    text = PAGES[page].replace("\\\n", "")
    for words in (shlex.split(whole or inline) for whole, inline in COMMAND.findall(text)):
        start = next(i for i, word in enumerate(words) if word in ("jtasks", "main.py"))
        yield words[start + 1 :], dict(word.split("=", 1) for word in words[:start] if "=" in word)


def blocks(page):
    """The language and the text of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


@functools.cache
def known_fields():
    """Names of the fields of all shipped configs."""
    return {name for path in shipped.paths().values() for name, _ in configs.fields(configs.load(str(path)))}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("page", [page for page in PAGES if next(commands(page), None)])
def test_every_command_has_a_config_that_loads(page):
    for arguments, _ in commands(page):
        for config in (a.removeprefix("--config=") for a in arguments if a.startswith("--config=")):
            if config.partition(":")[0] in shipped.paths() or (ROOT / config.partition(":")[0]).is_file():
                configs.load(config, [a for a in arguments if a.startswith("--config.")])
            else:
                assert f"# {config}\n" in PAGES[page] or config in PLACEHOLDERS, config


@pytest.mark.parametrize("page", PAGES)
def test_every_field_it_names_is_there(page):
    named = set(re.findall(r"(?:`|--)(config(?:\.\w+)+)", PAGES[page]))
    assert named - known_fields() - OTHER_FIELDS - {name.rpartition(".")[0] for name in known_fields()} == set()


@pytest.mark.parametrize("page", CONFIGS)
def test_a_walk_through_names_fields_of_its_config(page):
    named = set(re.findall(r"`(config(?:\.\w+)+)`", PAGES[page]))
    assert len(named & {name for name, _ in configs.fields(configs.load(CONFIGS[page]))}) > 10


@pytest.mark.parametrize("config", re.findall(r"`(\w+\[:[\w,]+\])`", PAGES["configs.md"]))
def test_every_preset_it_names_is_there(config):
    name, presets = re.fullmatch(r"(\w+)\[:(.*)\]", config).groups()
    assert all(configs.load(f"{name}:{preset}") for preset in presets.split(","))


def test_every_shipped_config_is_described():
    assert {name for name in shipped.paths() if f"`{name}" not in PAGES["configs.md"]} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_it_names_is_there(page):
    folder = (DOCS / page).parent
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)\s#][^)\s]*)\)", PAGES[page])]
    assert [link for link in links if not (folder / link).exists()] == []
    names = re.findall(r"(?<![\w/])(?:jtasks|configs|launch|benchmarks|docs|tests|\.ci)/[\w/.-]*\w", PAGES[page])
    assert [name for name in names if "NAME" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_module_it_names_can_be_imported(page):
    for name in re.findall(r"`(jtasks(?:\.\w+)+)`", PAGES[page]):
        assert (
            pathlib.Path(name.replace(".", "/") + ".py").is_file() or pathlib.Path(name.replace(".", "/")).is_dir()
        ), name


@pytest.mark.parametrize(
    ("page", "fields"),
    [
        (
            "from_lightning_transformers.md",
            {"model.width": 16, "model.depth": 8, "model.heads": 2, "data.num_colors": 16},
        ),
        (
            "from_lavis.md",
            {"data.max_turns": 3, "data.use_caption": True, "optim.lr": 1e-5, "optim.weight_decay": 0.05},
        ),
        ("from_lavis.md", {"epochs": 20.0, "batch_size": 16, "seed": 42, "report_metric": True}),
        ("from_lavis.md", {"beam.max_len": 20, "beam.min_len": 5, "beam.num_beams": 5}),
    ],
)
def test_the_values_are_those_of_the_tutorial(page, fields):
    values = dict(configs.fields(configs.load(CONFIGS[page])))
    assert {name: values[f"config.{name}"] for name in fields} == fields


LAVIS = {  # lr, weight decay, epochs, batch size
    "blip_caption": (1e-5, 0.05, 5.0, 32),
    "blip_vqa": (2e-5, 0.05, 10.0, 16),
    "multimodal_classify:nlvr2": (2.5e-5, 0.05, 15.0, 16),
}


@pytest.mark.parametrize("config", LAVIS)
def test_tasks_of_pictures_have_lavis_values(config):
    loaded = configs.load(config)
    optim = loaded.optim
    assert (optim.lr, optim.weight_decay, loaded.epochs, loaded.batch_size) == LAVIS[config]
    assert (optim.end_lr, optim.schedule, loaded.seed) == (0.0, "cosine", 42)
    names = "init_lr|weight_decay|max_epoch|batch_size_train"
    rows = re.findall(rf"^\| `(?:{names})` \|.*", PAGES["from_lavis.md"], re.MULTILINE)
    column = {"blip_caption": 2, "blip_vqa": 3, "multimodal_classify:nlvr2": 5}[config]
    assert tuple(float(row.split("|")[column]) for row in rows) == LAVIS[config]


@pytest.mark.slow
@pytest.mark.parametrize("page", CONFIGS)
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


def paste(folder, language, text, environment):
    """Do with a block what its reader does: save a named file, run a command or a script."""
    title = re.match(r"# (\w+\.py)(, continued)?\n", text)
    if language == "python" and title:
        with open(folder / title[1], "a" if title[2] else "w") as file:
            file.write(text)
        return
    shell = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**environment, "PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*shell, text], cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{text}\n{done.stderr}"


def test_two_pages_train_the_same_run_by_the_same_command():
    runs = {}
    for page in PASTED:
        for arguments, _ in commands(page):
            for workdir in (a for a in arguments if a.startswith("--workdir=")):
                if any(a.startswith("--config=") for a in arguments):
                    runs.setdefault(workdir, {}).setdefault(page, []).append(arguments)
    shared = {workdir: list(pages.values()) for workdir, pages in runs.items() if len(pages) > 1}
    assert [workdir for workdir, (first, *others) in shared.items() if any(other != first for other in others)] == []


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory):
    """Where a reader tries one page after another; runs that are there already are not trained again."""
    return tmp_path_factory.mktemp("reader")


@pytest.mark.slow
@pytest.mark.parametrize("page", PASTED)
def test_a_page_runs_as_pasted(page, readers_folder):
    environment = readers_environment() if page in OPTIMIZED else os.environ
    for language, text in blocks(page):
        if language in ("sh", "python"):
            paste(readers_folder, language, text, environment)
