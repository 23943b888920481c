"""Profiles of a few training steps: a trace for XProf and Perfetto, and the memory that the devices hold."""

import contextlib
import os
import shlex
from collections.abc import Iterator

import jax

from jtasks.distributed import processes
from jtasks.run.start import Setup, Step
from jtasks.run.step import Batch, State, StepOutput
from jtasks.writing import write_file


@contextlib.contextmanager
def recording(step: Step, setup: Setup) -> Iterator[Step]:
    """Yield a step that records the steps of `config.profile` in DIR/profile; `step` itself if none remain.

    Only the first process of a run records, with the devices of that process. A failure to record warns, and training
    goes on. If the block ends within the recorded steps, the profile has the steps so far.
    """
    window = setup.job.config.profile
    first, last = max(window.start, setup.start + 1), min(window.start + window.steps - 1, setup.steps)
    if window.steps and window.start > setup.steps:
        setup.log.warn(
            f"config.profile.start={window.start} is after the last step, {setup.steps}: there is no profile"
        )
    if first > last or not processes.first():
        yield step
        return
    recorder = _Recorder(step, setup, first, last)
    try:
        yield recorder
    finally:
        recorder.stop()


class _Recorder:
    """A step that counts its calls, and records those from the step `first` to the step `last`."""

    def __init__(self, step: Step, setup: Setup, first: int, last: int):
        self.step, self.first, self.last, self.now = step, first, last, setup.start
        self.folder, self.log = setup.workdir / "profile", setup.log
        self.active = False

    def __call__(self, state: State, batch: Batch) -> tuple[State, StepOutput]:
        self.now += 1
        if self.now == self.first:
            jax.block_until_ready(state)  # the trace must not show the steps before
            self.start()
        if not self.active:
            return self.step(state, batch)
        with jax.profiler.StepTraceAnnotation("train", step_num=self.now):
            state, output = self.step(state, batch)
        if self.now == self.last:
            jax.block_until_ready(output)
            self.stop()
        return state, output

    def start(self) -> None:
        with self.log.pause(), self._warning():
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
            self.active = True

    def stop(self) -> None:
        """Write the profile, if one is being recorded, and say how to open it."""
        if not self.active:
            return
        self.active = False
        with self.log.pause(), self._warning():
            jax.profiler.stop_trace()
            memory = self.folder / f"memory-{self.now}.prof"
            write_file(memory, jax.profiler.device_memory_profile())
            trace = max(self.folder.glob("plugins/profile/*/perfetto_trace.json.gz"), key=os.path.getmtime)
            self.log.message(
                f"wrote the profile of steps {self.first} to {self.now}:\n"
                f"  XProf (pip install xprof): xprof --logdir={shlex.quote(str(self.folder))}\n"
                f"  https://ui.perfetto.dev: open {trace}\n"
                f"  memory of the devices, by pprof: {memory}"
            )

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the profiler's, such as of another profile in this process, or a full disk
            self.log.warn(f"steps {self.first} to {self.last} are not profiled ({error}); training goes on")
