"""All loggers get the same rows, pictures and texts, and none of them can stop a run."""

import functools
import pathlib
import sys
import time

import numpy as np
import pytest

from jtasks.errors import ConfigError
from jtasks.run.log import Log
from jtasks.run.loggers import find

# A logger that writes what it gets to got.txt, and fails where the file `fault` says so.
LOGGER = """
import contextlib, pathlib

@contextlib.contextmanager
def logger(config, workdir, start):
    fault = workdir / "fault"
    if fault.exists() and fault.read_text() == "open":
        raise KeyError("no key")
    with open(workdir / "got.txt", "a") as file:
        print("start", start, file=file)
        def write(step, split, values):
            if fault.exists() and fault.read_text() == "write":
                raise OSError("no network")
            print(step, split, {name: getattr(value, "shape", value) for name, value in values.items()}, file=file)
        try:
            yield write
        except BaseException as error:
            print("failed", type(error).__name__, file=file)
        if fault.exists() and fault.read_text() == "close":
            raise SystemExit(3)

number = 3
"""


def open_log(workdir: pathlib.Path, *names: str, start: int = 0, writer: bool = True) -> Log:
    loggers = {name: functools.partial(logger, config(), workdir, start) for name, logger in find(names).items()}
    return Log(workdir, start=start, steps=9, count=lambda steps: {}, loggers=loggers, writer=writer)


def config():
    from jtasks import config as configs

    full = configs.defaults()
    full.task, full.steps = "jtasks.tasks.mnist", 9
    return configs.freeze(full)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(LOGGER)
    return f"{path}:logger"


def log_all(run: Log, step: int = 1) -> None:
    run.train(step, {"loss": 2.0})
    run.image(step, "valid", "digits", np.zeros((4, 5, 3), np.uint8))
    run.text(step, "valid", "words", "<b>so & so</b>")
    run.evaluation(step, "valid", {"loss": 1.5}, 0.1)


def test_a_logger_of_ones_own_gets_rows_pictures_and_texts(tmp_path, mine):
    with open_log(tmp_path, mine, start=0) as run:
        log_all(run)
    assert (tmp_path / "got.txt").read_text().splitlines() == [
        "start 0",
        "1 train {'loss': 2.0}",
        "1 valid {'digits': (4, 5, 3)}",
        "1 valid {'words': '<b>so & so</b>'}",
        "1 valid {'loss': 1.5}",
    ]


@pytest.mark.parametrize(("fault", "lines"), [("open", 0), ("write", 2), ("close", 5)])
def test_a_logger_that_fails_warns_once_and_the_others_go_on(tmp_path, mine, capsys, fault, lines):
    (tmp_path / "fault").write_text(fault)
    with open_log(tmp_path, mine, "tensorboard") as run:
        log_all(run)
    errors = capsys.readouterr().err
    assert errors.count("WARNING") == errors.count(f"WARNING: logger {mine} failed") == 1
    assert b"so & so" in b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    got = (tmp_path / "got.txt").read_text().splitlines() if lines else []
    assert len(got) == lines
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 2
    if fault == "write":
        assert got[-1] == "failed OSError"


def test_a_logger_sees_the_error_that_ends_the_run_and_cannot_hide_it(tmp_path, mine):
    with pytest.raises(ZeroDivisionError), open_log(tmp_path, mine):
        raise ZeroDivisionError
    assert (tmp_path / "got.txt").read_text().splitlines() == ["start 0", "failed ZeroDivisionError"]


def test_only_the_first_process_logs(tmp_path, mine):
    with open_log(tmp_path, mine, writer=False) as run:
        log_all(run)
    assert not (tmp_path / "got.txt").exists()


def test_no_logger_leaves_metrics_alone(tmp_path):
    with open_log(tmp_path) as run:
        log_all(run)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "has no logger 'tensorbord', did you mean tensorboard"),
        ("", "has no logger ''"),
        ("nowhere.py:logger", "no such file"),
        ("no_such_module:logger", "No module named 'no_such_module'"),
        ("{file}:loger", "has no function 'loger'"),
        ("{file}:number", "has no function 'number'"),
        (3, "must hold names of loggers, not 3"),
    ],
)
def test_a_name_without_a_logger_is_refused(tmp_path, mine, name, message):
    file = mine.rpartition(":")[0]
    with pytest.raises(ConfigError, match=message):
        find([name.format(file=file) if isinstance(name, str) else name])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'jtasks\[{name}\]'"):
        find([name])


def test_wandb_continues_the_run_that_a_resumed_run_began(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 1):
        time.sleep(1.1 * start)  # wandb names a folder by the second, and loses the second of two runs with one name
        with open_log(tmp_path, "wandb", start=start) as run:
            log_all(run, start + 1)
    name = (tmp_path / "wandb" / "id").read_text()
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(folder.name.endswith(f"-{name}") for folder in folders)
    words = (b"train/loss", b"valid/loss", b"valid/words")
    for folder in folders:
        until = time.monotonic() + 30  # wandb's own process may write the file after run.finish has returned
        while missing := [word for word in words if word not in (folder / f"run-{name}.wandb").read_bytes()]:
            assert time.monotonic() < until, missing
            time.sleep(0.1)
        assert len(list(folder.glob("files/media/images/valid/digits*.png"))) == 1
    assert "failed" not in capsys.readouterr().err


def test_mlflow_continues_the_run_that_a_resumed_run_began(tmp_path, monkeypatch, capsys):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    for start in (0, 1):
        with open_log(tmp_path, "mlflow", start=start) as run:
            log_all(run, start + 1)
    assert "failed" not in capsys.readouterr().err
    client = mlflow.MlflowClient()
    (one,) = client.search_runs(["0"])
    assert one.info.status == "FINISHED" and one.data.params["config.steps"] == "9"
    assert [(m.step, m.value) for m in client.get_metric_history(one.info.run_id, "valid/loss")] == [(1, 1.5), (2, 1.5)]
    names = [file.path for folder in ("images", "valid") for file in client.list_artifacts(one.info.run_id, folder)]
    assert {"valid/words-1.txt", "valid/words-2.txt"} <= set(names)
    assert sum(name.endswith(".png") for name in names) == 2
