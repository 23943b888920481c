"""Human-readable output on stderr, and streams that outlive their readers; stdout belongs to the result."""

import contextlib
import functools
import io
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from jtasks.errors import printable


class Lasting(io.TextIOWrapper):
    """A stream that discards all output after a failed write (its reader is gone, its disk is full).

    Attributes:
      error: of the failed write; None before.
    """

    error: OSError | None = None

    def write(self, text: str) -> int:
        """Write `text`, and return the number of characters."""
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Redirect the file descriptor to /dev/null, also for buffered output and for output of C++."""
        self.error = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def open_descriptors() -> None:
    """Open descriptors 0, 1 and 2 if closed: else a checkpoint's file gets such a number, and C++'s messages."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def settle() -> None:
    """Replace stdout and stderr by streams that outlive their readers and escape what their encoding lacks."""
    open_descriptors()
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old: Any = getattr(sys, name)
        binary = old.detach() if isinstance(old, io.TextIOWrapper) else open(descriptor, "wb", closefd=False)  # noqa: SIM115
        encoding = getattr(old, "encoding", None) or "utf-8"
        stream = Lasting(binary, encoding=encoding, errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def say(text: str) -> None:
    """Print `text` to stderr, on the run's first process only."""
    import jax

    if jax.process_index() == 0:
        print(fit(printable(text)), file=sys.stderr, flush=True)


@functools.lru_cache(maxsize=64)
def say_once(text: str) -> None:
    """Print `text`, but not again in this process."""
    say(text)


def warn(text: str) -> None:
    """Print `text` as a warning."""
    say(f"WARNING: {text}")


def fit(text: str) -> str:
    """Break the lines of a text between words, if stderr is a terminal, to its width."""
    if sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty():
        return text
    with contextlib.suppress(OSError, ValueError):
        width = int(os.environ.get("COLUMNS") or os.get_terminal_size(sys.stderr.fileno()).columns)
        return wrap_words(text, width) if width else text  # 0: the terminal does not know
    return text


def wrap_words(text: str, width: int) -> str:
    """Break the lines of a text between words, into lines of at most `width` columns."""
    return "\n".join(wrap(line.split(" "), width) for line in text.split("\n"))


def wrap(fields: Sequence[str], width: int, separator: str = " ") -> str:
    """Join fields into lines of at most `width` columns, broken between fields; a longer field has its own line.

    >>> print(wrap(["valid at 200:", "loss 1.482", "accuracy 0.6123"], 30))
    valid at 200: loss 1.482
      accuracy 0.6123
    """
    from rich.cells import cell_len

    lines = [""]
    for i, field in enumerate(fields):
        if i and lines[-1].strip() and cell_len(lines[-1] + separator + field) > width:
            lines.append(f"  {field}")
        else:
            lines[-1] += separator * bool(i) + field
    return "\n".join(lines)


def number(value: float) -> str:
    """Format `value` with four significant digits; very small and large values in exponent form.

    >>> [number(x) for x in (1.48213, 5210.4, 1e-5, 3, 0, float("nan"))]
    ['1.482', '5,210', '1e-05', '3', '0', 'nan']
    """
    size = abs(value)
    if math.isfinite(value) and size and not 1e-3 <= size < 1e9:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"
    return f"{value:,.0f}" if 999.95 <= size < 1e9 else f"{value:.4g}"


def format_si(value: float) -> str:
    """Format a large number with a metric prefix.

    >>> format_si(1.2345e12), format_si(950)
    ('1.23 T', '950')
    """
    power = min(int(math.log10(value) // 3), 6) if value >= 1000 else 0
    return f"{value / 1000**power:.3g} {' kMGTPE'[power]}".strip()


def metric(name: str, value: float) -> str:
    """Format a metric with its name.

    >>> metric("loss", 1.48213), metric("peak_memory_bytes", 12.3e9)
    ('loss 1.482', 'peak_memory 12.3 GB')
    """
    if name.endswith("_bytes") and value >= 1000:
        return f"{name.removesuffix('_bytes')} {format_si(value)}B"
    return f"{name} {number(value)}"
