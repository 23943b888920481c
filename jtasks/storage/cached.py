"""Files and folders in a bucket as local paths: downloaded into the user's cache folder, and again when they change."""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator

from jtasks.errors import printable
from jtasks.storage import bucket, copies
from jtasks.writing import write_file


def cache_folder() -> pathlib.Path:
    """Return the folder for data that can be rebuilt: `jtasks` in $XDG_CACHE_HOME or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache).expanduser() / "jtasks"


def local(text: str | pathlib.Path) -> pathlib.Path:
    """Return a user's path, with `~` expanded; for a file or folder in a bucket, the path of a whole local copy.

    The copy is compared with the bucket once in a process: only what has changed is downloaded. Where there is neither
    file nor folder, the path does not exist.

    Raises:
      ConfigError: the bucket does not exist, or the credentials are refused.
      StorageError: the server does not answer.
    """
    if not bucket.is_url(text):
        return pathlib.Path(text).expanduser()
    url = bucket.tidy(str(text))
    return copies.inside(url) or _download(url)


def match_files(pattern: str) -> list[pathlib.Path]:
    """Return local copies of the objects that an address with `*` fits, sorted; [] for any other text."""
    if not (bucket.is_url(pattern) and "*" in pattern):
        return []
    url, names = bucket.split_pattern(pattern)
    folder = _download(url, names)
    return sorted(folder / name for name in bucket.listing(url) if bucket.fits(name, names))


def match_folders(pattern: str, file: str) -> list[str]:
    """Return the addresses of the folders with a file of this name that a pattern fits, sorted; itself without `*`."""
    url, names = bucket.split_pattern(pattern)
    if not names:
        return [url]
    items = [item for item in bucket.listing(url) if bucket.fits(item, f"{names}/{file}")]
    return sorted(f"{url}/{item.removesuffix(f'/{file}')}" for item in items)


@functools.cache
def _download(url: str, pattern: str = "") -> pathlib.Path:
    """Download what is new below the address and fits the pattern; returns the address's path in the cache."""
    scheme, _, name = url.partition("://")
    root = cache_folder() / "buckets"
    path = root / scheme / name
    copies.name(root / scheme, f"{scheme}://", below=True)
    objects = bucket.listing(url)
    if pattern:
        objects = {item: object_ for item, object_ in objects.items() if bucket.fits(item, pattern)}
    elif any(item.startswith("checkpoints/") for item in objects):
        return copies.open_copy(url)  # a run, whose tokenizer or parameters are wanted: not all its checkpoints
    if "" in objects:  # an object; below its name there may be others
        objects = {"": objects[""]}
    digest = hashlib.blake2b(repr((name, pattern)).encode(), digest_size=16).hexdigest()
    with _index(root / scheme / ".versions" / f"{digest}.json") as known:
        stale = [
            item for item, object_ in objects.items() if known.get(item) != [*object_] or not (path / item).is_file()
        ]
        if size := sum(objects[item].size for item in stale):
            _tell(f"downloading {len(stale):,} files, {size / 1e6:,.1f} MB, from {url}")
        for item in {*known} - {*objects}:
            (path / item).unlink(missing_ok=True)
            del known[item]
        for item, _ in zip(
            stale, bucket.each(functools.partial(_fetch, url, path), ((i,) for i in stale)), strict=True
        ):
            known[item] = [*objects[item]]
    return path


def _fetch(url: str, path: pathlib.Path, item: str) -> None:
    target = path / item if item else path
    bucket.download(f"{url}/{item}" if item else url, target)


@contextlib.contextmanager
def machine_lock(name: str) -> Iterator[None]:
    """Let one process of this machine at a time run the block."""
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "a") as file:
        with contextlib.suppress(OSError):  # a file system without locks: two processes do the same work
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _index(path: pathlib.Path) -> Iterator[dict[str, list[object]]]:
    """Hold the list of what was downloaded, alone on this machine, and write it at the end, also after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "a") as file:
        with contextlib.suppress(OSError):  # a file system without locks: two processes download the same twice
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            known = json.loads(path.read_bytes())
        except (OSError, ValueError):
            known = {}
        known = known if isinstance(known, dict) else {}
        before = json.dumps(known)
        try:
            yield known
        finally:
            if json.dumps(known) != before:
                write_file(path, json.dumps(known))


def _tell(text: str) -> None:
    if sys.stderr is not None:
        print(printable(text), file=sys.stderr, flush=True)
