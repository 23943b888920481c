"""Errors that a user can act on; the command line prints their message without a traceback.

Each message says what was wrong, where, what was expected and what to do next.
"""

import re

EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal, or a peer process is gone; run the same command again


def printable(text: str) -> str:
    r"""Escape `text` for a terminal, so that names and values from files cannot control the terminal.

    Escapes control characters except line feeds and tabs, marks of text direction, and lone surrogates.

    >>> print(printable("no file 'a\x1b[2Jb'"))
    no file 'a\x1b[2Jb'
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), replace_aliases(text))


ALIASES: dict[str, str] = {}  # local paths, and the addresses of buckets that people know them by


def replace_aliases(text: str) -> str:
    """Replace the local paths of working copies by the addresses that people gave."""
    for path, address in ALIASES.items():
        text = text.replace(path, address)
    return text


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class ConfigError(ValueError):
    """A wrong command, config or task module: exit code 2."""


class DataError(RuntimeError):
    """Corrupt, empty or unavailable data: exit code 1. (A missing path in the config is a ConfigError.)"""


class CheckpointError(RuntimeError):
    """An absent, damaged or unfitting checkpoint: exit code 1."""


class StorageError(OSError):
    """A bucket that does not answer: exit code 1."""


class DamagedError(CheckpointError):
    """A checkpoint whose files changed since the save, found while it was restored."""


class TrainingError(RuntimeError):
    """Training that cannot continue, for example after too many non-finite steps: exit code 1."""


class CheckError(RuntimeError):
    """A task that breaks the contract: exit code 1."""


class ClosedOutputError(RuntimeError):
    """Results went to stdout, and the pipe has no reader any more: exit code 141, without a message."""
