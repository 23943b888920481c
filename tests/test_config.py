"""Claims about jtasks.config: defaults, presets, overrides, and what an error tells."""

import importlib
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from ml_collections.config_dict import placeholder
from tiny import ROOT

from jtasks import config as configs
from jtasks.errors import ConfigError
from jtasks.run import job

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
LEAST = "config.task = 'own.py'\nconfig.steps = 5\n"


@pytest.fixture
def written(tmp_path):
    """A function that writes a config file with these lines in get_config and returns its path."""

    def write(lines="", *, least=LEAST, argument=""):
        body = "".join(f"  {line}\n" for line in (least + lines).splitlines())
        path = tmp_path / f"experiment{len(list(tmp_path.iterdir()))}.py"  # a file is executed once
        path.write_text(
            "import ml_collections\nfrom ml_collections.config_dict import placeholder\n"
            f"def get_config({argument}):\n  config = ml_collections.ConfigDict()\n{body}  return config\n"
        )
        return str(path)

    return write


def failure(path, *overrides):
    with pytest.raises(ConfigError) as error:
        configs.load(path, overrides)
    return str(error.value)


# What a file gets


def test_a_file_names_only_what_it_changes(written):
    config = configs.load(written("config.optim = dict(lr=0.5)"))
    defaults = configs.defaults()
    assert (config.steps, config.optim.lr, config.optim.name) == (5, 0.5, "adamw")
    for name in ("batch_size", "accumulate", "ema", "precision", "save_every", "seed"):
        assert config[name] == defaults[name]
    assert config.data.threads == defaults.data.threads and config.data.dir is None
    assert config.mesh.data == -1


def test_the_chosen_optimizer_brings_its_own_fields(written):
    assert configs.load(written()).optim.b2 == 0.999
    assert "momentum" not in configs.load(written()).optim
    sgd = configs.load(written("config.optim = dict(name='sgd', momentum=0.9)")).optim
    assert sgd.momentum == 0.9 and sgd.nesterov is False and "b2" not in sgd


OTHER_VALUES = {
    "task": ("jtasks.tasks.mnist", "jtasks.tasks.mnist"),
    "seed": ("7", 7),
    "batch_size": ("12", 12),
    "batch_tokens": ("4096", 4096),
    "accumulate": ("3", 3),
    "eval_every": ("9", 9),
    "eval_batches": ("7", 7),
    "save_every": ("0", 0),
    "log_every": ("2", 2),
    "log.to": ("wandb,mine.py:logger", ("wandb", "mine.py:logger")),
    "keep": ("4", 4),
    "best": ("valid/loss", "valid/loss"),
    "best_mode": ("max", "max"),
    "report_metric": ("False", False),
    "show_count": ("0", 0),
    "precision": ("bfloat16", "bfloat16"),
    "ema": ("0.9", 0.9),
    "noise_scale": ("True", True),
    "max_bad_steps": ("1", 1),
    "init_from": ("runs/x", "runs/x"),
    "adapter.kind": ("", ""),
    "data.dir": ("/somewhere", "/somewhere"),
    "data.threads": ("1", 1),
    "data.workers": ("2", 2),
    "optim.lr": ("1e-2", 0.01),
    "optim.b2": ("0.95", 0.95),
    "optim.schedule": ("cosine", "cosine"),
    "optim.clip": ("1", 1.0),
    "optim.freeze": ("^embed", "^embed"),
    "mesh.data": ("8", 8),
    "mesh.fsdp": ("2", 2),
    "mesh.tensor": ("2", 2),
    "sharding": ("(('head', ('fsdp', None)),)", (("head", ("fsdp", None)),)),
    "shares": ("3,1", (3, 1)),
    "check.step": ("3", 3),
    "profile.start": ("3", 3),
    "profile.steps": ("5", 5),
    "data.shared": ("False", False),
    "data.skip_bad": ("2", 2),
    "data.buckets": ("(32, 64)", (32, 64)),
    "stop.patience": ("5", 5),
    "plateau.factor": ("0.1", 0.1),
}


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_each_common_field_can_be_set_though_the_file_does_not_name_it(written, field):
    text, value = OTHER_VALUES[field]
    found = dict(configs.fields(configs.load(written(), [f"--config.{field}={text}"])))[f"config.{field}"]
    assert found == value and type(found) is type(value)


def test_every_field_at_the_top_is_covered_above():
    named = {field.partition(".")[0] for field in OTHER_VALUES} | {"steps", "epochs", "model", "evals"}
    assert named == set(configs.defaults())


def test_a_task_may_have_fields_of_its_own(written):
    config = configs.load(written("config.sample = dict(count=4)\nconfig.beams = 5"), ["--config.sample.count=2"])
    assert (config.sample.count, config.beams) == (2, 5)


def test_an_int_in_a_float_field_becomes_a_float(written):
    config = configs.load(written("config.optim = dict(lr=1)"))
    assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)


def test_a_field_without_a_default_value_can_be_set(written):
    path = written("config.optim = dict(name='sgd')\nconfig.data = dict(size=placeholder(int))")
    assert configs.load(path).optim.momentum is None
    config = configs.load(path, ["--config.optim.momentum=0.9", "--config.data.size=8"])
    assert config.optim.momentum == 0.9 and config.data.size == 8
    path = written("config.sources = None")
    for text, value in (("(1, 2)", (1, 2)), ("3", 3), ("words", "words"), ("None", None)):
        assert configs.load(path, [f"--config.sources={text}"]).sources == value
    said = failure(written(), "--config.optim.name=sgd", "--config.optim.momentum=high")
    assert said == "--config.optim.momentum=high: expected float, not 'high'"


# References between fields


def test_fields_that_refer_to_others_follow_the_command_line(written):
    lines = """config.a = 4
config.steps = config.get_ref("a") * 10
config.optim = dict(lr=1e-3)
config.optim.end_lr = config.optim.get_ref("lr") * 0.1
config.optim.warmup = config.get_ref("steps") // 10
config.data = dict(name="digits")
config.data.label = config.data.get_ref("name")
config.batch_size = config.get_oneway_ref("a")
config.model = ml_collections.FrozenConfigDict(dict(width=8))
config.sizes = [config.get_ref("batch_size"), [config.get_ref("steps")]]"""
    path = written(lines)
    config = configs.load(path, ["--config.a=8", "--config.optim.lr=1.0", "--config.data.name=123"])
    assert (config.steps, config.optim.end_lr, config.optim.warmup, config.data.label) == (80, 0.1, 8.0, "123")
    assert config.sizes == (8, (80,)) and hash(config)
    config = configs.load(path, ["--config.batch_size=3", "--config.steps=50", "--config.model.width=16"])
    assert (config.a, config.sizes, config.optim.warmup, config.model.width) == (4, (3, (50,)), 5.0, 16)


@pytest.mark.parametrize("field", ["batch_size", "own"])
def test_a_required_field_that_is_not_set_is_named(written, field):
    path = written(f"config.{field} = placeholder(int, required=True)")
    assert failure(path).startswith(f"config.{field} is required and not set: give it as --config.{field}=VALUE")
    assert configs.load(path, [f"--config.{field}=3"])[field] == 3


def test_a_reference_that_cannot_be_computed_says_of_which_field(written):
    path = written("config.a = 2\nconfig.b = 8 // config.get_ref('a')")
    assert "config.b follows from other fields, but ZeroDivisionError" in failure(path, "--config.a=0")


# Configs made in Python


def test_a_config_made_in_python_is_checked_and_stays_as_it_is():
    made = ml_collections.ConfigDict({"task": "jtasks.tasks.mnist", "steps": 4})
    made.batch_size = made.get_ref("steps") * 2
    config = configs.freeze(made, ["--config.steps=3"])
    assert (config.steps, config.batch_size, config.optim.name) == (3, 6, "adamw")
    assert made.steps == 4 and set(made) == {"task", "steps", "batch_size"}
    assert configs.freeze(config) == config and hash(configs.freeze(config)) == hash(config)
    assert configs.freeze(configs.to_json(config)) == config
    with pytest.raises(ConfigError, match=r"config\.steps must be at least 0, not -3"):
        configs.freeze({"task": "jtasks.tasks.mnist", "steps": -3})


@pytest.mark.parametrize(
    "value", [{1, 2}, print, pathlib.Path("x"), b"x", 1j, float("nan"), 10**400, [{"a": 1}], "a\x1b"]
)
def test_what_no_json_can_hold_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"config\.own"):
        configs.freeze({"task": "jtasks.tasks.mnist", "steps": 4, "own": value})


def test_numbers_of_numpy_and_jax_become_plain_ones():
    fields = {"steps": np.int64(4), "ema": np.float32(0.5), "own": np.ones((2, 1)), "other": jnp.float32(2)}
    config = configs.freeze({"task": "own.py", **fields})
    assert (config.steps, config.ema, config.own, config.other) == (4, 0.5, ((1.0,), (1.0,)), 2.0)
    assert type(config.steps) is int and type(config.other) is float


# Mistakes in names


@pytest.mark.parametrize(
    ("field", "near"),
    [("batchsize", "batch_size"), ("optimizer", None), ("eval_evry", "eval_every"), ("step", "steps")],
)
def test_a_misspelled_field_of_a_file_is_guessed(written, field, near):
    path = written(f"config.{field} = 3")
    if near is None:
        assert configs.load(path)[field] == 3  # far from any common field: the task's own
    else:
        assert failure(path) == f"unknown field config.{field} in {path}, did you mean config.{near}?"


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("zebra = 3", "zebra"),
        ("zebra = dict(stripes=3)", "zebra.stripes"),
        ("data = dict(zebra=3)", "data.zebra"),
        ("model = dict(zebra=3)", "model.zebra"),
        ("data = dict(own=dict(zebra=3))", "data.own.zebra"),
        ("sample = dict(zebra=3)", "sample.zebra"),
    ],
)
def test_a_file_may_have_fields_that_others_refer_to_whatever_its_task(written, line, path):
    for task in ("own.py", "jtasks.tasks.mnist"):
        config = configs.load(written(f"config.{line}\n", least=LEAST.replace("own.py", task)))
        assert dict(configs.fields(config))[f"config.{path}"] == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--config.batchsize=3", "unknown field config.batchsize, did you mean config.batch_size?"),
        ("--config.optim.b3=0.9", "unknown field config.optim.b3, did you mean config.optim.b2?"),
        ("--config.model.widht=3", "unknown field config.model.widht, did you mean config.model.width?"),
        ("--config.modle.width=3", "unknown field config.modle, did you mean config.model?"),
        ("--config.model.deep.er=3", "unknown field config.model.deep, did you mean config.model.depth?"),
        ("--config.mesh.zzz=3", "unknown field config.mesh.zzz, config.mesh has data, fsdp, tensor"),
        ("--config.steps.more=3", "unknown field config.steps"),
        ("--config.data.mix.web=3", "no fields: the config file gives it some, as in config.data.mix = dict(web=...)"),
    ],
)
def test_a_misspelled_field_on_the_command_line_is_guessed(written, override, said):
    assert said in failure(written("config.model = dict(width=3, depth=1)"), override)


def test_a_group_cannot_be_set_whole(written):
    said = "config.mesh is a dict of fields: set one of config.mesh.{data,fsdp,tensor}"
    assert failure(written(), "--config.mesh=8") == said


def test_an_unknown_optimizer_field_of_a_file_is_guessed(written):
    assert failure(written("config.optim = dict(b22=0.9)")) == (
        "unknown field config.optim.b22, did you mean config.optim.b2?"
    )
    assert "config.optim.momentum" in failure(written("config.optim = dict(momentum=0.9)"))


def test_the_optimizer_of_the_command_line_decides_which_fields_there_are(written):
    sgd = ["--config.optim.name=sgd", "--config.optim.momentum=0.9"]
    assert configs.load(written(), sgd).optim.momentum == 0.9
    assert configs.load(written(), sgd[::-1]).optim.momentum == 0.9
    assert "unknown field config.optim.b2" in failure(written(), *sgd, "--config.optim.b2=0.9")
    assert "unknown field config.optim.momentum" in failure(written(), sgd[1])


def test_an_unknown_optimizer_is_guessed(written):
    for said in (
        failure(written(), "--config.optim.name=adamm"),
        failure(written("config.optim = dict(name='adamm')")),
    ):
        assert "adamm" in said and "did you mean" in said and "adam" in said


# Mistakes in types


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.batch_size = '64'", "config.batch_size must be int, not str ('64')"),
        ("config.batch_size = 6.5", "config.batch_size must be int, not float (6.5)"),
        ("config.batch_size = True", "config.batch_size must be int, not bool (True)"),
        ("config.ema = 'none'", "config.ema must be float, not str ('none')"),
        ("config.precision = 32", "config.precision must be str, not int (32)"),
        ("config.optim = dict(lr='1e-3')", "config.optim.lr must be float, not str ('1e-3')"),
        ("config.optim = dict(name='sgd', nesterov=1)", "config.optim.nesterov must be bool, not int (1)"),
        ("config.data = dict(dir=3)", "config.data.dir must be str, not int (3)"),
        ("config.mesh = 8", "config.mesh must be a dict of fields, not 8"),
        ("config.optim = 'sgd'", "config.optim must be a dict of fields, not 'sgd'"),
        ("config.optim = dict(name=3)", "unknown optimizer config.optim.name=3"),
    ],
)
def test_a_wrong_type_in_a_file_names_field_and_type(written, line, said):
    assert said in failure(written(line))


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("batch_size=many", "int"),
        ("batch_size=1.5", "int"),
        ("ema=none", "float"),
        ("optim.lr=fast", "float"),
        ("optim.nesterov=perhaps", "bool"),
        ("data.threads=", "int"),
    ],
)
def test_a_wrong_type_on_the_command_line_names_field_and_type(written, override, kind):
    said = failure(written(), f"--config.{override}")
    assert f"config.{override.partition('=')[0]}" in said and kind in said


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("config.batch_size = 0", "batch_size"),
        ("config.accumulate = 0", "accumulate"),
        ("config.log_every = 0", "log_every"),
        ("config.eval_every = -1", "eval_every"),
        ("config.precision = 'float16'", "precision"),
        ("config.ema = 1.0", "ema"),
        ("config.task = ''", "task"),
    ],
)
def test_a_value_out_of_range_names_its_field(written, line, field):
    assert f"config.{field}" in failure(written(line))


# Length of the run


def test_steps_of_the_command_line_replace_the_epochs_of_the_file(written):
    path = written(least="config.task = 'jtasks.tasks.mnist'\nconfig.epochs = 2\n")
    assert (configs.load(path).steps, configs.load(path).epochs) == (0, 2.0)
    config = configs.load(path, ["--config.steps=7"])
    assert (config.steps, config.epochs) == (7, 0)


def test_epochs_of_the_command_line_replace_the_steps_of_the_file(written):
    config = configs.load(written(), ["--config.epochs=1.5"])
    assert (config.steps, config.epochs) == (0, 1.5)


def test_steps_and_epochs_together_or_neither_are_an_error(written):
    assert "not both" in failure(written("config.epochs = 2.0"))
    assert "not both" in failure(written(), "--config.steps=3", "--config.epochs=1")
    assert "config.steps is 0" in failure(written(), "--config.steps=0")


@pytest.mark.parametrize("value", ["100", "0.05"])
def test_warmup_is_a_number_of_updates_or_a_fraction_of_them(written, value):
    path = written(f"config.optim = dict(warmup={value})")
    for config in (configs.load(path), configs.load(written(), [f"--config.optim.warmup={value}"])):
        assert config.optim.warmup == float(value) and isinstance(config.optim.warmup, float)


def test_a_wrong_warmup_says_what_was_expected(written):
    assert "--config.optim.warmup=long" in failure(written(), "--config.optim.warmup=long")
    assert "config.optim.warmup must be float" in failure(written("config.optim = dict(warmup='long')"))


# Files and presets


def test_a_preset_goes_to_get_config(written):
    path = written("config.model = dict(width=int(size))", argument="size='8'")
    assert configs.load(path).model.width == 8
    assert configs.load(path + ":32").model.width == 32


def test_a_wrong_preset_is_named(written):
    path = written("config.model = dict(width={'s': 8}[size])", argument="size='s'")
    assert failure(path + ":huge") == f"{path}: get_config failed for preset 'huge': KeyError: 'huge'"


def test_a_preset_for_a_file_without_presets_is_an_error(written):
    assert "has no presets" in failure(written() + ":xl")


def test_an_absent_file_is_an_error_that_guesses(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert (
        failure("configs/igpt_digit.py") == "no config file configs/igpt_digit.py, did you mean configs/igpt_digits.py?"
    )


def test_a_shipped_config_loads_by_name_from_any_folder(monkeypatch, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").touch()  # a package of the user's with that name is not in the way
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("igpt_cifar:xxs", "igpt_cifar_probe:xxs"):
        assert configs.load(name, ["--config.steps=3"]).model.depth == 8
    assert configs.load("vit_digits").data.name == "digits"


@pytest.mark.parametrize(("name", "nearest"), [("igpt_digit", "igpt_digits"), ("squad2:v2", "squad"), ("bird", "bert")])
def test_an_unknown_name_lists_the_shipped_configs_nearest_first(name, nearest, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, _, listed = failure(name).partition("nearest first: ")
    assert listed.startswith(f"{nearest}, ") and set(listed.split(", ")) == {path.stem for path in CONFIGS}


@pytest.mark.parametrize("file", ["configs/igpt_digits.py", "igpt_digits.py", "/nowhere/igpt_digit.py"])
def test_an_absent_file_with_the_name_of_a_shipped_config_is_answered_with_it(file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert failure(file) == f"no config file {file}, did you mean --config=igpt_digits?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "has no get_config()"),
        ("def get_config(): return {}", "must return a ml_collections.ConfigDict, not dict"),
        ("def get_config(): return 1 / 0", "get_config failed: ZeroDivisionError"),
        ("def get_config(: pass", "line 1: SyntaxError"),
    ],
)
def test_a_file_that_is_no_config_says_why(tmp_path, text, said):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert said in failure(str(path))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_with_each_preset_and_tells_its_command(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    module = importlib.import_module(f"configs.{path.stem}")
    source = path.read_text()
    inherited = re.search(r"^from jtasks.configs import (\w+)", source, re.M)
    while inherited and not hasattr(module, "PRESETS"):
        module = importlib.import_module(f"configs.{inherited[1]}")
        inherited = re.search(r"^from jtasks.configs import (\w+)", pathlib.Path(module.__file__).read_text(), re.M)
    for preset in ["", *(f":{name}" for name in getattr(module, "PRESETS", ()))]:
        config = configs.load(f"configs/{path.name}{preset}")
        assert hash(config) == hash(configs.load(f"configs/{path.name}{preset}"))
    assert f"python main.py --config=configs/{path.name}" in source.split('"""')[1]


# The result


def test_a_config_is_frozen_and_hashable(written):
    config = configs.load(written())
    with pytest.raises(AttributeError):
        config.steps = 6
    with pytest.raises(AttributeError):
        config.optim.lr = 0.0
    assert config == configs.load(written()) and hash(config) == hash(configs.load(written()))
    assert config != configs.load(written(), ["--config.steps=6"])


def test_a_config_is_a_static_argument_of_jit(written):
    traces = []

    @jax.jit
    def nothing(x):
        return x

    def scale(x, config):
        traces.append(config.optim.lr)
        return nothing(x) * config.optim.lr

    jitted = jax.jit(scale, static_argnames="config")
    first, same = configs.load(written()), configs.load(written())
    other = configs.load(written(), ["--config.optim.lr=2.0"])
    assert float(jitted(jnp.float32(3), config=other)) == 6
    jitted(jnp.float32(3), config=first)
    jitted(jnp.float32(3), config=same)
    assert len(traces) == 2


def test_fill_sets_placeholders_and_nothing_else(written):
    path = written("config.model = dict(classes=placeholder(int), num_colors=5, palette=placeholder(tuple))")
    config = configs.load(path)
    task = types.SimpleNamespace(
        model_args=lambda config: {"classes": 10, "num_colors": 99, "palette": ((1.0,),) * 5, "new": 3}
    )
    full = job.fill(config, task)
    assert full.model.to_dict() == {"classes": 10, "num_colors": 5, "palette": ((1.0,),) * 5, "new": 3}
    assert config.model.classes is None  # the one before is as it was
    assert {k: v for k, v in full.items() if k != "model"} == {k: v for k, v in config.items() if k != "model"}
    assert isinstance(hash(full), int)


def test_fill_leaves_a_config_alone_where_the_task_has_no_model_args(written):
    config = configs.load(written())
    assert job.fill(config, types.SimpleNamespace()) is config


def test_json_holds_every_field(written):
    config = configs.load(written("config.model = dict(shape=(8, 8), classes=placeholder(int))"))
    plain = configs.to_json(config)
    assert plain["model"] == {"shape": [8, 8], "classes": None} and plain["steps"] == 5
    assert set(dict(configs.fields(plain))) == set(dict(configs.fields(config)))


def test_fields_are_dotted_leaves():
    config = ml_collections.ConfigDict({"a": 1, "b": {"c": {"d": placeholder(int)}, "e": "x"}})
    assert dict(configs.fields(config)) == {"config.a": 1, "config.b.c.d": None, "config.b.e": "x"}
