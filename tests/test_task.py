"""Claims about jtasks.task: what loads, and what an error tells."""

import re
import sys

import pytest

from jtasks import task
from jtasks.errors import ConfigError

WHOLE = """
def dataset(split, config): return None
def init(rng, batch, config): return {}
def loss_fn(params, batch, rng, config): return 0.0, {}
def eval_fn(params, batch, config): return {}
"""


@pytest.fixture
def written(tmp_path):
    """A function that writes a task file and returns its path."""

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", ["mnist", "igpt"])
def test_shipped_tasks_load_by_dotted_name(name):
    assert task.load(f"jtasks.tasks.{name}").__name__ == f"jtasks.tasks.{name}"


def test_a_file_loads_by_its_path(written):
    module = task.load(written(WHOLE + "X = 3"))
    assert module.X == 3


def test_a_file_in_the_working_folder_loads_by_its_relative_path(written, monkeypatch, tmp_path):
    path = written(WHOLE)
    monkeypatch.chdir(tmp_path)
    assert task.load("mine.py") is task.load(path)


def test_the_same_file_is_executed_once(written, tmp_path):
    count = tmp_path / "count"
    path = written(f"with open({str(count)!r}, 'a') as f: f.write('x')\n" + WHOLE)
    assert task.load(path) is task.load(path)
    assert count.read_text() == "x"


def test_files_of_the_same_name_in_two_folders_are_two_modules(written, tmp_path):
    (tmp_path / "other").mkdir()
    first, second = written(WHOLE + "X = 1"), written(WHOLE + "X = 2", "other/mine.py")
    assert (task.load(first).X, task.load(second).X) == (1, 2)


def test_a_file_may_define_dataclasses(written):
    text = "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n  x: int\n"
    assert task.load(written(text + WHOLE)).A(3).x == 3


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(f"no such file: {tmp_path / 'absent.py'}")):
        task.load(str(tmp_path / "absent.py"))


def test_a_syntax_error_names_file_and_line(written):
    path = written("x = 1\ny = (\nz = 2 +\n")
    with pytest.raises(ConfigError, match=re.escape(path) + r", line [23]: SyntaxError"):
        task.load(path)


def test_an_exception_at_import_names_the_line_of_the_file(written):
    path = written("import math\n\nmath.sqrt(-1)\n" + WHOLE)
    with pytest.raises(ConfigError, match=re.escape(path) + r", line 3: ValueError: "):
        task.load(path)


def test_an_exception_deep_in_a_library_still_names_the_line_of_the_file(written):
    path = written("import json\njson.loads('{')\n" + WHOLE)
    with pytest.raises(ConfigError, match=re.escape(path) + r", line 2: JSONDecodeError"):
        task.load(path)


def test_a_file_that_failed_is_executed_again_once_mended(written):
    path = written("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        task.load(path)
    written(WHOLE)
    assert task.load(path).init(None, None, None) == {}


def test_loading_leaves_the_import_path_alone(written):
    before = list(sys.path)
    task.load(written(WHOLE))
    with pytest.raises(ConfigError):
        task.load(written("1 / 0", "bad.py"))
    assert sys.path == before


def test_missing_functions_are_all_named_with_their_arguments(written):
    path = written("def init(rng, batch, config): return {}")
    with pytest.raises(ConfigError, match="lacks") as error:
        task.load(path)
    for signature in (
        "dataset(split, config)",
        "loss_fn(params, batch, rng, config)",
    ):
        assert signature in str(error.value)
    assert "init(" not in str(error.value)


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ("def init(rng, config): ...", "init(rng, config) must take (rng, batch, config)"),
        ("def predict_fn(params, batch, config): ...", "must take (params, batch, rng, config)"),
        ("def score_fn(examples, outputs, config, more): ...", "must take (examples, outputs, config)"),
        ("eval_fn = 3", "eval_fn must be a function, not int"),
    ],
)
def test_wrong_arguments_are_named_beside_the_right_ones(written, definition, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        task.load(written(WHOLE + definition))


def test_further_arguments_with_defaults_are_allowed(written):
    task.load(written(WHOLE + "def prepare(config, force=False): ..."))


@pytest.mark.parametrize(
    ("name", "near"),
    [("jtasks.tasks.igptt", "igpt"), ("jtask.tasks.mnist", "mnist"), ("classfy", "classify")],
)
def test_a_misspelled_shipped_task_is_guessed(name, near):
    with pytest.raises(ConfigError, match=re.escape(f"no task module {name!r}, did you mean jtasks.tasks.{near}?")):
        task.load(name)


def test_a_name_like_none_lists_the_tasks_there_are():
    with pytest.raises(ConfigError, match=r"jtasks\.tasks\.\{.*mnist.*\}"):
        task.load("qqqq")


def test_a_module_whose_own_import_fails_is_not_called_absent(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="'needs_more' cannot be imported: No module named 'not_installed_at_all'"):
        task.load("needs_more")


def test_a_module_that_raises_at_import_says_what(tmp_path, monkeypatch):
    (tmp_path / "raises_at_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="cannot be imported: ZeroDivisionError"):
        task.load("raises_at_import")


def test_the_former_list_of_terms_is_answered_with_what_stands_for_it(written):
    with pytest.raises(ConfigError, match=r"a term of the loss is a Loss.of\(values"):
        task.load(written(WHOLE + "LOSSES = ('loss',)"))


EMBEDS = """
def embed_fn(params, batch, rng, config): return (params, batch, rng)
def batch_loss_fn(params, embeddings, batch, config): return 0.0, {"loss": (params, embeddings, batch, config)}
"""


def test_a_loss_of_the_whole_batch_takes_the_embeddings_by_default(written):
    lines = [line for line in WHOLE.splitlines() if "eval_fn" not in line and "loss_fn" not in line]
    module = task.load(written("\n".join(lines) + EMBEDS))
    assert task.loss_fn(module)("p", "b", "r", "c")[1] == {"loss": ("p", ("p", "b", "r"), "b", "c")}
    assert task.eval_fn(module)("p", "b", "c") == {"loss": ("p", ("p", "b", None), "b", "c")}
    with pytest.raises(ConfigError, match="batch_loss_fn needs embed_fn"):
        task.load(written("\n".join([*lines, EMBEDS.splitlines()[2]]), "bare.py"))
    with pytest.raises(ConfigError, match="remove MIXES_EXAMPLES"):
        task.load(written(WHOLE + EMBEDS + "MIXES_EXAMPLES = True", "both.py"))


def test_evaluation_is_by_default_the_loss_without_randomness(written):
    lines = [line for line in WHOLE.splitlines() if "eval_fn" not in line and "loss_fn" not in line]
    text = (
        "\n".join(lines)
        + "\ndef loss_fn(params, batch, rng, config): return 0.0, {'loss': (params, batch, rng, config)}"
    )
    assert task.eval_fn(task.load(written(text)))("p", "b", "c") == {"loss": ("p", "b", None, "c")}
    own = task.load(written(text + "\ndef eval_fn(params, batch, config): return {'own': 1}", "own.py"))
    assert task.eval_fn(own)("p", "b", "c") == {"own": 1}
