"""predict_fn over a split, and show_fn's pictures and texts in files."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jtasks import processes, sharding
from jtasks.compiled import Compiled
from jtasks.config import Config
from jtasks.data import pipeline
from jtasks.errors import ConfigError
from jtasks.job import Job
from jtasks.log import to_json
from jtasks.run import open_run
from jtasks.writing import check_name, require_writable, write_file, writer

Predict = Callable[[Any, pipeline.Examples], list[Any]]


def make(job: Job, poll: Callable[[], None] = lambda: None) -> Predict:
    """A function (params, examples) -> one output tree an example, in order; compiles once."""
    if not hasattr(job.task, "predict_fn"):
        raise ConfigError(f"task {job.config.task} has no predict_fn(params, batch, rng, config)")
    rng = jax.random.key(job.config.seed)
    predict_fn = job.over(lambda params, batch: job.task.predict_fn(params, batch, rng, job.config))
    step = Compiled(jax.jit(predict_fn, out_shardings=sharding.replicated(job.mesh)))

    def predict(params: Any, examples: pipeline.Examples) -> list[Any]:
        plan = job.plan(examples, shuffle=False)
        steps = range(plan.steps(1))
        outputs: list[Any] = [None] * plan.n
        for at, batch in zip(steps, job.batches(examples, plan, steps, poll), strict=True):
            poll()
            rows = jax.device_get(step(params, batch))
            indices, entries = plan.at(plan.positions(at))
            for row in np.flatnonzero(entries["mask"]):
                outputs[indices[row]] = jax.tree.map(lambda x, row=row: x[row], rows)
        return outputs

    return predict


def first(examples: pipeline.Examples, count: int) -> list[Any]:
    """The first `count` examples, as a list of dicts."""
    return [pipeline.read(examples, i) for i in range(min(count, pipeline.size(examples)))]


def show(job: Job, predict: Predict, params: Any, examples: pipeline.Examples) -> dict[str, np.ndarray | str]:
    """The pictures and texts that the task's show_fn makes of the first `config.show_count` examples."""
    rows = first(examples, job.config.show_count)
    arrays = isinstance(examples, Mapping) and {name: array[: len(rows)] for name, array in examples.items()}
    return job.task.show_fn(rows, predict(params, arrays or rows), job.config)


def write_shown(shown: dict[str, np.ndarray | str], folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """Write each image, uint8 [h, w] or [h, w, 1 or 3], or text as folder/NAME-SUFFIX.png or .txt."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in shown.items():
        check_name(name, "show_fn of the task")
        path = folder / f"{name}-{suffix}.{'txt' if isinstance(content, str) else 'png'}"
        if isinstance(content, str):
            write_file(path, content + "\n")
        else:
            grey = content.ndim == 3 and content.shape[2] == 1
            with writer(path) as file:
                Image.fromarray(content[..., 0] if grey else content).save(file, "png")
        paths.append(path)
    return paths


def run(
    config: Config, workdir: pathlib.Path, split: str, which: str = "newest", out: pathlib.Path | None = None
) -> pathlib.Path:
    """Write predictions-SPLIT.jsonl from a checkpoint (see `open_run`): `{"index", ...outputs}`, one example a line.

    It goes to the folder `out`, by default the workdir.

    What the task's report_fn makes of them goes beside it, as NAME-SPLIT.SUFFIX.
    """
    run, folder = open_run(config, workdir, which), out or workdir
    processes.once(lambda: require_writable(folder))
    job, examples = run.job, run.required(split)
    params = run.params(examples)
    outputs = make(job)(params, examples)
    path = folder / f"predictions-{split}.jsonl"
    lines = ((to_json({"index": index, **_plain(output)}) + "\n").encode() for index, output in enumerate(outputs))

    def write() -> None:
        with writer(path) as file:
            file.writelines(lines)
        if hasattr(job.task, "report_fn"):
            rows = [pipeline.read(examples, i) for i in range(pipeline.size(examples))]
            for name, text in job.task.report_fn(rows, outputs, job.config).items():
                check_name(name, "report_fn of the task")
                report = pathlib.PurePath(name)
                write_file(folder / f"{report.stem}-{split}{report.suffix}", text)

    processes.once(write)
    return path


def run_show(
    config: Config, workdir: pathlib.Path, split: str, which: str = "newest", out: pathlib.Path | None = None
) -> list[pathlib.Path]:
    """Write show_fn's pictures and texts of a checkpoint (see `open_run`) to the folder `out`, by default DIR/show."""
    run = open_run(config, workdir, which)
    job = run.job
    if not hasattr(job.task, "show_fn"):
        raise ConfigError(f"task {config.task} has no show_fn(examples, outputs, config)")
    folder = out or workdir / "show"
    processes.once(lambda: require_writable(folder))
    examples = run.required(split)
    shown = show(job, make(job), run.params(examples), examples)
    return write_shown(shown, folder, f"{split}-{run.step}") if processes.first() else []


def _plain(output: Any) -> dict[str, Any]:
    """An output tree as JSON data, whatever its kind; whole where a name in it would hide the example's index."""
    tree = jax.tree.map(lambda x: np.asarray(x).tolist(), output)
    return tree if isinstance(tree, dict) and "index" not in tree else {"output": tree}
