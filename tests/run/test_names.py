"""Claims about runs that begin from the hub: commands of a user, against a server on this machine."""

import json
import pathlib
import shutil
import socket

import finetune
import pytest
from data_tables import TEXT, class_label, parquet, table
from front_door import ROOT, run, start
from hub_server import serving

from jtasks.config import Config
from jtasks.run import names

GOLDEN = ROOT / "tests" / "golden" / "gpt2_lm"
FEATURES = {"text": TEXT, "label": class_label("bad", "good")}


@pytest.fixture
def server(tmp_path):
    """A server with a small GPT-2, and a text."""
    (tmp_path / "x.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    with serving() as own:
        own.commit = own.add_folder("golden/gpt2", GOLDEN)
        yield own


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def begin(tmp_path, server, *more, code=0, workdir="run", **environment):
    """Train on the text from the hub's GPT-2."""
    data = [
        f"--config.data.files={tmp_path / 'x.txt'}",
        "--config.data.tokenizer=characters",
        "--config.data.length=16",
    ]
    short = ["--config.steps=2", "--config.save_every=1", "--config.batch_size=8", "--config.show_count=0"]
    return run(
        "--config=configs/lm_text.py:gpt2",
        f"--workdir={tmp_path / workdir}",
        "--config.init_from=hf:golden/gpt2",
        *data,
        *short,
        *more,
        code=code,
        HF_ENDPOINT=server.url,
        HF_HOME=str(tmp_path / "home"),
        **environment,
    )


@pytest.mark.slow
def test_a_run_begins_from_the_hub_and_goes_on_without_it(tmp_path, server):
    result, errors = begin(tmp_path, server)
    assert result["step"] == 2 and f"hf:golden/gpt2 is hf:golden/gpt2@{server.commit}" in errors
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["init_from"] == f"hf:golden/gpt2@{server.commit}"
    local, _ = begin(tmp_path, server, f"--config.init_from=hf:{GOLDEN}", workdir="local")
    assert local == result

    server.add("golden/gpt2", {"config.json": b"another model"})
    server.requests.clear()
    shutil.rmtree(tmp_path / "home")
    result, errors = begin(tmp_path, server, "--config.steps=3", HF_HUB_OFFLINE="1")
    assert result["step"] == 3 and "resumed from step 2" in errors and "init_from" not in errors
    assert run(f"--workdir={tmp_path / 'run'}", "--mode=eval", "--split=train", HF_HUB_OFFLINE="1")[0]["step"] == 3
    (tmp_path / "x.txt").unlink()
    result, errors = run(
        f"--workdir={tmp_path / 'run'}", "--mode=export", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "x")
    )
    assert (pathlib.Path(result["exported"]) / "generation_config.json").is_file() and "is gone" in errors
    assert server.requests == []


@pytest.mark.slow
def test_a_command_killed_in_the_middle_of_a_download_is_completed_by_the_next(tmp_path, server):
    server.hold.add("model.safetensors")
    process = start(
        "--config=configs/lm_text.py:gpt2",
        f"--workdir={tmp_path / 'run'}",
        "--config.init_from=hf:golden/gpt2",
        HF_ENDPOINT=server.url,
        HF_HOME=str(tmp_path / "home"),
    )
    server.held.wait(100)
    process.kill()
    process.communicate()
    server.hold.clear()
    server.requests.clear()
    assert begin(tmp_path, server)[0]["step"] == 2
    assert "model.safetensors" in server.fetched()


@pytest.mark.slow
def test_data_on_the_hub_is_pinned_for_the_run_and_fetched_once_for_all_processes(tmp_path, server):
    columns = {"text": [f"a film {i % 2}" for i in range(24)], "label": [i % 2 for i in range(24)]}
    whole = table(columns, FEATURES)
    parts = {"train": whole[:16], "validation": whole[16:]}
    commit = server.add("me/films", {f"{split}-0.parquet": parquet(part) for split, part in parts.items()}, "datasets")
    data = [f"--config.data.{split}=hf:me/films" for split in ("train", "valid")]
    model = [f"--config.{change}" for change in finetune.MODEL]
    shape = [
        "--config.data.length=8",
        "--config.data.buckets=(8,)",
        "--config.batch_tokens=64",
        "--config.data.labels=()",
    ]
    fields = ["--config.data.text=text", "--config.data.test=", "--config.show_count=0", "--config.epochs=0.0"]
    given = ["--config=configs/sst2.py", f"--workdir={tmp_path / 'run'}", *data, *model, *shape, *fields]
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    place = ["--coordinator=127.0.0.1:" + str(free_port()), "--num-processes=2", "--config.steps=2"]
    processes = [start(*given, *place, f"--process-id={i}", **environment) for i in (0, 1)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert sorted(server.fetched()) == ["train-0.parquet", "validation-0.parquet"]
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert recorded["train"] == recorded["valid"] == f"hf:me/films@{commit}"
    assert json.loads((tmp_path / "run" / "labels.json").read_text()) == ["bad", "good"]

    server.add("me/films", {"train-0.parquet": parquet(parts["validation"])}, "datasets")
    server.requests.clear()
    assert run(*given, "--config.steps=3", **environment)[0]["step"] == 3
    assert server.requests == []
    _, errors = run(*given, "--config.steps=4", "--config.data.train=hf:me/films@main", code=2, **environment)
    assert f'config.data.train: "hf:me/films@{commit}" -> "hf:me/films@' in errors


def test_what_a_run_has_recorded_stands_for_names_without_revision(tmp_path):
    commit = "0" * 40
    recorded = {
        "init_from": f"hf:me/model@{commit}",
        "data": {"tokenizer": f"hf:me/model@{commit}", "train": f"hf:me/films/a@{commit}#x", "valid": "hf:folder"},
        "model": {"width": 16, "shape": [8, 8], "depth": 2},
    }
    (tmp_path / "tokenizer.json").write_text("{}")
    data = {"tokenizer": "hf:me/model", "train": "hf:me/films/a#x", "valid": "hf:folder", "test": "hf:me/films@v1"}
    given = Config(
        {
            "init_from": "hf:me/model",
            "data": data | {"sources": {}},
            "evals": {},
            "adapter": {"kind": ""},
            "model": {"width": None, "shape": None, "depth": 3},
        }
    )
    made = names.as_recorded(given, recorded, tmp_path)
    assert made.init_from == recorded["init_from"]
    assert made.data.to_dict() == recorded["data"] | {
        "tokenizer": str(tmp_path),
        "test": "hf:me/films@v1",
        "sources": {},
    }
    assert made.model.to_dict() == {"width": 16, "shape": (8, 8), "depth": 3}
    other = Config(given.to_dict() | {"init_from": "hf:me/other", "data": {"train": "hf:me/films/b#x", "sources": {}}})
    made = names.as_recorded(other, recorded, tmp_path)
    assert (made.init_from, made.data.train) == ("hf:me/other", "hf:me/films/b#x")


@pytest.mark.parametrize(
    ("name", "files", "code", "message"),
    [
        pytest.param("golden/none", {}, 2, "no model golden/none on", marks=pytest.mark.slow),
        ("golden/torch", {"config.json": b"{}", "pytorch_model.bin": b"x"}, 1, "has no model.safetensors, and other"),
        pytest.param("golden/words", {"README.md": b"x"}, 2, "there is no config.json", marks=pytest.mark.slow),
    ],
)
def test_what_is_no_model_is_refused_in_one_message_and_leaves_no_folder(tmp_path, server, name, files, code, message):
    if files:
        server.add(name, files)
    _, errors = begin(tmp_path, server, f"--config.init_from=hf:{name}", code=code)
    assert message in errors and "Traceback" not in errors
    assert not (tmp_path / "run").exists()
    assert "pytorch_model.bin" not in server.fetched()
