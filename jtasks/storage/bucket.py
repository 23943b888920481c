"""Objects of a bucket: list, read, write, create if absent, remove; with patience for a server that does not answer.

Each operation takes a URL, `s3://bucket/key` or `gs://bucket/key`, and goes through fsspec: s3fs and gcsfs take
credentials and endpoint from where the vendors' own tools take them.
"""

import concurrent.futures
import fnmatch
import functools
import logging
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from jtasks.errors import ConfigError, StorageError, printable

T = TypeVar("T")

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
AT_ONCE = 16  # transfers at the same time
PATIENCE = "JTASKS_PATIENCE"  # environment variable: seconds
LONGEST_PAUSE = 10.0  # seconds between two tries


class Object(NamedTuple):
    """What a listing says of an object."""

    size: int
    version: str  # changes with the content


def is_url(text: object) -> bool:
    """Return whether the text is the address of a bucket, or of a folder or file in it.

    >>> is_url("s3://bucket/run"), is_url("gs://bucket"), is_url("runs/s3")
    (True, True, False)
    """
    return isinstance(text, str) and text.startswith(("s3://", "gs://"))


def tidy(url: str) -> str:
    """Return the address without a slash at its end, and with single slashes.

    Raises:
      ConfigError: there is no bucket, or a part is `.` or `..`.

    >>> tidy("s3://bucket//run/")
    's3://bucket/run'
    """
    scheme, _, rest = url.partition("://")
    parts = [part for part in rest.split("/") if part]
    if not parts or rest.startswith("/") or {".", ".."} & {*parts}:
        raise ConfigError(f"{url}: expected {scheme}://BUCKET/FOLDER, without . and .. in it")
    return f"{scheme}://{'/'.join(parts)}"


def listing(url: str, patience: float | None = None) -> dict[str, Object]:
    """Return all objects below a folder by name relative to it; {"": ...} if the address is of one object.

    Leaves out names that are no paths below the folder, such as `a//b` and `../a`.
    """

    def entries() -> dict[str, Any]:
        files, path = _open(url)
        return files.find(path, detail=True)

    path = _path(url)
    below = _patiently(url, entries, absent={}, patience=patience)
    names = {str(name).removeprefix(path): info for name, info in below.items() if info["type"] == "file"}
    objects = {name.removeprefix("/"): _object(info) for name, info in names.items() if name[:1] in ("", "/")}
    return {name: object_ for name, object_ in objects.items() if not name or is_below(name)}


def split_pattern(url: str) -> tuple[str, str]:
    """Split a pattern into the folder above its first `*` and the rest, which is "" without a `*`.

    >>> split_pattern("s3://bucket/runs/*/config.json")
    ('s3://bucket/runs', '*/config.json')
    """
    parts = tidy(url).split("/")
    first = next((i for i, part in enumerate(parts) if "*" in part), len(parts))
    if first < 3:
        raise ConfigError(f"{url}: a * can stand for folders and files, not for buckets")
    return "/".join(parts[:first]), "/".join(parts[first:])


def fits(name: str, pattern: str) -> bool:
    """Return whether a name fits a pattern, in which `*` stands for anything but a slash and `**/` for folders.

    >>> [fits("a/b.txt", pattern) for pattern in ("*/*.txt", "*.txt", "**/*.txt")]
    [True, False, True]
    """
    head, _, rest = pattern.partition("/")
    part, slash, tail = name.partition("/")
    if head == "**" and rest:
        return fits(name, rest) or (bool(slash) and fits(tail, pattern))
    if bool(slash) != bool(rest) or not fnmatch.fnmatchcase(part, head):
        return False
    return not rest or fits(tail, rest)


def is_below(name: str) -> bool:
    """Return whether an object's name is a path below the folder, on every local file system."""
    parts = name.split("/")
    return all(part not in ("", ".", "..") and "\0" not in part and len(part.encode()) < 256 for part in parts)


def read(url: str) -> bytes | None:
    """Return the content of an object; None if there is no such object."""

    def content() -> bytes:
        files, path = _open(url)
        return files.cat_file(path)

    return _patiently(url, content, absent=None)


def write(url: str, content: bytes, patience: float | None = None) -> None:
    """Write an object, which is replaced as a whole."""

    def pipe() -> None:
        files, path = _open(url)
        files.pipe_file(path, content)

    _patiently(url, pipe, absent=_NO_BUCKET, patience=patience)


def create(url: str, content: bytes) -> bool:
    """Write an object unless there is one; return whether it was written. Of several at once, one succeeds.

    The content must be unique: an answer that was lost is recognized by it.
    """

    def pipe() -> bool:
        files, path = _open(url)
        try:
            files.pipe_file(path, content, mode="create")
        except OSError as error:
            if _is_refusal(error):
                return False
            raise
        return True

    return _patiently(url, pipe, absent=_NO_BUCKET) or read(url) == content


def remove(url: str, patience: float | None = None) -> None:
    """Remove an object, if there is one."""

    def delete() -> None:
        files, path = _open(url)
        files.rm_file(path)

    _patiently(url, delete, absent=None, patience=patience)


def upload(path: pathlib.Path, url: str, patience: float | None = None) -> None:
    """Write a local file as an object, which appears as a whole."""

    def put() -> None:
        files, key = _open(url)
        files.put_file(str(path), key)

    _patiently(url, put, absent=_NO_BUCKET, patience=patience)


def download(url: str, path: pathlib.Path) -> None:
    """Write an object as a local file, which appears as a whole.

    Raises:
      FileNotFoundError: there is no such object.
    """
    partial = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")

    def get() -> None:
        files, key = _open(url)
        partial.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(key, str(partial))

    try:
        _patiently(url, get)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def each(function: Callable[..., T], items: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Call a function with each item's arguments, some at the same time; raise the first error after all have ended."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE, "bucket") as pool:
        calls = [pool.submit(function, *item) for item in items]
        try:
            for call in calls:
                yield call.result()
        except BaseException:
            for call in calls:
                call.cancel()
            raise


def seconds_of_patience() -> float:
    """Return for how many seconds an operation is tried again: $JTASKS_PATIENCE, or 300."""
    text = os.environ.get(PATIENCE) or "300"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{PATIENCE}={text}: expected a number of seconds") from None


def _path(url: str) -> str:
    """Return bucket and key as fsspec names them."""
    return url.partition("://")[2].rstrip("/")


def _open(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of the address, and the path in it."""
    return _filesystem(url.partition("://")[0]), _path(url)


@functools.cache
def _filesystem(scheme: str) -> Any:
    try:
        import fsspec

        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks for each bucket's kind first
        # A listing must be of now, and trying again is done here.
        options: dict[str, Any] = {"use_listings_cache": False}
        if scheme == "s3":
            options["config_kwargs"] = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 1}}
        for name in ("gcsfs", "s3fs", "asyncio"):  # which repeat, with tracebacks, what reaches the caller
            logging.getLogger(name).setLevel(logging.CRITICAL)
        files = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs the package {PACKAGES[scheme]} ({error}): pip install 'jtasks[buckets]'"
        ) from error
    if scheme == "s3":
        files.retries = 1
    return files


_RAISE: Any = object()  # a missing object raises FileNotFoundError
_NO_BUCKET: Any = object()  # on a write, only the bucket can be missing


def _patiently(
    url: str,
    action: Callable[[], T],
    *,
    absent: Any = _RAISE,
    patience: float | None = None,
) -> T:
    """Return the action's result; a server that does not answer is tried again, for `patience` seconds.

    Args:
      url: for messages.
      action: what to do.
      absent: returned if there is no such object; by default FileNotFoundError is raised.
      patience: seconds; by default that of the environment.

    Raises:
      ConfigError: the bucket does not exist, or the credentials are refused.
      StorageError: the server does not answer.
    """
    limit = seconds_of_patience() if patience is None else patience
    begun, pause, told = time.monotonic(), 0.25, False
    while True:
        try:
            return action()
        except Exception as error:
            reason = _reason(error)
            if _is_local(error) or isinstance(error, ConfigError):
                raise
            missing = isinstance(error, FileNotFoundError)
            if _is_missing_bucket(error) or (missing and absent is _NO_BUCKET):
                raise ConfigError(f"{url}: there is no such bucket ({reason}): make it, or give another one") from error
            if missing and absent is _RAISE:
                raise FileNotFoundError(f"{url}: there is no such object") from error
            if missing:
                return absent
            if _is_denied(error):
                raise ConfigError(
                    f"{url} cannot be used ({reason}): check the credentials, which are found as the vendor's own tools"
                    " find them, and what they allow"
                ) from error
            if isinstance(error, TypeError | AttributeError | NameError):  # a fault of ours
                raise
            if time.monotonic() - begun + pause > limit:
                tried = f" for {limit:.0f} s" if limit else ""
                raise StorageError(
                    f"{url} could not be reached{tried} ({reason}): run the same command again once the store answers"
                ) from error
            if not told and limit:
                _tell(f"WARNING: {url} does not answer ({reason}): trying again for up to {limit:.0f} s")
            told = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _tell(text: str) -> None:
    if sys.stderr is not None:  # not by console.say: the processes of a run may not know each other yet
        print(printable(text), file=sys.stderr, flush=True)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 300 else f"{text[:297]}..."


def _is_local(error: BaseException) -> bool:
    """Return whether an error comes from the local disk, such as a full disk: it names a file."""
    return isinstance(error, OSError) and str(error.filename or "").startswith("/")


def _is_missing_bucket(error: BaseException) -> bool:
    return bool(re.search("bucket does not exist|NoSuchBucket|bucket.*not exist|Invalid bucket", str(error), re.I))


def _is_denied(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        names & {"PermissionError", "NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
        or re.search(r"\b40[13]\b|Unauthorized|Forbidden|InvalidAccessKeyId|SignatureDoesNotMatch", str(error))
    )


def _is_refusal(error: OSError) -> bool:
    """Return whether the store refused to write because there is an object."""
    return isinstance(error, FileExistsError) or bool(
        re.search("PreconditionFailed|pre-?conditions?|ConditionalRequestConflict|\\b412\\b", str(error), re.I)
    )


def _object(info: dict[str, Any]) -> Object:
    version = info.get("generation") or info.get("ETag") or info.get("etag") or info.get("LastModified")
    return Object(int(info["size"]), str(version).strip('"'))
