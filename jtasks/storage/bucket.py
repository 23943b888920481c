"""Objects of a bucket: list, read, write, create if absent, remove; with patience for a server that does not answer.

Each operation takes a URL, `s3://bucket/key` or `gs://bucket/key`, and goes through fsspec: s3fs and gcsfs take
credentials and endpoint from where the vendors' own tools take them. What each may raise, `attempts` says.
"""

import concurrent.futures
import contextlib
import fnmatch
import functools
import inspect
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from jtasks.errors import ConfigError, StorageError
from jtasks.storage import attempts
from jtasks.storage.attempts import NO_BUCKET, NO_STORE, RAISE

T = TypeVar("T")

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
AT_ONCE = 16  # transfers at the same time
TRIAL = ".writable.tmp"  # no working copy takes an object of this name


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


def listing(url: str, patience: float | None = None, *, is_folder: bool = False) -> dict[str, Object]:
    """Return all objects below a folder by name relative to it; {"": ...} if the address is of one object.

    Leaves out names that are no paths below the folder, such as `a//b` and `../a`. With `is_folder`, does not look for
    an object of this name, which takes two more requests if the folder is empty.
    """

    def objects() -> dict[str, Object]:
        store, path = _open(url)
        parent, slash, name = path.rpartition("/")
        alone = is_folder and slash
        entries = store.find(parent if alone else path, detail=True, prefix=f"{name}/" if alone else "")
        # `folder/` is an object of the vendors' consoles, which says that somebody made the folder.
        files = {str(name): info for name, info in entries.items() if info["type"] == "file" and name[-1:] != "/"}
        names = {name.removeprefix(path): info for name, info in files.items()}
        return {name.removeprefix("/"): _object(info) for name, info in names.items() if name[:1] in ("", "/")}

    # Of an empty folder both stores say that it is empty; what is missing is the bucket.
    below = _attempt(url, "listed", objects, absent=NO_BUCKET, patience=patience)
    return {name: object_ for name, object_ in below.items() if not name or is_below(name)}


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
        return files.cat_file(path, max_concurrency=1)  # else S3 is asked for the size first

    return _attempt(url, "read", content, absent=None)


def write(url: str, content: bytes, patience: float | None = None) -> None:
    """Write an object, which is replaced as a whole."""

    def pipe() -> None:
        files, path = _open(url)
        files.pipe_file(path, content)

    _attempt(url, "written", pipe, absent=NO_BUCKET, patience=patience)


def require_writable(folder: str) -> None:
    """Raise ConfigError if the store refuses to write below a folder, by an object that is removed again."""

    def pipe() -> None:
        files, path = _open(f"{folder}/{TRIAL}")
        files.pipe_file(path, b"")

    _attempt(folder, "written to", pipe, absent=NO_BUCKET)
    with contextlib.suppress(ConfigError, StorageError):  # keys that may not delete leave this one empty object
        remove(f"{folder}/{TRIAL}", 0)


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

    return _attempt(url, "written", pipe, absent=NO_BUCKET) or read(url) == content


def remove(url: str, patience: float | None = None) -> None:
    """Remove an object, if there is one."""

    def delete() -> None:
        files, path = _open(url)
        files.rm_file(path)

    _attempt(url, "removed", delete, absent=None, patience=patience)


def upload(path: pathlib.Path, url: str, patience: float | None = None) -> None:
    """Write a local file as an object, which appears as a whole."""

    def put() -> None:
        files, key = _open(url)
        files.put_file(str(path), key)

    _attempt(url, "written", put, absent=NO_BUCKET, patience=patience)


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
        _attempt(url, "read", get)
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
        # Listings are not cached, `attempts` does the retries, and each new connection reads the credentials again.
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
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
    else:  # its own six tries take half a minute
        from gcsfs.retry import retry_request  # type: ignore[import-untyped]

        for name in ("_request", "_get_file_request"):
            few = retry_request(retries=2)(inspect.unwrap(getattr(type(files), name)))
            setattr(files, name, functools.partial(few, files))
    return files


def _attempt(url: str, verb: str, action: Callable[[], T], *, absent: Any = RAISE, patience: float | None = None) -> T:
    """Call `attempts.attempt`; after a refusal the next operation reads the credentials again."""
    try:
        return attempts.attempt(url, verb, action, absent=absent, patience=patience)
    except ConfigError:
        _filesystem.cache_clear()
        raise


def _is_refusal(error: OSError) -> bool:
    """Return whether the store refused to write because there is an object."""
    return isinstance(error, FileExistsError) or bool(
        re.search("PreconditionFailed|pre-?conditions?|ConditionalRequestConflict|\\b412\\b", str(error), re.I)
    )


def _object(info: dict[str, Any]) -> Object:
    version = info.get("generation") or info.get("ETag") or info.get("etag") or info.get("LastModified")
    if not version:
        raise OSError(NO_STORE)
    return Object(int(info["size"]), str(version).strip('"'))
