"""A working copy of a workdir in a bucket: a plain local folder, whose changes are sent to the bucket.

A copy begins with the small files of the run. What changes in it is uploaded in the order in which it was written: by a
thread while the lock is held, before a checkpoint counts, and at the end. So the bucket holds the same files that a
local run has, at each moment those of a local run that was killed a little earlier. A checkpoint is uploaded when it is
whole, its checksums last, and downloaded when it is read.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from jtasks.errors import ConfigError, StorageError
from jtasks.storage import bucket
from jtasks.storage.attempts import add_note
from jtasks.storage.lease import FOLDER, Lease, hold

PUSH = 10.0  # seconds between two uploads of what has changed; longer where uploading takes more than a tenth of it
CHECKPOINTS, MARK = "checkpoints", "checksums.json"  # a checkpoint without this file is not whole
UNSENT = "unsent-"  # before the step of a checkpoint that is whole here, and not in the bucket
# What no command reads back: it is uploaded only.
_WRITTEN = re.compile(
    r"(.*/)?((tensorboard|profile|export)/.+|(wandb|mlflow)/[^/]+/.+|(predictions|embeddings)-[^/]*|report\.html)"
)
_KEPT_HERE = re.compile(rf"({re.escape(FOLDER)}|\.processes|(.*/)?{CHECKPOINTS}|(.*/)?\.[^/]*\.tmp)(/.*)?|(.*/)?\.lock")


class Known(NamedTuple):
    """A file that is equal here and in the bucket."""

    version: str  # "" until a listing tells
    stamp: tuple[int, int]  # time of the last change in nanoseconds, size in bytes


class Copy:
    """One working copy: `path` has the content of `url`."""

    def __init__(self, url: str, path: pathlib.Path):
        self.url, self.path = url, path
        self.lease: Lease | None = None
        self.failed = False  # whether the last upload of changes was given up
        self._known: dict[str, Known] = {}
        self._guard = threading.RLock()

    def pull(self, patience: float | None = None) -> None:
        """Download the small files that are new in the bucket, and delete those that are gone there."""
        with self._guard:
            objects = bucket.listing(self.url, patience)
            if "" in objects and len(objects) == 1:
                raise ConfigError(f"--workdir={self.url} is a file: give a folder, which need not exist yet")
            wanted = {name: object_ for name, object_ in objects.items() if name and _is_pulled(name)}
            for name in [name for name in self._known if name not in wanted and not _WRITTEN.fullmatch(name)]:
                self._drop(name)
            stale = [name for name, object_ in wanted.items() if not self._has(name, object_)]
            jobs = [(f"{self.url}/{name}", self.path / name) for name in stale]
            for name, _ in zip(stale, bucket.each(bucket.download, jobs), strict=True):
                self._known[name] = Known(wanted[name].version, _stamp(self.path / name))

    def push(self, patience: float | None = None) -> None:
        """Upload what has changed here since it was equal, the oldest change first, and remove what was deleted here.

        Raises:
          StorageError: the server does not answer, or another run has taken the workdir over.
        """
        with self._guard:
            self._require()
            if not top_folder(self.path).is_dir():  # nobody has deleted its files one by one
                raise StorageError(f"the working copy of {self.url} in {top_folder(self.path)} was deleted: run again")
            stamps = {name: _stamp(self.path / name) for name in self._files()}
            changed = [
                name for name, stamp in stamps.items() if name not in self._known or self._known[name][1] != stamp
            ]
            for name in sorted(changed, key=lambda name: stamps[name]):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    bucket.upload(self.path / name, f"{self.url}/{name}", patience)
                    self._known[name] = Known("", stamps[name])
            for name in [name for name in self._known if name not in stamps and not _is_mark(name)]:
                bucket.remove(f"{self.url}/{name}", patience)
                del self._known[name]

    def send(self, folder: pathlib.Path, target: pathlib.Path, names: Iterable[str]) -> None:
        """Upload files of a folder as files of `target`."""
        url = f"{self.url}/{target.relative_to(self.path).as_posix()}"
        list(bucket.each(bucket.upload, [(folder / name, f"{url}/{name}") for name in names if name != MARK]))

    def publish(self, folder: pathlib.Path, *, whole: bool) -> None:
        """Upload a finished checkpoint, its checksums last, and free the local disk; see `publish`."""
        with self._guard:
            name = folder.relative_to(self.path).as_posix()
            try:
                self.push()
                if whole:
                    self.remove(folder)
                files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
                self.send(folder, folder, files)
                self._require()
                bucket.upload(folder / MARK, f"{self.url}/{name}/{MARK}")
            except BaseException:
                self.failed = True
                self._keep_unsent(folder, whole=whole)
                raise
            self.failed = False
            self._drop_unsent(folder.parent)
            self._known[f"{name}/{MARK}"] = Known("", _stamp(folder / MARK))
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != MARK:
                    path.unlink(missing_ok=True)

    def fetch(self, folder: pathlib.Path) -> None:
        """Download the files of a checkpoint that are not here."""
        with self._guard:
            url = f"{self.url}/{folder.relative_to(self.path).as_posix()}"
            objects = bucket.listing(url, is_folder=True)
            if MARK not in objects:  # deleted since, by the run that trains
                shutil.rmtree(folder, ignore_errors=True)
                return
            files = [name for name in objects if not (folder / name).exists()]
            try:
                list(bucket.each(bucket.download, ((f"{url}/{name}", folder / name) for name in files)))
            except FileNotFoundError:  # deleted meanwhile
                shutil.rmtree(folder, ignore_errors=True)

    def remove(self, folder: pathlib.Path) -> None:
        """Remove a checkpoint from the bucket: first the file that says that it is whole."""
        with self._guard:
            name = folder.relative_to(self.path).as_posix()
            self._known.pop(f"{name}/{MARK}", None)
            url = f"{self.url}/{name}"
            files = list(bucket.listing(url, is_folder=True))
            if MARK in files:
                bucket.remove(f"{url}/{MARK}")
            list(bucket.each(bucket.remove, ((f"{url}/{file}",) for file in files if file != MARK)))

    def set_aside(self) -> pathlib.Path:
        """Move the copy, with the checkpoint that could not be sent, to where nobody deletes it; returns its path."""
        for folder in self.path.glob(f"{CHECKPOINTS}/{UNSENT}*"):
            folder.rename(folder.with_name(folder.name.removeprefix(UNSENT)))
        top = top_folder(self.path)
        kept = top.rename(top.with_name(top.name.replace("copy", "unsent", 1)))
        return kept / self.path.relative_to(top)

    def unsent(self) -> list[str]:
        """Return the step of the newest checkpoint, if that could not be sent."""
        return [folder.name.removeprefix(UNSENT) for folder in self.path.glob(f"{CHECKPOINTS}/{UNSENT}*")]

    def _keep_unsent(self, folder: pathlib.Path, *, whole: bool) -> None:
        """Keep a checkpoint that could not be sent under a name that does not count, in place of an older one."""
        self._drop_unsent(folder.parent)
        if whole:
            with contextlib.suppress(OSError):
                folder.rename(folder.with_name(f"{UNSENT}{folder.name}"))
        shutil.rmtree(folder, ignore_errors=True)

    def _drop_unsent(self, folder: pathlib.Path) -> None:
        for path in folder.glob(f"{UNSENT}*"):
            shutil.rmtree(path, ignore_errors=True)

    def clear_unfinished(self, tell: Callable[[str], None]) -> None:
        """Remove the checkpoints in the bucket whose upload did not end, and say so."""
        objects = bucket.listing(f"{self.url}/{CHECKPOINTS}", is_folder=True)
        whole = {name.partition("/")[0] for name in objects if name.endswith(f"/{MARK}")}
        partial = [name for name in objects if name.partition("/")[0] not in whole]
        for step in sorted({name.partition("/")[0] for name in partial}):
            tell(f"{self.url}/{CHECKPOINTS}/{step} has no {MARK}, as its upload did not end: it is removed")
        list(bucket.each(bucket.remove, ((f"{self.url}/{CHECKPOINTS}/{name}",) for name in partial)))

    @contextlib.contextmanager
    def locked(self, started: str, on_loss: Callable[[], None], tell: Callable[[str], None]) -> Iterator[None]:
        """Hold the lock of the workdir in the bucket, and upload what changes meanwhile; see `locked`."""
        with hold(self.url, started, on_loss, tell) as lease:
            self.lease = lease
            ended = threading.Event()
            thread = threading.Thread(target=self._push_often, args=(ended, tell), name="push", daemon=True)
            self.pull()  # another run may have been here since the copy was made
            self.clear_unfinished(tell)
            thread.start()
            try:
                yield
            except BaseException as error:
                ended.set()
                thread.join()
                try:
                    self.push_last()
                except (StorageError, ConfigError) as failure:
                    add_note(error, str(failure))
                raise
            ended.set()
            thread.join()
            self.push_last()
        self.lease = None

    def push_last(self) -> None:
        """Upload what has changed, without patience if the last upload failed."""
        patience, self.failed = 0 if self.failed else None, True
        self.push(patience)
        self.failed = False

    def _push_often(self, ended: threading.Event, tell: Callable[[str], None]) -> None:
        pause, told = PUSH, False
        while not ended.wait(pause):
            begun = time.monotonic()
            try:
                self.push(patience=0)
                told = False
            except Exception as error:
                if not told:
                    tell(f"new records are not in {self.url} yet ({error}); training goes on")
                told = True
            pause = max(PUSH, 10 * (time.monotonic() - begun))

    def _require(self) -> None:
        if self.lease is not None:
            self.lease.require()

    def _has(self, name: str, object_: bucket.Object) -> bool:
        """Return whether the file here is the object in the bucket, or is newer."""
        known, path = self._known.get(name), self.path / name
        if known is None or known.stamp != _stamp(path):
            return path.is_file()
        if known.version == "" and known.stamp[1] == object_.size:  # as this process has sent it
            self._known[name] = known = known._replace(version=object_.version)
        return known.version == object_.version

    def _drop(self, name: str) -> None:
        del self._known[name]
        (self.path / name).unlink(missing_ok=True)
        if _is_mark(name):
            shutil.rmtree((self.path / name).parent, ignore_errors=True)

    def _files(self) -> list[str]:
        """Return the names of the regular files of the copy that belong into the bucket."""
        names = []
        for folder, folders, files in os.walk(self.path):
            base = pathlib.Path(folder).relative_to(self.path)
            folders[:] = [name for name in folders if not _KEPT_HERE.fullmatch((base / name).as_posix())]
            names += [(base / name).as_posix() for name in files]
        return [name for name in names if not _KEPT_HERE.fullmatch(name) and _is_regular(self.path / name)]


PREFIX = "jtasks-copy-"
_NEW = 60.0  # seconds in which a folder may not be locked yet


def new_folder() -> pathlib.Path:
    """Make an empty folder for a copy, and delete those that killed processes left.

    A lock on the folder says that its process lives, also to systemd, which deletes old files in /tmp.
    """
    for old in pathlib.Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _NEW and _lock(old):  # the descriptor ends with this process
                shutil.rmtree(old, ignore_errors=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX)) / "copy"
    folder.mkdir()
    _lock(folder.parent)
    return folder


def _lock(folder: pathlib.Path) -> bool:
    """Lock a folder for as long as this process lives; returns False if another process has locked it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    return True


def top_folder(path: pathlib.Path) -> pathlib.Path:
    """Return the temporary folder that holds a copy, of a path in the copy."""
    return next(parent for parent in path.parents if parent.name.startswith(PREFIX))


def _is_pulled(name: str) -> bool:
    if _is_mark(name):
        return True
    return not _WRITTEN.fullmatch(name) and not _KEPT_HERE.fullmatch(name) and not name.startswith(f"{FOLDER}/")


def _is_mark(name: str) -> bool:
    return bool(re.fullmatch(rf"(.*/)?{CHECKPOINTS}/[0-9]+/{re.escape(MARK)}", name))


def _is_regular(path: pathlib.Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    return 0, 0
