"""What each --mode does: read the config, join the other processes, and call the engine.

A mode imports what it needs after the flags are checked: a mistake in the command is reported before JAX is imported.
"""

import argparse
import math
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jtasks import console, environment, errors
from jtasks.flags import check_flags, config_overrides, is_pretrained, require_writable, user_path, workdir_path


def run(arguments: Sequence[str], flags: argparse.Namespace, rest: Sequence[str]) -> dict[str, Any] | None:
    """Run a command; return its result, or None if it is on stdout already or for the first process to print."""
    overrides = config_overrides(rest)
    check_flags(arguments, flags)
    try:
        os.getcwd()
    except FileNotFoundError:
        raise errors.ConfigError("the current folder has been deleted: change to another one") from None
    workdir = workdir_path(flags)
    environment.silence_libraries()
    environment.silence_libtpu()
    environment.cache_programs()
    from jtasks import config as configs
    from jtasks.distributed import processes

    if flags.mode == "plan":
        return _plan(flags, configs.load(_config_file(flags), overrides))
    if flags.sweep is not None or flags.sweep_index is not None or any(w.startswith("--sweep.") for w in overrides):
        from jtasks.sweep import command

        return command.run(flags, overrides, workdir)
    _join(flags)
    if flags.input is not None:
        return _answer(flags, overrides, workdir)
    if flags.mode == "probe":
        from jtasks.run import probe

        return probe.run(_open_model(flags, overrides, workdir))
    config = configs.load(_config_file(flags), overrides)
    same = {f"--{name}": getattr(flags, name) for name in ("mode", "split", "eval", "checkpoint", "output")}
    processes.require_same(same | dict(configs.fields(config)))
    try:
        result = _run_mode(flags, config, workdir)
    except (errors.ConfigError, errors.DataError) as error:
        from jtasks.run.workdir import relative_paths_note

        if flags.config is None and (elsewhere := relative_paths_note(workdir)):
            error.add_note(elsewhere)
        raise
    return result if processes.first() else None


def _config_file(flags: argparse.Namespace) -> str:
    """Return --config, or without it the config.json of the run in --workdir."""
    from jtasks.run import workdir

    own = workdir_path(flags) / "config.json"
    if flags.config is None and (flags.workdir is None or not own.is_file()):
        where = "" if flags.workdir is None else f", as {own.parent} holds no config.json of a run"
        raise errors.ConfigError(
            f"--config=CONFIG[:PRESET] is missing{where}: give a shipped config (see --list) or FILE.py"
        )
    if flags.config is None:
        workdir.require_files(own.parent)
    return flags.config or str(own)


def _join(flags: argparse.Namespace) -> None:
    from jtasks.distributed import clusters, processes

    place = flags.coordinator, flags.num_processes, flags.process_id
    if (flags.mode in ("check", "probe", "watch") or flags.input is not None) and processes.find(*place):
        what = "--input" if flags.input is not None else f"--mode={flags.mode}"
        raise errors.ConfigError(f"{what} runs in one process, on all of its devices: give --num-processes=1")
    joined = processes.start(*place, flags.timeout, workdir_path(flags), make=flags.mode == "train")
    if joined is not None and joined.process == 0:
        print(f"{joined.processes} processes, by {joined.launcher}", file=sys.stderr, flush=True)
    hint = clusters.partly(os.environ)
    if joined is None and flags.num_processes is None and hint:
        print(f"this process is alone: {hint}", file=sys.stderr, flush=True)


def _run_mode(flags: argparse.Namespace, config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    from jtasks.distributed import processes

    which, split = _checkpoint(flags), flags.split or "test"
    output = None if flags.output is None else user_path("--output", flags.output)
    processes.on_first_process(lambda: require_writable(flags, output))
    if flags.mode == "train":
        from jtasks.run.loop import train

        return train(config, workdir, owns_process=True)
    if flags.mode == "eval":
        from jtasks.run import evaluate

        return evaluate.run(config, workdir, split, which, named=flags.eval or "")
    if flags.mode == "watch":
        from jtasks.run import watch

        return watch.run(config, workdir)
    if flags.mode == "check":
        return _check(config, workdir)
    if flags.mode == "export":
        from jtasks.run import export

        return {"exported": str(export.run(config, workdir, output, which, flags.format))}
    from jtasks.run import predict

    if flags.mode == "predict":
        return {"predictions": str(predict.run(config, workdir, split, which, output))}
    if flags.mode == "embed":
        return {"embeddings": str(predict.run_embed(config, workdir, split, which, output))}
    return {"shown": [str(path) for path in predict.run_show(config, workdir, split, which, output)]}


def _checkpoint(flags: argparse.Namespace) -> str:
    return "newest" if flags.checkpoint is None else flags.checkpoint


def _check(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    from jtasks import testing

    if config.check.step:
        print(errors.printable(testing.replay(config, workdir, config.check.step)), file=sys.stderr)
        return {"replayed": config.check.step}
    results = testing.run(config)
    print(errors.printable(testing.table(results)), file=sys.stderr)
    if failed := [result.name for result in results if result.passed is False]:
        raise errors.CheckError(f"{config.task} fails {len(failed)} of {len(results)} checks: {'; '.join(failed)}")
    return {"passed": sum(result.passed is True for result in results), "checks": len(results)}


def _open_model(flags: argparse.Namespace, overrides: Sequence[str], workdir: pathlib.Path) -> Any:
    """Return a run or a Hugging Face model for new inputs, without the data of the run."""
    from jtasks import config as configs
    from jtasks.run import inference, restore

    if is_pretrained(flags.workdir):
        return inference.load(flags.workdir, overrides=overrides)
    config = configs.load(_config_file(flags), overrides)
    return inference.Run(restore.open_alone(config, workdir, _checkpoint(flags)))


def _answer(flags: argparse.Namespace, overrides: Sequence[str], workdir: pathlib.Path) -> dict[str, Any] | None:
    """Answer an --input; return None if the answers went to stdout."""
    from jtasks.run import answer

    output = None if flags.output is None else user_path("--output", flags.output)
    if output is not None:
        require_writable(flags, output)
    source = flags.input if flags.input == "-" else str(user_path("--input", flags.input))
    counts = answer.run(
        lambda: _open_model(flags, overrides, workdir),
        source,
        function=flags.mode,
        kind=flags.input_format,
        bare=flags.no_header,
        output=output,
        skip_bad=flags.skip_bad,
    )
    if output is not None:
        return {"predictions" if flags.mode == "predict" else "embeddings": str(output), **counts}
    console.say(f"answers: {counts['answers']:,}; skipped: {counts['skipped']:,}")
    return None


def _plan(flags: argparse.Namespace, config: Any) -> dict[str, Any]:
    import jax

    if flags.topology is not None:
        return _plan_topology(flags, config)
    sizes = config.mesh.to_dict().values()
    if flags.devices is None and -1 in sizes:
        raise errors.ConfigError("config.mesh has a -1, which takes all remaining devices: give --devices=N")
    devices = math.prod(sizes) if flags.devices is None else flags.devices
    jax.config.update("jax_platforms", "cpu")  # fake devices, before JAX looks for others
    jax.config.update("jax_num_cpu_devices", devices)
    from jtasks.run import plan, rates

    estimate = plan.run(config, plan.Hardware(**{name: getattr(flags, name) for name in plan.Hardware._fields}))
    print(plan.table(estimate), file=sys.stderr)
    schedule = rates.points(config.optim, estimate["steps"])
    print(f"learning rate in {estimate['steps']:,} steps\n  {rates.line(schedule)}", file=sys.stderr)
    if flags.output is not None:
        path = user_path("--output", flags.output)
        path.write_text(rates.picture(schedule), encoding="utf-8")
        print(f"wrote {path}", file=sys.stderr)
    return estimate


def _plan_topology(flags: argparse.Namespace, config: Any) -> dict[str, Any]:
    """Plan with the compiler of a TPU; a step that does not fit is an error, after its line on stdout."""
    import jax

    from jtasks.run import records

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # without a TPU a stored program cannot be loaded
    from jtasks.run import tpu

    facts, text = tpu.run(config, flags.topology, flags.efficiency)
    if not facts["fits"]:
        print(records.to_json(facts), flush=True)
        raise errors.ConfigError(
            f"--topology={flags.topology}: {facts['refusal']}\n-> what needs less memory: {facts['advice']}"
        )
    if flags.output is not None:
        user_path("--output", flags.output).write_text(text)
    print(tpu.table(facts), file=sys.stderr)
    return facts
