"""Evaluate each new checkpoint of a run, in a process of its own, while training goes on elsewhere.

The lines go to DIR/watch.jsonl, in the format of metrics.jsonl, which belongs to the training process.
"""

import pathlib
import time
from collections.abc import Callable

from jtasks import console, storage
from jtasks.config import Config
from jtasks.console import metric
from jtasks.distributed import processes
from jtasks.errors import CheckpointError
from jtasks.run import checkpoint_files, evaluate, evaluations, patience, provenance, records
from jtasks.run.evaluations import Evaluation
from jtasks.run.restore import SavedRun, open_run

POLL_SECONDS = 2.0


def run(config: Config, workdir: pathlib.Path, wait: Callable[[float], None] = time.sleep) -> dict[str, float]:
    """Evaluate the checkpoints of a run as they come: `valid` and config.evals, at the last step also `test`.

    Waits for the first checkpoint, and returns after the last step of the run. What watch.jsonl has is not evaluated
    again. A checkpoint that training deletes before its turn is left out.

    Args:
      config: the run's own, except for fields that do not identify a run.
      workdir: the run's folder.
      wait: called with the seconds to wait for another checkpoint.

    Returns:
      The newest evaluation: `step`, and keys `name/metric`.
    """
    folder, seen = workdir / "checkpoints", set[int]()
    while not _steps(folder):
        wait(POLL_SECONDS)
    saved = open_run(config, workdir)
    todo = _evaluations(saved)
    measures = {name: evaluate.measurer(each.job) for name, each in todo.items()}
    lines = records.Records(workdir / records.WATCHED)
    lines.load(warn=console.warn)
    while True:
        new = [step for step in _steps(folder) if step not in seen]
        for step in new:
            seen.add(step)
            names = [name for name in todo if name != "test" or _is_last(saved.job.config, workdir, step)]
            marks = {name: evaluate.limit_examples(todo[name].job, todo[name].examples)[1] for name in names}
            names = [name for name in names if not lines.has(step, name, marks[name].get(records.EVALUATED))]
            if names:
                _evaluate(saved._replace(step=step), {name: todo[name] for name in names}, measures, lines)
        if seen and _is_last(saved.job.config, workdir, max(seen)):
            return lines.last() or {"step": max(seen)}
        if not new:
            wait(POLL_SECONDS)


def _steps(folder: pathlib.Path) -> list[int]:
    """Return the steps that have a finished checkpoint now, in a bucket too."""
    storage.refresh(folder)
    return checkpoint_files.saved_steps(folder)


def _evaluations(saved: SavedRun) -> dict[str, Evaluation]:
    """Return all evaluations of the run, on the data that the run has used."""
    splits = {split: saved.examples(split) for split in ("valid", "test")}
    named = evaluations.of_config(saved.job, saved.workdir)
    for name, each in named.items():
        saved.compare(name, each.examples)
    return evaluations.of_splits(saved.job, splits) | named


def _evaluate(
    saved: SavedRun, todo: dict[str, Evaluation], measures: dict[str, evaluate.Evaluate], lines: records.Records
) -> None:
    """Evaluate one checkpoint, and write a line for each evaluation; a checkpoint that is gone or damaged warns."""
    try:
        checkpoint_files.require(saved.workdir / "checkpoints", saved.step)
        params = saved.params()
    except (CheckpointError, OSError, ValueError) as error:
        if saved.step in checkpoint_files.saved_steps(saved.workdir / "checkpoints"):
            console.warn(str(error))
        else:
            console.say(f"step {saved.step} was deleted before its turn: a larger config.keep keeps it longer")
        return
    for name, each in todo.items():
        begun = time.perf_counter()
        values = measures[name](params, each.examples, name)
        lines.add(saved.step, name, values, write=processes.first())
        shown = " ".join(metric(key, value) for key, value in values.items())
        console.say(f"{name} at {saved.step}: {shown} ({time.perf_counter() - begun:.1f} s)")


def _is_last(config: Config, workdir: pathlib.Path, step: int) -> bool:
    """Return whether no step of the run comes after this one, as the training process has recorded it."""
    if step >= (provenance.last_step(workdir) or config.steps):
        return True
    trained = records.Records(workdir / "metrics.jsonl")
    trained.load(step)
    values = trained.values(config.stop.metric)
    return step in values and patience.is_exhausted(values, config.stop)
