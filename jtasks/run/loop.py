"""The one training loop."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jtasks import storage
from jtasks.config import Config, freeze
from jtasks.console import warn
from jtasks.errors import ConfigError, DamagedError
from jtasks.run import checkpoint_writer, profile
from jtasks.run.hooks import AHEAD, Hooks, due
from jtasks.run.log import Log
from jtasks.run.signals import Stop
from jtasks.run.start import Setup, Step, begin, is_finished, set_up
from jtasks.run.step import State, StepOutput
from jtasks.run.workdir import clear_on_error, lock


def train(
    config: Config | Mapping[str, Any], workdir: pathlib.Path | str, *, owns_process: bool = False
) -> dict[str, float]:
    """Train until `config.steps` or `config.stop`, starting from the newest checkpoint in `workdir`, if there is one.

    In a notebook or a script, Ctrl-C saves the state and raises Stopped; the same call then resumes the run. A second
    Ctrl-C, or one before the first step, raises KeyboardInterrupt.

    Args:
      config: a ConfigDict or a dict, such as `{"task": "jtasks.tasks.vit", "data": {"name": "digits"}, "steps": 100}`;
        fields that it leaves out have their defaults. The task in a dict may also be a
        module.
      workdir: the run's folder, which need not exist; also `s3://BUCKET/FOLDER` or `gs://BUCKET/FOLDER`.
      owns_process: whether signals may end the process, as in the command.

    Returns:
      The final evaluation: `step`, and keys `split/metric`.

    Raises:
      Stopped: a signal stopped the run; the state is saved.
      ConfigError, DataError, CheckpointError, TrainingError: see the message.
    """
    config = freeze(config)
    if not os.fspath(workdir):
        raise ConfigError("workdir is empty: give the run's folder, which need not exist yet")
    workdir = storage.open_copy(str(workdir)) if storage.is_url(workdir) else pathlib.Path(workdir)
    fresh = not os.path.exists(workdir)  # False for a name that is too long, which `lock` refuses
    with lock(workdir), Stop(owns_process=owns_process) as stop:
        with stop.rescue(lambda: None), clear_on_error(workdir, fresh=fresh):  # nothing to save yet
            damaged: list[int] = []
            while True:
                setup = set_up(config, workdir, damaged)
                if is_finished(setup):
                    return result(setup.log, setup.start)
                try:
                    setup, state, step = begin(setup)
                    break
                except DamagedError as error:
                    warn(str(error))
                    damaged.append(setup.start)
        stop.running = True
        return run_steps(setup, state, step, stop)


def run_steps(setup: Setup, state: State, step: Step, stop: Stop) -> dict[str, float]:
    """Run the remaining steps; between them the hooks log, evaluate, save and stop."""
    config, start, log = setup.job.config, setup.start, setup.log
    folder = setup.workdir / "checkpoints"
    with log, checkpoint_writer.Checkpoints(folder) as checkpoints, profile.recording(step, setup) as step:
        hooks = Hooks(setup, checkpoints, stop)
        with hooks.guard():
            state = hooks.after_step(state, start)
            batches = setup.job.batches(setup.examples, setup.plan, range(start, hooks.steps), poll=hooks.poll)
            outputs: list[StepOutput] = []
            log.advance(start)
            for now, batch in enumerate(batches, start + 1):
                state, output = step(state, batch)
                hooks.hold(state, now)
                hooks.compile_ahead(state, now)
                output.nonfinite_steps.copy_to_host_async()
                outputs.append(output)
                failing = len(outputs) > AHEAD and hooks.fails(outputs[-AHEAD])  # waits for that step
                log.advance(now)
                stopping = stop.should_stop(now)
                if failing or stopping or due(now, config.log_every) or hooks.saves(now):
                    hooks.log_outputs(state, now, outputs)
                    outputs = []
                hooks.preview(now, outputs)
                state = hooks.after_step(state, now)
                if now == hooks.steps:
                    if outputs:  # config.stop may end the run early
                        hooks.log_outputs(state, now, outputs)
                    break
            hooks.finish()
            hooks.write_report()
        return result(log, hooks.steps)


def result(log: Log, step: int) -> dict[str, float]:
    """Return the evaluation of the state after `step`, never of another step."""
    last = log.last()
    return last if last.get("step") == step else {"step": step}
