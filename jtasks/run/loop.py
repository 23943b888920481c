"""The one training loop."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from jtasks import optim, task
from jtasks.config import Config, freeze
from jtasks.console import say, warn
from jtasks.data import buckets, fingerprint, pipeline
from jtasks.distributed import processes, sharding
from jtasks.distributed.shares import count_microbatches, unequal
from jtasks.run import autoshare, checkpoint, flops, preflight, summary
from jtasks.run import step as steps_
from jtasks.run.compile import Compiled
from jtasks.run.hooks import Hooks, due
from jtasks.run.job import SPLITS, Job, prepare, total_steps
from jtasks.run.log import Log
from jtasks.run.signals import Stop
from jtasks.run.step import Batch, State, StepOutput
from jtasks.run.transfer import imported, require_source
from jtasks.run.workdir import (
    FILES,
    cleared_on_error,
    compare_assets,
    compare_config,
    compare_data,
    locked,
    own_tokenizer,
    record_assets,
    record_config,
    record_data,
    recorded_splits,
    require_files,
)

AHEAD = 16  # steps in flight: enough to keep devices busy, few enough for the thread pools of CPU collectives

Step = Callable[[State, Batch], tuple[State, StepOutput]]


def train(config: Config, workdir: pathlib.Path | str) -> dict[str, float]:
    """Train until `config.steps`, going on from whatever `workdir` holds.

    Returns:
      The final evaluation: `step`, and keys `split/metric`.

    Raises:
      Stopped: a signal asked for it; the state is saved.
      ConfigError, DataError, CheckpointError, TrainingError: what the message says.
    """
    config, workdir = freeze(config), pathlib.Path(workdir)
    folder, fresh = workdir / "checkpoints", not workdir.exists()
    with locked(workdir), Stop() as stop:
        with stop.rescue(lambda: None), cleared_on_error(workdir, fresh=fresh):  # nothing is lost if it ends in here
            processes.on_first_process(lambda: checkpoint.clear_unfinished(folder))
            start = processes.broadcast_from_first(lambda: checkpoint.newest(folder, warn) or 0)
            if not start:
                require_source(config.init_from)
            else:
                processes.on_first_process(lambda: require_files(workdir))
            job = prepare(own_tokenizer(config, workdir) if start else config)
            config = job.config
            splits = {split: job.examples(split) for split in SPLITS}
            examples = job.required("train") if splits["train"] is None else splits["train"]
            plan = job.plan(examples, shuffle=True)
            steps = total_steps(config, plan)
            if not config.batch_tokens and config.batch_size > (n := pipeline.size(examples)):
                warn(f"config.batch_size={config.batch_size} is above the {n:,} examples: a step reads some repeatedly")
            processes.on_first_process(lambda: record(job, workdir, splits, start, steps))
            if start > steps:
                say(f"{workdir} holds step {start}, past config.steps={steps}: nothing is trained")
                steps = start
            log = Log(workdir, start=start, steps=steps, amounts=plan.amounts, writer=processes.first())
            evaluated = [split for split in ("valid", "test") if splits[split] is not None]
            if start >= steps and processes.broadcast_from_first(
                lambda: all(log.has(start, split) for split in evaluated)
            ):
                say(f"finished: {workdir} holds step {start} of {steps}; more config.steps or another workdir go on")
                return result(log, start)
            job = autoshare.resolve_shares(job, workdir, examples)
            plan = job.plan(examples, shuffle=True)
            state, step = begin(job, workdir, splits, plan, start, steps, log)

        with log, checkpoint.Checkpoints(folder) as checkpoints:
            hooks = Hooks(job, workdir, splits, plan, steps, log, checkpoints, stop, start)
            with hooks.guard():
                hooks.after_step(state, start)
                batches = job.batches(examples, plan, range(start, steps), poll=hooks.poll)
                reports: list[StepOutput] = []
                log.advance(start)
                for now, batch in enumerate(batches, start + 1):
                    state, report = step(state, batch)
                    hooks.hold(state, now)
                    report.nonfinite_steps.copy_to_host_async()
                    reports.append(report)
                    failing = len(reports) > AHEAD and hooks.fails(reports[-AHEAD])  # waits for that step
                    log.advance(now)
                    stopping = stop.should_stop(now)
                    if failing or stopping or due(now, config.log_every) or hooks.saves(now):
                        hooks.log_reports(state, now, reports)
                        reports = []
                    hooks.after_step(state, now)
                hooks.finish()
            return result(log, steps)


def result(log: Log, step: int) -> dict[str, float]:
    """What was measured of the state after `step`; never of another one."""
    last = log.last()
    return last if last.get("step") == step else {"step": step}


def record(job: Job, workdir: pathlib.Path, splits: dict[str, Any], start: int, steps: int) -> None:
    """Write the config, the task's assets and the data's fingerprint; a run that goes on must agree with them.

    Nothing is read here of a split that the run has not used yet: its first evaluation records it.
    """
    assets = task.assets(job.task, job.config)
    used = {"train", *(recorded_splits(workdir) if start else ())}
    data = {split: fingerprint.of(splits[split]) for split in SPLITS if split in used and splits[split] is not None}
    if start:
        compare_config(job.config, workdir)
        compare_assets(assets, workdir)
        compare_data(data, workdir, allow=job.config.data.allow_changes)
    else:
        (workdir / FILES).unlink(missing_ok=True)  # of a run that never saved
    if start <= steps:
        record_config(job.config, workdir)
        record_assets(assets, workdir)
        record_data(data, workdir, anew=not start)


def state_after(
    step: int, job: Job, workdir: pathlib.Path, program: "Programs", batch: Batch, say: Callable[[str], None]
) -> State:
    """The state saved after `step`, or at 0 the initial one, with the parameters of config.init_from."""
    if step:
        folder = workdir / "checkpoints" / str(step)
        state = checkpoint.restore(folder, sharding.with_shardings(program.shapes, program.shardings))
        say(f"resumed from step {step} of {workdir}")
        return state
    params = jax.jit(program.init, out_shardings=program.shardings.params)(batch)  # born divided: nowhere whole
    if job.config.init_from:
        params, taken = imported(job, params)
        for kind, names in taken.items():
            say(f"init_from: {len(names)} parameters {kind}" + "".join(f"\n  {name}" for name in names))
    return jax.jit(program.create, out_shardings=program.shardings, donate_argnums=0)(params)


class Programs(NamedTuple):
    """What a run computes with, before any of it is compiled or any array there."""

    init: Callable[[Batch], Any]  # parameters from the first batch
    create: Callable[[Any], State]  # the state before the first step, from the parameters
    shapes: State  # of `jax.ShapeDtypeStruct`
    shardings: State
    step: Any  # jitted: (state, batch) -> (state, report)
    trainable: Any  # a tree like the parameters


def programs(job: Job, batch: Batch, steps: int) -> Programs:
    """The functions of a run of `steps`, for batches like this one; `jax.ShapeDtypeStruct` serve as well."""
    config = job.config

    def init(batch: Batch) -> Any:
        params = job.task.init(jax.random.key(config.seed), batch, config)
        preflight.check_params(params)
        return params

    try:
        shapes = jax.eval_shape(init, batch)
    except Exception as error:
        error.add_note(f"while init made parameters of config.model = {config.model.to_dict()}")
        raise
    optimizer, schedule = optim.optimizer(config.optim, steps, shapes)
    trainable = optim.trainable(config.optim, shapes)

    def create(params: Any) -> State:
        return steps_.init_state(params, optimizer, ema=config.ema > 0)

    state = jax.eval_shape(create, shapes)
    shardings = job.shardings(state, shapes)
    step = jax.jit(
        steps_.make_train_step(job.task, config, optimizer, schedule, trainable, job.mesh),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(job.mesh)),
    )
    return Programs(init, create, state, shardings, step, trainable)


def begin(
    job: Job, workdir: pathlib.Path, splits: dict[str, Any], plan: pipeline.BatchPlan, start: int, steps: int, log: Log
) -> tuple[State, Step]:
    """The state to start from, initialized or restored, and the compiled step; prints the summary."""
    config = job.config
    batch = job.batch_at(splits["train"], plan, start)
    program = programs(job, batch, steps)
    if not start:
        preflight.check(job, splits, batch, program.shapes.params)
    state = state_after(start, job, workdir, program, batch, log.message)

    operations = sum(
        share * flops.count(program.step, state, job.batch_at(splits["train"], plan, at) if plan.varies else batch)
        for at, share in plan.shapes().items()
    )
    if shares := unequal(config.shares):
        operations *= sum(shares) / len(shares)  # the count knows of one turn of each device's loop
    peak = flops.peak(jax.devices()[0], config.precision)
    log.set_rates(operations, peak and peak * jax.device_count())
    if processes.first():
        summary.show(
            task=config.task,
            config_name=str(workdir / "config.json"),
            workdir=workdir,
            data={split: None if data is None else pipeline.size(data) for split, data in splits.items()},
            params=state.params,
            trainable=program.trainable,
            flops=operations,
            steps=steps,
            start=start,
            batch=plan.describe(),
            epoch=plan.epoch_steps,
            accumulate=count_microbatches(config),
            precision=config.precision,
            devices=jax.devices(),
            mesh_shape=dict(job.mesh.shape),
            shares=unequal(config.shares),
            state=state,
        )
    if isinstance(plan, buckets.BucketPlan):
        batched, longest = buckets.waste(plan)
        log.message(f"padding: {batched:.1%} of the tokens in batches by length, {longest:.1%} at {plan.buckets[-1]}")

    @contextlib.contextmanager
    def compiling() -> Iterator[None]:
        begun = time.perf_counter()
        with log.pause():
            yield
        log.message(f"compiled the step in {time.perf_counter() - begun:.1f} s")

    compiled = Compiled(program.step, compiling)
    compiled.program(state, batch)
    return state, compiled
