"""Repositories on the Hugging Face hub: `hf:NAME[@REVISION]`, and for data `hf:NAME[/CONFIG][@REVISION][#SPLIT]`.

A local folder of the name wins. Files stay in the hub's own cache; HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT
mean what they mean to huggingface_hub. This is the only module that imports huggingface_hub.
"""

import contextlib
import glob
import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from jtasks import storage
from jtasks.console import say
from jtasks.errors import ConfigError, DataError

Kind = Literal["model", "dataset"]

PREFIX = "hf:"
COMMIT = re.compile("[0-9a-f]{40}")
CONVERTED = "refs/convert/parquet"  # the revision in which the hub keeps a data set's automatic copy in Parquet

# Files of a model, by patterns: what describes it, its tokenizer, and its weights in safetensors alone.
SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json")
TOKENIZER = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("spiece.model", "source.spm", "target.spm", "target_vocab.json"),
)
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
MODEL = (*SETTINGS, *TOKENIZER, *WEIGHTS)


class Name(NamedTuple):
    """A name on the hub."""

    repo: str
    config: str = ""  # a folder of a data set
    revision: str = ""  # a branch, a tag or a commit; "": the default branch
    split: str = ""

    def __str__(self) -> str:
        parts = ("/", self.config), ("@", self.revision), ("#", self.split)
        return PREFIX + self.repo + "".join(mark + part for mark, part in parts if part)


def local(spec: str) -> pathlib.Path:
    """Return the local path that `hf:PATH` may name."""
    return storage.local(spec.removeprefix(PREFIX))


def parse(spec: str) -> Name | None:
    """Parse a name on the hub; None if it cannot be one, such as an absolute path.

    >>> parse("hf:nyu-mll/glue/mnli@v1#validation_matched")
    Name(repo='nyu-mll/glue', config='mnli', revision='v1', split='validation_matched')
    """
    part = r"[A-Za-z0-9][\w.-]*"
    name = rf"({part}(?:/{part})?)(?:/({part}))?(?:@([^#\s]+))?(?:#(\S+))?"
    match = re.fullmatch(name, spec.removeprefix(PREFIX), re.ASCII)
    return Name(*(group or "" for group in match.groups())) if match else None


def require(spec: str) -> Name:
    """Parse a name; raise ConfigError if it cannot be one."""
    name = parse(spec)
    if name is None:
        raise ConfigError(f"{spec}: there is no such folder, and it is not a name on the hub, hf:NAME[@REVISION]")
    return name


def pin(spec: str, kind: Kind) -> str:
    """Return `spec` with the commit that its revision stands for now.

    A local folder and a commit stay as they are. A data set without Parquet files gets the commit of the hub's
    automatic copy in Parquet.

    Raises:
      ConfigError: there is no such folder, repository or revision.
      DataError: the hub cannot be asked.
    """
    name = parse(spec)
    if name is None or local(spec.partition("#")[0]).exists() or COMMIT.fullmatch(name.revision):
        return spec
    if kind == "model":
        _require_model(name)
    pinned = name._replace(revision=_commit(name, kind))
    if kind == "dataset" and not name.revision and not any(path.endswith(".parquet") for path in listing(pinned)):
        try:
            pinned = name._replace(revision=_commit(name._replace(revision=CONVERTED), kind))
        except ConfigError as error:
            raise ConfigError(f"{spec} has no Parquet files, and the hub has no copy in Parquet of it") from error
    return str(pinned)


def model_folder(spec: str, *patterns: str) -> pathlib.Path:
    """Return the folder of a model: a local one, or the hub's files that match the patterns, fetched if absent.

    Args:
      spec: `hf:FOLDER` or `hf:NAME[@REVISION]`.
      patterns: of the names of the files, such as `MODEL`.

    Raises:
      ConfigError: there is no such folder, repository or revision.
      DataError: a file cannot be fetched.
    """
    folder, name = local(spec), parse(spec)
    if folder.is_dir() or name is None:
        return folder
    _require_model(name)
    return fetch(name, "model", patterns)


def _require_model(name: Name) -> None:
    if name.config or name.split:
        raise ConfigError(f"{name}: there is no such folder, and a model on the hub has a name such as hf:OWNER/NAME")


def listing(name: Name) -> list[str]:
    """Return the paths of the files of a data set at a commit, from the cache if it knows them."""
    hub = _library(name)
    try:
        return [file.path for file in hub.get_cached_repo_tree(name.repo, repo_type="dataset", revision=name.revision)]
    except hub.errors.CachedRepoTreeNotFoundError:
        with _as_own_errors(name, "dataset", hub):
            return list(hub.HfApi().list_repo_files(name.repo, repo_type="dataset", revision=name.revision or None))


def fetch_files(name: Name, paths: Sequence[str]) -> list[pathlib.Path]:
    """Return the local paths of files of a data set, fetched if absent."""
    folder = fetch(name, "dataset", [glob.escape(path) for path in paths])
    return [folder / path for path in paths]


def fetch(name: Name, kind: Kind, patterns: Sequence[str]) -> pathlib.Path:
    """Return the cache's folder with the files that match `patterns`; what is absent is fetched and its hash checked.

    A broken connection is resumed. After a failure the same command fetches only the files that are not whole.

    Raises:
      ConfigError: there is no such repository or revision.
      DataError: the hub cannot be reached and the files are not in the cache, access is denied, or a file's content
        does not have the hash that the hub says.
    """
    hub = _library(name)
    repo = pathlib.Path(hub.constants.HF_HUB_CACHE) / f"{kind}s--{name.repo.replace('/', '--')}"
    folder = repo / "snapshots" / name.revision
    if COMMIT.fullmatch(name.revision) and _is_whole(name, kind, patterns, folder, hub):
        return folder
    before = _whole_files(repo / "blobs")
    if not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
    with _as_own_errors(name, kind, hub):
        options = {"repo_type": kind, "revision": name.revision or None, "allow_patterns": list(patterns)}
        folder = pathlib.Path(hub.snapshot_download(name.repo, **options))
    if new := _whole_files(repo / "blobs") - before:
        _verify(name, folder, new)
        say(f"fetched {len(new)} file{'s' * (len(new) > 1)} of {name} into {folder}")
    return folder


def _is_whole(name: Name, kind: Kind, patterns: Sequence[str], folder: pathlib.Path, hub: Any) -> bool:
    """Return whether the cache has all files of a commit that match `patterns`, without asking the hub."""
    try:
        tree = hub.get_cached_repo_tree(name.repo, repo_type=kind, revision=name.revision)
    except hub.errors.CachedRepoTreeNotFoundError:
        return False
    wanted = hub.utils.filter_repo_objects([file.path for file in tree], allow_patterns=list(patterns))
    return all((folder / path).is_file() for path in wanted)


def _commit(name: Name, kind: Kind) -> str:
    hub = _library(name)
    with _as_own_errors(name, kind, hub):
        return str(hub.HfApi().resolve_revision(name.repo, repo_type=kind, revision=name.revision or None).resolved)


def _library(name: Name) -> Any:
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise DataError(
            f"{name}: there is no such folder, and huggingface_hub, which fetches it from the hub, cannot be imported"
            f" ({error}): pip install 'jtasks[hub]', or copy the repository into a folder and give that"
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def _as_own_errors(name: Name, kind: Kind, hub: Any) -> Iterator[None]:
    """Convert the exceptions of huggingface_hub, each to one message."""
    errors, place = hub.errors, hub.constants.ENDPOINT
    try:
        yield
    except (errors.HFValidationError, errors.HfUriError) as error:
        raise ConfigError(f"{name} is not a name on the hub: {_brief(error)}") from error
    except errors.GatedRepoError as error:
        raise DataError(
            f"{name} is gated ({_brief(error)}): accept its terms at {place}/{name.repo}, and set HF_TOKEN to a token"
            " of that account"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(
            f"{name}: {name.repo} on {place} has no revision {name.revision or 'main'!r}; expected a branch, a tag or a"
            " commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        token = "the token given does not open it" if hub.get_token() else "set HF_TOKEN if it is private"
        raise ConfigError(
            f"{name}: there is no such folder here, and no {kind} {name.repo} on {place}: check the name; {token}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.RevisionResolutionError, errors.OfflineModeIsEnabled) as error:
        reason = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else f"{place} cannot be reached"
        raise DataError(
            f"{name} is not whole in the cache {hub.constants.HF_HUB_CACHE}, and {reason}: run the same command once"
            " with the network, or give a folder that holds it"
        ) from error
    except Exception as error:  # the HTTP client's own errors, a full disk
        status = getattr(getattr(error, "response", None), "status_code", None)
        denied = "access is denied: set HF_TOKEN to a token that may read it" if status in (401, 403) else ""
        what = denied or "check the network and the disk, and run the same command again: it fetches what is not whole"
        raise DataError(f"{name} cannot be fetched from {place} ({_brief(error)}): {what}") from error


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def _whole_files(blobs: pathlib.Path) -> set[str]:
    """Return the names of the cache's whole files, which are their hashes."""
    with contextlib.suppress(OSError):
        return {name for name in os.listdir(blobs) if not name.endswith(".incomplete")}
    return set()


def _verify(name: Name, folder: pathlib.Path, new: set[str]) -> None:
    """Compare new files with the hashes that name them; delete a file that differs.

    Where the cache has no links (HF_HUB_DISABLE_SYMLINKS), only the sizes are checked, by huggingface_hub.
    """
    blobs = {path: pathlib.PurePath(os.readlink(path)).name for path in folder.rglob("*") if path.is_symlink()}
    wrong = {path: blob for path, blob in sorted(blobs.items()) if blob in new and not _has_hash(path, blob)}
    for path, blob in wrong.items():
        path.unlink()
        (folder.parent.parent / "blobs" / blob).unlink(missing_ok=True)
    if wrong:
        path, blob = next(iter(wrong.items()))
        raise DataError(
            f"{path.relative_to(folder)} of {name} does not have the hash {blob} of the hub: the damaged download"
            " is deleted; run the same command again"
        )


def _has_hash(path: pathlib.Path, expected: str) -> bool:
    """Return whether a file has a hash of the hub: SHA-256 of a large file, Git's SHA-1 of a blob of a small one."""
    if re.fullmatch("[0-9a-f]{64}", expected):
        hasher = hashlib.sha256()
    elif COMMIT.fullmatch(expected):
        hasher = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return True
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            hasher.update(part)
    return hasher.hexdigest() == expected
