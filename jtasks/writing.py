"""Files that are whole or absent, and that no link leads elsewhere."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from jtasks.errors import ConfigError


def write_file(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, or leave what is there as it is."""
    with writer(path) as file:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


@contextlib.contextmanager
def writer(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` at the end of the block, if nothing was raised in it.

    It is written beside `path`, reaches the disk first, and replaces a link instead of following it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.unlink(missing_ok=True)  # of a killed process with the same number
    try:
        with open(partial, "xb", opener=no_link) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def require_writable(folder: pathlib.Path) -> None:
    """Make a folder, and see that files can be made in it; ConfigError otherwise, before anything is computed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to ({error.strerror}): give another one, --out=FOLDER") from None


def no_link(path: str, flags: int) -> int:
    """An `opener` of `open` that refuses a symbolic link at the end of the path with an OSError."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def check_name(name: Any, where: str, reserved: tuple[str, ...] = ()) -> None:
    """Refuse a name that a task gives a file unless it names a file of the folder itself.

    Args:
      name: of the file.
      where: it comes from, for the message.
      reserved: names that the run's own files have.

    Raises:
      ConfigError: it is empty, holds a path separator or a control character, or is reserved.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise ConfigError(f"{where} returned the name {name!r}; expected a file name without a folder")
    if name in reserved:
        raise ConfigError(f"{where} returned the name {name!r}, which a file of the run itself has; choose another")
