"""TensorBoard files in DIR/tensorboard."""

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from jtasks.config import Config
from jtasks.run.loggers import Values, Write

FLUSH = 10.0  # maximum seconds until values are on disk


@contextlib.contextmanager
def logger(config: Config, workdir: pathlib.Path, start: int) -> Iterator[Write]:
    """Write an event file, begun with the first values, that hides the events of older files after step `start`.

    tensorboardX's SummaryWriter writes on a thread that an OSError ends; its full queue then blocks the caller
    forever. The errors of the EventsWriter used here reach the caller.
    """
    from tensorboardX.proto.event_pb2 import Event

    writer: Any = None
    flushed = 0.0

    def write(step: int, split: str, values: Values) -> None:
        nonlocal writer, flushed
        writer = writer or _events(workdir / "tensorboard", start)
        writer.write_event(Event(wall_time=time.time(), step=step, summary=_summary(split, values)))
        if time.perf_counter() - flushed > FLUSH:
            flushed = time.perf_counter()
            writer.flush()

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def _summary(split: str, values: Values) -> Any:
    from tensorboardX import summary
    from tensorboardX.proto.summary_pb2 import Summary

    merged = Summary()
    for name, value in values.items():
        tag = f"{split}/{name}"
        if isinstance(value, str):
            merged.MergeFrom(summary.text(tag, value))
        elif isinstance(value, np.ndarray):
            merged.MergeFrom(summary.image(tag, value, dataformats="HW" if value.ndim == 2 else "HWC"))
        else:
            merged.value.append(Summary.Value(tag=tag, simple_value=value))
    return merged


def _events(folder: pathlib.Path, start: int) -> Any:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    folder.mkdir(exist_ok=True)  # no parents: a deleted DIR is not created again
    writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")  # unique: a run may restart within a second
    writer.write_event(Event(wall_time=time.time(), step=start + 1, session_log=SessionLog(status=SessionLog.START)))
    return writer
