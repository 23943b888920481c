"""Weights & Biases. Its settings come from the environment: WANDB_PROJECT, WANDB_MODE=offline, WANDB_API_KEY, ...

The run's id is in DIR/wandb/id, so that a resumed run continues its curves. Steps that a killed run had logged after
its newest checkpoint are logged twice, with equal values.
"""

import contextlib
import html
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jtasks.config import Config
from jtasks.run.loggers import Values, Write, known_id
from jtasks.writing import write_file


@contextlib.contextmanager
def logger(config: Config, workdir: pathlib.Path, start: int) -> Iterator[Write]:
    """Log to one W&B run; metrics are named `split/name`, over `step`."""
    import wandb

    path = workdir / "wandb" / "id"
    path.parent.mkdir(exist_ok=True)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "jtasks"),
        name=os.environ.get("WANDB_NAME", workdir.resolve().name),
        dir=workdir,
        config=config.to_dict(),
        id=known_id(path, start),
        resume="allow",
        settings=wandb.Settings(console="off"),  # stdout and stderr stay as they are
    )
    run.define_metric("*", step_metric="step")  # W&B's own step never goes back, as a resumed run does
    write_file(path, run.id)

    def write(step: int, split: str, values: Values) -> None:
        run.log({"step": step, **{f"{split}/{name}": _converted(value) for name, value in values.items()}})

    try:
        yield write
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def _converted(value: Any) -> Any:
    import wandb

    if isinstance(value, str):
        return wandb.Html(f"<pre>{html.escape(value)}</pre>")
    return wandb.Image(value) if isinstance(value, np.ndarray) else value
