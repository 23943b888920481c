"""The command of a sweep: `jtasks --sweep.NAME=A,B` and `jtasks --sweep=FILE.py`."""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jtasks import config as configs
from jtasks.distributed import processes
from jtasks.errors import ConfigError, TrainingError
from jtasks.run import records
from jtasks.sweep import points, runs, table


def run(flags: argparse.Namespace, words: Sequence[str], folder: pathlib.Path) -> dict[str, Any]:
    """Run a sweep, and return its best run.

    Args:
      flags: the flags of the command.
      words: `--config.NAME=VALUE` for all runs, and `--sweep.NAME=A,B` for the swept fields.
      folder: the sweep's folder.

    Raises:
      ConfigError: the command, or a value of a swept field, is wrong.
      TrainingError: runs have failed; the other runs are done.
      Stopped: a signal stopped the sweep.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # the runs, each a process of its own, need the accelerators
    swept = [word for word in words if word.startswith(points.FLAG)]
    overrides = [word for word in words if not word.startswith(points.FLAG)]
    _check(flags, swept, overrides)

    def load(values: Sequence[str]) -> configs.Config:
        return configs.load(flags.config, [*overrides, *values])

    wanted = points.grid(swept) if flags.sweep is None else points.read(flags.sweep, load(()))
    program = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]  # such as -m jtasks
    command = [sys.executable, *program, f"--config={flags.config}", "--num-processes=1", *overrides]
    best, failed = runs.train(wanted, load, folder, command, flags.sweep_index)
    if failed:
        if best:
            print(records.to_json(best), flush=True)
        lines = [f"{name}: {message}" for name, message in failed.items()]
        raise TrainingError(
            f"{len(lines)} {'run' if len(lines) == 1 else 'runs'} of the sweep failed:\n  "
            + "\n  ".join(line.partition("\n")[0] for line in lines[:10])
            + ("\n  ..." if len(lines) > 10 else "")
            + f"\n{folder / table.TABLE} has all runs; the same command tries the failed ones again"
        )
    return best


def _check(flags: argparse.Namespace, swept: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse flags that do not fit a sweep."""
    if flags.sweep is not None and swept:
        raise ConfigError(
            f"--sweep={flags.sweep} and {swept[0].partition('=')[0]} exclude each other: give one of them"
        )
    if flags.sweep is None and not swept:
        raise ConfigError("--sweep-index needs a sweep: --sweep.NAME=A,B or --sweep=FILE.py")
    if flags.mode != "train":
        raise ConfigError(f"a sweep trains, so --mode={flags.mode} does not fit: give each run's folder as --workdir")
    if flags.config is None:
        raise ConfigError("a sweep needs --config=CONFIG[:PRESET], from which its runs start")
    if processes.find(flags.coordinator, flags.num_processes, flags.process_id):
        raise ConfigError(
            "a sweep is one process, whose runs use the devices of this machine: start it once, with --num-processes=1,"
            " or its runs as the tasks of an array job (launch/slurm-sweep.sbatch)"
        )
    names = {override.partition("=")[0].removeprefix("--config.") for override in overrides}
    for word in swept:
        if (name := word.removeprefix(points.FLAG).partition("=")[0]) in names:
            raise ConfigError(f"--config.{name} and {points.FLAG}{name} exclude each other: give one of them")
