"""Predictions and embeddings for the inputs of a file, a folder or a stream, written in order as they are ready."""

import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from jtasks.console import say, warn
from jtasks.data import inputs
from jtasks.errors import ConfigError, DataError
from jtasks.run import display, row_files, signals
from jtasks.run.activity import EVERY
from jtasks.run.inference import Run
from jtasks.writing import require_writable


def run(
    open_model: Callable[[], Run],
    source: str,
    *,
    function: str = "predict",
    kind: str | None = None,
    bare: bool = False,
    output: pathlib.Path | None = None,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Answer each input, and return the number of answers and of skipped inputs.

    Args:
      open_model: returns the model; called once the input and the output have been checked.
      source: file, folder or "-" for stdin, as for `inputs.read`.
      function: "predict" or "embed".
      kind, bare: format of the input, see `inputs.read`.
      output: file for the rows, see `row_files.open_rows`; None: stdout, which gets each row at once.
      skip_bad: name a bad input on stderr and go on. JSONL then has a row with its `error`; other formats leave it out.

    Raises:
      ConfigError: source or output are wrong.
      DataError: an input is bad, with its place, or all inputs are.
      ClosedOutputError: stdout is a pipe that nobody reads any more.
      Stopped: a signal came; nothing is left of the output file.
    """
    if output is not None:
        row_files.check_suffix(output, arrays=function == "embed")
        if source != inputs.STDIN and output.exists() and output.samefile(source):
            raise ConfigError(f"--output={output} is the --input: give another file, which keeps the inputs")
        require_writable(output.parent)
    reading = inputs.read(source, kind, bare=bare)
    model = open_model()
    model.watch = display.watcher()
    if source == inputs.STDIN and sys.stdin is not None and sys.stdin.isatty():
        say("type an input for an answer; Ctrl-D ends")
    with signals.raise_stopped(), row_files.open_rows(output) as write:
        keep_errors = output is None or output.suffix.lower() == ".jsonl"
        answers = _Answers(write, skip_bad=skip_bad, keep_errors=keep_errors)
        due = time.monotonic() + EVERY
        for index, result in model.stream(answers.values(reading), function, answers.skip):
            answers.add(index, result)
            if output is not None and time.monotonic() >= due:
                say(f"answers: {answers.count:,}")
                due = time.monotonic() + EVERY
        if not answers.count:
            raise DataError(f"each of the {answers.skipped} inputs is bad: see the messages above")
    return {"answers": answers.count, "skipped": answers.skipped}


class _Answers:
    """Writer of a row for each input, in the order of the inputs; errors that are known early wait for their turn."""

    def __init__(self, write: row_files.Write, *, skip_bad: bool, keep_errors: bool):
        self.write, self.skip_bad, self.keep_errors = write, skip_bad, keep_errors
        self.items: dict[int, inputs.Input] = {}  # inputs that have no row yet
        self.errors: dict[int, str] = {}  # of bad inputs whose turn has not come
        self.next = self.count = self.skipped = 0

    def values(self, reading: Iterator[inputs.Input]) -> Iterator[Any]:
        """Yield the values of the inputs, and remember the inputs until they have a row."""
        for index, item in enumerate(reading):
            self.items[index] = item
            yield item.given

    def add(self, index: int, result: dict[str, Any]) -> None:
        """Write the row of an input that has a result."""
        self._write(self.items.pop(index).fields, result)
        self.count += 1
        self._write_errors()

    def skip(self, index: int, error: DataError) -> None:
        """When its turn comes, report a bad input and write its row, or raise DataError."""
        place, text = self.items[index].place, str(error).removeprefix(f"input {index}: ")
        self.errors[index] = text if place in text else f"{place}: {text}"
        if self.skip_bad:
            warn(f"skipped: {self.errors[index]}")
            self.skipped += 1
        self._write_errors()

    def _write_errors(self) -> None:
        while self.next in self.errors:
            fields, text = self.items.pop(self.next).fields, self.errors.pop(self.next)
            if not self.skip_bad:
                raise DataError(f"{text}; --skip-bad goes on without it")
            if self.keep_errors:
                self._write(fields, {"error": text})
            else:
                self.next += 1

    def _write(self, fields: dict[str, Any], result: dict[str, Any]) -> None:
        self.write([row_files.join(self.next, fields, result)])
        self.next += 1
