"""The working copies that this process has open, by paths in them; other paths are left alone."""

import atexit
import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator

from jtasks import errors
from jtasks.errors import ConfigError, StorageError
from jtasks.storage import attempts, bucket
from jtasks.storage.working_copy import Copy, new_folder, top_folder

_copies: dict[str, Copy] = {}


def open_copy(url: str) -> pathlib.Path:
    """Return the working copy of a workdir in a bucket, a path that exists only if the workdir holds a run.

    Raises:
      ConfigError: the bucket does not exist, the credentials are refused, or there is a file of this name.
      StorageError: the server does not answer.
    """
    url = bucket.tidy(url)
    if url not in _copies:
        copy = Copy(url, new_folder() / url.rpartition("/")[2])
        try:
            copy.pull()
        except BaseException:
            shutil.rmtree(top_folder(copy.path), ignore_errors=True)
            raise
        _register(copy, url)
    return _copies[url].path


def outbox(url: str) -> pathlib.Path:
    """Return a local path for a new file or folder, which `close` uploads to `url`; the store must answer now."""
    parent, _, name = bucket.tidy(url).rpartition("/")
    if parent.endswith(":/"):
        raise ConfigError(f"{url} is a bucket: give a file or a folder in it")
    bucket.listing(url)  # a wrong address is told before anything is computed
    copy = Copy(parent, new_folder())
    _register(copy, f"to {url}")
    return copy.path / name


def require_writable(path: pathlib.Path) -> None:
    """Raise ConfigError if the store refuses to write where a path in a working copy is sent."""
    if copy := _of(path):
        bucket.require_writable(copy.url)


def locked(
    folder: pathlib.Path, started: str, on_loss: Callable[[], None], tell: Callable[[str], None]
) -> contextlib.AbstractContextManager[None] | None:
    """Return a context that holds the lock of a workdir in a bucket and sends what changes; None for another folder."""
    copy = _of(folder)
    return None if copy is None else copy.locked(started, on_loss, tell)


def pull(path: pathlib.Path) -> None:
    """Download what is new in the bucket, if the path is in a working copy."""
    if copy := _of(path):
        copy.pull()


def refresh(path: pathlib.Path) -> None:
    """Download what is new in the bucket, unless this process's run is the one that writes there."""
    if (copy := _of(path)) and copy.lease is None:
        copy.pull()


def push(path: pathlib.Path) -> None:
    """Upload what has changed, if the path is in a working copy."""
    if copy := _of(path):
        copy.push()


def send(folder: pathlib.Path, target: pathlib.Path, names: Iterable[str]) -> None:
    """Upload this process's files of a checkpoint, as files of `target`, if they are in a working copy."""
    if copy := _of(folder):
        copy.send(folder, target, names)


def publish(folder: pathlib.Path, *, whole: bool = True) -> None:
    """Upload a finished checkpoint, if it is in a working copy, then delete its local files except the checksums.

    Args:
      folder: the checkpoint.
      whole: whether all its files are here; else other processes have sent theirs.

    Raises:
      StorageError: that failed; the local checkpoint is deleted, and the bucket's is not whole.
    """
    if copy := _of(folder):
        copy.publish(folder, whole=whole)


def fetch(folder: pathlib.Path) -> None:
    """Download what a checkpoint in a working copy lacks."""
    if copy := _of(folder):
        copy.fetch(folder)


def send_file(path: pathlib.Path) -> None:
    """Upload one file now, if it is in a working copy."""
    if url := url_of(path):
        bucket.upload(path, url)


def receive_file(path: pathlib.Path) -> None:
    """Bring one file of a working copy up to date with the bucket."""
    if url := url_of(path):
        content = bucket.read(url)
        path.unlink(missing_ok=True)
        if content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def remove_file(path: pathlib.Path) -> None:
    """Remove one file from the bucket, if it is in a working copy."""
    if url := url_of(path):
        with contextlib.suppress(StorageError, ConfigError):
            bucket.remove(url)


def remove(folder: pathlib.Path) -> None:
    """Remove a checkpoint from the bucket, if it is in a working copy; a failure leaves one more than needed."""
    if copy := _of(folder):
        try:
            copy.remove(folder)
        except (StorageError, ConfigError) as error:
            attempts.tell(f"WARNING: {url_of(folder)} is no longer needed and still there: {error}")


def inside(url: str) -> pathlib.Path | None:
    """Return the path of an address in an open working copy, if the copy has it."""
    for key, copy in _copies.items():
        path = copy.path / url.removeprefix(copy.url).removeprefix("/")
        if url == key or (url.startswith(f"{key}/") and path.exists()):
            return path
    return None


def url_of(path: pathlib.Path) -> str | None:
    """Return the address that a path in a working copy stands for."""
    copy = _of(path)
    return None if copy is None else "/".join([copy.url, *path.absolute().relative_to(copy.path).parts])


def shown(text: str) -> str:
    """Return a text with the addresses in the bucket instead of local paths."""
    return errors.replace_aliases(text)


def name(path: pathlib.Path, url: str, *, below: bool = False) -> None:
    """Let people see the address instead of the path; `below`, only of what lies below."""
    end = "/" * below
    errors.ALIASES[f"{path}{end}"] = f"{url.rstrip('/') if not below else url}"


@contextlib.contextmanager
def closing() -> Iterator[None]:
    """At the end of the block, upload what has changed in all working copies, and delete them.

    Raises:
      StorageError: something is not in the bucket; the message says where it is. An error of the block gets a note.
    """
    try:
        yield
    except BaseException as error:
        try:
            _close()
        except StorageError as failure:
            attempts.add_note(error, str(failure))
        raise
    _close()


def _close() -> None:
    problems = []
    while _copies:
        _, copy = _copies.popitem()
        try:
            if top_folder(copy.path).is_dir():
                copy.push_last()
            _delete(copy)
        except (StorageError, ConfigError) as error:
            problems.append(f"{error}\nwhat is not in the bucket is in {copy.set_aside()}")
    if problems:
        raise StorageError("\n".join(problems))


def _delete(copy: Copy) -> None:
    """Delete a copy; raises StorageError if it has a checkpoint that is not in the bucket."""
    for step in copy.unsent():
        raise StorageError(f"checkpoint {step} is not in {copy.url}")
    shutil.rmtree(top_folder(copy.path), ignore_errors=True)


def _register(copy: Copy, key: str) -> None:
    if not _copies:
        atexit.register(_discard)
    _copies[key] = copy
    name(copy.path, copy.url)


def _discard() -> None:
    for copy in _copies.values():
        try:
            _delete(copy)
        except StorageError as error:
            attempts.tell(f"WARNING: {error}: it is in {copy.set_aside()}")


def _of(path: pathlib.Path) -> Copy | None:
    for copy in _copies.values():
        if path.absolute().is_relative_to(copy.path):
            return copy
    return None
