"""The runs of a sweep, one after the other, each in a process of its own."""

import contextlib
import fcntl
import itertools
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from typing import Any

from jtasks import storage
from jtasks.config import Config
from jtasks.console import number, say
from jtasks.errors import EXIT_STOPPED, ConfigError, printable
from jtasks.run.signals import Stop, Stopped
from jtasks.run.workdir import lock
from jtasks.sweep import table
from jtasks.sweep.points import Load, Point, Run, Search, make_run, make_runs
from jtasks.sweep.table import Record
from jtasks.writing import no_link

POLL_SECONDS = 0.1
LONGEST = 2000  # characters of a message in a record


def train(
    points: Sequence[Point] | Search, load: Load, folder: pathlib.Path, command: Sequence[str], index: int | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Train every point of a sweep that is not trained yet.

    Args:
      points: all points, which are checked before the first run, or a search that chooses them by results.
      load: returns the config with the given overrides.
      folder: the sweep's folder. A run has `folder/NAME/`, its record and its output are in `folder/records/`.
      command: starts a run, with `--workdir=` and overrides appended.
      index: train only this one of the points, from 0.

    Returns:
      The best run of the folder, with its values and metrics, and {name: message} of the points that failed.

    Raises:
      ConfigError: a value is wrong, the folder is in use or is a run's, or there is no such index.
      Stopped: a signal stopped the current run, whose state is saved.
    """
    if (folder / "config.json").exists():
        raise ConfigError(f"--workdir={folder} holds a run: give the sweep a folder of its own")
    config, total = load(()), None
    runs: Generator[Run, Any, None]
    if isinstance(points, Sequence):
        chosen = choose(make_runs(points, load), index)
        runs, total = (run for run in chosen), len(chosen)
    elif index is None:
        runs = _in_turn(points, load)
    else:
        raise ConfigError(
            "--sweep-index needs points that are known in advance: give the file a function sweep(config)"
        )
    failed: dict[str, str] = {}
    with lock(folder) if index is None else contextlib.nullcontext(), Stop(owns_process=True) as stop:
        _make_records(folder)
        metrics: Any = None
        for count in itertools.count(1):
            try:
                run = runs.send(metrics)
            except StopIteration:
                break
            place = f"[{count}/{total}]" if total else f"[{count}]"
            print(printable(f"{place} {run.name}: "), end="", file=sys.stderr, flush=True)
            record = _train(run, config, folder, command, stop)
            say(_summarize(record, table.target(config, [record])[0]))
            if record["state"] == "failed":
                failed[run.name] = record["message"]
            if stop.should_stop():
                stop.claim()
                raise Stopped(f"stopped in run {run.name}: run the same command again to resume")
            metrics = dict(record["metrics"])
        stop.claim()
    say(f"all runs of the sweep: {folder / table.TABLE}, drawn in {table.PICTURE}")
    records = table.read_records(folder)
    best = table.best(records, *table.target(config, records))
    return _result(best, folder) if best else {}, failed


def _make_records(folder: pathlib.Path) -> None:
    try:
        (folder / table.RECORDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir={folder} cannot be written to ({error.strerror}): give another folder") from None


def choose(runs: list[Run], index: int | None) -> list[Run]:
    """Return the runs to train: all, or the one with the index."""
    if index is None:
        return runs
    if not 0 <= index < len(runs):
        raise ConfigError(f"--sweep-index={index} must be one of the sweep's runs, 0 to {len(runs) - 1}")
    return [runs[index]]


def _in_turn(points: Search, load: Load) -> Generator[Run, Any, None]:
    """Yield the runs of a search, which is sent the metrics of each."""
    metrics: Any = None
    with contextlib.suppress(StopIteration):
        while True:
            metrics = yield make_run(points.send(metrics), load)


def _train(run: Run, config: Config, folder: pathlib.Path, command: Sequence[str], stop: Stop) -> Record:
    """Return the record of a run, which is trained first unless it is done with the same config."""
    old = table.read_record(folder, run.name)
    if old.get("state") == "done" and old["digest"] == run.digest and (folder / run.name).is_dir():
        return old
    record: dict[str, Any] = {"run": run.name, "values": run.values, "state": "running", "digest": run.digest}
    record |= {"metrics": {}, "seconds": old.get("seconds", 0.0), "message": ""}
    if run.error:
        record |= {"state": "failed", "message": run.error}
    else:
        table.write_record(folder, record, config)
        _await_other(folder / run.name, stop)
        begun = time.monotonic()
        log = folder / table.RECORDS / f"{run.name}.log"
        record |= _start([*command, f"--workdir={storage.shown(str(folder / run.name))}", *run.overrides], log, stop)
        record["seconds"] = round(record["seconds"] + time.monotonic() - begun, 1)
    table.write_record(folder, record, config)
    return record


def _start(command: Sequence[str], log: pathlib.Path, stop: Stop) -> dict[str, Any]:
    """Run a command to its end, and return state, metrics and message; a signal to this process is passed on."""
    if shutil.which("setpriv"):  # on Linux: the run saves and ends if this process is killed
        command = ["setpriv", "--pdeathsig", "TERM", *command]
    with open(log, "ab", opener=no_link) as errors:
        begin, told = errors.tell(), False
        # A session of its own, so that Ctrl-C reaches this process alone.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        while True:
            if stop.should_stop() and not told:
                child.terminate()
                told = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                output, _ = child.communicate(timeout=POLL_SECONDS)
                break
    if child.returncode == 0:
        return {"state": "done", "metrics": json.loads(output.splitlines()[-1])}
    if told or child.returncode == EXIT_STOPPED:
        stop.requested = stop.requested or signal.SIGTERM  # a signal to a run stops the sweep
        return {"state": "stopped"}
    return {"state": "failed", "message": _message(child.returncode, log.read_bytes()[begin:].decode(errors="replace"))}


def _message(code: int, text: str) -> str:
    """Return the error message at the end of a run's output."""
    *_, message = f"\n{text}".rpartition("\nerror: ")
    if message != f"\n{text}":
        return message.partition("\nTraceback (most")[0].strip()[:LONGEST]
    last = (text.splitlines() or [""])[-1]
    return f"ended by {signal.Signals(-code).name if code < 0 else f'exit code {code}'}; {last}"[:LONGEST]


def _await_other(folder: pathlib.Path, stop: Stop) -> None:
    """Wait while another process trains this run, such as one that a killed sweep left behind."""
    path, told = folder / ".lock", False
    while path.exists() and not stop.should_stop():
        with open(path, "a+", opener=no_link) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                file.seek(0)
                if not told:
                    say(f"waiting for {file.read().strip() or 'another process'}")
                told = True
            except OSError:  # a file system without locks
                return
        time.sleep(POLL_SECONDS)


def _summarize(record: Record, metric: str) -> str:
    if record["state"] == "done":
        value = record["metrics"].get(metric)
        shown = f", {metric} {number(value)}" if isinstance(value, int | float) else ""
        return f"done{shown}, {record['seconds']:,.0f} s"
    return f"{record['state']}{': ' if record['message'] else ''}{record['message'].partition(chr(10))[0]}"


def _result(record: Record, folder: pathlib.Path) -> dict[str, Any]:
    values = {f"config.{name}": value for name, value in record["values"].items()}
    return {"best": record["run"], "workdir": storage.shown(str(folder / record["run"])), **values, **record["metrics"]}
