"""Claims about what a config may hold: each bad value is one clear sentence before anything is computed."""

import math
import pathlib

import jax
import jax.numpy as jnp
import pytest
from front_door import DIGITS, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks import cli, models, optim, ranges, task
from jtasks import config as configs
from jtasks.errors import ConfigError
from jtasks.flags import config_overrides
from jtasks.models import layers
from jtasks.tasks import igpt

SHAKESPEARE, AVSD = ("--config=configs/shakespeare_char.py",), ("--config=configs/avsd.py:small",)
BAD = [
    (
        ["--config=configs/blip_vqa.py"],
        "model.image_dropout=-1",
        "config.model.image_dropout must be in [0, 1), not -1.0",
    ),
    (["--config=configs/clip_emoji.py"], "model.std=(0.2,0)", "config.model.std must be above 0, not 0"),
    (DIGITS, "epochs=nan", "config.epochs is nan"),
    (DIGITS, "epochs=inf", "config.epochs must be finite and at least 0"),
    (DIGITS, "steps=3e9", "config.steps must be in [0, 2e9], not 3000000000"),
    (DIGITS, "steps=-5", "config.steps must be at least 0, not -5"),
    (DIGITS, "steps.x=3", "config.steps has no fields of its own"),
    (DIGITS, "seed=9223372036854775808", "config.seed must be in [0, 9e18]"),
    (DIGITS, "seed=18446744073709551616", "config.seed must be"),
    (DIGITS, "show_count=-1", "config.show_count must be at least 0"),
    (DIGITS, "model.heads=5", "must be divisible by config.model.heads=5"),
    (DIGITS, "model.heads=0", "config.model.heads must be at least 1"),
    (DIGITS, "model.width=0", "config.model.width must be at least 1"),
    (DIGITS, "model.width=-8", "config.model.width must be at least 1"),
    (DIGITS, "model.depth=0", "config.model.depth must be at least 1"),
    (DIGITS, "model.depth=-1", "config.model.depth must be at least 1"),
    (DIGITS, "model.activation=gleu", "did you mean gelu?"),
    (DIGITS, "model.norm=lyer", "did you mean layer?"),
    (DIGITS, "model.palette=3", "config.model.palette=(3,) must be a tuple of"),
    (DIGITS, "model.dropout=1.5", "config.model.dropout must be in [0, 1), not 1.5"),
    (DIGITS, "model.dropout=-0.5", "config.model.dropout must be in [0, 1)"),
    (DIGITS, "data.workers=-1", "config.data.workers must be in [0, 10000]"),
    (DIGITS, "data.skip_bad=-1", "config.data.skip_bad must be at least 0"),
    (DIGITS, "data.crop=-1", "config.data.crop must be at least 0"),
    (DIGITS, "sample.given=2", "config.sample.given must be in [0, 1]"),
    (DIGITS, "sample.temperature=-1", "config.sample.temperature must be at least 0"),
    (DIGITS, "sample.temperature=nan", "config.sample.temperature is nan"),
    (DIGITS, "sample.top_p=0", "config.sample.top_p must be in (0, 1]"),
    (DIGITS, "sample.top_p=1.5", "config.sample.top_p must be in (0, 1]"),
    (DIGITS, "sample.top_k=-1", "config.sample.top_k must be at least 0"),
    (DIGITS, "sample.count=0", "config.sample.count must be at least 1"),
    (DIGITS, "optim.b1=2", "config.optim.b1 must be in [0, 1)"),
    (DIGITS, "optim.b2=-0.5", "config.optim.b2 must be in [0, 1)"),
    (DIGITS, "optim.decay_mask=(", "config.optim.decay_mask='(' is not a regular expression"),
    (DIGITS, "best=foo", "config.best='foo' must be valid/METRIC or test/METRIC"),
    (DIGITS, "best=vaild/loss", "must be valid/METRIC"),
    (DIGITS, "best=train/loss", "must be valid/METRIC"),
    (DIGITS, "accumulate=100000", "config.accumulate=100000 must be at most config.batch_size="),
    (DIGITS, "mesh.data=0", "each size must be at least 1"),
    (DIGITS, "mesh.fsdp=-1", "only one may be -1"),
    (DIGITS, "data.buckets=(64,32)", "in ascending order"),
    (DIGITS, "data.buckets=(0,)", "config.data.buckets must be at least 1"),
    (DIGITS, "data.name=\x1b[31m", "has a control character in it"),
    (DIGITS, "shares=(1,-1)", "config.shares=(1, -1) must be whole numbers of at least 0"),
    (DIGITS, "shares=(0,0)", "not all of them 0"),
    (DIGITS, "shares=fast", "config.shares='fast' must be a tuple of whole numbers"),
    (DIGITS, "shares=1.5", "config.shares=1.5 must be a tuple of whole numbers"),
    (DIGITS, "sharding=head", "config.sharding must be a tuple of pairs (regex, spec), not 'head'"),
    (DIGITS, "sharding=(('head',3),)", "the spec for 'head' must be an axis or a tuple, not 3"),
    (DIGITS, "sharding=(('head','fdsp'),)", "'fdsp', for 'head', is not an axis; axes are data, fsdp, tensor"),
    (DIGITS, "sharding=(('head',(None,2)),)", "2, for 'head', is not an axis"),
    (DIGITS, "sharding=(('head',('fsdp','fsdp?')),)", "has an axis twice"),
    (DIGITS, "sharding=(('he(ad','fsdp'),)", "'he(ad' is not a regular expression"),
    (SHAKESPEARE, "data.length=0", "config.data.length must be at least 1"),
    (SHAKESPEARE, "data.stride=0", "config.data.stride must be at least 1"),
    (SHAKESPEARE, "data.documents=lines", "did you mean line?"),
    (SHAKESPEARE, "sample.length=-5", "config.sample.length must be at least 0"),
    (AVSD, "beam.min_len=30", "config.beam.min_len=30 is above config.beam.max_len=20"),
    (AVSD, "beam.num_beams=0", "config.beam.num_beams must be at least 1"),
    (("--config=configs/igpt_cifar_probe.py",), "model.layer=9", "config.model.layer=9 must be in [-1, 8]"),
]


def refused(arguments, capfd) -> str:
    """The message of a command that ends with code 2 and without a traceback."""
    assert cli.run(arguments) == 2
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err and captured.out == ""
    assert captured.err.startswith("error: ") and len(captured.err.splitlines()) == 1
    return captured.err


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(("base", "override", "message"), BAD, ids=[override for _, override, _ in BAD])
def test_a_bad_value_is_one_sentence_and_leaves_no_folder(base, override, message, tmp_path, capfd):
    assert message in refused([*base, f"--workdir={tmp_path / 'run'}", f"--config.{override}"], capfd)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=README.md"], "README.md is not Python"),
        (["--config=configs"], "configs is a folder: give a config file"),
        (["--config=configs/igpt_cifar.py:xxl"], "the presets are xxs, xs, s, m, l"),
        (["--config=configs/igpt_cifar_classify.py:xxl"], "the presets are xxs, xs, s, m, l"),
        (["--config=configs/bert.py:huge"], "the presets are tiny, tiny_phase2"),
        ([*DIGITS, "--timeout=nan"], "--timeout must be finite and above 0, not nan"),
        ([*DIGITS, "--mode=plan", "--latency-us=nan"], "--latency-us must be finite"),
        ([*DIGITS, "--mode=plan", "--peak-tflops=inf"], "--peak-tflops must be finite"),
        ([*DIGITS, "--mode=plan", "--devices=0"], "--devices must be in [1, 65536]"),
        ([*DIGITS, "--config.steps"], "--config.steps has no value: write --config.steps=VALUE"),
        ([*DIGITS, "--config.steps", "many"], "--config.steps=many: expected int"),
        ([*DIGITS, "--\x1b[31m"], r"unknown argument '--\x1b[31m'"),
    ],
)
def test_a_bad_command_is_one_sentence(arguments, message, tmp_path, capfd):
    assert message in refused([*arguments, f"--workdir={tmp_path / 'run'}"], capfd)


def test_a_blank_may_stand_for_the_sign_of_equality():
    words = ["--config.steps", "-5", "--config.best=x", "--config.data.name", "a b"]
    assert config_overrides(words) == ["--config.steps=-5", "--config.best=x", "--config.data.name=a b"]


def test_a_field_that_a_config_leaves_out_has_the_tasks_default():
    config = configs.freeze({"task": "jtasks.tasks.vit", "steps": 2, "data": {"name": "digits"}})
    assert (config.data.size, config.data.white, config.model.pool, config.model.patch) == (None, 255.0, "mean", None)


@pytest.mark.parametrize("field", ["model.widht", "data.num_color", "sample.temprature", "generaton"])
def test_a_misspelled_field_of_a_task_is_answered_with_its_name(field):
    group, _, name = field.rpartition(".")
    fields = {"task": "jtasks.tasks.igpt", "steps": 2} | ({group: {name: 1}} if group else {name: 1})
    with pytest.raises(ConfigError, match=rf"unknown field config\.{field} in .*, did you mean config\."):
        configs.freeze(fields)
    with pytest.raises(ConfigError, match=rf"unknown field config\.{field}"):
        configs.freeze({"task": "jtasks.tasks.igpt", "steps": 2, "data": {"name": "digits"}}, [f"--config.{field}=1"])


def test_a_field_that_a_task_reads_and_the_config_lacks_is_named(tmp_path, capfd):
    whole = pathlib.Path(ROOT / "tests" / "data_tasks" / "rotation.py").read_text()
    path = tmp_path / "plain.py"
    path.write_text(whole.replace("def dataset(split, config):", "def dataset(split, config):\n    config.data.absent"))
    message = refused([f"--config={path}", f"--workdir={tmp_path / 'run'}"], capfd)
    assert "reads the config's field 'absent', which is not there" in message


# Properties

TABLE = configs.FIELDS | task.fields(igpt)
OPTIM = {f"optim.{name}": value for name, value in (optim.defaults() | optim.arguments("adamw")).items()}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 3),
    st.floats(),
    st.floats(-2, 2),
    st.text(max_size=4),
    st.sampled_from([2**63, 10**400, math.nan, math.inf, b"x", {1}, pathlib.Path("x"), "gelu", "valid/loss"]),
    st.lists(st.one_of(st.integers(-1, 5), st.floats(-1, 1), st.text(max_size=2)), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


def base() -> dict:
    return configs.load("configs/igpt_digits.py").to_dict()


def with_value(field: str, value) -> dict:
    *groups, last = field.split(".")
    made = base()
    node = made
    for group in groups:
        node = node.setdefault(group, {})
    node[last] = value
    return made


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted([*TABLE, *OPTIM])), VALUES)
def test_any_value_in_any_field_is_in_its_range_or_refused(field, value):
    try:
        config = configs.freeze(with_value(field, value))
    except ConfigError:
        return
    hash(config)
    assert configs.freeze(configs.to_json(config)) == config
    value = dict(configs.fields(config)).get(f"config.{field}")
    if field in TABLE:
        ranges.check(field, value, TABLE[field])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted([*TABLE, *OPTIM])), st.one_of(st.text(max_size=8), VALUES.map(str)))
def test_any_text_on_the_command_line_is_a_value_or_refused(field, text):
    try:
        config = configs.freeze(base(), [f"--config.{field}={text}"])
    except ConfigError:
        return
    assert configs.freeze(configs.to_json(config)) == config


NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1).filter(lambda name: name != "None")


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 10**6), st.floats(0, 1e6), NAMES)
def test_a_valid_override_comes_back_from_json(size, rate, name):
    texts = [f"--config.batch_size={size}", f"--config.optim.lr={rate}", f"--config.data.name={name}"]
    config = configs.freeze(base(), texts)
    plain = configs.to_json(config)
    assert (plain["batch_size"], plain["optim"]["lr"]) == (size, rate)
    assert plain["data"]["name"] == name
    assert configs.freeze(plain) == config


# Models and tables


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "width=8 must be divisible by heads=3"),
        ({"heads": 0}, "heads must be at least 1, not 0"),
        ({"activation": "gleu"}, "did you mean gelu"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"patch": 3}, "not divisible into patches 3x3"),
        ({"pool": "max"}, "pool must be mean, token or map"),
    ],
)
def test_a_model_made_by_hand_checks_its_fields(fields, message):
    model = models.ViT(**{"classes": 4, "width": 8, "depth": 2, "heads": 2, "patch": 2} | fields)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros([1, 4, 4, 1]))


def test_the_choices_are_those_that_the_models_have():
    assert set(ranges.ACTIVATIONS) == set(layers.ACTIVATIONS)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "jtasks" / "tasks").glob("[a-z]*.py")))
def test_the_defaults_of_a_shipped_task_are_in_their_ranges(name):
    fields = task.fields(task.load(f"jtasks.tasks.{name}"))
    for field, known in fields.items():
        ranges.check(field, known.default, known)
    named = {"data": {"name": "digits"}} if "data.name" in fields else {}
    assert configs.freeze({"task": f"jtasks.tasks.{name}", "steps": 1, **named})
