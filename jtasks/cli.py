"""The command line; see `jtasks --help`."""

import argparse
import contextlib
import errno
import math
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any

from jtasks import console, environment, shipped, storage
from jtasks.errors import EXIT_STOPPED
from jtasks.flags import check_flags, config_overrides, is_pretrained, make_parser, run_folders, user_path, workdir_path

SMALLER = (
    "a device's memory is full: a smaller config.batch_size, more config.accumulate, config.model.remat=True or"
    " config.precision=bfloat16 needs less; --mode=plan estimates how much"
)
MACHINE = (  # errors of the machine and its files, not of the library
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE),
    *(errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
)
EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_CLOSED_OUTPUT = 141  # as of a process that SIGPIPE ends


def main() -> None:
    """Run the command of this process and exit."""
    console.settle()
    environment.use_huge_pages()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, _stop)  # while there is nothing to save; training installs its own handlers
    code = run(sys.argv[1:])
    compiling = any(thread.name.startswith("compiler") for thread in threading.enumerate())
    if code == EXIT_STOPPED or (code != EXIT_DONE and compiling):
        from jtasks.distributed import processes  # imports JAX, which a report does not need

        if processes.alone():  # threads that wait for data, or that compile, must not delay the exit
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    flags, rest = make_parser().parse_known_args(arguments)
    if flags.list:
        print(shipped.listing(), flush=True)
        return EXIT_DONE
    if flags.mode == "report":
        return _report(arguments, flags, rest)
    from jtasks import errors
    from jtasks.run import records, signals

    try:
        with storage.closing():
            result = _run(arguments, flags, rest)
        if result is not None:
            text = records.to_json(result, indent=1 if sys.stdout.isatty() else None)
            print(storage.shown(text), flush=True)
            lost, recorded = getattr(sys.stdout, "error", None), flags.mode == "train"  # in the run's folder
            if lost is not None and lost.errno != errno.EPIPE and not recorded:
                return _fail(EXIT_FAILED, f"stdout cannot be written ({lost.strerror}); the result is\n{text}")
        return EXIT_DONE
    except errors.ConfigError as error:
        return _fail(EXIT_USAGE, "\n".join([str(error), *_notes(error)]))
    except (
        errors.DataError,
        errors.CheckpointError,
        errors.TrainingError,
        errors.CheckError,
        errors.StorageError,
    ) as error:
        return _fail(EXIT_FAILED, "\n".join([str(error), *_notes(error)]))
    except errors.ClosedOutputError:
        return EXIT_CLOSED_OUTPUT
    except signals.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return EXIT_STOPPED
    except BaseException as error:  # also a task's SystemExit, whose exit code is not the run's
        from jtasks.distributed import processes

        if text := _absent_field_message(error):
            return _fail(EXIT_USAGE, text)
        processes.await_news()
        text, trace = _explain(error)
        return _fail(EXIT_FAILED, "\n".join([text, *_notes(error)]), trace)


def _notes(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", [])
    return [note for note in notes if "removed its internal frames" not in note]  # JAX's and Grain's own


def _explain(error: BaseException) -> tuple[str, str]:
    """Return a text for the error, and a traceback unless a task's function raised it: then the text has its lines."""
    from jtasks import faults, task

    scopes = [frame.f_globals for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [sys.modules.get(scope.get("__name__", "")) for scope in scopes if not task.missing(scope)]
    if "RESOURCE_EXHAUSTED" in str(error):
        return f"{str(error).splitlines()[0]}\n-> {SMALLER}", ""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error}: free some space, and run the same command again", ""
    if isinstance(error, OSError) and error.errno in MACHINE and not any(modules):
        return f"{error}: mend that, and run the same command again", ""
    if not any(modules):
        return f"{type(error).__name__}: {error}", traceback.format_exc()
    from jtasks.testing import kit

    return f"{faults.explain(error, modules[0], whole=True)}\n-> {kit.hint(error, modules[0])}", ""


def _absent_field_message(error: BaseException) -> str:
    """Return the message for a task that reads a field that the config lacks; "" for any other error."""
    import ml_collections

    from jtasks import ranges

    group = getattr(error, "obj", None)
    if not isinstance(error, AttributeError) or not isinstance(group, ml_collections.ConfigDict):
        return ""
    frame = [f for f in traceback.extract_tb(error.__traceback__) if "ml_collections" not in f.filename][-1]
    beside = f"beside it are {', '.join(group)}" if group else "its group has no fields"
    return (
        f"{frame.filename}, line {frame.lineno}, reads the config's field {error.name!r}, which is not there"
        f"{ranges.did_you_mean(error.name, group.keys())}: {beside}. Set it in the config file"
    )


def _stop(number: int, frame: FrameType | None) -> None:
    text = f"{signal.Signals(number).name}: stopped; run the same command again"
    for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(other, signal.SIG_DFL)  # a second signal ends the process at once
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    if tell := getattr(
        sys.modules.get("jtasks.distributed.processes"), "report_failure", None
    ):  # the module may be half imported
        tell(EXIT_STOPPED, text)  # other processes end with the same code
    os._exit(EXIT_STOPPED)


def _fail(code: int, text: str, trace: str = "") -> int:
    from jtasks import errors
    from jtasks.distributed import processes

    message = console.fit(errors.printable(f"error: {text}"))
    print(f"{message}\n{errors.printable(trace)}", end="", file=sys.stderr, flush=True)
    processes.report_failure(code, text)
    return code


def _run(arguments: Sequence[str], flags: argparse.Namespace, rest: Sequence[str]) -> dict[str, Any] | None:
    """Run a command, and return the result on the first process of the run, None on others."""
    from jtasks import errors

    overrides = config_overrides(rest)
    check_flags(arguments, flags)
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
        result = _mode(flags, config, workdir)
    except (errors.ConfigError, errors.DataError) as error:
        from jtasks.run.workdir import relative_paths_note

        if flags.config is None and (elsewhere := relative_paths_note(workdir)):
            error.add_note(elsewhere)
        raise
    return result if processes.first() else None


def _report(arguments: Sequence[str], flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Write the page of one or several runs, without a task, its data or JAX, and return the exit code."""
    from jtasks.errors import ConfigError, StorageError
    from jtasks.run import page, records

    try:
        check_flags(arguments, flags)
        if config_overrides(rest) or flags.config is not None:
            raise ConfigError("--mode=report shows what runs have recorded: it takes no --config")
        with storage.closing():
            output = None if flags.output is None else user_path("--output", flags.output)
            if flags.runs is None:
                path = page.write(workdir_path(flags), output)
            else:
                path = page.write_comparison(run_folders(flags.runs), output)
    except ConfigError as error:
        return _fail(EXIT_USAGE, str(error))
    except StorageError as error:
        return _fail(EXIT_FAILED, str(error))
    except OSError as error:
        return _fail(EXIT_FAILED, f"the page cannot be written ({error}): give another file, --output=FILE.html")
    print(storage.shown(f"wrote {path}"), file=sys.stderr)
    print(storage.shown(records.to_json({"report": str(path)})), flush=True)
    return EXIT_DONE


def _config_file(flags: argparse.Namespace) -> str:
    """Return --config, or without it the config.json of the run in --workdir."""
    from jtasks import errors
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
    from jtasks import errors
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


def _mode(flags: argparse.Namespace, config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    which, split = _checkpoint(flags), flags.split or "test"
    output = None if flags.output is None else user_path("--output", flags.output)
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

    from jtasks import errors

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

    from jtasks import errors
    from jtasks.run import records

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # without a TPU a stored program cannot be loaded
    from jtasks.run import tpu

    facts, text = tpu.run(config, flags.topology, flags.efficiency)
    if not facts["fits"]:
        print(records.to_json(facts), flush=True)
        raise errors.ConfigError(f"--topology={flags.topology}: {facts['refusal']}\n-> {tpu.SMALLER}")
    if flags.output is not None:
        user_path("--output", flags.output).write_text(text)
    print(tpu.table(facts), file=sys.stderr)
    return facts


def _check(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    from jtasks import errors, testing

    if config.check.step:
        print(errors.printable(testing.replay(config, workdir, config.check.step)), file=sys.stderr)
        return {"replayed": config.check.step}
    results = testing.run(config)
    print(errors.printable(testing.table(results)), file=sys.stderr)
    if failed := [result.name for result in results if result.passed is False]:
        raise errors.CheckError(f"{config.task} fails {len(failed)} of {len(results)} checks: {'; '.join(failed)}")
    return {"passed": sum(result.passed is True for result in results), "checks": len(results)}
