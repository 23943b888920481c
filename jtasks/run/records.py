"""The records of a run, metrics.jsonl: a line of JSON for each step and split that was measured."""

import json
import math
import pathlib
import re
import time
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jtasks.writing import no_link, write_file

CHECKSUM = "crc32"
EVALUATED, OF = "evaluated_examples", "split_examples"  # metrics of an evaluation limited by config.eval_batches
WATCHED = "watch.jsonl"  # in the run's folder: what --mode=watch has measured
HISTORY = "evaluations.json"  # in a checkpoint
RESERVED = ("step", "split", "wall", CHECKSUM)
OWN = re.compile(  # names of what the library measures
    f"step|split|wall|{CHECKSUM}|lr|gradient_norm|noise_scale|skipped|mfu|peak_memory_bytes|seconds_per_step"
    f"|.*_per_second|{EVALUATED}|{OF}"
)
_VOLATILE = re.compile("wall|mfu|seconds_per_step|.*_per_second|peak_memory_bytes")  # differ from run to run
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # strings, because JSON has no such numbers


def to_json(value: Any, indent: int | None = None, *, escape: bool = True) -> str:
    """Return one line of JSON, or lines with an `indent`; nan, inf and -inf, which JSON lacks, become strings.

    Characters beyond ASCII become escapes; without `escape` they stay as they are.

    >>> to_json({"loss": float("nan"), "outputs": [1.0, float("inf")]})
    '{"loss": "nan", "outputs": [1.0, "inf"]}'
    """
    try:
        return json.dumps(value, allow_nan=False, indent=indent, ensure_ascii=escape)
    except ValueError:
        return json.dumps(_name_non_finite(value), indent=indent, ensure_ascii=escape)


def read(path: pathlib.Path, warn: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Return the complete records of a metrics.jsonl, the newest of each (step, split); [] if there is no file.

    Skips a torn last line, and other damaged lines with a call of `warn`. The strings "nan", "inf" and "-inf" become
    floats again.
    """
    records: dict[Any, dict[str, Any]] = {}
    damaged = 0
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:  # after the last newline: torn
        record = _parse(line)
        if record is not None:
            records.pop((record["step"], record["split"]), None)
            records[record["step"], record["split"]] = record
        damaged += record is None
    if damaged:
        warn(f"{path}: {damaged} damaged line{'s' * (damaged > 1)} left out; their metrics are lost")
    return list(records.values())


def watched(folder: pathlib.Path, metric: str) -> dict[int, float]:
    """Return {step: value} of an evaluation metric by --mode=watch of the run in a folder; {} without."""
    lines = Records(folder / WATCHED)
    lines.load()
    return lines.values(metric)


class Records:
    """The record store of one run: metrics.jsonl on disk, and the metrics of the evaluations in memory.

    A line is `{"step", "split", "wall", ...metrics, "crc32"}`: wall is in seconds since the epoch, non-finite values
    are "nan", "inf" and "-inf", metrics of those four names are left out, and "crc32" is the checksum of the line
    without its volatile fields, such as times. A line without a checksum is valid too.

    Args:
      path: the file; its folder exists before the first `write`.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._metrics: dict[tuple[int, str], dict[str, float]] = {}

    def clean(self, start: int, warn: Callable[[str], None]) -> None:
        """Remove lines of steps after `start`, torn lines and older lines of a step and split, in one replacement."""
        _rewrite(self.path, lambda record: record["step"] <= start, warn)

    def load(self, start: float = math.inf, warn: Callable[[str], None] = lambda text: None) -> None:
        """Remember the records of the file up to step `start`; a damaged line calls `warn`."""
        for record in read(self.path, warn):
            if record["step"] <= start:
                self._remember(record)

    def add(self, step: int, split: str, metrics: Mapping[str, float], *, write: bool) -> None:
        """Remember the metrics of a step and split, and write their line if asked to; replaces an older one.

        Raises:
          OSError: the line could not be written; the metrics are remembered.
        """
        known = (step, split) in self._metrics
        record = {"step": step, "split": split, "wall": round(time.time(), 3), **metrics}
        self._remember(record)
        if write:
            if known:
                _rewrite(self.path, lambda old: (old["step"], old["split"]) != (step, split))
            _append(self.path, _line(record))

    def history(self, metrics: Collection[str], before: int) -> str:
        """Return the values of some metrics, such as "valid/loss", in evaluations before a step, as a text.

        A checkpoint keeps it, so that what follows from these values is the same if metrics.jsonl is lost.
        """
        wanted: dict[str, set[str]] = {}
        for split, _, name in (metric.partition("/") for metric in metrics):
            wanted.setdefault(split, {EVALUATED}).add(name)
        values = {
            f"{step} {split}": {name: value for name, value in own.items() if name in wanted[split]}
            for (step, split), own in sorted(self._metrics.items())
            if split in wanted and step < before
        }
        return to_json(values) + "\n"

    def recall(self, history: str) -> None:
        """Add the values of a `history`; existing records take precedence.

        Raises:
          ValueError: the text is no history.
        """
        for key, values in json.loads(history).items():
            step, split = key.split(" ", 1)
            known = {name: _NON_FINITE.get(value, value) for name, value in values.items()}
            self._metrics.setdefault((int(step), split), known)

    def has(self, step: int, split: str, evaluated: float | None = None) -> bool:
        """Return whether there is a record of this step and split, of all or of the `evaluated` number of examples."""
        metrics = self._metrics.get((step, split))
        return metrics is not None and metrics.get(EVALUATED) == evaluated

    def last(self) -> dict[str, float]:
        """Return the newest evaluated step as `{"step": 200, "valid/loss": 1.5, ...}`; {} before the first."""
        evaluated = [key for key in self._metrics if key[1] != "train"]
        newest = max((step for step, _ in evaluated), default=0)
        values = {
            f"{split}/{name}": value
            for step, split in evaluated
            if step == newest
            for name, value in self._metrics[step, split].items()
        }
        return {"step": newest, **values} if evaluated else {}

    def values(self, metric: str) -> dict[int, float]:
        """Return `{step: value}` of an evaluation metric such as "valid/loss", over all steps that have it.

        Values of another number of examples than the newest step's are left out: they cannot be compared.
        """
        split, _, name = metric.partition("/")
        measured = {step: metrics for (step, of), metrics in sorted(self._metrics.items()) if of == split != "train"}
        examples = measured[max(measured)].get(EVALUATED) if measured else None
        comparable = {step: metrics for step, metrics in measured.items() if metrics.get(EVALUATED) == examples}
        return {step: metrics[name] for step, metrics in comparable.items() if name in metrics}

    def _remember(self, record: Mapping[str, Any]) -> None:
        key = record["step"], record["split"]
        values = {k: v for k, v in record.items() if k not in RESERVED and isinstance(v, int | float)}
        self._metrics.pop(key, None)  # the newest is the last
        self._metrics[key] = values if record["split"] != "train" else {}


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if isinstance(record, dict) and record.pop(CHECKSUM, None) not in (None, _checksum(record)):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or not isinstance(record.get("split"), str):
        return None
    return {k: _NON_FINITE.get(v, v) if k != "split" and isinstance(v, str) else v for k, v in record.items()}


def _name_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _name_non_finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_name_non_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _line(record: dict[str, Any]) -> bytes:
    return to_json(record | {CHECKSUM: _checksum(record)}).encode() + b"\n"


def _checksum(record: dict[str, Any]) -> str:
    """Return the CRC-32 of a record without its volatile fields, so that equal metrics of two runs have equal sums."""
    metrics = {name: value for name, value in record.items() if not _VOLATILE.fullmatch(name)}
    return f"{zlib.crc32(to_json(metrics).encode()):08x}"


def _rewrite(
    path: pathlib.Path, keep: Callable[[dict[str, Any]], bool], warn: Callable[[str], None] = lambda text: None
) -> None:
    """Keep only the complete records that `keep` accepts, in one atomic replacement if anything changes."""
    kept = b"".join(_line(record) for record in read(path, warn) if keep(record))
    if path.exists() and kept != path.read_bytes():
        write_file(path, kept)


def _append(path: pathlib.Path, line: bytes) -> None:
    """Append the whole line or, on a full disk, nothing: half a line would damage the next one too."""
    with open(path, "ab", buffering=0, opener=no_link) as file:
        size = file.tell()
        if file.write(line) != len(line):
            file.truncate(size)
            raise OSError(f"no room for a line in {path}")
