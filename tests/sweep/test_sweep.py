"""A sweep: every point once, a table that kills do not change, and failures that are named."""

import csv
import sys

import pytest

from jtasks import config as configs
from jtasks.errors import ConfigError
from jtasks.run.signals import Stopped
from jtasks.sweep import points, runs, table

# A run whose loss is |log10(lr) + 2| + seed: it fails for lr=9 with a message, for lr=8 by a signal, stops for lr=7.
FAKE = """
import json, math, os, pathlib, signal, sys
flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(flags["workdir"])
folder.mkdir(exist_ok=True)
with open(folder / "starts", "a") as file:
    print(" ".join(sys.argv[1:]), file=file)
lr, seed = float(flags["config.optim.lr"]), int(flags.get("config.seed", 0))
if lr == 9:
    print("a line\\nerror: the loss is not finite\\n-> a smaller config.optim.lr", file=sys.stderr)
    sys.exit(1)
if lr == 8:
    os.kill(os.getpid(), signal.SIGKILL)
if lr == 7 and not (folder / "go on").exists():
    sys.exit(75)
print(json.dumps({"step": 6, "valid/loss": abs(math.log10(lr) + 2) + seed, "test/loss": "nan"}))
"""


@pytest.fixture
def sweep(tmp_path):
    """A function that runs a sweep of points with that fake, and returns the best run and the failures."""
    (tmp_path / "fake.py").write_text(FAKE)

    def run(wanted, index=None, **base):
        return runs.train(wanted, load(**base), tmp_path / "a b[1]", [sys.executable, str(tmp_path / "fake.py")], index)

    run.folder = tmp_path / "a b[1]"
    return run


def load(**base):
    config = {"task": "tests/data_tasks/linear.py", "steps": 6, "model": {"width": 3}, **base}
    return lambda overrides: configs.freeze(config, overrides)


def rows(folder):
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def starts(folder):
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*/starts"))


def test_every_combination_is_a_run_and_the_best_is_the_result(sweep):
    best, failed = sweep(points.grid(["--sweep.optim.lr=1e-3,0.01", "--sweep.seed=0,1"]))
    assert (best["best"], best["config.optim.lr"], best["valid/loss"]) == ("lr=0.01,seed=0", 0.01, 0.0)
    assert not failed
    names = ["lr=0.001,seed=0", "lr=0.001,seed=1", "lr=0.01,seed=0", "lr=0.01,seed=1"]
    assert [row["run"] for row in rows(sweep.folder)] == names
    assert [row["valid/loss"] for row in rows(sweep.folder)] == ["1.0", "2.0", "0.0", "1.0"]
    assert {(row["state"], row["step"], row["test/loss"]) for row in rows(sweep.folder)} == {("done", "6", "nan")}
    assert all((sweep.folder / name).is_dir() for name in names)
    assert (sweep.folder / "sweep.svg").read_text().count("<circle") == 8


def test_a_finished_run_is_not_run_again_and_more_values_add_runs(sweep):
    sweep(points.grid(["--sweep.optim.lr=1e-3,0.01"]))
    before = (sweep.folder / "sweep.csv").read_bytes()
    sweep(points.grid(["--sweep.optim.lr=1e-3,0.01"]))
    assert starts(sweep.folder) == 2
    assert (sweep.folder / "sweep.csv").read_bytes() == before
    sweep(points.grid(["--sweep.optim.lr=0.1,0.01"]))
    assert [row["run"] for row in rows(sweep.folder)] == ["lr=0.001", "lr=0.01", "lr=0.1"]
    assert starts(sweep.folder) == 3


def test_another_config_runs_again_and_so_does_a_deleted_folder(sweep):
    wanted = points.grid(["--sweep.optim.lr=1e-3"])
    sweep(wanted)
    sweep(wanted, steps=7)
    assert starts(sweep.folder) == 2  # the run itself goes on, or refuses
    (sweep.folder / "lr=0.001" / "starts").unlink()
    (sweep.folder / "lr=0.001").rmdir()
    sweep(wanted, steps=7)
    assert starts(sweep.folder) == 1


def test_a_run_that_fails_is_recorded_with_its_message_and_the_others_go_on(sweep):
    best, failed = sweep(points.grid(["--sweep.optim.lr=9,8,0.01"]))
    assert best["best"] == "lr=0.01"
    assert failed["lr=9.0"] == "the loss is not finite\n-> a smaller config.optim.lr"
    assert failed["lr=8.0"].startswith("ended by SIGKILL")
    states = {row["run"]: (row["state"], row["message"]) for row in rows(sweep.folder)}
    assert states["lr=9.0"] == ("failed", "the loss is not finite -> a smaller config.optim.lr")
    assert states["lr=0.01"] == ("done", "")


def test_a_run_that_was_stopped_stops_the_sweep_which_goes_on_to_the_same_table(sweep):
    wanted = points.grid(["--sweep.optim.lr=0.1,7,0.01"])
    with pytest.raises(Stopped, match=r"stopped in run lr=7\.0"):
        sweep(wanted)
    assert [row["state"] for row in rows(sweep.folder)] == ["done", "stopped"]
    (sweep.folder / "lr=7.0" / "go on").touch()
    sweep(wanted)
    assert [row["state"] for row in rows(sweep.folder)] == ["done"] * 3
    assert starts(sweep.folder) == 4


def test_values_that_only_fit_together_with_others_are_failed_runs(sweep):
    wanted = points.grid(["--sweep.optim.lr=0.01", "--sweep.batch_size=2,4", "--sweep.accumulate=1,4"])
    best, failed = sweep(wanted)
    assert list(failed) == ["lr=0.01,batch_size=2,accumulate=4"]
    assert "must be at most config.batch_size=2" in failed["lr=0.01,batch_size=2,accumulate=4"]
    assert best["best"] == "lr=0.01,batch_size=2,accumulate=1"
    assert len(rows(sweep.folder)) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sweep.optim.lrr=1,2"], r"unknown field config\.optim\.lrr, did you mean config\.optim\.lr\?"),
        (["--sweep.optim.lr=1e-3,x"], "expected float, not 'x'"),
        (["--sweep.optim.lr=1e-3,-1"], r"config\.optim\.lr must be"),
        (["--sweep.optim.lr=1e-3,"], "empty value"),
        (["--sweep.data.buckets=[(8,16)"], "not a Python list"),
        (["--sweep.seed=[]"], "empty value"),
        (["--sweep.seed=1", "--sweep.seed=2"], "given twice"),
        (["--sweep.optim=1"], "a dict of fields"),
        (["--sweep.seed=[{}]"], "expected int"),
    ],
)
def test_a_wrong_value_is_refused_before_the_first_run(words, message, sweep):
    with pytest.raises(ConfigError, match=message):
        sweep(points.grid(words))
    assert not sweep.folder.exists()


def test_values_with_commas_are_a_python_list(sweep):
    wanted = points.grid(
        ["--sweep.data.buckets=[(8, 16), (8, 32)]", "--sweep.optim.lr=0.01", "--sweep.best=['', 'a,b']"]
    )
    assert [point["data.buckets"] for point in wanted] == ["(8, 16)"] * 2 + ["(8, 32)"] * 2
    (first, *_) = points.make_runs(wanted[::2], load())
    assert (first.values["data.buckets"], first.name) == ((8, 16), "buckets=(8,16),lr=0.01,best=")


@pytest.mark.parametrize(
    ("point", "name"),
    [
        ({"optim.lr": 1e-3, "seed": 0}, "lr=0.001,seed=0"),
        ({"optim.name": "sgd"}, "optim.name=sgd"),  # a model or data may have a name too
        ({"steps": 3}, "steps=3"),
        ({"init_from": "../a b/é,[1]\n"[:-1]}, "init_from=..%2Fa%20b%2F%C3%A9%2C%5B1%5D"),
        ({"shares": (3, 1)}, "shares=(3,1)"),
        ({"report_metric": False}, "report_metric=False"),
    ],
)
def test_a_folder_is_named_by_its_values(point, name):
    run = points.make_run(point, load(data={"name": "digits"}))
    assert (run.name, run.error) == (name, "")


def test_names_stay_short_and_differ():
    names = {points.make_run({"init_from": "x" * 300 + end}, load()).name for end in "ab"}
    assert len(names) == 2
    assert max(map(len, names)) == 120


def test_a_file_gives_points_or_searches_by_results(tmp_path, sweep):
    (tmp_path / "grid.py").write_text(
        "import numpy as np\ndef sweep(config):\n  random = np.random.default_rng(config.seed)\n"
        "  return ({'optim.lr': np.float64(10.0 ** random.integers(-3, 0))} for _ in range(3))"
    )
    wanted = points.read(str(tmp_path / "grid.py"), load()(()))
    best, failed = sweep(wanted)
    assert not failed
    (tmp_path / "climb.py").write_text(
        "def search(config):\n  lr, last = 1.0, 9.0\n  while True:\n    metrics = yield {'config.optim.lr': lr}\n"
        "    if metrics.get('valid/loss', 8.5) >= last: return\n    lr, last = lr / 10, metrics['valid/loss']"
    )
    best, _ = sweep(points.read(str(tmp_path / "climb.py"), load()(())))
    assert best["best"] == "lr=0.01"
    assert {row["run"] for row in rows(sweep.folder)} == {"lr=0.001", "lr=0.01", "lr=0.1", "lr=1.0"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have one function"),
        ("def sweep(config): pass\ndef search(config): yield", "must have one function"),
        ("def sweep(config): return []", "no points"),
        ("def sweep(config): return 3", "sweep failed: TypeError"),
        ("def sweep(config): return [{}]", "must give points"),
        ("def sweep(config): return [{'seed': {'a': 1}}]", "expected int"),
        ("def sweep(config): return [{'seed': open}]", "which JSON does not have"),
        ("def sweep(config):\n  while True: yield {'seed': 1}", "more than 10000 points"),
        ("def sweep(config): return [{'sed': 1}]", "unknown field config.sed, did you mean config.seed"),
        ("def search(config): return []", "must be a generator"),
        ("def search(config): yield 3", "must give points"),
        ("def search(config): 1 / 0; yield", "search failed: ZeroDivisionError"),
    ],
)
def test_a_wrong_file_is_refused(text, message, tmp_path, sweep):
    path = tmp_path / "file.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        sweep(points.read(str(path), load()(())))


def test_the_tasks_of_an_array_job_fill_one_table(sweep):
    wanted = points.grid(["--sweep.optim.lr=1e-3,0.01,9"])
    assert sweep(wanted, index=1)[0]["best"] == "lr=0.01"
    assert list(sweep(wanted, index=2)[1]) == ["lr=9.0"]
    sweep(wanted, index=0)
    assert [row["state"] for row in rows(sweep.folder)] == ["done", "done", "failed"]
    with pytest.raises(ConfigError, match="0 to 2"):
        sweep(wanted, index=3)


def test_the_folder_of_a_run_is_not_a_sweeps(sweep):
    sweep.folder.mkdir()
    (sweep.folder / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a run"):
        sweep(points.grid(["--sweep.optim.lr=1e-3"]))


@pytest.mark.parametrize("index", [None, 0])
def test_a_folder_that_cannot_be_made_is_named(index, sweep):
    sweep.folder.write_text("a file")
    with pytest.raises(ConfigError, match=r"--workdir=.* (cannot be written to|is a file)"):
        sweep(points.grid(["--sweep.optim.lr=1e-3"]), index)


def test_a_damaged_record_is_named(sweep):
    sweep(points.grid(["--sweep.optim.lr=1e-3"]))
    (path,) = (sweep.folder / "records").glob("*.json")
    path.write_text(path.read_text()[:9])
    with pytest.raises(ConfigError, match=r"lr=0\.001\.json is damaged"):
        sweep(points.grid(["--sweep.optim.lr=1e-3"]))


def test_the_best_is_by_the_metric_of_the_config():
    records = [
        {"run": name, "values": {"seed": i}, "state": state, "metrics": {"valid/accuracy": value}}
        for i, (name, state, value) in enumerate(
            [("a", "done", 0.5), ("b", "done", 0.7), ("c", "done", "nan"), ("d", "failed", 0.9)]
        )
    ]
    assert table.best(records, *table.target(load(best="valid/accuracy", best_mode="max")(()), records))["run"] == "b"
    assert table.best(records, "valid/accuracy", "min")["run"] == "a"
    assert table.best(records, *table.target(load()(()), records)) == {}
