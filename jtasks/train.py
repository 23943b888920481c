"""The one training loop."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from jtasks import checkpoint, flops, optim, processes, sharding, summary
from jtasks import step as steps_
from jtasks.config import Config
from jtasks.data import pipeline
from jtasks.job import SPLITS, Job, prepare, total_steps
from jtasks.log import Log, say, warn
from jtasks.milestones import Milestones, due
from jtasks.signals import Stop
from jtasks.step import Batch, Report, State
from jtasks.workdir import locked, record_config

AHEAD = 16  # steps in flight: enough to keep devices busy, few enough for the thread pools of CPU collectives

Step = Callable[[State, Batch], tuple[State, Report]]


def train(config: Config, workdir: pathlib.Path) -> dict[str, float]:
    """Train until `config.steps`, going on from whatever `workdir` holds.

    Returns:
      The final evaluation: `step`, and keys `split/metric`.

    Raises:
      Stopped: a signal asked for it; the state is saved.
      ConfigError, DataError, CheckpointError, TrainingError: what the message says.
    """
    folder = workdir / "checkpoints"
    with locked(workdir), Stop() as stop:
        with stop.rescue(lambda: None):  # nothing is lost if it ends in here
            processes.once(lambda: checkpoint.clear_unfinished(folder))
            job = prepare(config)
            config = job.config
            splits = {split: job.examples(split) for split in SPLITS}
            examples = job.required("train") if splits["train"] is None else splits["train"]
            plan, steps = job.plan(examples, shuffle=True), total_steps(config, pipeline.size(examples))
            start = processes.agree(lambda: checkpoint.newest(folder, warn) or 0)
            processes.once(lambda: record_config(config, workdir, resumed=start > 0))
            log = Log(workdir, start=start, steps=steps, batch_size=plan.batch_size, writer=processes.first())
            evaluated = [split for split in ("valid", "test") if splits[split] is not None]
            if start >= steps and processes.agree(lambda: all(log.has(start, split) for split in evaluated)):
                say(f"finished: {workdir} holds step {start} of {steps}; more config.steps or another workdir go on")
                return log.last() or {"step": start}
            state, step = begin(job, workdir, splits, job.batch_at(examples, plan, start), start, steps, log)

        with log, checkpoint.Checkpoints(folder) as checkpoints:
            between = Milestones(job, workdir, splits, plan, steps, log, checkpoints, stop)
            between.reach(state, start)
            batches = job.batches(examples, plan, range(start, steps), poll=between.poll)
            reports: list[Report] = []
            log.advance(start)
            for now, batch in enumerate(batches, start + 1):
                state, report = step(state, batch)
                reports.append(report)
                if len(reports) > AHEAD:
                    jax.block_until_ready(reports[-AHEAD].gradient_norm)
                log.advance(now)
                stopping = stop.reached(now)
                if stopping or due(now, config.log_every) or between.saves(now):
                    between.log_reports(state, now, reports)
                    reports = []
                between.reach(state, now)
            between.finish()
            return log.last() or {"step": steps}


def begin(
    job: Job, workdir: pathlib.Path, splits: dict[str, Any], batch: Batch, start: int, steps: int, log: Log
) -> tuple[State, Step]:
    """The state to start from, initialised or restored, and the compiled step; prints the summary."""
    config, replicated = job.config, sharding.replicated(job.mesh)

    def init(batch: Batch) -> Any:
        return job.task.init(jax.random.key(config.seed), batch, config)

    shapes = jax.eval_shape(init, batch)
    optimizer, schedule = optim.optimizer(config.optim, steps, shapes)
    trainable = optim.trainable(config.optim, shapes)

    def create(params: Any) -> State:
        return steps_.create(params, optimizer, average=config.ema > 0)

    if start:
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), jax.eval_shape(create, shapes)
        )
        state = checkpoint.restore(workdir / "checkpoints" / str(start), like)
        log.message(f"resumed from step {start} of {workdir}")
    else:
        params = jax.jit(init, out_shardings=replicated)(batch)
        if config.init_from:
            params, taken = checkpoint.import_params(config.init_from, params, warn)
            for kind, names in taken.items():
                log.message(f"init_from: {len(names)} parameters {kind}" + "".join(f"\n  {name}" for name in names))
        state = jax.jit(create, out_shardings=replicated, donate_argnums=0)(params)

    step = jax.jit(
        steps_.make(job.task, config, optimizer, schedule, trainable), donate_argnums=0, out_shardings=replicated
    )
    operations = flops.count(step, state, batch)
    peak = flops.peak(jax.devices()[0], config.precision)
    log.set_rates(operations, peak and peak * jax.device_count())
    if processes.first():
        summary.show(
            task=config.task,
            config_name=str(workdir / "config.json"),
            workdir=workdir,
            data={split: None if data is None else pipeline.size(data) for split, data in splits.items()},
            params=state.params,
            trainable=trainable,
            flops=operations,
            steps=steps,
            start=start,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            precision=config.precision,
            devices=jax.devices(),
            mesh_shape=dict(job.mesh.shape),
        )
    begun = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    log.message(f"compiled the step in {time.perf_counter() - begun:.1f} s")
    return state, compiled
