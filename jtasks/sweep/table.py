"""The results of a sweep: a record of each run, and the table of all."""

import contextlib
import csv
import fcntl
import io
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jtasks import storage
from jtasks.config import Config
from jtasks.run import workdir
from jtasks.sweep import picture
from jtasks.writing import no_link, write_file

TABLE, PICTURE, RECORDS = "sweep.csv", "sweep.svg", "records"

Record = Mapping[str, Any]  # run, values, state, digest, metrics, seconds, message


def read_record(folder: pathlib.Path, name: str) -> Record:
    """Return the record of a run of the sweep in `folder`; {} if the run never began."""
    return workdir.read_json(folder / RECORDS / f"{name}.json")


def write_record(folder: pathlib.Path, record: Record, config: Config) -> None:
    """Write the record of a run, then the table and the picture of all runs; `config` has the metric to compare."""
    write_file(folder / RECORDS / f"{record['run']}.json", json.dumps(record, indent=1) + "\n")
    with _exclusive(folder):  # the tasks of an array job share the table
        storage.push(folder)
        storage.pull(folder)  # of a folder in a bucket, the records of other machines
        records = read_records(folder)
        write_file(folder / TABLE, to_csv(records))
        metric, mode = target(config, records)
        if chosen := best(records, metric, mode):
            finished = [record for record in records if _is_finite(record["metrics"].get(metric))]
            write_file(
                folder / PICTURE, picture.draw(finished, _names(finished, "values"), metric, mode, chosen["run"])
            )
        storage.push(folder)


def read_records(folder: pathlib.Path) -> list[Record]:
    """Return the records of all runs, sorted by their values."""
    paths = sorted((folder / RECORDS).glob("*.json"))
    records = [workdir.read_json(path) for path in paths if not path.name.startswith(".")]
    fields = _names(records, "values")
    return sorted(records, key=lambda record: [_order(record["values"].get(name)) for name in fields])


def to_csv(records: Sequence[Record]) -> str:
    """Return the table: a row for each run, with its values, state, step, metrics, seconds and message."""
    fields, metrics = _names(records, "values"), _names(records, "metrics")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *fields, "state", *metrics, "seconds", "message"])
    for record in records:
        values = [_cell(record["values"].get(name, "")) for name in fields]
        numbers = [_cell(record["metrics"].get(name, "")) for name in metrics]
        message = " ".join(record["message"].split())
        writer.writerow([record["run"], *values, record["state"], *numbers, record["seconds"], message])
    return text.getvalue()


def best(records: Sequence[Record], metric: str, mode: str) -> Record:
    """Return the finished run with the lowest metric, or the highest for the mode "max"; {} if none has the metric."""
    able = [record for record in records if record["state"] == "done" and _is_finite(record["metrics"].get(metric))]
    choose = max if mode == "max" else min
    return choose(able, key=lambda record: record["metrics"][metric], default={})


def target(config: Config, records: Sequence[Record]) -> tuple[str, str]:
    """Return the metric by which runs are compared, and "min" or "max": config.best, or the loss."""
    if config.best:
        return config.best, config.best_mode
    names = _names(records, "metrics")
    return next((name for name in ("valid/loss", "test/loss") if name in names), "valid/loss"), "min"


def _names(records: Sequence[Record], kind: str) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record[kind]))


def _order(value: Any) -> tuple[int, Any]:
    """Return a key that sorts absent values first, then numbers, then everything else as text."""
    if value is None:
        return 0, 0
    return (1, value) if isinstance(value, int | float) else (2, json.dumps(value))


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


@contextlib.contextmanager
def _exclusive(folder: pathlib.Path) -> Iterator[None]:
    """Let one process at a time read the records and write the table."""
    with open(folder / RECORDS / ".lock", "a", opener=no_link) as file:
        with contextlib.suppress(OSError):  # a file system without locks: the next command writes the table again
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
