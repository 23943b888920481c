"""MLflow. Its settings come from the environment: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...

The run's id is in DIR/mlflow/id, so that a resumed run continues its curves. Steps that a killed run had logged after
its newest checkpoint are logged twice, with equal values.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from jtasks.config import Config, fields
from jtasks.run.loggers import Values, Write, known_id
from jtasks.writing import write_file

LONGEST = 500  # characters of a parameter's value


@contextlib.contextmanager
def logger(config: Config, workdir: pathlib.Path, start: int) -> Iterator[Write]:
    """Log to one MLflow run: metrics, images, and texts as artifacts; the config of the first start as parameters."""
    # MLflow's own default lets the training wait more than four minutes for a server that does not answer.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    import mlflow

    path = workdir / "mlflow" / "id"
    path.parent.mkdir(exist_ok=True)
    known = known_id(path, start)
    with mlflow.start_run(run_id=known, run_name=None if known else workdir.resolve().name) as run:
        write_file(path, run.info.run_id)
        if not known:  # MLflow refuses another value of a parameter
            mlflow.log_params({name: str(value)[:LONGEST] for name, value in fields(config)})
        yield _write


def _write(step: int, split: str, values: Values) -> None:
    import mlflow

    numbers = {}
    for name, value in values.items():
        key = re.sub(r"[^\w\-. :/]", "_", f"{split}/{name}")  # MLflow allows no other characters
        if isinstance(value, str):
            mlflow.log_text(value, f"{key}-{step}.txt")
        elif isinstance(value, np.ndarray):
            mlflow.log_image(value, key=key, step=step)
        else:
            numbers[key] = value
    if numbers:
        mlflow.log_metrics(numbers, step=step)
