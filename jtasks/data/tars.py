"""Members of .tar archives by their offsets, for random access without unpacking."""

import bz2
import functools
import gzip
import lzma
import pathlib
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from jtasks.data import files
from jtasks.errors import DataError
from jtasks.writing import writer

Index = dict[str, tuple[int, int]]  # offset and size of each member by name

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")


def is_archive(path: pathlib.Path) -> bool:
    """Return whether a file is a .tar archive, perhaps compressed, by its name."""
    return path.name.lower().endswith(SUFFIXES)


def uncompressed(path: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """Return the path of an archive's uncompressed .tar, which is made once beside the data.

    Raises:
      DataError: the file is no archive, is damaged, or unpacks to more than `files.LIMIT` bytes.
    """
    if not is_archive(path):
        raise DataError(f"{path} is not an archive: expected one of {', '.join(SUFFIXES)}, or a folder")
    if path.name.lower().endswith(".tar"):
        return path
    places = files.places(root, "prepared", f"archive-{files.identity([path])}.tar")
    return next((place for place in places if place.is_file()), None) or _copy(path, places)


def index(path: pathlib.Path) -> Index:
    """Return offset and size of each regular file in a .tar by its name; read once while the archive stays the same.

    Raises:
      DataError: the archive is damaged, or empty.
    """
    return _index(path, files.identity([path]))


def read(path: str, offset: int, size: int) -> bytes:
    """Read one member; DataError if the archive cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; put the archive there") from error


@functools.lru_cache(maxsize=8)
def _index(path: pathlib.Path, identity: str) -> Index:
    members, size = Index(), path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                if member.isfile() and not member.issparse():
                    members[posixpath.normpath(member.name)] = member.offset_data, member.size
    except Exception as error:  # headers of members can be wrong in many ways
        raise DataError(f"{path} is truncated or corrupt ({error}); get the archive again") from error
    if not members:
        raise DataError(f"{path} holds no files; expected pictures")
    return members


def _copy(path: pathlib.Path, places: list[pathlib.Path]) -> pathlib.Path:
    """Write the uncompressed archive to the first of the places that can be written."""
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with writer(place) as file:
                for part in _decompress(path):
                    file.write(part)
            return place
        except OSError as error:  # a read-only folder of shared data
            reason = error
    raise DataError(f"{path} can be unpacked neither beside the data nor into the user's cache folder: {reason}")


def _decompress(path: pathlib.Path) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file, up to `files.LIMIT`."""
    kind, size = path.name.lower(), 0
    module: Any = gzip if kind.endswith("gz") else lzma if kind.endswith("xz") else bz2
    try:
        with module.open(path) as file:
            while part := file.read(1 << 20):
                if (size := size + len(part)) > files.LIMIT:
                    raise DataError(f"{path} unpacks to more than {files.LIMIT:,} bytes; if you trust it, unpack it")
                yield part
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} is truncated or corrupt ({error}); get the archive again") from error
