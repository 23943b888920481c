"""The process of the command: exit codes, and what is printed of a result or an error.

What each --mode does: see `modes`.
"""

import argparse
import contextlib
import errno
import os
import sys
import threading
import traceback
from collections.abc import Sequence

from jtasks import console, environment, errors, modes, shipped, storage
from jtasks.errors import EXIT_STOPPED
from jtasks.flags import (
    check_flags,
    config_overrides,
    make_parser,
    require_writable,
    run_folders,
    user_path,
    workdir_path,
)

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
    environment.collect_rarely()
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
    from jtasks.run import records, signals

    try:
        with storage.closing():
            result = modes.run(arguments, flags, rest)
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
        print("\n".join([str(stopped), *_notes(stopped)]), file=sys.stderr)
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


def _fail(code: int, text: str, trace: str = "") -> int:
    from jtasks.distributed import processes

    message = console.fit(errors.printable(f"error: {text}"))
    print(f"{message}\n{errors.printable(trace)}", end="", file=sys.stderr, flush=True)
    processes.report_failure(code, text)
    return code


def _report(arguments: Sequence[str], flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Write the page of one or several runs, without a task, its data or JAX, and return the exit code."""
    from jtasks.run import page, records

    try:
        check_flags(arguments, flags)
        if config_overrides(rest) or flags.config is not None:
            raise errors.ConfigError("--mode=report shows what runs have recorded: it takes no --config")
        with storage.closing():
            output = None if flags.output is None else user_path("--output", flags.output)
            if flags.runs is None or output is not None:
                require_writable(flags, output)
            if flags.runs is None:
                path = page.write(workdir_path(flags), output)
            else:
                path = page.write_comparison(run_folders(flags.runs), output)
    except errors.ConfigError as error:
        return _fail(EXIT_USAGE, str(error))
    except errors.StorageError as error:
        return _fail(EXIT_FAILED, str(error))
    except OSError as error:
        return _fail(EXIT_FAILED, f"the page cannot be written ({error}): give another file, --output=FILE.html")
    print(storage.shown(f"wrote {path}"), file=sys.stderr)
    print(storage.shown(records.to_json({"report": str(path)})), flush=True)
    return EXIT_DONE
