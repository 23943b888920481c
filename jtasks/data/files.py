"""Finding, downloading and reading data files without trusting their contents.

A file is either whole or absent: downloads are checked by hash and renamed into place. Archives are read in memory and
never unpacked to disk, and the unpacked size of archives and compressed files is bounded.
"""

import codecs
import gzip
import hashlib
import io
import os
import pathlib
import posixpath
import stat
import sys
import tarfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jtasks import storage
from jtasks.errors import DataError
from jtasks.storage import cache_folder
from jtasks.writing import write_file

NUMERIC = "biuf"  # kinds of dtypes accepted from a file; an object would be followed as a pointer
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")  # gzip, bz2, xz, zstd, zip
LIMIT = 1 << 30  # maximum bytes of a download or of uncompressed data


def data_folder(folder: str | None) -> pathlib.Path:
    """Return the data folder: `folder` (config.data.dir), else $JTASKS_DATA, else the user's cache folder.

    The folder need not exist: a download creates it. Of a folder in a bucket, returns a local copy.
    """
    chosen = folder or os.environ.get("JTASKS_DATA")
    return storage.local(chosen) if chosen else cache_folder()


def places(folder: pathlib.Path | None, kind: str, name: str) -> list[pathlib.Path]:
    """Return where a file that is made once may lie: beside the data, else in the user's cache folder."""
    return [place / kind / name for place in (folder, cache_folder()) if place is not None]


def store(paths: Sequence[pathlib.Path], content: bytes, what: str) -> pathlib.Path:
    """Write a file to the first of the places that can be written, and return that place; DataError for none."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, content)
            return path
        except OSError as error:  # a read-only folder of shared data
            reason = error
    raise DataError(
        f"the {what} cannot be stored beside the data or in the user's cache folder ({reason}):"
        " set XDG_CACHE_HOME to a folder that can be written"
    )


def identity(paths: Sequence[pathlib.Path], *options: object) -> str:
    """Hash the files' paths, sizes and times, and how they are read."""
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.blake2b(repr((stamps, options)).encode(), digest_size=16).hexdigest()


def find(names: Iterable[str], folders: Iterable[pathlib.Path]) -> pathlib.Path | None:
    """Return the path of the first of `names` in the first of `folders` that has any, or None."""
    names = tuple(names)
    paths = (folder / name for folder in folders for name in names)
    return next((path for path in paths if path.exists()), None)


def fetch(
    name: str,
    known_hash: str,
    mirrors: Sequence[str],
    folder: pathlib.Path,
    looked_for: Sequence[str] = (),
    searched: Sequence[pathlib.Path] = (),
) -> pathlib.Path:
    """Download `name` from the first of `mirrors` that serves it intact, and return its path in `folder`.

    A temporary file is renamed to `name` only after its hash is verified. Concurrent downloads each rename a whole file
    over an equal one, and a failure leaves nothing behind.

    Args:
      name: name of the file, both after the mirror's address and in `folder`.
      known_hash: such as `md5:f68b...`.
      mirrors: addresses that end in a slash, tried in order.
      folder: folder of the file; created if absent.
      looked_for: names that would have made the download needless, for the message.
      searched: folders that were searched for these names, for the message.

    Raises:
      DataError: no mirror served the file; lists each mirror's answer and what to do.
    """
    failures = []
    for mirror in mirrors:
        try:
            return _download(mirror + name, known_hash, folder, name)
        except (OSError, ValueError) as error:  # requests raises subclasses of OSError, pooch ValueError for a hash
            failures.append(f"{mirror}{name}: {type(error).__name__}: {' '.join(str(error).split())}")
    lines = [
        f"cannot find or download {name}",
        f"  looked for: {', '.join(looked_for or [name])}",
        f"  in: {', '.join(str(path) for path in searched or [folder])}",
        *(f"  tried: {failure}" for failure in failures),
        f"  what to do: put the file into {folder}, or set config.data.dir or $JTASKS_DATA to the folder that "
        "holds it, or check the network and run the same command again",
    ]
    raise DataError("\n".join(lines))


def _download(url: str, known_hash: str, folder: pathlib.Path, name: str) -> pathlib.Path:
    """Try to download from one address."""
    import pooch

    pooch.get_logger().setLevel("ERROR")
    if sys.stderr.isatty():
        print(f"downloading {url} to {folder}", file=sys.stderr)
    path = pathlib.Path(pooch.retrieve(url, known_hash, fname=name, path=folder, downloader=_get))
    path.chmod(0o644)  # temporary files are private, but a folder of data is often shared
    return path


def _get(url: str, output: str, _: Any) -> None:
    """Write up to LIMIT bytes from `url` to the file `output`."""
    import requests

    size = 0
    with requests.get(url, stream=True, timeout=30) as response, open(output, "wb") as file:
        response.raise_for_status()
        for part in response.iter_content(1 << 20):
            if (size := size + len(part)) > LIMIT:
                raise ValueError(f"more than {LIMIT:,} bytes")
            file.write(part)


def read(path: pathlib.Path, limit: int | None = None) -> bytes:
    """Read the bytes of a file.

    Raises:
      DataError: the file cannot be read, is a pipe or a device, or holds more than `limit` bytes.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            raise DataError(f"{path} is not a regular file; put the file itself there")
        if limit is not None and status.st_size > limit:
            raise DataError(f"{path} holds {status.st_size:,} bytes; expected at most {limit:,}: get the official file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; put the file there or make it readable") from error


def stream(path: pathlib.Path) -> Iterator[bytes]:
    """Yield the lines of a file, each with its LF, as they are asked for; DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; put the file there or make it readable") from error


def array(path: pathlib.Path) -> np.ndarray:
    """Map the array of a .npy file into memory.

    Raises:
      DataError: the file is not .npy, is shorter than its header says, or holds anything but numbers.
    """
    try:
        if not path.is_file():
            raise ValueError("not a regular file")
        values = np.lib.format.open_memmap(path, "r")
    except Exception as error:  # headers are parsed as Python, so anything can be wrong with them
        raise DataError(
            f"{path} cannot be read ({error}); expected one array of numbers as numpy.save writes"
        ) from error
    if values.dtype.kind not in NUMERIC:
        raise DataError(f"{path} holds {values.dtype}; expected numbers")
    return values


def is_plain(name: object) -> bool:
    """Return whether `name` is a plain file name, without path parts or control characters."""
    if not isinstance(name, str) or not name.isprintable() or name in ("", ".."):
        return False
    return pathlib.PurePath(name).name == name and "\\" not in name


def decode(data: bytes, where: str, line: int = 1) -> str:
    """Decode UTF-8 text without its byte order mark; line ends stay as they are.

    Args:
      data: bytes of the text.
      where: name of the file, for errors.
      line: number of the first line, for errors.

    Raises:
      DataError: a byte is not UTF-8, or is zero.
    """
    if line == 1 and data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{where} is in UTF-16 or UTF-32: expected text in UTF-8; convert it, such as by iconv -t UTF-8"
        )
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
        wrong, reason = data.find(0), "a zero byte"
    except UnicodeDecodeError as error:
        wrong, reason = error.start, f"byte {error.start} is not UTF-8, {error.reason}"
    if wrong >= 0 and line == 1 and data.startswith(COMPRESSED):
        raise DataError(f"{where} is a compressed file: expected text in UTF-8; unpack it first")
    if wrong >= 0:
        place = f"{where}, line {line + data.count(10, 0, wrong)}"
        raise DataError(f"{place}: {reason}; expected text in UTF-8: convert the file or get it again")
    return text


def gunzip(data: bytes, path: pathlib.Path, limit: int) -> bytes:
    """Decompress a gzip file's bytes `data`.

    Raises:
      DataError: the file is damaged, or unpacks to more than `limit` bytes.
    """
    parts, size = [], 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while part := file.read(1 << 20):
                parts.append(part)
                if (size := size + len(part)) > limit:
                    raise DataError(f"{path} unpacks to more than {limit:,} bytes; get the official file")
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{path} is truncated or corrupt ({error}); expected a whole gzip file: "
            "delete it and run again to download it again"
        ) from error
    return b"".join(parts)


def read_members(archive: pathlib.Path, wanted: Collection[str], limit: int = LIMIT) -> dict[str, bytes]:
    """Read the `wanted` members of a .tar.gz archive of at most `limit` bytes; returns bytes by name.

    Raises:
      DataError: the archive is corrupt, lacks a member, is too large, or has a member outside its folder.
    """
    contents = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(gunzip(read(archive, limit), archive, limit)), mode="r:") as tar:
            for member in tar:
                _check_member(archive, member)
                name = posixpath.normpath(member.name)
                stream = tar.extractfile(member) if name in wanted else None
                if stream is not None:
                    contents[name] = stream.read()
    except DataError:
        raise
    except Exception as error:  # headers of members can be wrong in many ways
        raise DataError(
            f"{archive} is truncated or corrupt ({error}); delete it and run again to download it again"
        ) from error
    absent = sorted(set(wanted) - set(contents))
    if absent:
        raise DataError(f"{archive} lacks {', '.join(absent)}; is it another archive under this name?")
    return contents


def _check_member(archive: pathlib.Path, member: tarfile.TarInfo) -> None:
    """Refuse members that could point outside the archive's folder, even though nothing is unpacked to disk."""
    path = pathlib.PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{archive}: member {member.name!r} leaves the archive's folder; get the official archive")
    if not (member.isfile() or member.isdir()) or member.issparse():  # a sparse member holds more than the archive
        raise DataError(f"{archive}: member {member.name!r} is a link, a device or sparse; get the official archive")
