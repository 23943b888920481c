"""The evaluations on the way: what is due is measured and recorded, and may end the run or lower its learning rate."""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jtasks.data import fingerprint, mixture
from jtasks.distributed import processes
from jtasks.errors import ConfigError
from jtasks.run import adapter, evaluate, evaluations, patience, predict, programs
from jtasks.run.compile import Compiled
from jtasks.run.identity import record_data, recorded_splits
from jtasks.run.job import Job
from jtasks.run.records import EVALUATED
from jtasks.run.start import Setup
from jtasks.run.step import State


class Evaluator:
    """The evaluations of a run: of its splits, and of config.evals.

    Args:
      setup: the run.
      poll: called between batches.
      end: called with the step at which config.stop ends the run; saves that step.
    """

    def __init__(self, setup: Setup, poll: Callable[[], None], end: Callable[[int], None]):
        self.job, self.workdir, self.splits = setup.job, setup.workdir, setup.splits
        self.steps, self.log, self.end = setup.steps, setup.log, end
        self.evaluations = evaluations.of_splits(setup.job, setup.splits) | setup.evals
        self.programs = setup.programs
        warn_once = functools.cache(setup.log.warn)  # the same example may be bad in every evaluation
        self.evaluate = functools.cache(
            lambda job: evaluate.make(job, poll, setup.log.watch, self.programs.metrics(job), warn_once)
        )
        self.predictors = functools.cache(
            lambda job: evaluate.predictors(job, poll, setup.log.watch, self.programs.predictions(job))
        )
        self.lr_factor = 1.0

    def due(self, step: int) -> list[str]:
        """Return the names of the evaluations that are due after `step`."""
        return evaluations.due(self.evaluations, step, last=step == self.steps)

    def compile_ahead(self, state: State) -> None:
        """Trace the first evaluation and its predictions to show, and compile them in other threads beside the steps.

        Other shapes of batch, mixtures, and parameters below an adapter, which the evaluation joins, compile at their
        first use.
        """
        name, first = next(iter(self.evaluations.items()), ("", None))
        if first is None or mixture.parts(first.examples) or state.base is not None:
            return
        job, examples = first.job, evaluate.limit_examples(first.job, first.examples)[0]
        self._start(self.programs.metrics, job, state, examples)
        if self._shows(name):
            self._start(self.programs.predictions, job, state, predict.to_show(job, examples))

    def _start(self, program: Callable[[Job], Compiled], job: Job, state: State, examples: Any) -> None:
        program(job).start(state.eval_params, job.batch_at(examples, job.plan(examples, shuffle=False), 0))

    def run(self, state: State, step: int) -> None:
        """Do the evaluations that are due after `step`; all of them if config.stop ends the run here.

        The evaluation that config.stop watches comes first: if it ends the run, all others are due.
        """
        watched = self.job.config.stop.metric.partition("/")[0]
        names = self.due(step)
        params = adapter.full(self.job.config, state.eval_params, state.base) if names or step == self.steps else None
        for name in sorted(names, key=lambda name: name != watched):
            self._evaluate(name, params, step)
        if step == self.steps:
            for name in (name for name in self.evaluations if name not in names):
                self._evaluate(name, params, step)

    def _evaluate(self, name: str, params: Any, step: int) -> None:
        """Evaluate what metrics.jsonl does not have yet, and show examples of the splits."""
        job, examples, _ = self.evaluations[name]
        examples, marks = evaluate.limit_examples(job, examples)
        recorded = functools.partial(self.log.has, step, name, marks.get(EVALUATED))
        if processes.broadcast_from_first(recorded):
            self._stop_early(name, step, {})
            return
        begun = time.perf_counter()
        processes.on_first_process(functools.partial(self._record_first_use, name))
        values = self.evaluate(job)(params, examples, name)
        watched = evaluations.watched_of(self.job.config, name)
        scored = not watched <= values.keys()
        if scored:
            values |= self._scores(name, params, examples)
        if missing := sorted(watched - values.keys()):  # the run was resumed with another config.best
            self.log.warn(f"the config asks for {name}/{missing[0]}: the metrics of {name} are {', '.join(values)}")
        self._stop_early(name, step, values)
        if step == self.steps and not scored:
            values |= self._scores(name, params, examples)
        if self._shows(name):
            self._show(predict.show(job, self.predictors(job).predict, params, examples), name, step)
        self.log.evaluation(step, name, values | marks, time.perf_counter() - begun)

    def _shows(self, name: str) -> bool:
        job = self.evaluations[name].job
        return name in self.splits and job.config.show_count > 0 and hasattr(job.task, "show_fn") and self._predicts

    @property
    def _predicts(self) -> bool:
        return hasattr(self.job.task, "predict_fn")

    def _scores(self, name: str, params: Any, examples: Any) -> dict[str, float]:
        """Return the scores of the task's predictions, which take longer than the metrics."""
        job = self.evaluations[name].job
        if not self._predicts:
            return {}
        texts = f"{name} predictions"
        return evaluate.scores(job, self.predictors(job), params, examples, texts, self.log.watch)

    def _stop_early(self, name: str, step: int, values: dict[str, float]) -> None:
        """End the run after `step` if config.stop watches this evaluation, and its patience has run out.

        Raises:
          ConfigError: the evaluation has no such metric.
        """
        rule = self.job.config.stop
        watched, _, metric = rule.metric.partition("/")
        if watched != name or step == self.steps:
            return
        history = self.log.values(rule.metric)
        if values:
            if metric not in values:
                raise ConfigError(f"config.stop.metric={rule.metric}: the metrics of {name} are {', '.join(values)}")
            history = history | {step: values[metric]}
        if processes.broadcast_from_first(lambda: patience.is_exhausted(history, rule)):
            self.log.message(
                f"stopping at step {step}: {rule.metric} has not improved in {rule.patience} evaluations; the last time"
                f" was at step {patience.best_step(history, rule)}"
            )
            self.steps = step
            self.end(step)

    def _record_first_use(self, split: str) -> None:
        try:
            if split not in recorded_splits(self.workdir):
                record_data({split: fingerprint.of(self.evaluations[split].examples)}, self.workdir, fresh=False)
        except OSError as error:
            self.log.warn(f"the {split} split is not recorded ({error}); training goes on")

    def _show(self, shown: dict[str, np.ndarray | str], split: str, step: int) -> None:
        if not processes.first():
            return
        try:
            (self.workdir / "show").mkdir(exist_ok=True)  # no parents: a deleted DIR is not created again
            for path in predict.write_shown(shown, self.workdir / "show", f"{split}-{step}"):
                self.log.message(f"wrote {path}")
        except OSError as error:
            self.log.warn(f"pictures of step {step} are lost: {error}")
        for name, content in shown.items():
            if isinstance(content, str):
                self.log.text(step, split, name, content)
            else:
                self.log.image(step, split, name, content)

    def lower_rate(self, state: State, step: int) -> State:
        """Return the state with the factor of the learning rate that follows from the evaluations by config.plateau."""
        if state.lr_factor is None:
            return state
        plateau, values = self.job.config.plateau, self.log.values(self.job.config.plateau.metric)
        factor = processes.broadcast_from_first(lambda: patience.factor(values, plateau))
        if factor < self.lr_factor:
            self.log.message(
                f"{plateau.metric} has not improved in {plateau.patience} evaluations: the learning rate from step"
                f" {step + 1} on is {factor:g} times that of the schedule"
            )
        if factor == self.lr_factor:
            return state
        self.lr_factor = factor
        return programs.with_lr_factor(state, factor, state.lr_factor.sharding)
