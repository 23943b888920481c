"""The flags of the command line: what `jtasks --help` lists, and checks that need no config."""

import argparse
import csv
import glob
import pathlib
import re
from collections.abc import Sequence

import jtasks
from jtasks import ranges, storage
from jtasks.errors import ConfigError

MODES = ("train", "eval", "watch", "predict", "embed", "probe", "show", "report", "export", "check", "plan")
READING = ("eval", "predict", "embed", "probe", "show", "export")  # modes that take a --checkpoint
ANSWERING = ("predict", "embed")  # modes that take an --input
WRITING = ("watch", "predict", "embed", "show", "report", "export")  # modes that write to DIR or to an --output
FORMATS = ("jsonl", "csv", "tsv", "lines")
FIELDS = ("--config.", "--sweep.")  # before the name of a field of the config
NUMBERS = {
    "timeout": "(0, inf)",
    "devices": "[1, 65536]",
    "peak_tflops": "(0, inf)",
    "efficiency": "(0, 1]",
    "bandwidth_gbs": "(0, inf)",
    "latency_us": "[0, inf)",
}

HELP = """\
modes:
  train    train, or resume the run in DIR; evaluate `valid` on the way, `valid` and `test` at the end
  eval     evaluate a checkpoint (the newest, or --checkpoint=best or a step) on one split, or with --eval=NAME on
           one of config.evals
  watch    evaluate each new checkpoint of the run in DIR while another process trains it, into DIR/watch.jsonl
  predict  write the outputs of a checkpoint on one split to DIR/predictions-SPLIT.jsonl; with --input its answers to
           your own texts, rows or pictures to stdout or --output
  embed    write the features of one split to DIR/embeddings-SPLIT.safetensors; with --input the features of your own
           texts, rows or pictures to stdout or --output
  probe    classify the labeled pictures of --config.probe.name=folder:PATH by texts of their classes (zero-shot), and
           with --config.probe.shots=(1, 16, 0) by linear probes on 1, on 16 and on all pictures a class; also of a
           model, --workdir=hf:NAME
  show     write pictures and texts from a checkpoint to DIR/show/
  report   write a page with the curves, results, pictures and config of the run, DIR/report.html; with --runs=A,B,C
           instead of --workdir, a page that compares several runs, ./comparison.html
  export   write a checkpoint as a folder that Hugging Face's transformers loads, DIR/export/hf/
  check    check the task against the contract; needs no DIR. With --config.check.step=N, replay the batch of
           step N and find the first non-finite number
  plan     estimate memory, computation and communication of a step on a mesh larger than this machine, such as
           --config.mesh.data=8 --config.mesh.fsdp=8; with --topology=v5e:4x4 by the compiler for TPUs. Needs no
           DIR, no data and no accelerator

Without --config, DIR/config.json is the config: --workdir=DIR resumes the run, --workdir=DIR --mode=eval evaluates
it. With --config, every mode except plan compares the config with the run's.

Every field of the config can be set: --config.steps=1000 --config.optim.lr=3e-4. If a field is set twice, the last
value counts. Fields that refer to it follow.

examples of an --input:
  jtasks --workdir=DIR --mode=predict --input=reviews.csv --output=answers.jsonl
  jtasks --workdir=DIR --mode=embed --input=pictures/ --output=features.parquet
  echo "a fine film" | jtasks --workdir=DIR --mode=predict --input=-

exit codes: 0 done; 1 failed; 2 the command or the config is wrong; 75 stopped by a signal with the state saved, or
another process of the run is gone (run the same command again); 141 nobody reads the answers on stdout any more
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags; `config_overrides` reads what it leaves."""
    flags = argparse.ArgumentParser(
        prog="jtasks",
        description="Train, evaluate and inspect a machine-learning task.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument(
        "--config",
        metavar="CONFIG[:PRESET]",
        help="name of a shipped config, or a file that defines get_config; default: DIR/config.json",
    )
    flags.add_argument("--list", action="store_true", help="print the shipped configs and exit")
    flags.add_argument("--version", action="version", version=f"jtasks {jtasks.__version__}")
    flags.add_argument(
        "--workdir",
        metavar="DIR",
        help="the run's folder, with log, checkpoints and pictures; for --input and probe also hf:FOLDER or hf:NAME, a"
        " model",
    )
    flags.add_argument("--mode", default="train", choices=MODES)
    flags.add_argument(
        "--format",
        default="hf",
        choices=("hf", "peft"),
        help="for export: hf, for Hugging Face's transformers, or peft, an adapter alone",
    )
    flags.add_argument(
        "--output",
        metavar="PATH",
        help="for show, export: a folder instead of DIR; for report: the .html file; for predict, embed: a file,"
        " whose suffix .jsonl .csv .tsv .parquet or .safetensors selects the format; for plan: a file for the picture"
        " of the learning rate, as SVG, or with --topology for the compiled program, as HLO text",
    )
    flags.add_argument(
        "--split", choices=("train", "valid", "test"), help="for eval, predict, embed, show; test by default"
    )
    flags.add_argument("--eval", metavar="NAME", help="for eval: one of config.evals instead of a split")
    flags.add_argument(
        "--runs", metavar="A,B,C", help="for report: folders of runs to compare; a * stands for any part of a name"
    )
    flags.add_argument(
        "--checkpoint",
        metavar="WHICH",
        help="of the run: newest (default), best, best:NAME for one of config.evals, or a step",
    )
    answering = flags.add_argument_group("for --mode=predict and --mode=embed")
    answering.add_argument(
        "--input",
        metavar="PATH",
        help="instead of a split: a .jsonl, .csv, .tsv, .parquet or .txt file (a text a line), a picture, a folder of"
        " pictures, or - for stdin, answered as it comes",
    )
    answering.add_argument(
        "--input-format", choices=FORMATS, help="of the input, if it has no suffix for this; for stdin jsonl or lines"
    )
    answering.add_argument(
        "--no-header", action="store_true", help="a CSV or TSV has no header; its columns are 0, 1, ..."
    )
    answering.add_argument("--skip-bad", action="store_true", help="report a bad input on stderr and continue")
    several = flags.add_argument_group(
        "a run of several processes, which share DIR",
        "SLURM, Open MPI, JobSet and TPU pods are detected and need no flags; --num-processes=1 ignores them",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where the first process listens")
    several.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    several.add_argument("--process-id", type=int, metavar="I", help="index of this process, from 0")
    several.add_argument(
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="how long to wait for the others (300)"
    )
    sweep = flags.add_argument_group(
        "a sweep: several runs of one config, each in a folder of DIR",
        "--sweep.NAME=A,B for one or several fields trains every combination of their values",
    )
    sweep.add_argument(
        "--sweep", metavar="FILE.py", help="file with sweep(config) or search(config), which returns the values"
    )
    sweep.add_argument("--sweep-index", type=int, metavar="I", help="train only run I of the sweep, from 0")
    plan = flags.add_argument_group(
        "for --mode=plan",
        "The defaults describe an NVIDIA A100 with a 200 Gbit/s network card. --topology knows its chips: of these"
        " flags it uses --efficiency alone, for attention kernels.",
    )
    plan.add_argument(
        "--topology",
        metavar="T",
        help="compile for a TPU slice of v4, v5e, v5p or v6e, such as v5e:4x4; needs the extra tpu-plan",
    )
    plan.add_argument("--devices", type=int, metavar="N", help="number of devices; default: as in config.mesh")
    plan.add_argument(
        "--peak-tflops", type=float, default=312.0, metavar="T", help="peak of a device, in TFLOP/s (312)"
    )
    plan.add_argument(
        "--efficiency", type=float, default=0.4, metavar="E", help="fraction of the peak that a step reaches (0.4)"
    )
    plan.add_argument(
        "--bandwidth-gbs", type=float, default=25.0, metavar="B", help="bandwidth out of a device, in GB/s (25)"
    )
    plan.add_argument("--latency-us", type=float, default=10.0, metavar="L", help="microseconds per hop (10)")
    return flags


def check_flags(arguments: Sequence[str], flags: argparse.Namespace) -> None:
    """Raise ConfigError for a flag that is repeated, out of range, or does not fit the mode."""
    _check_once(arguments)
    for name, allowed in NUMBERS.items():
        value = getattr(flags, name)
        ranges.check(f"--{name.replace('_', '-')}", value, ranges.Field(type(value), allowed))
    if flags.runs is not None and (flags.mode != "report" or flags.workdir is not None):
        raise ConfigError("--runs is for --mode=report, instead of --workdir")
    if flags.workdir is None and flags.runs is None and flags.mode not in ("check", "plan"):
        raise ConfigError(f"--mode={flags.mode} needs --workdir=DIR, the run's folder")
    workdir_path(flags)
    if flags.checkpoint is not None and flags.mode not in READING:
        raise ConfigError(f"--checkpoint is for --mode={', '.join(READING)}; --mode={flags.mode} chooses itself")
    if empty := [name for name in ("input", "output") if getattr(flags, name) == ""]:
        raise ConfigError(f"--{empty[0]}= is empty: give a file or a folder")
    if flags.input is not None and flags.mode not in ANSWERING:
        raise ConfigError(f"--input is for --mode={' and --mode='.join(ANSWERING)}, not --mode={flags.mode}")
    if is_pretrained(flags.workdir) and (
        (flags.input is None and flags.mode != "probe") or flags.checkpoint is not None or flags.config is not None
    ):
        raise ConfigError(
            f"--workdir={flags.workdir} is a model without a run: it needs --input or --mode=probe, and has no"
            " checkpoints"
        )
    if flags.topology is not None and (flags.mode != "plan" or flags.devices is not None):
        raise ConfigError("--topology is for --mode=plan, instead of --devices")
    if flags.input is None and (flags.input_format or flags.no_header or flags.skip_bad):
        raise ConfigError("--input-format, --no-header and --skip-bad describe an --input, which is not given")
    if flags.eval is not None and (flags.mode != "eval" or flags.split is not None):
        raise ConfigError("--eval=NAME is for --mode=eval, instead of --split")
    if flags.input is not None and flags.split is not None:
        raise ConfigError("--input and --split exclude each other: give one of them")


def config_overrides(words: Sequence[str]) -> list[str]:
    """Return the words that argparse does not know, `--config.a.b=value` or `--sweep.a.b=values`.

    A space may replace the `=`.
    """
    joined = list[str]()
    for word in words:
        if joined and joined[-1].startswith(FIELDS) and "=" not in joined[-1] and not word.startswith("--"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    for word in joined:
        name = word.partition("=")[0]
        if not name.startswith(FIELDS) or not name.isprintable():
            raise ConfigError(
                f"unknown argument {word if word.isprintable() else repr(word)}:"
                " fields of the config are set as --config.NAME=VALUE (see --help)"
            )
        if "=" not in word:
            raise ConfigError(f"{name} has no value: write {name}=VALUE")
    return joined


def is_pretrained(workdir: str | None) -> bool:
    """Return whether --workdir is `hf:FOLDER` or `hf:NAME`, a Hugging Face model instead of a run."""
    return workdir is not None and workdir.startswith("hf:")


def workdir_path(flags: argparse.Namespace) -> pathlib.Path:
    """Return --workdir, by default the current folder; for a folder in a bucket, its working copy.

    Raises:
      ConfigError: it is empty, or a URL of something other than a bucket.
    """
    text = flags.workdir
    if text is not None and not text.strip():
        raise ConfigError("--workdir= is empty: give the run's folder, which need not exist yet")
    if storage.is_url(text):
        return storage.open_copy(text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text or ""):
        raise ConfigError(f"--workdir={text} is a URL: give a local folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
    return user_path("--workdir", text or ".")


def run_folders(text: str) -> list[pathlib.Path]:
    """Return the folders that --runs names, each once; commas separate names, except within double quotes.

    Raises:
      ConfigError: there is no name, or a name with a * fits no folder of a run.
    """
    folders: list[pathlib.Path] = []
    for name in filter(None, next(csv.reader([text], skipinitialspace=True), [])):
        if storage.is_url(name):
            runs = [storage.open_copy(url) for url in storage.match_folders(name, "config.json")]
        elif "*" in name and not (path := user_path("--runs", name)).exists():
            runs = [pathlib.Path(file).parent for file in sorted(glob.glob(str(path / "config.json")))]
        else:
            runs = [user_path("--runs", name)]
        if not runs:
            raise ConfigError(f"--runs={name}: no folder of this name holds a run (a config.json)")
        folders += runs
    if not folders:
        raise ConfigError("--runs= is empty: give folders of runs, --runs=A,B,C")
    return list(dict.fromkeys(folders))


def user_path(flag: str, text: str) -> pathlib.Path:
    """Return the path that a flag names, with `~` expanded; raise ConfigError if there is no such user.

    An --output in a bucket has a path whose content is uploaded at the end; another file there has a local copy.
    """
    if storage.is_url(text):
        return storage.outbox(text) if flag == "--output" else storage.local(text)
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{flag}={text}: there is no such user's home folder") from None


def require_writable(flags: argparse.Namespace, output: pathlib.Path | None) -> None:
    """Raise ConfigError, before anything is computed, if the store refuses what the mode writes to a bucket."""
    if flags.mode not in WRITING:
        return
    try:
        storage.require_writable(output or workdir_path(flags))
    except ConfigError as error:
        hint = "; or write elsewhere, with --output=PATH" if output is None and flags.mode != "watch" else ""
        raise ConfigError(f"{error}{hint}") from error


def _check_once(arguments: Sequence[str]) -> None:
    """Refuse a flag that is given twice; for a config field, the last value counts."""
    flags = [
        word.partition("=")[0] for word in arguments if word.startswith("--") and "." not in word.partition("=")[0]
    ]
    if twice := [flag for flag in flags if flags.count(flag) > 1]:
        raise ConfigError(f"{twice[0]} is given {flags.count(twice[0])} times: give it once")
