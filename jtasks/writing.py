"""Writing of files that are complete or absent, without following links."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from jtasks.errors import ConfigError


def write_file(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8; if that fails, an old file stays unchanged."""
    with writer(path) as file:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


@contextlib.contextmanager
def writer(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Open a binary file that gets the name `path` at the end of the block, unless the block raises.

    The file is written beside `path` and flushed to disk first; it replaces a link instead of following the link.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.unlink(missing_ok=True)  # left by a killed process with the same number
    try:
        with open(partial, "xb", opener=no_link) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # the error of a full disk has no file name
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def require_writable(folder: pathlib.Path) -> None:
    """Make a folder; raise ConfigError, before anything is computed, if files cannot be made there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written to ({error.strerror}): give another one, --output=FOLDER"
        ) from None


def no_link(path: str, flags: int) -> int:
    """Open a path for `open(opener=)`; raise OSError if the path ends in a symbolic link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def check_name(name: Any, where: str, reserved: tuple[str, ...] = ()) -> None:
    """Refuse a task's file name that leaves the folder.

    Args:
      name: the file's name.
      where: the origin of the name, for the message.
      reserved: names of the run's own files.

    Raises:
      ConfigError: the name is empty, holds a path separator or a control character, or is reserved.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise ConfigError(f"{where} returned the name {name!r}; expected a file name without a folder")
    if name in reserved:
        raise ConfigError(f"{where} returned the name {name!r}, which is a file of the run itself; choose another")
