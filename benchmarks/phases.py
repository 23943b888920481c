"""Processor seconds of each phase of a start, from the command to the record of the first step.

  python benchmarks/phases.py --cache=FOLDER --config=configs/igpt_digits.py --config.log_every=1

Give the same --cache twice for a warm start. The phases are those of the main thread, without what runs inside another
phase; the last line has all other threads: XLA's compilation and the first step itself.
"""

import argparse
import builtins
import functools
import importlib
import json
import os
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from common import ROOT, use_huge_pages

PHASES = {
    "data": (
        "jtasks.run.job:make_files",
        "jtasks.run.job:fill",
        "jtasks.run.job:Job.examples",
        "jtasks.run.start:record",
    ),
    "trace of init": ("jtasks.run.programs:build",),
    "checks before step 1": ("jtasks.run.preflight:check",),
    "trace and lowering of the step": ("jtasks.run.compile:Compiled.start",),
    "initial state": ("jtasks.run.programs:state_at",),
    "summary and environment": ("jtasks.run.start:announce",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="of compiled programs")
    flags, arguments = parser.parse_known_args()
    use_huge_pages()
    os.environ |= {"XDG_CACHE_HOME": str(flags.cache.absolute()), "JTASKS_DATA": str(flags.cache.absolute())}
    sys.path.insert(0, str(ROOT))
    clock = Clock()
    builtins.__import__ = clock.timed("imports", builtins.__import__, nests=False)  # type: ignore[assignment]
    from jtasks import cli, environment
    from jtasks.run import log, loop  # noqa: F401  so that nothing has the functions before they are timed

    for phase, places in PHASES.items():
        for place in places:
            module, _, path = place.partition(":")
            *owners, name = path.split(".")
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            function = getattr(owner, name)
            for holder in [owner, *(m for n, m in sys.modules.items() if n.startswith("jtasks"))]:
                if getattr(holder, name, None) is function:
                    setattr(holder, name, clock.timed(phase, function))
    record = log.Log.train

    def train(self: Any, *given: Any) -> None:
        record(self, *given)
        clock.report()
        os._exit(0)

    log.Log.train = train  # type: ignore[method-assign]
    environment.collect_rarely()
    with tempfile.TemporaryDirectory() as workdir:
        sys.exit(cli.run([*arguments, f"--workdir={workdir}/run"]))


class Clock:
    """The main thread's processor seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.stack: list[str] = ["the rest"]
        self.since = 0.0  # processor seconds when the present phase began

    def timed(self, phase: str, function: Callable[..., Any], *, nests: bool = True) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            here = threading.current_thread() is threading.main_thread()
            if not here or (not nests and self.stack[-1] == phase):
                return function(*given, **named)
            self._switch()
            self.stack.append(phase)
            try:
                return function(*given, **named)
            finally:
                self._switch()
                self.stack.pop()

        return call

    def _switch(self) -> None:
        now = time.thread_time()
        self.seconds[self.stack[-1]] = self.seconds.get(self.stack[-1], 0.0) + now - self.since
        self.since = now

    def report(self) -> None:
        self._switch()
        parts = self.seconds | {"other threads": time.process_time() - time.thread_time()}
        print(json.dumps({name: round(s, 2) for name, s in parts.items()} | {"all": round(time.process_time(), 2)}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
