"""The start of a run: job and data, comparison with the run's folder, first state, summary, compiled step."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax

from jtasks import storage
from jtasks.config import Config
from jtasks.console import say, warn
from jtasks.data import buckets, fingerprint, pipeline
from jtasks.data.batch_plan import BatchPlan
from jtasks.distributed import processes, sharding
from jtasks.distributed.shares import unequal
from jtasks.run import (
    adapter,
    autoshare,
    checkpoint_files,
    evaluate,
    evaluations,
    flops,
    patience,
    preflight,
    programs,
    provenance,
    rates,
    returned_loss,
    summary,
)
from jtasks.run.compile import Compiled
from jtasks.run.evaluations import Evaluation
from jtasks.run.identity import (
    compare_assets,
    compare_config,
    compare_data,
    own_names,
    record_assets,
    record_batch,
    record_config,
    record_data,
    recorded_splits,
)
from jtasks.run.job import SPLITS, Job, prepare, require_same_data, sees_one_file_system, total_steps
from jtasks.run.log import Log
from jtasks.run.loggers import Logger, find
from jtasks.run.names import pin_names
from jtasks.run.programs import Programs
from jtasks.run.records import EVALUATED, HISTORY, WATCHED
from jtasks.run.step import Batch, State, StepOutput
from jtasks.run.transfer import pin_source, require_source
from jtasks.run.workdir import FILES, require_files

Step = Callable[[State, Batch], tuple[State, StepOutput]]


class Setup(NamedTuple):
    """A run before its first step."""

    job: Job
    workdir: pathlib.Path
    splits: dict[str, Any]  # the examples of each split; None if the task has none
    plan: BatchPlan
    start: int  # the step of the newest checkpoint; 0 for a fresh run
    steps: int
    log: Log
    evals: dict[str, Evaluation]  # those of config.evals
    programs: evaluate.Programs

    @property
    def examples(self) -> pipeline.Examples:
        """The training examples."""
        return self.splits["train"]


def set_up(config: Config, workdir: pathlib.Path, damaged: Collection[int] = ()) -> Setup:
    """Prepare the job, compare it with the run in the folder, and record it there.

    Args:
      config: the run's config.
      workdir: the run's folder.
      damaged: steps whose checkpoints `begin` has found damaged.

    Raises:
      ConfigError: the config, the assets or the data are not those of the run, or a logger cannot be imported.
      DataError: there is no training data.
    """
    folder = workdir / "checkpoints"
    loggers: dict[str, Logger] = {}
    processes.on_first_process(lambda: loggers.update(find(config.log.to)))
    processes.on_first_process(lambda: checkpoint_files.clear_unfinished(folder))
    start = processes.broadcast_from_first(
        lambda: checkpoint_files.newest(folder, warn, damaged=damaged, whole=False) or 0
    )
    if start:
        processes.on_first_process(lambda: require_files(workdir))
        config = own_names(config, workdir)
    else:
        config = pin_names(config, source=True)
        require_source(config.init_from)
        config = pin_source(config)
    job = prepare(config, pretrained=not start)
    splits: dict[str, Any] = {split: job.examples(split) for split in SPLITS}
    if splits["train"] is None:
        splits["train"] = job.require("train")
    if not sees_one_file_system(job.config):
        require_same_data(splits["train"])
    plan = job.plan(splits["train"], shuffle=True)
    steps, n = total_steps(job.config, plan), pipeline.size(splits["train"])
    if not job.config.batch_tokens and job.config.batch_size > n:
        warn(f"config.batch_size={job.config.batch_size} is above the {n:,} examples: a step reads some repeatedly")
    processes.on_first_process(lambda: record(job, workdir, splits, start, steps))
    evals = evaluations.of_config(job, workdir)
    processes.on_first_process(lambda: compare_evals(job, workdir, evals))
    if start > steps:
        say(f"{workdir} holds step {start}, past config.steps={steps}: there is nothing to train")
        steps = start
    openers = {name: functools.partial(logger, job.config, workdir, start) for name, logger in loggers.items()}
    log = Log(workdir, start=start, steps=steps, count=plan.count, loggers=openers, writer=processes.first())
    if start:
        recall_evaluations(log, folder / str(start))
    steps = start if processes.broadcast_from_first(lambda: is_stopped(job.config, log, start)) else steps
    return Setup(job, workdir, splits, plan, start, steps, log, evals, evaluate.programs(log.watch))


def record(job: Job, workdir: pathlib.Path, splits: dict[str, Any], start: int, steps: int) -> None:
    """Write the config, the task's assets and the data's fingerprint; a resumed run must agree with them.

    Does not read a split that the run has not used yet: the first evaluation records that split.
    """
    assets = job.assets()
    used = {"train", *(recorded_splits(workdir) if start else ())}
    data = {split: fingerprint.of(splits[split]) for split in SPLITS if split in used and splits[split] is not None}
    if start:
        compare_config(job.config, workdir)
        compare_assets(assets, workdir)
        compare_data(data, workdir, allow=job.config.data.allow_changes)
    else:
        for file in (FILES, WATCHED):  # of a previous run, which never saved
            (workdir / file).unlink(missing_ok=True)
    if start <= steps:
        record_config(job.config, workdir)
        record_assets(assets, workdir)
        record_data(data, workdir, fresh=not start)


def compare_evals(job: Job, workdir: pathlib.Path, evals: dict[str, Evaluation]) -> None:
    """Raise ConfigError if the data of an evaluation of config.evals is not what the run has used."""
    used = recorded_splits(workdir)
    data = {name: fingerprint.of(each.examples) for name, each in evals.items() if name in used}
    compare_data(data, workdir, allow=job.config.data.allow_changes)
    record_data(data, workdir, fresh=False)


def recall_evaluations(log: Log, checkpoint: pathlib.Path) -> None:
    """Remember the evaluations that the checkpoint notes, from which config.stop and config.plateau follow."""
    storage.fetch(checkpoint)
    if (note := checkpoint / HISTORY).is_file():
        try:
            log.records.recall(note.read_text(encoding="utf-8"))
        except (OSError, ValueError, AttributeError) as error:
            warn(f"{note} cannot be read ({error}): config.stop and config.plateau follow metrics.jsonl alone")


def is_stopped(config: Config, log: Log, start: int) -> bool:
    """Return whether config.stop ended the run at `start`, by the evaluations up to there, and say so."""
    rule, values = config.stop, log.values(config.stop.metric)
    if not start or start not in values or not patience.is_exhausted(values, rule):
        return False
    say(f"config.stop ended this run: raise config.stop.patience, now {rule.patience}, to train on")
    return True


def is_finished(setup: Setup) -> bool:
    """Return whether all steps are done and evaluated, and say so."""
    workdir, start, steps, log = setup.workdir, setup.start, setup.steps, setup.log
    all_of_them = evaluations.of_splits(setup.job, setup.splits) | setup.evals

    def measured() -> bool:
        numbers = {name: evaluate.limit_examples(each.job, each.examples)[1] for name, each in all_of_them.items()}
        return all(log.has(start, name, marks.get(EVALUATED)) for name, marks in numbers.items())

    if start < steps or not processes.broadcast_from_first(measured):
        return False
    say(f"finished: {workdir} holds step {start} of {steps}; to train on, raise config.steps or use another workdir")
    return True


def begin(setup: Setup) -> tuple[Setup, State, Step]:
    """Resolve the devices' shares, create or restore the state, announce the run, and compile its step.

    Returns:
      The setup with the resolved shares, the state and the compiled step.

    Raises:
      DamagedError: the checkpoint's content has changed since the save.
    """
    job = autoshare.resolve_shares(setup.job, setup.workdir, setup.examples)
    setup = setup._replace(job=job, plan=job.plan(setup.examples, shuffle=True))
    batch = job.batch_at(setup.examples, setup.plan, setup.start)
    program = programs.build(job, batch, setup.steps, adapter.whole(job.config, setup.workdir, setup.start))
    sure = True
    if not setup.start:
        processes.on_first_process(lambda: record_batch(batch, setup.workdir))
        sure = preflight.check(job, setup.splits, batch, program.params, setup.programs, setup.evals)
    compiled = Compiled(program.step, _compile_context(setup.log))
    compiled.start(sharding.with_shardings(program.shapes, program.shardings), batch)  # beside what follows
    with setup.log.watch(f"restoring step {setup.start}" if setup.start else "initializing the parameters"):
        state = programs.state_at(setup.start, program, job, setup.workdir, batch, setup.log.message)
    if program.adapter is not None and not setup.start:
        adapter.record(setup.workdir, job.config, program.adapter, state.base)
    if not sure:
        returned_loss.compare(job, adapter.full(job.config, state.params, state.base), batch)
    announce(setup, program, state, batch)
    compiled.program(state, batch)
    return setup, state, compiled


def announce(setup: Setup, program: Programs, state: State, batch: Batch) -> None:
    """Print the summary, record it with the environment, and give the log the operations of a step."""
    job, plan = setup.job, setup.plan
    operations = step_flops(setup, program, state, batch)
    peak = flops.peak(job.mesh.devices.flat[0], job.config.precision)
    setup.log.meter.set_flops(operations, peak and peak * jax.device_count())
    if processes.first():
        sizes = {split: None if data is None else pipeline.size(data) for split, data in setup.splits.items()}
        facts = summary.describe(
            job, plan, sizes, setup.workdir, state, operations, (setup.start, setup.steps), program.adapter
        )
        summary.show(facts, state.params, program.trainable)
        schedule = rates.points(job.config.optim, setup.steps)
        provenance.record(setup.workdir, job.task, job.config, (setup.start, setup.steps), dict(facts), schedule)
    if isinstance(plan, buckets.BucketPlan):
        batched, longest = buckets.waste(plan)
        length = buckets.describe(plan.buckets[-1])
        setup.log.message(f"padding: {batched:.1%} of the tokens in batches by length, {longest:.1%} at {length}")


def step_flops(setup: Setup, program: Programs, state: State, batch: Batch) -> float:
    """Return the operations of a step on all devices, averaged over the shapes that batches have."""
    job, plan = setup.job, setup.plan
    operations = sum(
        share * flops.count(program.step, state, job.batch_at(setup.examples, plan, at) if plan.varies else batch)
        for at, share in plan.shapes().items()
    )
    shares = unequal(job.config.shares)  # the count has one iteration of each device's loop
    return operations * sum(shares) / len(shares) if shares else operations


def _compile_context(log: Log) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return a context for compiling the step, which pauses the step timer and logs the time."""

    @contextlib.contextmanager
    def compiling() -> Iterator[None]:
        begun = time.perf_counter()
        with log.pause(), log.watch("compiling the step"):
            yield
        log.message(f"compiled the step in {time.perf_counter() - begun:.1f} s")

    return compiling
