"""Claims about runs that begin from the hub: commands of a user, against a server on this machine."""

import json
import shutil

import pytest
from front_door import ROOT, run, start
from hub_server import serving

GOLDEN = ROOT / "tests" / "golden" / "gpt2_lm"


@pytest.fixture
def server(tmp_path):
    """A server with a small GPT-2, and a text."""
    (tmp_path / "x.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    with serving() as own:
        own.commit = own.add_folder("golden/gpt2", GOLDEN)
        yield own


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
