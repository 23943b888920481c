"""Pictures by name: in a folder, in its subfolders or in a .tar archive, decoded on demand."""

import collections
import dataclasses
import functools
import os
import pathlib
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jtasks import storage
from jtasks.data import pictures, tars
from jtasks.errors import ConfigError, DataError

Place = str | tuple[int, int]  # path of a file; or offset and size in an archive
Wanted = Sequence[tuple[str, str]]  # names of pictures, and where each name stands

# Places of pictures beside the file that names them.
USUAL = (
    *("", "images", "images.tar", "pictures", "pictures.tar", "photos", "Images", "train", "valid", "val", "test"),
    *("train2014", "val2014", "test2014", "test2015", "train2017", "val2017", "test2017"),
    *("flickr30k-images", "flickr30k_images", "Flicker8k_Dataset"),
)
SAMPLE = 100  # pictures that decide between the usual places


@dataclasses.dataclass(frozen=True)
class PictureFiles:
    """Pictures by name, which any thread or process can read."""

    archive: str  # the .tar that holds them, or ""
    places: Mapping[str, Place] = dataclasses.field(repr=False)

    def decode(self, name: str) -> np.ndarray:
        """Decode a picture as `pictures.rgb` does: uint8 [h, w, 3].

        Raises:
          DataError: the picture is damaged or gone.
        """
        place = self.places[name]
        if isinstance(place, str):
            return pictures.decode(place)
        return pictures.decode_bytes(tars.read(self.archive, *place), f"{name} in {self.archive}")


def locate(
    wanted: Wanted, given: str, beside: pathlib.Path | tuple[pathlib.Path, str], root: pathlib.Path
) -> PictureFiles:
    """Find pictures by their names.

    Args:
      wanted: names, which may have folders, and for messages where each name stands.
      given: config.data.pictures, a folder or an archive, .tar or compressed. A picture has its name there; or it lies
        anywhere below, and no other picture there has its name. "": of the USUAL places in `beside`, in the folder that
        holds `beside` if that is called annotations, and in `root`, the one that has most of the first pictures.
      beside: folder of the file that names the pictures; or an archive, .tar, and a folder in it.
      root: data folder.

    Raises:
      ConfigError: there is no such folder or archive.
      DataError: a picture is missing, or several have its name; or the archive is damaged.
    """
    place, inside = beside if isinstance(beside, tuple) else (beside, "")
    if given:
        source, deep = _open(_given(given, root), root), True
    elif not place.is_dir():
        source, deep = _open(place, root, inside), True
    else:
        folders = dict.fromkeys([place, *([place.parent] if place.name == "annotations" else []), root])
        places = dict.fromkeys(folder / name for folder in folders for name in USUAL)
        sources = [_open(place, root) for place in places if place.is_dir() or (place.suffix and place.is_file())]
        source = max(sources, key=lambda source: sum(source.place(*item) is not None for item in wanted[:SAMPLE]))
        deep = False
    chosen = dict[str, Place]()
    for name, where in wanted:
        source_place = source.place(name, where, deep=deep)
        if source_place is None:
            looked = source.path if deep else f"{place} and usual places in it ({', '.join(USUAL[1:6])}, ...)"
            raise DataError(
                f"{where}: there is no picture {name!r}\n  looked in: {looked}\n  what to do: put it there, take its"
                " entry out of the file, or set config.data.pictures to the folder or .tar of the pictures"
            )
        chosen[name] = source_place
    return PictureFiles(source.archive, chosen)


def _given(name: str, root: pathlib.Path) -> pathlib.Path:
    places = (storage.local(name), root / name)
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise ConfigError(
            f"config.data.pictures={name!r}: there is no such folder or archive of pictures\n"
            f"  looked for: {', '.join(map(str, places))}"
        )
    return path


def _open(path: pathlib.Path, root: pathlib.Path, folder: str = "") -> "_Source":
    """Open a folder, or a folder in an archive."""
    if path.is_dir():
        return _Source(path)
    stored, start = tars.uncompressed(path, root), f"{folder}/" if folder else ""
    members = {name[len(start) :]: place for name, place in tars.index(stored).items() if name.startswith(start)}
    return _Source(path, str(stored), members)


class _Source:
    """A folder or an archive of pictures."""

    def __init__(self, path: pathlib.Path, archive: str = "", members: Mapping[str, tuple[int, int]] | None = None):
        self.path, self.archive, self.members = path, archive, members
        self.listing = functools.cache(_listing)  # a folder is listed once: asking for each file is slow on a network

    def place(self, name: str, where: str, *, deep: bool = False) -> Place | None:
        """Find a picture by its whole name, else, if `deep` or in an archive, by the end of its name."""
        exact = self._find(name)
        return self._search(name, where) if exact is None and (deep or self.archive) else exact

    def _find(self, name: str) -> Place | None:
        if self.members is not None:
            return self.members.get(posixpath.normpath(name))
        folder, base = os.path.split(self.path / name)
        return self.listing(folder).get(unicodedata.normalize("NFC", base))

    def _search(self, name: str, where: str) -> Place | None:
        path = posixpath.normpath(name)
        below = self.by_base.get(unicodedata.normalize("NFC", posixpath.basename(path)), [])
        matching = [item for item in below if f"/{item[0]}".endswith(f"/{path}")] or below
        if len(matching) > 1:
            raise DataError(
                f"{where}: {len(matching)} pictures are called {name!r}, such as {matching[0][0]} and {matching[1][0]}"
                f" in {self.path}; give the name with its folder"
            )
        return matching[0][1] if matching else None

    @functools.cached_property
    def by_base(self) -> dict[str, list[tuple[str, Place]]]:
        """All files by the last part of their names: names and places."""
        by_name = collections.defaultdict[str, list[tuple[str, Place]]](list)
        for name, place in self.members.items() if self.members is not None else _walk(self.path):
            by_name[unicodedata.normalize("NFC", posixpath.basename(name))].append((name, place))
        return by_name


def _listing(folder: str) -> dict[str, str]:
    """Return the paths of the regular files in a folder by name; {} if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {unicodedata.normalize("NFC", entry.name): entry.path for entry in entries if entry.is_file()}
    except OSError:
        return {}


def _walk(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yield the name in the folder, and the path, of each picture below it."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if pictures.is_picture(name):
                yield pathlib.PurePath(os.path.relpath(path, folder)).as_posix(), path
