"""What happens between steps: logging, evaluation, saving, stopping."""

import contextlib
import functools
import time
from collections.abc import Iterator

import jax
import numpy as np

from jtasks import metrics
from jtasks.data import fingerprint
from jtasks.distributed import processes
from jtasks.errors import CheckpointError, TrainingError
from jtasks.run import checkpoint, evaluate, predict
from jtasks.run.signals import Stop, Stopped
from jtasks.run.start import Setup
from jtasks.run.step import State, StepOutput, non_finite
from jtasks.run.workdir import record_data, recorded_splits


def due(step: int, every: int) -> bool:
    """Whether `step` is one of every `every`; 0 means never."""
    return every > 0 and step % every == 0


class Hooks:
    """The host's side of the loop; between `after_step` and the next step it holds the newest state."""

    def __init__(self, setup: Setup, checkpoints: checkpoint.Checkpoints, stop: Stop):
        job = self.job = setup.job
        self.workdir, self.splits = setup.workdir, setup.splits
        self.plan, self.steps, self.log = setup.plan, setup.steps, setup.log
        self.checkpoints, self.stop = checkpoints, stop
        self.evaluate = evaluate.make(job, self.poll)
        self.predict = predict.make(job, self.poll) if hasattr(job.task, "predict_fn") else None
        self.state: State | None = None
        self.step = self.saved = setup.start
        self.save_error: CheckpointError | None = None

    def saves(self, step: int) -> bool:
        """Whether to save the state after `step`.

        One process of several cannot save alone when an evaluation fails: there a save precedes each evaluation.
        """
        config = self.job.config
        evaluated = not processes.alone() and due(step, config.eval_every)
        return step == self.steps or due(step, config.save_every) or evaluated

    def after_step(self, state: State, step: int) -> None:
        """Begin to save and evaluate if `step` asks for it, and end here if a signal came.

        Saving comes first, so that no error in an evaluation loses the state. A resumed run evaluates what has no
        record at the step of its checkpoint.

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
        if step and (last or due(step, self.job.config.eval_every)):
            rescue = self._save_and_wait if processes.alone() else self._settle  # saved before, by all
            with self.log.pause(), self.stop.rescue(rescue):
                self._evaluate(state, step, ("valid", "test") if last else ("valid",))

    def hold(self, state: State, step: int) -> None:
        """Take the newest state, which is what a signal or an error saves."""
        self.state, self.step = state, step

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Save the newest state before an error inside passes on, and note at the error what is saved.

        In a run of several processes the others do not hold the state of the same step, so just the save under way
        is awaited.
        """
        try:
            yield
        except (Stopped, CheckpointError, TrainingError):  # saved, not to be saved, or not worth it
            raise
        except BaseException as error:
            try:
                (self._save_and_wait if processes.alone() else self._settle)()
            except Exception as failure:  # for instance the device's memory is gone with the step that failed
                self.log.warn(f"step {self.step} is lost: {failure}")
            if steps := checkpoint.saved_steps(self.workdir / "checkpoints"):
                error.add_note(f"step {steps[-1]} is saved: mend it and run the same command again")
            raise

    def poll(self) -> None:
        """Save and end, if a signal came; called wherever the loop waits, of several processes between batches.

        Raises:
          Stopped: after saving.
        """
        if not self.stop.should_stop():
            return
        assert self.stop.requested is not None
        self.stop.claim()
        self.log.message(f"{self.stop.requested.name}: saving step {self.step}")
        self._save_and_wait()
        raise Stopped(f"stopped at step {self.step} of {self.steps}; the same command goes on from there")

    def save(self) -> None:
        """Begin to save; what need not be kept is deleted once this is saved. Logs a save that fails."""
        assert self.state is not None
        self._settle()
        if self.step in (self.saved, 0):
            return
        steps = sorted({*checkpoint.saved_steps(self.workdir / "checkpoints"), self.step})
        try:
            # Good checkpoints are worth more than the room of one whose last steps were not finite.
            self.checkpoints.save(
                self.state, self.step, () if int(self.state.nonfinite_steps) else self._expendable(steps)
            )
            self.saved, self.save_error = self.step, None
        except CheckpointError as error:
            self._failed(error)

    def finish(self) -> None:
        """Wait for the last save.

        Raises:
          CheckpointError: the newest state that was to be saved is not.
        """
        self._settle()
        if self.save_error is not None:
            raise self.save_error
        if self.state is not None and not int(
            self.state.nonfinite_steps
        ):  # the last evaluation may have found a better one
            self.checkpoints.delete(self._expendable(checkpoint.saved_steps(self.workdir / "checkpoints")))

    def fails(self, output: StepOutput) -> bool:
        """Whether the bad steps in a row up to this one end the run, which all are if no step was good."""
        return int(output.nonfinite_steps) >= min(self.job.config.max_bad_steps, self.steps)

    def log_outputs(self, state: State, step: int, outputs: list[StepOutput]) -> None:
        """Add up the metrics of the steps since the last call; this waits for the device.

        Raises:
          TrainingError: `max_bad_steps` steps in a row, or all of the run, were not finite.
        """
        fetched: list[StepOutput] = jax.device_get(outputs)
        sums = metrics.summed(output.metrics for output in fetched if output.nonfinite_steps == 0)
        skipped = sum(output.nonfinite_steps > 0 for output in fetched)
        found = metrics.values(sums) if sums else {}
        found |= {"gradient_norm": float(fetched[-1].gradient_norm), "lr": float(fetched[-1].learning_rate)}
        self.log.train(step, found | ({"skipped": float(skipped)} if skipped else {}))
        for at, output in enumerate(fetched, step - len(fetched) + 1):
            if self.fails(output):
                raise TrainingError(self._diagnosis(state, at, int(output.nonfinite_steps)))

    def _diagnosis(self, state: State, step: int, nonfinite_steps: int) -> str:
        batch = self.job.batch_at(self.splits["train"], self.plan, step - 1)
        indices, entries = self.plan.at(self.plan.positions(step - 1))
        names = non_finite(self.job.task, self.job.config, state.params, batch, step - 1, self.job.mesh)
        found = "not finite with the parameters now: " + (", ".join(names[:8]) or "nothing")
        return (
            f"the loss, the gradient or the update was not finite in {nonfinite_steps} steps in a row,"
            f" the last of them step {step}\n"
            f"  {found}{f' and {len(names) - 8} more' if len(names) > 8 else ''}\n"
            f"  examples of step {step}: {indices[entries['mask'] > 0].tolist()}\n"
            f"--mode=check --config.check.step={step} replays that batch;"
            " a smaller config.optim.lr, a config.optim.clip or a longer warm-up may help"
        )

    def _evaluate(self, state: State, step: int, names: tuple[str, ...]) -> None:
        """Evaluate what metrics.jsonl does not hold yet, and show examples."""
        job = self.job
        for split in names:
            examples, recorded = self.splits[split], functools.partial(self.log.has, step, split)
            if examples is None or processes.broadcast_from_first(recorded):
                continue
            begun = time.perf_counter()
            processes.on_first_process(functools.partial(self._record_first_use, split))
            found = self.evaluate(state.eval_params, examples)
            if step == self.steps and self.predict is not None:
                found |= evaluate.scores(job, self.predict, state.eval_params, examples)
            if self.predict is not None and job.config.show_count and hasattr(job.task, "show_fn"):
                self._show(predict.show(job, self.predict, state.eval_params, examples), split, step)
            best, _, metric = job.config.best.removeprefix("-").partition("/")
            if best == split and metric not in found:  # of a run that was resumed with another config.best
                self.log.warn(f"config.best={job.config.best}: the metrics of {split} are {', '.join(found)}")
            self.log.evaluation(step, split, found, time.perf_counter() - begun)

    def _record_first_use(self, split: str) -> None:
        try:
            if split not in recorded_splits(self.workdir):
                record_data({split: fingerprint.of(self.splits[split])}, self.workdir, anew=False)
        except OSError as error:
            self.log.warn(f"the {split} split is not recorded ({error}); training goes on")

    def _show(self, shown: dict[str, np.ndarray | str], split: str, step: int) -> None:
        if not processes.first():
            return
        try:
            (self.workdir / "show").mkdir(exist_ok=True)  # but never DIR, should it be deleted meanwhile
            for path in predict.write_shown(shown, self.workdir / "show", f"{split}-{step}"):
                self.log.message(f"wrote {path}")
        except OSError as error:
            self.log.warn(f"pictures of step {step} are lost: {error}")
        for name, content in shown.items():
            if isinstance(content, str):
                self.log.text(step, f"{split}/{name}", content)
            else:
                self.log.image(step, f"{split}/{name}", content)

    def _save_and_wait(self) -> None:
        self.save()
        self.finish()

    def _settle(self) -> None:
        """Wait for the save under way, and note whether it failed."""
        try:
            self.checkpoints.wait()
        except CheckpointError as error:
            self._failed(error)

    def _failed(self, error: CheckpointError) -> None:
        self.saved, self.save_error = 0, error
        self.log.warn(f"{error}; training goes on, and the newest good checkpoint stays")

    def _expendable(self, steps: list[int]) -> list[int]:
        """The saved `steps` that are neither among the newest nor the best by `config.best`."""
        config = self.job.config
        keep = set(steps[-config.keep :])
        values = {
            step: value for step, value in self.log.values(config.best.removeprefix("-")).items() if step in steps
        }
        best = checkpoint.best(values, config.best)
        return [step for step in steps if step not in keep | {best}]
