"""Claims about names on the Hugging Face hub, against a server on this machine."""

import os
import pathlib
import sys

import pytest
from front_door import ROOT
from hub_server import patched

from jtasks.data import hub, tokenizers
from jtasks.errors import ConfigError, DataError

GOLDEN = ROOT / "tests" / "golden"
NAME = "hf:golden/gpt2"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with one model, and a cache of its own."""
    with patched(tmp_path, monkeypatch) as own:
        others = {"pytorch_model.bin": b"code", "README.md": b"words", "onnx/model.safetensors.data": b"onnx"}
        files = {path.name: path.read_bytes() for path in (GOLDEN / "gpt2_lm").iterdir()}
        own.commit = own.add("golden/gpt2", {name: files[name] for name in FILES} | others)
        yield own


FILES = ["config.json", "generation_config.json", "model.safetensors"]


def folder(spec=NAME):
    return hub.model_folder(hub.pin(spec, "model"), *hub.MODEL)


def test_only_what_describes_a_model_and_its_safetensors_are_fetched_and_once(server):
    here = folder()
    assert sorted(os.listdir(here)) == FILES == sorted(server.fetched())
    assert all((here / name).read_bytes() == (GOLDEN / "gpt2_lm" / name).read_bytes() for name in FILES)
    assert hub.pin(NAME, "model") == f"{NAME}@{server.commit}" and here.name == server.commit
    server.requests.clear()
    assert folder(f"{NAME}@{server.commit}") == here
    assert server.requests == []


def test_a_local_folder_of_the_name_wins(server, tmp_path):
    (tmp_path / "golden" / "gpt2").mkdir(parents=True)
    assert hub.pin(NAME, "model") == NAME
    assert folder() == pathlib.Path("golden/gpt2")
    assert server.requests == []


def test_branches_tags_and_commits_are_revisions(server):
    old = server.add("golden/gpt2", {"config.json": b"{}"}, "models", "v1", "refs/pr/2")
    for revision in ("v1", "refs/pr/2", old):
        assert hub.pin(f"{NAME}@{revision}", "model") == f"{NAME}@{old}"
    assert (folder(f"{NAME}@v1") / "config.json").read_text() == "{}"


def test_a_download_that_is_cut_off_is_resumed_where_it_broke(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    server.cut["model.safetensors"] = 200_500
    assert (folder() / "model.safetensors").read_bytes() == (GOLDEN / "gpt2_lm" / "model.safetensors").read_bytes()
    assert [
        span for method, path, span in server.requests if path.endswith("model.safetensors") and method == "GET"
    ] == [
        "",
        "bytes=200000-",
    ]


def test_after_a_failure_only_what_is_missing_is_fetched(server):
    server.fail.add("model.safetensors")
    with pytest.raises(DataError, match=rf"{NAME}@{server.commit} cannot be fetched .*500.*run the same command again"):
        folder()
    server.fail.clear()
    server.requests.clear()
    assert sorted(os.listdir(folder())) == FILES
    assert "model.safetensors" in server.fetched() and len(server.fetched()) < 3


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_byte_is_seen_and_fetched_again(server, name):
    server.flip.add(name)
    with pytest.raises(DataError, match=rf"{name} of {NAME}@\w+ does not have the hash \w+ of the hub"):
        folder()
    server.flip.clear()
    server.requests.clear()
    assert (folder() / name).read_bytes() == (GOLDEN / "gpt2_lm" / name).read_bytes()
    assert server.fetched() == [name]


def test_a_file_of_another_size_is_refused(server):
    server.short.add("model.safetensors")
    with pytest.raises(DataError, match=r"cannot be fetched from .*should be of size 260864 but has size 260863"):
        folder()


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (
            "hf:golden/none",
            ConfigError,
            "no such folder here, and no model golden/none on .*set HF_TOKEN if it is private",
        ),
        (f"{NAME}@v9", ConfigError, "golden/gpt2 on .* has no revision 'v9'; expected a branch, a tag or a commit"),
        (f"{NAME}@{'0' * 40}", ConfigError, "has no revision '0000"),
        ("hf:a..b/c", ConfigError, "hf:a..b/c is not a name on the hub: Cannot have -- or .. in repo_id"),
        (
            f"{NAME}/part",
            ConfigError,
            "there is no such folder, and a model on the hub has a name such as hf:OWNER/NAME",
        ),
    ],
)
def test_wrong_names_say_what_is_wrong(server, spec, error, message):
    with pytest.raises(error, match=message):
        folder(spec)


def test_a_gated_model_needs_its_token(server, monkeypatch):
    server.gated.add("golden/gpt2")
    with pytest.raises(
        DataError, match=rf"is gated \(403 .*accept its terms at {server.url}/golden/gpt2, and set HF_TOKEN"
    ):
        folder()
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert sorted(os.listdir(folder())) == FILES


def test_offline_the_cache_is_all_there_is(server, monkeypatch):
    here = folder()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.requests.clear()
    assert folder() == here
    for spec in ("hf:golden/other", f"{NAME}@v1"):
        with pytest.raises(DataError, match=rf"{spec} is not whole in the cache .*cache, and HF_HUB_OFFLINE is set"):
            folder(spec)
    (here / "model.safetensors").unlink()
    with pytest.raises(DataError, match="is not whole in the cache"):
        folder()
    assert server.requests == []


def test_without_a_network_the_error_says_so(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"is not whole in the cache .*, and http://127.0.0.1:9 cannot be reached"):
        folder()


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    with pytest.raises(
        DataError, match=r"there is no such folder, and huggingface_hub, .* pip install 'jtasks\[hub\]'"
    ):
        folder()


def test_a_tokenizer_comes_without_the_weights(server):
    text = tokenizers.load("bytes").to_str().encode()
    server.add("golden/words", {"tokenizer.json": text, "config.json": b"{}", "model.safetensors": b"0" * 2000})
    assert tokenizers.load("hf:golden/words").get_vocab() == tokenizers.load("bytes").get_vocab()
    assert server.fetched() == ["tokenizer.json"]
    with pytest.raises(ConfigError, match=r"no tokenizer in hf:golden/gpt2: looked for tokenizer\.json"):
        tokenizers.load(NAME)
