"""Files of tables by split: local Parquet and Arrow files and shards, folders that `datasets` wrote, the hub's."""

import glob
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from jtasks import storage
from jtasks.data import files, hub, records, values
from jtasks.errors import ConfigError, DataError

SUFFIXES = (".parquet", ".arrow")
SPLITS = {"train": ("train",), "valid": ("validation", "valid", "val", "dev"), "test": ("test",)}


def is_table(name: str, folder: pathlib.Path) -> bool:
    """Return whether `arrow.find` reads a name: `hf:NAME`, Parquet, Arrow, shards, or a folder here or in `folder`."""
    plain = pathlib.PurePath(name.partition("#")[0]).name
    return pathlib.PurePath(name).suffix.lower() in SUFFIXES or records.is_pattern(plain) or is_folder(name, folder)


def is_table_file(path: pathlib.Path) -> bool:
    """Return whether a file has rows of columns by its name: Parquet, Arrow, or a shard of records."""
    return path.suffix.lower() in SUFFIXES or records.is_shard(path.name)


def is_folder(name: str, folder: pathlib.Path) -> bool:
    """Return whether a name is `hf:NAME`, or a folder's, perhaps with `#SPLIT`."""
    plain = name.partition("#")[0]
    places = (storage.local(plain), folder / plain) if pathlib.Path(plain).name else ()
    return name.startswith(hub.PREFIX) or any(place.is_dir() for place in places)


def locate(name: str, split: str, field: str, folder: pathlib.Path, *, own: bool = False) -> list[pathlib.Path] | None:
    """Return the files of one split of a table, as `arrow.find` describes; None if there is no such split."""
    plain, _, other = name.partition("#")
    given = hub.local(plain)
    path = next((place for place in (given, folder / given) if place.exists()), None)
    if path is not None and (path.is_dir() or not records.is_shard(path.name)):
        paths = _local_files(path.absolute(), split, other)
    elif records.is_pattern(given.name):
        paths = _shards(expand(str(given), folder, field), split, other, own=own or path is not None)
    elif name.startswith(hub.PREFIX):
        paths = _hub_files(hub.require(name), split)
    else:
        raise ConfigError(f"no file or folder {plain!r} ({field})\n  looked for: {given}, {folder / given}")
    if paths is None and other:
        raise ConfigError(f"{field}: {plain} has no split {other!r}")
    return paths


def _local_files(path: pathlib.Path, split: str, other: str) -> list[pathlib.Path] | None:
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{path} must be a .parquet or .arrow file, or a folder of such files")
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = values.entry(read_json(path / "dataset_dict.json"), "splits", list, str(path / "dataset_dict.json"))
        chosen = next((name for name in ([other] if other else SPLITS[split]) if name in splits), None)
        if chosen is None or not files.is_plain(chosen):
            return None
        path = path / chosen
    if (path / "state.json").is_file():
        where = str(path / "state.json")
        entries = values.entry(read_json(path / "state.json"), "_data_files", list, where)
        names = [values.entry(entry, "filename", str, where) for entry in entries]
        if odd := [name for name in names if not files.is_plain(name) or not (path / name).is_file()]:
            raise DataError(f"{where} names {odd[0]!r}, which is not a file of the folder")
        return [path / name for name in names]
    inside = sorted(str(place.relative_to(path).as_posix()) for place in path.rglob("*.parquet"))
    if not inside and (shards := sorted(place for place in path.rglob("*") if records.is_shard(place.name))):
        return _shards(shards, split, other)
    if not inside:
        raise ConfigError(
            f"{path} holds no Parquet files and no shards, and is not a folder that save_to_disk of datasets wrote;"
            " other files are given by their own names"
        )
    chosen_files = choose(inside, "", split, other, str(path))
    return None if chosen_files is None else [path / name for name in chosen_files]


def expand(pattern: str, folder: pathlib.Path, field: str) -> list[pathlib.Path]:
    """Return the files of a pattern with `*`, `?`, `[]`, `**` and `{000..127}`, sorted; here, else in `folder`.

    A folder that exists under the name of the pattern is that folder.
    """
    for place in (pathlib.Path(), folder):
        paths = set[pathlib.Path]()
        for each in _expand_braces(pattern):
            root, parts = (place / each).absolute(), list[str]()
            while not root.exists():
                parts.insert(0, root.name)
                root = root.parent
            inside = glob.glob("/".join(parts), root_dir=root, recursive=True) if parts else [""]
            paths |= {root / name for name in inside if (root / name).is_file()}
        if paths:
            return sorted(paths)
    raise ConfigError(f"no file fits {pattern!r} ({field})\n  looked in: {pathlib.Path().absolute()}, {folder}")


def _expand_braces(pattern: str) -> list[str]:
    """Return the names that `{000..127}` and `{a,b}` in a pattern stand for, as in a shell."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    numbers = range(int(first), int(last) + 1) if first else ()
    choices = words.split(",") if words else [str(number).zfill(len(first)) for number in numbers]
    return [
        name
        for choice in choices
        for name in _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])
    ]


def _shards(paths: list[pathlib.Path], split: str, other: str, *, own: bool = False) -> list[pathlib.Path] | None:
    """Return the shards of one split by their names; of shards that name no split, all are train, or the `own` ones."""
    known = [word for words in SPLITS.values() for word in words]
    words = {path: records.split_word(path, [*known, other]) for path in paths}
    if not other and not set(words.values()) & set(known):
        return paths if own or split == "train" else None
    return [path for path in paths if words[path] in ([other] if other else SPLITS[split])] or None


def _hub_files(name: hub.Name, split: str) -> list[pathlib.Path] | None:
    if not name.revision:
        pinned = hub.parse(hub.pin(str(name), "dataset"))
        assert pinned is not None
        name = pinned
    tables = [path for path in hub.listing(name) if path.endswith(".parquet")]
    if not tables:
        raise DataError(f"{name} has no Parquet files, the only ones that jtasks reads from the hub")
    chosen = choose(tables, name.config, split, name.split, str(name))
    return None if chosen is None else hub.fetch_files(name, chosen)


def choose(paths: Sequence[str], config: str, split: str, other: str, where: str) -> list[str] | None:
    """Choose the Parquet files of one config and split by their names; None if the config has no such split.

    The split is the start of a file's name (`train-00000-of-00002.parquet`), else the folder's name; the folders before
    it, without `data`, are the config. If no file has the name of a split, all are train.

    >>> choose(["mnli/train-0.parquet", "mnli/test_matched-0.parquet"], "mnli", "test", "test_matched", "")
    ['mnli/test_matched-0.parquet']

    Raises:
      ConfigError: there is no such config, or there are several and none is given.
    """
    places = {path: _place(path) for path in sorted(paths)}
    configs = sorted({own for own, _ in places.values()})
    usual = next((name for name in ("", "default") if name in configs), configs[0] if len(configs) == 1 else None)
    wanted = config or usual
    if wanted is None or (wanted not in configs):
        hint = "give one of them" if wanted is None else f"none is {wanted!r}"
        raise ConfigError(f"{where} has the configs {', '.join(map(repr, configs))}; {hint}, as in hf:NAME/CONFIG")
    by_split: dict[str, list[str]] = {}
    for path, (own, name) in places.items():
        if own == wanted:
            by_split.setdefault(name, []).append(path)
    if other and other not in by_split:
        raise ConfigError(f"{where} has the splits {', '.join(by_split)}; none is {other!r}")
    if not other and not any(name in by_split for names in SPLITS.values() for name in names):
        return [path for chosen in by_split.values() for path in chosen] if split == "train" else None
    return next((by_split[name] for name in ([other] if other else SPLITS[split]) if name in by_split), None)


def _place(path: str) -> tuple[str, str]:
    """Return the config and the split of a Parquet file by its path."""
    *folders, name = pathlib.PurePosixPath(path).parts
    split = re.sub(r"(^\d+|[-_.]\d+(-of-\d+)?(-[0-9a-f]{16})?|)\.parquet$", "", name)
    if not split and folders:
        split = folders.pop()
    return "/".join(folder for folder in folders if folder != "data"), split.removeprefix("partial-")


def read_json(path: pathlib.Path) -> Any:
    """Read a JSON file that `datasets` wrote."""
    return values.parse(files.decode(files.read(path), str(path)), str(path))
