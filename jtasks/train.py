"""The one training loop."""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jtasks import checkpoint, evaluate, flops, metrics, optim, predict, sharding, summary
from jtasks import config as configs
from jtasks import step as steps_
from jtasks.config import Config
from jtasks.data import pipeline
from jtasks.errors import ConfigError, TrainingError
from jtasks.job import SPLITS, Job, prepare, total_steps
from jtasks.log import Log
from jtasks.signals import Stop, Stopped
from jtasks.step import Batch, Report, State
from jtasks.task import losses

AHEAD = 16  # steps in flight: enough to keep devices busy, few enough for the thread pools of CPU collectives

# A run that changes one of these is another run: its batches or its model would not be those of its first half.
FIXED = ("config.task", "config.seed", "config.batch_size", "config.data.", "config.model.")
FREE = ("config.data.dir", "config.data.threads", "config.data.workers")


def train(config: Config, workdir: pathlib.Path) -> dict[str, float]:
    """Train until `config.steps`, going on from whatever `workdir` holds.

    Returns:
      The final evaluation: `step`, and keys `split/metric`.

    Raises:
      Stopped: a signal asked for it; the state is saved.
      ConfigError, DataError, CheckpointError, TrainingError: what the message says.
    """
    job = prepare(config)
    config = job.config
    splits = {split: job.examples(split) for split in SPLITS}
    examples = job.required("train") if splits["train"] is None else splits["train"]
    plan, steps = job.plan(examples, shuffle=True), total_steps(config, pipeline.size(examples))
    start = checkpoint.newest(workdir / "checkpoints", warn=_warn) or 0
    _record_config(config, workdir, resumed=start > 0)
    log = Log(workdir, start=start, steps=steps, batch_size=plan.batch_size, writer=jax.process_index() == 0)
    if start >= steps and all(log.has(start, split) for split in ("valid", "test") if splits[split] is not None):
        _say(f"finished: {workdir} holds step {start} of {steps}; more config.steps or another workdir go on")
        return log.last() or {"step": start}

    with Stop() as stop, log, checkpoint.Checkpoints(workdir / "checkpoints") as checkpoints:
        batch = job.batch_at(examples, plan, start)
        state, step = begin(job, workdir, splits, batch, start, steps, log)
        run = _Run(job, workdir, splits, plan, steps, log, checkpoints, stop)
        run.milestones(state, start)
        reports: list[Report] = []
        options = {"collate": job.collate, "threads": config.data.threads, "workers": config.data.workers}
        batches = pipeline.batches(examples, plan, range(start, steps), sharding.batched(job.mesh), **options)
        for now, batch in enumerate(batches, start + 1):
            state, report = step(state, batch)
            reports.append(report)
            if len(reports) > AHEAD:
                jax.block_until_ready(reports[-AHEAD].gradient_norm)
            log.advance(now)
            if _due(now, config.log_every) or run.saves(now) or stop.requested:
                run.log_reports(now, reports)
                reports = []
            run.milestones(state, now)
        return log.last() or {"step": steps}


def begin(
    job: Job, workdir: pathlib.Path, splits: dict[str, Any], batch: Batch, start: int, steps: int, log: Log
) -> tuple[State, Callable[[State, Batch], tuple[State, Report]]]:
    """The state to start from, initialised or restored, and the jitted step; prints the summary."""
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
            params, taken = checkpoint.import_params(config.init_from, params, _warn)
            for kind, names in taken.items():
                log.message(f"init_from: {len(names)} parameters {kind}" + "".join(f"\n  {name}" for name in names))
        state = jax.jit(create, out_shardings=replicated, donate_argnums=0)(params)

    step = jax.jit(
        steps_.make(job.task, config, optimizer, schedule, trainable), donate_argnums=0, out_shardings=replicated
    )
    operations = flops.count(step, state, batch)
    peak = flops.peak(jax.devices()[0], config.precision)
    log.set_rates(operations, peak and peak * jax.device_count())
    if jax.process_index() == 0:
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
    return state, step


@dataclasses.dataclass
class _Run:
    """What happens between steps: logging, evaluation, saving, stopping."""

    job: Job
    workdir: pathlib.Path
    splits: dict[str, Any]
    plan: pipeline.Plan
    steps: int
    log: Log
    checkpoints: checkpoint.Checkpoints
    stop: Stop

    def __post_init__(self) -> None:
        self.evaluate = evaluate.make(self.job, lambda: self.poll())
        self.predict = predict.make(self.job, lambda: self.poll()) if hasattr(self.job.task, "predict_fn") else None
        self.saved = -1
        self.poll: Callable[[], None] = lambda: None

    def saves(self, step: int) -> bool:
        return step == self.steps or _due(step, self.job.config.save_every)

    def milestones(self, state: State, step: int) -> None:
        """Evaluate and save if `step` asks for it, and end here if a signal came."""

        def poll() -> None:
            if self.stop.requested:
                self.halt(state, step)

        self.poll = poll
        if step and (step == self.steps or _due(step, self.job.config.eval_every)):
            with self.log.pause():
                self.evaluate_splits(state, step, ("valid", "test") if step == self.steps else ("valid",))
        if step and self.saves(step):
            with self.log.pause():
                self.save(state, step)
        poll()

    def evaluate_splits(self, state: State, step: int, names: tuple[str, ...]) -> None:
        """Evaluate what metrics.jsonl does not hold yet, and show examples of the first split."""
        config, task = self.job.config, self.job.task
        for split in names:
            examples = self.splits[split]
            if examples is None or self.log.has(step, split):
                continue
            begun = time.perf_counter()
            found = self.evaluate(state.eval_params, examples)
            if step == self.steps and self.predict is not None:
                found |= evaluate.scores(self.job, self.predict, state.eval_params, examples)
            if self.predict is not None and config.show_count and hasattr(task, "show_fn"):
                self.show(predict.show(self.job, self.predict, state.eval_params, examples), split, step)
            self.log.evaluation(step, split, found, time.perf_counter() - begun)
            if config.best and config.best.lstrip("-").startswith(f"{split}/"):
                _check_best(config.best, split, found)

    def show(self, shown: dict[str, np.ndarray | str], split: str, step: int) -> None:
        if jax.process_index() == 0:
            for path in predict.write_shown(shown, self.workdir / "show", f"{split}-{step}"):
                self.log.message(f"wrote {path}")
            for name, content in shown.items():
                if isinstance(content, str):
                    self.log.text(step, f"{split}/{name}", content)
                else:
                    self.log.image(step, f"{split}/{name}", content)

    def save(self, state: State, step: int) -> None:
        """Begin to save, and delete what need not be kept. At the last step, wait until it is done."""
        if step == self.saved:
            return
        self.checkpoints.save(state)
        self.saved = step
        if step == self.steps:
            self.checkpoints.wait()
        best = self.job.config.best
        steps = checkpoint.saved_steps(self.workdir / "checkpoints")
        keep = set(steps[-self.job.config.keep :])
        values = {s: v for s, v in self.log.values(best.lstrip("-")).items() if s in steps}
        if best and values:
            keep.add((max if best.startswith("-") else min)(values, key=lambda s: values[s]))
        self.checkpoints.keep(keep)

    def halt(self, state: State, step: int) -> None:
        """Save and end."""
        assert self.stop.requested is not None
        self.log.message(f"{self.stop.requested.name}: saving step {step}")
        if step:
            self.save(state, step)
            self.checkpoints.wait()
        raise Stopped(f"stopped at step {step} of {self.steps}; the same command goes on from there")

    def log_reports(self, step: int, reports: list[Report]) -> None:
        """Add up the metrics of the steps since the last call; this waits for the device.

        Raises:
          TrainingError: `max_bad_steps` steps in a row were not finite.
        """
        fetched: list[Report] = jax.device_get(reports)
        sums = metrics.summed(report.metrics for report in fetched if report.bad_steps == 0)
        skipped = sum(report.bad_steps > 0 for report in fetched)
        found = metrics.values(sums, losses(self.job.task)) if sums else {}
        found |= {"gradient_norm": float(fetched[-1].gradient_norm), "lr": float(fetched[-1].learning_rate)}
        self.log.train(step, found | ({"skipped": float(skipped)} if skipped else {}))
        for at, report in enumerate(fetched, step - len(fetched) + 1):
            if report.bad_steps >= self.job.config.max_bad_steps:
                positions = (at - 1) * self.plan.batch_size + np.arange(self.plan.batch_size)
                raise TrainingError(
                    f"the loss or the gradient was not finite in {report.bad_steps} steps in a row, the last of them"
                    f" step {at} on the examples {self.plan.at(positions)[0].tolist()}; a smaller config.optim.lr, a"
                    " config.optim.clip or a longer warm-up may help"
                )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_best(best: str, split: str, found: dict[str, float]) -> None:
    if best.lstrip("-").partition("/")[2] not in found:
        raise ConfigError(f"config.best={best}: the metrics of {split} are {', '.join(found)}")


def _record_config(config: Config, workdir: pathlib.Path, *, resumed: bool) -> None:
    """Write config.json; a resumed run must agree with it where the run's identity lies.

    Raises:
      ConfigError: a field of the task, data or model differs from that of the run so far; all are listed.
    """
    path, new = workdir / "config.json", configs.to_json(config)
    if resumed and path.exists():
        old = dict(configs.fields(json.loads(path.read_text())))
        now = dict(configs.fields(new))
        changed = {k: (old.get(k), now.get(k)) for k in {**old, **now} if old.get(k) != now.get(k)}
        lines = {k: f"{k}: {_short(a)} -> {_short(b)}" for k, (a, b) in changed.items()}
        refused = [line for k, line in lines.items() if k.startswith(FIXED) and k not in FREE]
        if refused:
            raise ConfigError(
                f"{workdir} holds a run with another config:\n  " + "\n  ".join(refused) + "\nuse another workdir,"
                " or config.init_from to start from its parameters"
            )
        if lines:
            _say("resuming with a changed config:\n  " + "\n  ".join(lines.values()))
    if jax.process_index() == 0:
        partial = path.with_suffix(".json.tmp")
        partial.write_text(json.dumps(new, indent=1) + "\n")
        partial.replace(path)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def _warn(text: str) -> None:
    _say(f"WARNING: {text}")
