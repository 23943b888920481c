"""Claims about `texts`: the library trains, stores and returns the tokenizer of any task that gives its texts."""

import json

import pytest

from jtasks import cli
from jtasks import config as configs
from jtasks.errors import ConfigError
from jtasks.faults import Fault
from jtasks.run import job
from jtasks.testing import contract

TASK = """
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jtasks.data import tokenizers
from jtasks.metrics import Loss, total

LINES = ["in rome", "and paris", "or rome in paris", "no town"]

def get_config():
    config = ml_collections.ConfigDict()
    config.task, config.steps, config.batch_size, config.save_every = __file__, 2, 4, 1
    config.data = {"tokenizer": "bpe:270"}
    return config

def texts(config):
    yield from LINES

def dataset(split, config):
    ids = [tokenizers.of(config, texts).encode(line).ids for line in LINES * 4]
    return {"tokens": np.array([row[:2] for row in ids], np.int32)} if split == "train" else None

def init(rng, batch, config): return {"logits": jnp.zeros([config.model.vocab])}

def loss_fn(params, batch, rng, config):
    logits = jnp.broadcast_to(params["logits"], (*batch["tokens"].shape, config.model.vocab))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"])
    metrics = {"loss": Loss.of(nats, batch["mask"][:, None] * jnp.ones_like(nats))}
    return total(metrics), metrics
"""


@pytest.fixture
def own(tmp_path):
    """The config of the task above in a file, its text changed and its data beside it."""

    def load(*overrides, old="", new="", name="own.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TASK.replace(old, new))
        return configs.load(str(tmp_path / name), [f"--config.data.dir={tmp_path}", *overrides])

    return load


def test_a_users_task_gets_its_vocabulary_and_stores_its_tokenizer(own, tmp_path):
    made = job.prepare(own())
    (trained,) = (tmp_path / "tokenizers").iterdir()
    assert made.config.model.vocab == 270 and trained.name.startswith("bpe270-")
    assert json.loads(made.assets()["tokenizer.json"])["model"] == json.loads(trained.read_text())["model"]
    assert job.prepare(own("--config.data.tokenizer=bytes")).config.model.vocab == 257


def test_without_a_tokenizer_in_the_config_there_is_a_default_and_a_misspelt_one_is_answered(own):
    config = own(old='{"tokenizer": "bpe:270"}', new="{}")
    assert (config.data.tokenizer, config.data.lowercase) == ("bpe:8000", True)
    with pytest.raises(ConfigError, match=r"did you mean config\.data\.tokenizer"):
        own(old='"tokenizer"', new='"tokeniser"', name="misspelt.py")


def test_a_run_keeps_its_tokenizer_and_refuses_another(own, tmp_path, capsys):
    own()
    command = [f"--config={tmp_path / 'own.py'}", f"--workdir={tmp_path / 'run'}", f"--config.data.dir={tmp_path}"]
    assert cli.run(command) == 0
    stored = (tmp_path / "run" / "tokenizer.json").read_text()
    own(old='"no town"', new='"a town"', name="other/own.py")
    capsys.readouterr()
    other = [f"--config={tmp_path / 'other' / 'own.py'}", *command[1:], "--config.steps=3"]
    assert cli.run(other) == 2
    assert "tokenizer.json is not what this config makes" in capsys.readouterr().err
    assert cli.run([*other, "--config.data.allow_changes=True"]) == 0  # with the run's own tokenizer
    assert cli.run([*command, "--config.steps=4", "--config.data.allow_changes=True"]) == 0
    assert (tmp_path / "run" / "tokenizer.json").read_text() == stored


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("return 3", "are 3: give an iterator of texts"),
        ("return 'rome'", "are 'rome': give an iterator of texts"),
        ("return ['rome', 3]", "is 3: give texts"),
        ("return None", "must be trained on text, and there is no text here: give a tokenizer's file"),
    ],
)
def test_what_is_no_text_is_refused_in_one_sentence(own, given, message):
    config = own(old="yield from LINES", new=given, name=f"bad{abs(hash(given))}.py")
    with pytest.raises(ConfigError, match=message):
        job.prepare(config)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("return 3", "returned a int"),
        ("return 'rome'", "returned "),
        ("return ['rome', 3]", "number 1 is a int"),
        ("return []", "gives no text"),
        ("return (str(np.random.rand()) for _ in range(3))", "gives other texts the second time"),
    ],
)
def test_the_kit_checks_texts(own, given, message):
    config = own(old="yield from LINES", new=given, name=f"kit{abs(hash(given))}.py")
    with pytest.raises(Fault, match=message):
        contract.subject(config.task, config)


def test_the_kit_passes_texts_that_are_right(own):
    config = own(name="right.py")
    assert "texts" in contract.subject(config.task, config)[1]
