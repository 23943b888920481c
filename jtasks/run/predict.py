"""Predictions over a split, and show_fn's pictures and texts in files."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jtasks import ranges, task
from jtasks.config import Config
from jtasks.data import lazy, mixture, pipeline
from jtasks.distributed import processes, sharding
from jtasks.errors import ConfigError
from jtasks.run import display, row_files
from jtasks.run.activity import Watch, watch_nothing
from jtasks.run.compile import Compiled
from jtasks.run.job import Job
from jtasks.run.restore import open_run
from jtasks.run.spool import Spool
from jtasks.writing import check_name, require_writable, write_file, writer

Predict = Callable[[Any, pipeline.Examples, str], Sequence[Any]]  # parameters, examples and their name


def program(job: Job, function: str = "predict_fn", watch: Watch = watch_nothing) -> Compiled:
    """Return predict_fn, embed_fn or pair_fn of the task as (params, batch) -> outputs, compiled for each shape.

    `watch` shows that it compiles.

    Raises:
      ConfigError: the task does not have the function.
    """
    if not hasattr(job.task, function):
        raise ConfigError(f"task {job.config.task} has no {function}(params, batch, rng, config)")
    rng = jax.random.key(job.config.seed) if function != "embed_fn" else None

    def outputs(params: Any, batch: Any) -> Any:
        return getattr(job.task, function)(params, batch, rng, job.config)

    jitted = jax.jit(job.on_mesh(outputs), out_shardings=sharding.replicated_sharding(job.mesh))
    return Compiled(jitted, lambda: watch(f"compiling {function}", None))


def make(
    job: Job,
    poll: Callable[[], None] = lambda: None,
    watch: Watch = watch_nothing,
    *,
    full: bool = False,
    function: str = "predict_fn",
    step: Compiled | None = None,
) -> Predict:
    """Return a function (params, examples, name) -> one output tree an example, in order; compiles once.

    Between batches the function calls `poll`; `watch` shows its progress under the name.

    The outputs are read on demand from a temporary file of the first process. Other processes get none, unless the task
    has a `rescore_fn`, which needs them everywhere. With `full`, the outputs of an example do not depend on the others:
    see `Job.plan`. `step` is the job's `program`, by default a new one.
    """
    step = program(job, function, watch) if step is None else step

    def predict(params: Any, examples: pipeline.Examples, name: str = "predictions") -> Sequence[Any]:
        plan = job.plan(examples, shuffle=False, full=full)
        steps = range(plan.steps(1))
        spool, keeps = Spool(), processes.first() or hasattr(job.task, "rescore_fn")
        with watch(name, len(steps)) as update:
            for at, batch in zip(steps, job.batches(examples, plan, steps, poll), strict=True):
                poll()
                update(at)
                outputs = jax.device_get(step(params, batch))
                if keeps:
                    indices, entries = plan.at(plan.positions(at))
                    rows = np.flatnonzero(entries["mask"])
                    spool.add(indices[rows], outputs, rows)
        return lazy.Lazy(range(plan.n if keeps else 0), spool.read)

    return predict


def rows(examples: pipeline.Examples) -> Sequence[Mapping[str, Any]]:
    """Return the examples of a split as a sequence of dicts, each read on demand."""
    return lazy.Lazy(range(pipeline.size(examples)), functools.partial(pipeline.read, examples, whole=False))


def answers(job: Job, examples: pipeline.Examples, outputs: Sequence[Any]) -> Sequence[dict[str, Any]]:
    """Return the readable answer of the task's `answers` for each example, {} without this function.

    A lazy sequence makes an answer when it is read, so a split's answers need not fit in memory.

    Raises:
      ConfigError: the task's function returns anything but one dict per example.
    """
    if not hasattr(job.task, "answers"):
        return lazy.each(lambda output: {}, outputs)
    given = job.task.answers(rows(examples), outputs, job.config)
    if not isinstance(given, list | lazy.Lazy) or len(given) != len(outputs):
        raise _wrong_answers(len(outputs), given)
    return lazy.each(lambda answer: _require_dict(answer, len(outputs), given), given)


def _require_dict(answer: Any, count: int, given: Any) -> dict[str, Any]:
    if type(answer) is not dict:
        raise _wrong_answers(count, given if isinstance(given, list) else answer)
    return answer


def _wrong_answers(count: int, given: Any) -> ConfigError:
    return ConfigError(f"answers must return one dict per example, {count} here, not {ranges.format_value(given)}")


def show(job: Job, predict: Predict, params: Any, examples: pipeline.Examples) -> dict[str, np.ndarray | str]:
    """Call show_fn on the first `config.show_count` examples, for a mixture on that many of each source.

    Returns {} on all processes except the first.
    """
    examples = to_show(job, examples)
    outputs = list(predict(params, examples, "examples to show"))
    return check_shown(job.task.show_fn(list(rows(examples)), outputs, job.config)) if processes.first() else {}


def to_show(job: Job, examples: pipeline.Examples) -> pipeline.Examples:
    """Return the examples that `show` shows, in memory."""
    if mixture.parts(examples):
        examples = mixture.head(examples, job.config.show_count)
    shown = range(pipeline.size(examples))[: job.config.show_count]
    if isinstance(examples, Mapping):
        return {name: array[: len(shown)] for name, array in examples.items()}
    return [rows(examples)[index] for index in shown]


def check_shown(shown: Any) -> dict[str, np.ndarray | str]:
    """Return show_fn's result with pictures as NumPy arrays; raise ConfigError if it is not {name: picture or text}."""
    if not isinstance(shown, Mapping):
        raise ConfigError(f"show_fn must return {{name: picture or text}}, not {ranges.format_value(shown)}")
    checked = dict[str, np.ndarray | str]()
    for name, content in shown.items():
        check_name(name, "show_fn of the task")
        if isinstance(content, str):
            checked[name] = content.encode(errors="backslashreplace").decode()
            continue
        picture = np.asarray(content)
        gray_or_rgb = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (1, 3))
        if picture.dtype != np.uint8 or not gray_or_rgb or not picture.size:
            kind = (
                f"{picture.dtype}{list(picture.shape)}" if hasattr(content, "shape") else ranges.format_value(content)
            )
            raise ConfigError(f"show_fn must return {name!r} as a text or a picture, uint8 [h, w, 1 or 3], not {kind}")
        checked[name] = picture
    return checked


def write_shown(shown: dict[str, np.ndarray | str], folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """Write each image, uint8 [h, w] or [h, w, 1 or 3], or text as folder/NAME-SUFFIX.png or .txt."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in shown.items():
        path = folder / f"{name}-{suffix}.{'txt' if isinstance(content, str) else 'png'}"
        if isinstance(content, str):
            write_file(path, content + "\n")
        else:
            gray = content.ndim == 3 and content.shape[2] == 1
            with writer(path) as file:
                Image.fromarray(content[..., 0] if gray else content).save(file, "png")
        paths.append(path)
    return paths


def run(
    config: Config, workdir: pathlib.Path, split: str, which: str = "newest", output: pathlib.Path | None = None
) -> pathlib.Path:
    """Write predictions of a checkpoint (see `open_run`), a row `{"index", ...outputs, ...answer}` for each example.

    The files of the task's export_fn go to the same folder, as NAME-SPLIT.SUFFIX.

    Args:
      config, workdir, split, which: the run, the split and the checkpoint.
      output: a file for `row_files.open_rows`, or a folder, by default `workdir`, for predictions-SPLIT.jsonl.
    """
    run, path = open_run(config, workdir, which), row_files.place(output, workdir, f"predictions-{split}.jsonl")
    processes.on_first_process(lambda: require_writable(path.parent))
    job, examples = run.job, run.require(split)
    outputs = make(job, watch=display.watcher(), full=True)(run.params(), examples, f"{split} predictions")

    def write() -> None:
        said = answers(job, examples, outputs)
        with row_files.open_rows(path) as add:
            for index, (result, answer) in enumerate(zip(outputs, said, strict=True)):
                add([row_files.join(index, {}, name_output(result) | answer)])
        if hasattr(job.task, "export_fn"):
            reports = job.task.export_fn(rows(examples), outputs, job.config)
            for name, text in task.check_texts(reports, "export_fn").items():
                report = pathlib.PurePath(name)
                write_file(path.parent / f"{report.stem}-{split}{report.suffix}", text)

    processes.on_first_process(write)
    return path


def run_embed(
    config: Config, workdir: pathlib.Path, split: str, which: str = "newest", output: pathlib.Path | None = None
) -> pathlib.Path:
    """Write the features that a checkpoint's embed_fn gives each example of a split, with its index in the split.

    Args:
      config, workdir, split, which: see `run`.
      output: as for `run`; the default is embeddings-SPLIT.safetensors.
    """
    run = open_run(config, workdir, which)
    path = row_files.place(output, workdir, f"embeddings-{split}.safetensors")
    processes.on_first_process(lambda: require_writable(path.parent))
    examples = run.require(split)
    embed = make(run.job, watch=display.watcher(), full=True, function="embed_fn")
    features = embed(run.params(), examples, f"{split} embeddings")

    def write() -> None:
        with row_files.open_rows(path) as add:
            for index, row in enumerate(features):
                add([row_files.join(index, {}, row)])

    processes.on_first_process(write)
    return path


def run_show(
    config: Config, workdir: pathlib.Path, split: str, which: str = "newest", output: pathlib.Path | None = None
) -> list[pathlib.Path]:
    """Write show_fn's pictures and texts from a checkpoint (see `open_run`) to `output`, by default DIR/show."""
    run = open_run(config, workdir, which)
    job = run.job
    if not hasattr(job.task, "show_fn"):
        raise ConfigError(f"task {config.task} has no show_fn(examples, outputs, config)")
    if not job.config.show_count:
        raise ConfigError("config.show_count=0 shows nothing: --mode=show needs at least 1")
    folder = output or workdir / "show"
    processes.on_first_process(lambda: require_writable(folder))
    examples = run.require(split)
    shown = show(job, make(job, watch=display.watcher()), run.params(), examples)
    return write_shown(shown, folder, f"{split}-{run.step}") if processes.first() else []


def name_output(output: Any) -> dict[str, Any]:
    """Return an output tree as a dict, under "output" if it is anything else."""
    return output if isinstance(output, dict) else {"output": output}
