"""The only door to Orbax: save without holding the loop, restore strictly, import parameters.

A checkpoint is written as `saving-STEP/`, gets the checksums of its files (Orbax reads a flipped byte without a word)
and is renamed last: see `checkpoint_files`. Each process computes the checksums of the files it wrote, in a thread.
Restoring verifies them in threads beside the one that reads the arrays, so the disk is read once.
"""

import concurrent.futures
import contextlib
import gc
import json
import math
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtasks import storage
from jtasks.distributed import processes
from jtasks.errors import CheckpointError, DamagedError
from jtasks.faults import some
from jtasks.run import checkpoint_files
from jtasks.tree import leaf_name

# Host memory of a restore beyond the state itself: about HOST_BYTES, or one shard if that is larger; of a save about
# three shards, of which two are in flight.
HOST_BYTES = 2**28
# Largest chunk of an array in a checkpoint. Chunks are compressed in parallel, and none waits for a whole array. The C
# library returns a block of 32 MiB or more to the system at once, and may keep a smaller one.
CHUNK_BYTES = 2**26
SLICE_BYTES = 2**22  # smallest slice of a replicated array that a device saves; one device saves a smaller array whole


class Checkpoints:
    """The writer of a run's checkpoints under `folder`; one save is in progress at a time."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder.absolute()  # Orbax refuses relative paths
        # Processes with a working copy each write files of their own, which need no merging on one file system.
        self._apart = not processes.alone() and storage.url_of(self.folder) is not None
        self._checkpointer: Any = None  # opened by the first save, whose state it fits
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        self._writers: set[int] = set()  # the processes that must have written a part
        self._place = contextlib.ExitStack()  # what `plain` holds open during a save
        processes.before_abort(lambda: checkpoint_files.clear_unfinished(self.folder))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        with contextlib.nullcontext() if kind is None else contextlib.suppress(CheckpointError):
            self.close()

    def save(
        self, state: Any, step: int, expendable: Collection[int] = (), notes: Mapping[str, str] | None = None
    ) -> None:
        """Copy the state after `step` to the host, write it in the background, then delete the `expendable` steps.

        `notes` are further files of the checkpoint, {name: text}.

        The folder above the checkpoints must exist: a deleted run folder is not created again.

        Raises:
          CheckpointError: the previous save failed, or this one cannot begin.
        """
        import orbax.checkpoint as ocp

        self.wait()
        partial = self.folder / f"saving-{step}"
        try:
            self.folder.mkdir(exist_ok=True)
            self._clear(partial)
            if self._apart and partial.with_name(str(step)).exists():
                self.delete([step])
            self._place.close()
            place = self._place.enter_context(plain(self.folder))
            tree = leaves(state)
            if self._checkpointer is None:
                self._checkpointer = _open_writer(tree, apart=self._apart)
            chunks = dict.fromkeys(tree, ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES))
            self._checkpointer.save(place / partial.name, args=ocp.args.PyTreeSave(tree, save_args=chunks), force=True)
        except (OSError, ValueError) as error:
            self._clear(partial)
            raise CheckpointError(f"step {step} cannot be saved in {self.folder}: {_reason(error)}") from error
        shards = (shard for leaf in tree.values() for shard in leaf.global_shards)
        self._writers = {shard.device.process_index for shard in shards if shard.replica_id == 0}
        self._thread = threading.Thread(
            target=self._commit, args=(partial, step, expendable, notes or {}), name="commit", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save in progress; raises CheckpointError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Wait for the save in progress, and end Orbax's threads."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # Orbax repeats what `wait` has raised
                if self._checkpointer is not None:
                    self._checkpointer.close()
            self._place.close()

    def delete(self, steps: Collection[int]) -> None:
        """Delete finished checkpoints."""
        if jax.process_index() == 0:
            for step in steps:
                storage.remove(self.folder / str(step))
                shutil.rmtree(self.folder / str(step), ignore_errors=True)

    def _commit(self, partial: pathlib.Path, step: int, expendable: Collection[int], notes: Mapping[str, str]) -> None:
        try:
            assert self._checkpointer is not None  # `save` has opened it
            self._checkpointer.wait_until_finished()
            for name, text in notes.items() if jax.process_index() == 0 else ():
                (partial / name).write_text(text, encoding="utf-8")
            own = self._own_files(partial)
            sums = checkpoint_files.checksums(partial, own)
            checkpoint_files.flush(partial, own)
            if self._apart and jax.process_index():
                storage.send(partial, self.folder / str(step), own)
                shutil.rmtree(partial, ignore_errors=True)
            parts = processes.gather("checksums", sums)
            if jax.process_index() == 0:
                self._require_parts(partial)
                sums = {name: entry for part in parts for name, entry in part.items()}
                (partial / checkpoint_files.CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
                checkpoint_files.flush(partial, [checkpoint_files.CHECKSUMS])
                shutil.rmtree(self.folder / str(step), ignore_errors=True)
                partial.rename(self.folder / str(step))
                checkpoint_files.flush_one(self.folder)
                storage.publish(self.folder / str(step), whole=not self._apart)
            self.delete(expendable)
        except BaseException as error:
            self._clear(partial)
            text = f"step {step} was not saved in {self.folder}: {_reason(error)}"
            if not processes.alone():  # Orbax keeps the other processes waiting for this one
                processes.end(f"error: {text}", 1)
            self._error = CheckpointError(text)  # raised in the loop, by wait()
            self._error.__cause__ = error

    def _own_files(self, partial: pathlib.Path) -> list[str]:
        """Return the names of the files that this process has written, and is the only one to have written."""
        names, own = checkpoint_files.files(partial), jax.process_index()
        if self._apart:  # every process has written the description of each array
            return [name for name in names if not own or checkpoint_files.is_chunk(name)]
        return [name for name in names if checkpoint_files.writer(name) == own]

    def _require_parts(self, partial: pathlib.Path) -> None:
        """Raise CheckpointError if a process's part is missing: its folder of this name may be another one."""
        if self._apart:
            return
        missing = [i for i in sorted(self._writers) if not (partial / f"ocdbt.process_{i}").is_dir()]
        if missing:
            raise CheckpointError(f"the part of process {', '.join(map(str, missing))} is not in {partial.parent}")

    def _clear(self, partial: pathlib.Path) -> None:
        """Delete what a failed save left, also under Orbax's name for unfinished saves: the disk may be full."""
        if jax.process_index() == 0:
            for name in (partial.name, f"{partial.name}.orbax-checkpoint-tmp"):
                shutil.rmtree(self.folder / name, ignore_errors=True)


def _open_writer(tree: Mapping[str, jax.Array], *, apart: bool) -> Any:
    """Return a writer of states like `tree`, by processes with files of their own if `apart`.

    Without a limit on the bytes in flight, Orbax holds the whole compressed state in memory until the end.
    """
    import orbax.checkpoint as ocp

    options, primary = _multiprocessing(apart=apart), None if apart else 0
    # By default each replica of an array saves a slice of it, and each shape's slicing is compiled for that.
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE_BYTES, primary_host=primary)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    largest = max((x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in tree.values()), default=0)
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=not apart, type_handler_registry=registry, save_concurrent_gb=_gigabytes(2 * largest), **options
    )
    return ocp.AsyncCheckpointer(handler, **options)


@contextlib.contextmanager
def plain(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    r"""Yield a path of the folder that Orbax and TensorStore read literally.

    Both take [ ] and \ for parts of a pattern, match nothing, and report that only on restore. Both refuse `gs:` and
    bytes that are not UTF-8. An open folder has a second path, under /proc/self/fd, without these characters.
    """
    path = folder.absolute()
    if re.fullmatch(r"[\w /.,=+@~^%-]*", str(path)) or not pathlib.Path("/proc/self/fd").is_dir():
        yield path
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield pathlib.Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """Return the reason in an error of Orbax or TensorStore, without the libraries' own source locations."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r" \[[^]]*\]$", "", line).rpartition('": ')[2]


def restore(folder: pathlib.Path, like: Any, only: str = "", *, verify: bool = False) -> Any:
    """Restore the state saved in `folder`, with the structure, shapes, types and shardings of `like`.

    Args:
      folder: the checkpoint.
      like: shapes, types and shardings.
      only: a prefix of paths such as "params/": only that part of the checkpoint must fit.
      verify: whether to compare the large files with their checksums meanwhile; each process reads its share.

    Raises:
      CheckpointError: leaves are missing, extra, or of another shape or type; all are listed.
      DamagedError: the content of a file has changed; all processes raise it.
    """
    wanted = leaves(like)
    saved = {name: leaf for name, leaf in _saved_leaves(folder).items() if name.startswith(only)}
    problems = [f"missing: {name} {_describe(wanted[name])}" for name in wanted if name not in saved]
    problems += [f"not in this run: {name} {_describe(saved[name])}" for name in saved if name not in wanted]
    problems += [
        f"{name} is {_describe(saved[name])}, expected {_describe(wanted[name])}"
        for name in wanted
        if name in saved and _describe(saved[name]) != _describe(wanted[name])
    ]
    if problems:
        raise CheckpointError(
            f"checkpoint {folder} does not fit this config:\n  " + "\n  ".join(problems) + "\nuse another workdir, or"
            " config.init_from to take over the parameters that fit"
        )
    with _verified(folder) if verify else contextlib.nullcontext():
        arrays = _read(folder, wanted, saved)
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    restored = [arrays[leaf_name(path)] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in paths]
    return jax.tree.unflatten(structure, restored)


@contextlib.contextmanager
def _verified(folder: pathlib.Path) -> Iterator[None]:
    """Compare the large files of a checkpoint with their checksums while the block reads them.

    Raises DamagedError, in place of an error of the block, on all processes if any of them found a difference.
    """
    share = checkpoint_files.large_files(folder, jax.process_index(), jax.process_count())
    with concurrent.futures.ThreadPoolExecutor(1, "verify") as pool:
        verification = pool.submit(checkpoint_files.changed, folder, share)
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # Orbax's, perhaps about the damage
            failure = error
        try:
            problems = verification.result()
        except OSError as error:
            problems = [str(error)]
    found = processes.gather("damage", problems)
    problems = processes.broadcast_from_first(lambda: sorted(problem for part in found for problem in part))
    if problems:
        raise DamagedError(checkpoint_files.describe_damage(folder, problems)) from failure
    if failure is not None:
        raise failure


def arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Return all arrays of a checkpoint by "/"-joined path, in host memory, for tools that inspect or compare them."""
    import orbax.checkpoint as ocp

    like = dict.fromkeys(_saved_leaves(folder), ocp.RestoreArgs(restore_type=np.ndarray))
    handler = ocp.PyTreeCheckpointHandler(**_multiprocessing())
    with plain(folder.parent) as place, ocp.Checkpointer(handler, **_multiprocessing()) as checkpointer:
        return checkpointer.restore(place / folder.name, args=ocp.args.PyTreeRestore(restore_args=like))


def import_params(source: str, params: Any, warn: Callable[[str], None]) -> tuple[Any, dict[str, list[str]]]:
    """Take from a checkpoint the parameters that fit by name and shape.

    Args:
      source: a workdir, its `checkpoints` folder, or one `checkpoints/STEP`.
      params: the parameters as initialized; leaves that do not fit stay as they are.

    Returns:
      The parameters, and the names that were `taken`, `left` as initialized, and `unused` of the checkpoint.
    """
    folder, prefix, saved = _saved_params(source, warn)
    wanted = leaves(params)
    taken = {n: leaf for n, leaf in wanted.items() if n in saved and _describe(saved[n]) == _describe(leaf)}
    if not taken:
        there, here = ([f"{n} {_describe(leaf)}" for n, leaf in of.items()] for of in (saved, wanted))
        raise CheckpointError(
            f"no parameter of config.init_from={source} fits: it has {some(there)}; wanted {some(here)}"
        )
    found = _read(folder, {prefix + n: leaf for n, leaf in taken.items()}, {prefix + n: x for n, x in saved.items()})
    arrays = {n.removeprefix(prefix): array for n, array in found.items()}
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    report = {
        "taken": list(taken),
        "left": [f"{n} {_describe(leaf)}" for n, leaf in wanted.items() if n not in taken],
        "unused": [f"{n} {_describe(leaf)}" for n, leaf in saved.items() if n not in taken],
    }
    return jax.tree.unflatten(structure, [arrays.get(leaf_name(path), leaf) for path, leaf in paths]), report


def absent_params(source: str, params: Any, warn: Callable[[str], None]) -> set[str]:
    """Return the names of the parameters, or of their shapes, that `import_params` would leave as initialized."""
    _, _, saved = _saved_params(source, warn)
    return {n for n, leaf in leaves(params).items() if n not in saved or _describe(saved[n]) != _describe(leaf)}


def _saved_params(source: str, warn: Callable[[str], None]) -> tuple[pathlib.Path, str, dict[str, Any]]:
    """Return the checkpoint that config.init_from means, and the prefix and the shapes of its parameters by name."""
    folder, named = checkpoint_files.locate(source)
    step = processes.broadcast_from_first(
        lambda: (checkpoint_files.require(folder, int(named)) if named else checkpoint_files.newest(folder, warn)) or 0
    )
    if not step:
        raise CheckpointError(
            f"no checkpoint in config.init_from={source}: give a workdir of a run, or checkpoints/STEP"
        )
    folder = folder / str(step)
    saved = _saved_leaves(folder)
    prefix = "ema_params/" if any(name.startswith("ema_params/") for name in saved) else "params/"
    return folder, prefix, {name.removeprefix(prefix): leaf for name, leaf in saved.items() if name.startswith(prefix)}


def leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves by "/"-joined path, without empty arrays, which Orbax refuses."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.size}


def _saved_leaves(folder: pathlib.Path) -> Mapping[str, Any]:
    import orbax.checkpoint as ocp

    storage.fetch(folder)
    with plain(folder.parent) as place, ocp.StandardCheckpointer(**_multiprocessing()) as checkpointer:
        return dict(checkpointer.metadata(place / folder.name).item_metadata.tree)


def _read(folder: pathlib.Path, wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Read only the `wanted` leaves, each onto its own sharding, of those that are `saved`."""
    import orbax.checkpoint as ocp

    like = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in wanted.items()}
    sizes = {name: _read_bytes(saved[name], x.sharding.shard_shape(x.shape)) for name, x in like.items()}
    # A damaged file may stop one process: none waits for another here.
    alone = _multiprocessing({jax.process_index()})
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_gigabytes(max(HOST_BYTES, *sizes.values())), **alone)
    found: dict[str, jax.Array] = {}
    with plain(folder.parent) as place, ocp.Checkpointer(handler, **alone) as checkpointer:
        for names in _groups(sizes):
            part = {name: like[name] for name in names}
            arguments = ocp.args.PyTreeRestore(
                part, restore_args=ocp.checkpoint_utils.construct_restore_args(part), partial_restore=True
            )
            found |= jax.block_until_ready(checkpointer.restore(place / folder.name, args=arguments))
            gc.collect(0)  # JAX then lets go of the host's copies of arrays that are on their devices
    return found


def _groups(sizes: Mapping[str, int]) -> list[list[str]]:
    """Group names in their order: a group is full once it has HOST_BYTES."""
    groups: list[list[str]] = [[]]
    for name, size in sizes.items():
        if groups[-1] and sum(sizes[n] for n in groups[-1]) + size > HOST_BYTES:
            groups.append([])
        groups[-1].append(name)
    return groups


def _gigabytes(largest: int) -> float:
    """Return the bytes that may be in flight at once in units of Orbax, which wants more than the `largest` shard."""
    return max(CHUNK_BYTES, largest + 1) / 1e9


def _read_bytes(saved: Any, shard: tuple[int, ...]) -> int:
    """Return an upper bound of the bytes of the chunks that a shard lies in."""
    size: int = saved.dtype.itemsize
    for length, part, chunk in zip(saved.shape, shard, saved.storage.chunk_shape or shard, strict=True):
        size *= chunk * min((part + chunk - 2) // chunk + 1, -(-length // chunk))
    return size


def _multiprocessing(active: set[int] | None = None, *, apart: bool = False) -> dict[str, Any]:
    """Return options that name the processes to Orbax, by default all; its own default needs equally many devices.

    With `apart`, every process makes and finishes the folder on a file system of its own.
    """
    import orbax.checkpoint as ocp

    active = active or set(range(jax.process_count()))
    primary = None if apart else 0
    options = ocp.options.MultiprocessingOptions(active_processes=active, primary_host=primary)
    return {"multiprocessing_options": options}


def _describe(leaf: Any) -> str:
    return f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"
