"""The host's work between steps: logging, evaluation, saving, stopping."""

import contextlib
import math
import time
from collections.abc import Iterator

import jax

from jtasks import metrics
from jtasks.distributed import processes
from jtasks.errors import CheckpointError, TrainingError
from jtasks.faults import some
from jtasks.run import (
    by_source,
    checkpoint_files,
    checkpoint_writer,
    evaluations,
    page,
    records,
)
from jtasks.run.evaluator import Evaluator
from jtasks.run.meter import peak_memory
from jtasks.run.signals import Stop, Stopped
from jtasks.run.start import Setup
from jtasks.run.step import State, StepOutput, non_finite

AHEAD = 16  # maximum steps in flight: enough to keep devices busy, few enough for the thread pools of CPU collectives
PREVIEW = 1.0  # seconds between two previews of the metrics on a bar


def due(step: int, every: int) -> bool:
    """Return whether `step` is a multiple of `every`; 0 means never."""
    return every > 0 and step % every == 0


class Hooks:
    """The host's side of the loop, which holds the newest state between `after_step` and the next step."""

    def __init__(self, setup: Setup, checkpoints: checkpoint_writer.Checkpoints, stop: Stop):
        self.job = setup.job
        self.workdir, self.splits = setup.workdir, setup.splits
        self.plan, self.steps, self.log = setup.plan, setup.steps, setup.log
        self.checkpoints, self.stop = checkpoints, stop
        self.evaluator = Evaluator(setup, self.poll, self._end)
        self.state: State | None = None
        self.step = self.saved = self.start = setup.start
        self.preview_due = 0.0
        self.save_error: CheckpointError | None = None

    def saves(self, step: int) -> bool:
        """Return whether to save the state after `step`.

        With several processes a save precedes each evaluation: a process whose evaluation fails cannot save alone.
        """
        evaluated = not processes.alone() and self.evaluator.due(step)
        return step == self.steps or due(step, self.job.config.save_every) or bool(evaluated)

    def after_step(self, state: State, step: int) -> State:
        """Save and evaluate if `step` asks for it, stop here if a signal came, and return the state to continue with.

        Saving comes first, so that no error in an evaluation loses the state. A resumed run evaluates its checkpoint
        if metrics.jsonl has no record of that step.

        Raises:
          Stopped: after saving.
        """
        self.hold(state, step)
        if self.stop.requested:
            self.poll()
        last = step == self.steps
        if step and self.saves(step):
            with self.log.pause():
                if last or not (nonfinite_steps := int(state.nonfinite_steps)):
                    self.save()
                elif step != self.saved:
                    self.log.warn(
                        f"step {step} is not saved: it is one of {nonfinite_steps} in a row that were not finite"
                    )
        evaluated = bool(step and self.evaluator.due(step))
        if evaluated:
            rescue = self._save_and_wait if processes.alone() else self._wait_for_save  # saved before, by all
            with self.log.pause(), self.stop.rescue(rescue):
                self.evaluator.run(state, step)
        if evaluated or step == self.start:
            state = self.evaluator.lower_rate(state, step)
            self.hold(state, step)
        return state

    def compile_ahead(self, state: State, step: int) -> None:
        """Start to compile the first evaluation beside the second step of this process: nothing delays the first."""
        if step == self.start + 2:
            with self.stop.rescue(self._save_and_wait if processes.alone() else self._wait_for_save):
                self.evaluator.compile_ahead(state)

    def hold(self, state: State, step: int) -> None:
        """Hold the newest state, which a signal or an error saves."""
        self.state, self.step = state, step

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Save the newest state if an error passes, and note the saved step at the error.

        With several processes, which may hold states of different steps, only waits for the save in progress.
        """
        try:
            yield
        except (Stopped, CheckpointError, TrainingError):  # saved already, impossible to save, or not worth saving
            raise
        except BaseException as error:
            try:
                (self._save_and_wait if processes.alone() else self._wait_for_save)()
            except Exception as failure:  # the failed step may have taken the device's memory with it
                self.log.warn(f"step {self.step} is lost: {failure}")
            if steps := checkpoint_files.saved_steps(self.workdir / "checkpoints"):
                error.add_note(f"step {steps[-1]} is saved: fix the error and run the same command again")
            raise

    def poll(self) -> None:
        """Save and stop if a signal came. The loop polls wherever it waits; several processes poll between batches.

        Raises:
          Stopped: after saving.
        """
        if not self.stop.should_stop():
            return
        assert self.stop.requested is not None
        self.stop.claim()
        self.log.message(f"{self.stop.requested.name}: saving step {self.step}")
        self._save_and_wait()
        raise Stopped(f"stopped at step {self.step} of {self.steps}: run the same command again to resume")

    def save(self) -> None:
        """Begin to save, and delete expendable checkpoints once the save is complete. Logs a failed save."""
        assert self.state is not None
        self._wait_for_save()
        if self.step in (self.saved, 0):
            return
        steps = sorted({*checkpoint_files.saved_steps(self.workdir / "checkpoints"), self.step})
        try:
            # A checkpoint after non-finite steps replaces no good one.
            watched = evaluations.watched_metrics(self.job.config)
            self.checkpoints.save(
                self.state._replace(base=None, lr_factor=None),
                self.step,
                () if int(self.state.nonfinite_steps) else self._expendable_steps(steps),
                {records.HISTORY: self.log.records.history(watched, self.step)} if watched else {},
            )
            self.saved, self.save_error = self.step, None
        except CheckpointError as error:
            self._record_failure(error)

    def finish(self) -> None:
        """Wait for the last save.

        Raises:
          CheckpointError: the newest checkpoint could not be written.
        """
        self.checkpoints.wait()
        if self.save_error is not None:
            raise self.save_error
        # The last evaluation may have found a better checkpoint.
        if self.state is not None and not int(self.state.nonfinite_steps):
            self.checkpoints.delete(self._expendable_steps(checkpoint_files.saved_steps(self.workdir / "checkpoints")))

    def write_report(self) -> None:
        """Write DIR/report.html. A failure warns: the run is done."""
        if not processes.first():
            return
        try:
            self.log.message(f"wrote {page.write(self.workdir)}")
        except Exception as error:
            self.log.warn(f"report.html is not written ({error}); --mode=report writes it again")

    def fails(self, output: StepOutput) -> bool:
        """Return whether the run must end: `max_bad_steps` steps in a row, or all steps, were not finite."""
        return int(output.nonfinite_steps) >= min(self.job.config.max_bad_steps, self.steps)

    def log_outputs(self, state: State, step: int, outputs: list[StepOutput]) -> None:
        """Log the metrics of the steps since the last call, added up; this waits for the device.

        Raises:
          TrainingError: `max_bad_steps` steps in a row, or all of the run, were not finite.
        """
        fetched: list[StepOutput] = jax.device_get(outputs)
        self.log.train(step, self._values(fetched) | peak_memory())
        self._put_off_preview()
        for at, output in enumerate(fetched, step - len(fetched) + 1):
            if self.fails(output):
                raise TrainingError(self._diagnosis(state, at, int(output.nonfinite_steps)))

    def preview(self, step: int, outputs: list[StepOutput]) -> None:
        """Show the metrics of the newest step whose results are there already; does not wait for the device.

        Args:
          step: the newest step that was started.
          outputs: of the steps since the last call of `log_outputs`.
        """
        if not processes.first() or time.monotonic() < self.preview_due:
            return
        for back, output in enumerate(reversed(outputs[-AHEAD:])):
            if output.nonfinite_steps.is_ready():  # type: ignore[attr-defined]  # jax's stub lacks it
                self.log.preview(step - back, self._values([jax.device_get(output)]))
                self._put_off_preview()
                return

    def _put_off_preview(self) -> None:
        self.preview_due = time.monotonic() + PREVIEW if self.log.display.live else math.inf

    def _diagnosis(self, state: State, step: int, nonfinite_steps: int) -> str:
        batch = self.job.batch_at(self.splits["train"], self.plan, step - 1)
        indices, entries = self.plan.at(self.plan.positions(step - 1))
        names = non_finite(self.job.task, self.job.config, state, batch, step - 1, self.job.mesh)
        summary = "not finite with the parameters now: " + (some(names, 8) or "nothing")
        return (
            f"the loss, the gradient or the update was not finite in {nonfinite_steps} steps in a row,"
            f" the last of them step {step}\n"
            f"  {summary}\n"
            f"  examples of step {step}: {indices[entries['mask'] > 0].tolist()}\n"
            f"--mode=check --config.check.step={step} replays that batch;"
            " a smaller config.optim.lr, a config.optim.clip or a longer warm-up may help"
        )

    def _end(self, step: int) -> None:
        """End the run at `step`, whose state is saved."""
        self.steps = step
        self.save()

    def _save_and_wait(self) -> None:
        self.save()
        self.finish()

    def _wait_for_save(self) -> None:
        """Wait for the save in progress, and record whether it failed."""
        try:
            self.checkpoints.wait()
        except CheckpointError as error:
            self._record_failure(error)

    def _record_failure(self, error: CheckpointError) -> None:
        self.saved, self.save_error = 0, error
        if not processes.alone():  # the other processes may not know, and would wait for this one
            raise error
        if not self.stop.requested:
            self.log.warn(f"{error}; earlier checkpoints are kept")

    def _expendable_steps(self, steps: list[int]) -> list[int]:
        """Return the saved `steps` that are neither among the newest nor the best by config.best or config.evals."""
        keep = set(steps[-self.job.config.keep :])
        for metric, mode in evaluations.best_metrics(self.job.config).items():
            measured = records.watched(self.workdir, metric) | self.log.values(metric)
            values = {step: value for step, value in measured.items() if step in steps}
            keep.add(checkpoint_files.best(values, mode) or 0)
        return [step for step in steps if step not in keep]

    def _values(self, outputs: list[StepOutput]) -> dict[str, float]:
        """Return the metrics of some steps, added up, with the last gradient norm and learning rate."""
        sums = metrics.merge(output.metrics for output in outputs if output.nonfinite_steps == 0)
        skipped = sum(output.nonfinite_steps > 0 for output in outputs)
        values = by_source.values(sums, self.job.config.data.mix) if sums else {}
        values |= {"gradient_norm": float(outputs[-1].gradient_norm), "lr": float(outputs[-1].learning_rate)}
        return values | ({"skipped": float(skipped)} if skipped else {})
